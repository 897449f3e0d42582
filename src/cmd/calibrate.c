/* calibrate.c - `moebatch calibrate`: measures this host part by part and writes the figures that
 * `plan` and `study JOB.yaml` predict runs from.
 *
 * 1. what the file has already   2. kernels, rank 0 alone   3. the all-to-all of one rank
 * 4. the all-to-all of all ranks   5. the engine's own work, on tiny models   6. the file
 */
#include "cmd/calibrate.h"

#include "cmd/cmd.h"
#include "core/clock.h"
#include "core/cpu.h"
#include "core/log.h"
#include "core/rng.h"
#include "model/kernels_compose.h"

#include <errno.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SAMPLES_MAX = 512 };

/* ---- timing ---------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double cal_quartile(struct calibration *c, double *samples, int n)
{
    qsort(samples, (size_t)n, sizeof *samples, by_value);
    double spread = (samples[3 * n / 4] - samples[n / 4]) / fmax(samples[n / 2], 1e-9);
    c->spread_sum += spread;
    c->spreads++;
    c->spread_max = fmax(c->spread_max, spread);
    return samples[n / 4];
}

static double thread_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* Samples of one thread into us[n]. */
static void sample(const struct calibration *c, void (*fn)(void *), void *arg, double *us, int n)
{
    fn(arg);
    double t0 = thread_us();
    fn(arg);
    double once = thread_us() - t0;
    int calls = once > c->sample_s * 1e6 ? 1 : (int)(c->sample_s * 1e6 / fmax(once, 0.02)) + 1;
    for (int i = 0; i < n; i++) {
        t0 = thread_us();
        for (int j = 0; j < calls; j++) fn(arg);
        us[i] = (thread_us() - t0) / calls;
    }
}

double cal_time(struct calibration *c, const struct cal_call *call, int threads)
{
    double us[CAL_THREADS_MAX][SAMPLES_MAX], sum = 0;
    int n = c->samples < SAMPLES_MAX ? c->samples : SAMPLES_MAX;
    if (threads == 1) {
        sample(c, call->fn, call->arg[0], us[0], n);
        return cal_quartile(c, us[0], n);
    }
#pragma omp parallel num_threads(threads)
    {
        int t = omp_get_thread_num();
        sample(c, call->fn, call->arg[t], us[t], n);
    }
    for (int t = 0; t < threads; t++) sum += cal_quartile(c, us[t], n);
    return sum / threads;
}

int cal_threads(const struct calibration *c, enum speed_cores cores)
{
    return cores == SPEED_ONE ? 1 : c->cores < CAL_THREADS_MAX ? c->cores : CAL_THREADS_MAX;
}

static void nobody(void *arg)
{
    (void)arg;
}

void cal_lane(struct lane *lane, int threads)
{
    lane_init(lane, device_cpu(), threads);
    lane->poll = nobody;
}

float *cal_numbers(size_t n)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; x && i < n; i++)
        x[i] = (float)(i % 4096 == 0 || i < 4096 ? rng_uniform(5, i) - 0.5 : x[i - 4096]);
    return x;
}

/* ---- command line ---------------------------------------------------------------------------- */

struct arguments {
    const char *output;
    bool quick, fresh;
};

static void help(void)
{
    puts("moebatch calibrate [options]   (alone, then by mpirun -np N for jobs of N ranks)\n"
         "\n"
         "Measures this host: matrix products of the weight types cached and from memory,\n"
         "attention at several lengths, kernels over rows, the all-to-all, the engine's own work\n"
         "per step, request and token. `moebatch study JOB.yaml` and `moebatch plan` predict a\n"
         "run from the file. Under mpirun the all-to-all of that many ranks is added to a file\n"
         "that this host has written before.\n"
         "\n"
         "  --output FILE    default " HOST_SPEED_DEFAULT "\n"
         "  --fresh          measure everything again, whatever the file has\n"
         "  --quick          fewer samples: seconds instead of most of a minute\n");
    cmd_help_exit_codes(stdout);
}

static enum status parse(int argc, char **argv, struct arguments *a)
{
    *a = (struct arguments){.output = HOST_SPEED_DEFAULT};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--output") && i + 1 < argc)
            a->output = argv[++i];
        else if (!strcmp(argv[i], "--quick"))
            a->quick = true;
        else if (!strcmp(argv[i], "--fresh"))
            a->fresh = true;
        else
            return error_set(ERR_USAGE,
                             "calibrate: unexpected argument %s: see moebatch calibrate "
                             "--help",
                             argv[i]);
    }
    return OK;
}

/* ---- the host -------------------------------------------------------------------------------- */

static void read_cpu(char *out)
{
    char line[512];
    FILE *f = fopen("/proc/cpuinfo", "r");
    snprintf(out, SPEED_TEXT, "unknown");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(out, SPEED_TEXT, "%.200s", colon + 2);
        break;
    }
    if (f) fclose(f);
}

static void describe(struct calibration *c)
{
    struct host_speed *s = &c->speed;
    gethostname(s->host, sizeof s->host - 1);
    read_cpu(s->cpu);
    snprintf(s->name, sizeof s->name, "%.100s", s->host);
    snprintf(s->source, sizeof s->source, "moebatch calibrate%s", c->quick ? " --quick" : "");
    snprintf(s->isa, sizeof s->isa, "%s", isa_name(c->k.isa));
    clock_utc(s->date);
    s->cores = cal_threads(c, SPEED_ALL);
}

/* Whether the file's kernels may be kept. */
static bool keeps(const struct calibration *c, const struct arguments *a, struct host_speed *old)
{
    if (a->fresh || c->ranks == 1 || access(a->output, R_OK) != 0) return false;
    if (host_speed_read(a->output, old) != OK) {
        error_clear();
        return false;
    }
    return !strcmp(old->host, c->speed.host) && !strcmp(old->isa, c->speed.isa) &&
           old->cores == c->speed.cores;
}

static enum status timed(struct calibration *c, const char *what,
                         enum status (*part)(struct calibration *))
{
    double t0 = clock_now_s();
    c->spread_sum = c->spread_max = c->spreads = 0;
    TRY(part(c));
    if (c->rank == 0)
        printf("# %-12s %6.1f s, %4d figures, spread (quartiles) mean %4.1f %%, worst %5.1f %%\n",
               what, clock_now_s() - t0, c->spreads, 100 * c->spread_sum / fmax(1, c->spreads),
               100 * c->spread_max);
    fflush(stdout);
    return OK;
}

static enum status all_to_all_alone(struct calibration *c)
{
    return cal_all_to_all(c, MPI_COMM_SELF);
}

static enum status all_to_all(struct calibration *c)
{
    return cal_all_to_all(c, MPI_COMM_WORLD);
}

static enum status alone(struct calibration *c, const struct arguments *a)
{
    struct host_speed *old = malloc(sizeof *old);
    if (!old) return error_set(ERR_RESOURCE, "calibrate: out of memory");
    bool keep = keeps(c, a, old);
    if (keep) {
        char date[SPEED_TEXT];
        memcpy(date, c->speed.date, sizeof date);
        c->speed = *old;
        printf("# %s: kernels measured %s are kept (--fresh measures them again)\n", a->output,
               old->date);
        memcpy(c->speed.date, date, sizeof date);
    }
    free(old);
    if (keep) return OK;
    TRY(timed(c, "products", cal_products));
    TRY(timed(c, "rows", cal_rows));
    TRY(timed(c, "attention", cal_attention));
    return timed(c, "all-to-all 1", all_to_all_alone);
}

/* The others sleep meanwhile: they must not take the cores. */
static enum status meet(enum status st)
{
    MPI_Request request;
    int mine = (int)st, worst = 0, done = 0;
    MPI_Iallreduce(&mine, &worst, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD, &request);
    for (;;) {
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (done) return (enum status)worst;
        clock_sleep_us(2000);
    }
}

static enum status write_file(const struct calibration *c, const char *path)
{
    FILE *f = fopen(path, "w");
    if (!f) return error_set(ERR_INPUT, "--output: cannot write %s: %s", path, strerror(errno));
    fprintf(f, "# Measured by moebatch calibrate; times are microseconds. Made for this host and "
               "this build only.\n");
    host_speed_write(&c->speed, f);
    if (fclose(f) != 0)
        return error_set(ERR_RESOURCE, "--output: cannot write %s: %s", path, strerror(errno));
    printf("# written: %s\n", path);
    return OK;
}

static enum status run(struct calibration *c, const struct arguments *a)
{
    TRY(kernels_compose(c->k.isa, &c->k));
    describe(c);
    if (c->rank == 0)
        printf("# %s: %s, isa %s, %d cores, %d rank(s)\n", c->speed.host, c->speed.cpu,
               c->speed.isa, c->cores, c->ranks);
    TRY(meet(c->rank == 0 ? alone(c, a) : OK));
    MPI_Bcast(&c->speed, (int)sizeof c->speed, MPI_BYTE, 0, MPI_COMM_WORLD);
    if (c->ranks > 1) TRY(meet(timed(c, "all-to-all", all_to_all)));
    TRY(meet(timed(c, "engine", cal_engine)));
    return meet(c->rank == 0 ? write_file(c, a->output) : OK);
}

enum status cmd_calibrate(int argc, char **argv)
{
    struct arguments a;
    if (cmd_wants_help(argc, argv)) {
        help();
        return OK;
    }
    TRY(parse(argc, argv, &a));
    struct calibration *c = calloc(1, sizeof *c);
    if (!c) return error_set(ERR_RESOURCE, "calibrate: out of memory");
    c->cores = cpu_count();
    c->quick = a.quick;
    c->samples = a.quick ? 5 : 21;
    c->sample_s = a.quick ? 50e-6 : 150e-6;
    int isa = ISA_AVX512_BF16;
    while (!isa_supported((enum isa)isa, NULL)) isa--;
    c->k.isa = (enum isa)isa;
    MPI_Comm_rank(MPI_COMM_WORLD, &c->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &c->ranks);
    enum status st = run(c, &a);
    free(c);
    return st;
}
