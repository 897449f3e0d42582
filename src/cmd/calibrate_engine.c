/* calibrate_engine.c - the engine's own work: random models so small that the rest shows are made
 * and run as jobs; what their steps take beyond the kernels they call is shared out over steps,
 * operations, rows, requests and prompt tokens. Also page faults, and KV that changes ranks. */
#include "checkpoint/synth.h"
#include "cluster/engine_step.h"
#include "cmd/calibrate.h"
#include "cmd/report_read.h"
#include "config/job.h"
#include "engine/run.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PATH_BYTES = 400, PROMPT_MAX = 256 };

/* One job: all its requests alike. */
struct tiny_job {
    int layers, requests, prompt, output, batch, chunk;
};

/* Requests and outputs enough for some dozens of steps of one kind. */
static const struct tiny_job jobs[] = {
    {3, 1, 8, 160, 1, 64}, {9, 1, 8, 120, 1, 64},   {3, 32, 8, 80, 32, 256},
    {3, 512, 4, 1, 8, 32}, {3, 96, 256, 1, 8, 256}, {9, 256, 16, 1, 8, 64},
};
enum { JOBS = sizeof jobs / sizeof *jobs };

static void tiny_model(int layers, struct model_config *m)
{
    (void)synth_preset("deepseek-v3", m);
    m->vocab = 512;
    m->hidden = 128;
    m->layers = layers;
    m->first_dense = 1;
    m->heads = 4;
    m->q_lora = m->kv_lora = 64;
    m->dim_nope = m->dim_v = 32;
    m->dim_rope = 16;
    m->intermediate = 128;
    m->moe_intermediate = 64;
    m->experts = 16;
    m->shared_experts = 1;
    m->topk = 4;
    m->n_group = 4;
    m->topk_group = 2;
    m->max_positions = 1024;
    m->rope.yarn = false;
}

/* ---- files ----------------------------------------------------------------------------------- */

struct folder {
    char path[PATH_BYTES];
};

static enum status folder_make(struct folder *f)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(f->path, sizeof f->path, "%.300s/moebatch-calibrate-XXXXXX",
             tmp && *tmp ? tmp : "/tmp");
    if (mkdtemp(f->path)) return OK;
    return error_set(ERR_RESOURCE,
                     "calibrate: cannot make %s: %s: set TMPDIR to a folder that can "
                     "be written",
                     f->path, strerror(errno));
}

static void folder_remove(const struct folder *f)
{
    static const char *const files[] = {"config.json", "generation_config.json",
                                        "model.safetensors", "model.safetensors.index.json"};
    char path[PATH_BYTES + 64];
    for (int layers = 1; layers < 16; layers++) {
        for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
            snprintf(path, sizeof path, "%s/m%d/%s", f->path, layers, files[i]);
            unlink(path);
        }
        snprintf(path, sizeof path, "%s/m%d", f->path, layers);
        rmdir(path);
    }
    snprintf(path, sizeof path, "%s/tokens.jsonl", f->path);
    unlink(path);
    snprintf(path, sizeof path, "%s/prices.yaml", f->path);
    unlink(path);
    snprintf(path, sizeof path, "%s/results.h5", f->path);
    unlink(path);
    rmdir(f->path);
}

static enum status write_inputs(const struct folder *f, const struct tiny_job *j)
{
    struct model_config m;
    struct synth_options opt = {.dtype = TENSOR_BF16, .shards = 1, .force = true, .threads = 1};
    char path[PATH_BYTES + 32];
    size_t bytes;
    tiny_model(j->layers, &m);
    snprintf(path, sizeof path, "%s/m%d", f->path, j->layers);
    if (access(path, F_OK) != 0) TRY(synth_write(path, &m, &opt, &bytes));
    snprintf(path, sizeof path, "%s/tokens.jsonl", f->path);
    FILE *out = fopen(path, "w");
    if (!out) return error_set(ERR_RESOURCE, "calibrate: cannot write %s", path);
    for (int i = 0; i < j->requests; i++) {
        fprintf(out,
                "{\"custom_id\": \"r%d\", \"method\": \"POST\", \"url\": \"/v1/completions\", "
                "\"body\": {\"max_tokens\": %d, \"prompt\": [",
                i, j->output);
        for (int t = 0; t < j->prompt; t++)
            fprintf(out, "%s%d", t ? ", " : "", 2 + (i * 131 + t * 7 + i / 7) % 500);
        fprintf(out, "]}}\n");
    }
    fclose(out);
    snprintf(path, sizeof path, "%s/prices.yaml", f->path);
    out = fopen(path, "w");
    if (!out) return error_set(ERR_RESOURCE, "calibrate: cannot write %s", path);
    fprintf(out, "usd_per_gpu_hour: 2\nusd_per_million: {input_cache_hit: 1, input_cache_miss: 1, "
                 "output: 1}\n");
    return fclose(out) == 0 ? OK : error_set(ERR_RESOURCE, "calibrate: cannot write %s", path);
}

/* ---- running --------------------------------------------------------------------------------- */

/* The job's own words go nowhere. */
static void hush(int saved[2])
{
    fflush(stdout);
    fflush(stderr);
    int null = open("/dev/null", O_WRONLY);
    for (int i = 0; i < 2; i++) {
        saved[i] = dup(i + 1);
        if (null >= 0) dup2(null, i + 1);
    }
    if (null >= 0) close(null);
}

static void speak(const int saved[2])
{
    fflush(stdout);
    fflush(stderr);
    for (int i = 0; i < 2; i++) {
        dup2(saved[i], i + 1);
        close(saved[i]);
    }
}

static enum status run_job(const struct calibration *c, const struct folder *f,
                           const struct tiny_job *j)
{
    char text[8][2 * PATH_BYTES];
    const char *set[16];
    int n = 0;
    snprintf(text[n++], sizeof *text, "model=%s/m%d", f->path, j->layers);
    snprintf(text[n++], sizeof *text, "tokens=%s/tokens.jsonl", f->path);
    snprintf(text[n++], sizeof *text, "results=%s/results.h5", f->path);
    snprintf(text[n++], sizeof *text, "prices=%s/prices.yaml", f->path);
    snprintf(text[n++], sizeof *text, "mixed.ep=%d", c->ranks);
    snprintf(text[n++], sizeof *text, "mixed.max_batch=%d", j->batch);
    snprintf(text[n++], sizeof *text, "mixed.chunk_tokens=%d", j->chunk);
    for (int i = 0; i < n; i++) set[i] = text[i];
    set[n++] = "mixed.microbatches=1";
    set[n++] = "threads_per_rank=1";
    set[n++] = "kv.prefix_cache=off";
    set[n++] = "sampling.ignore_eos=true";
    set[n++] = "force=true";
    struct job *job = malloc(sizeof *job);
    if (!job) return error_set(ERR_RESOURCE, "calibrate: out of memory");
    enum status st = job_read(NULL, n, set, job);
    struct engine_setup setup = {.job = job, .version = "calibrate", .argv = "calibrate"};
    int saved[2];
    hush(saved);
    if (st == OK) st = engine_run(&setup);
    speak(saved);
    free(job);
    return st;
}

/* The time from one step of the kind to the next, us. */
static enum status period_of(struct calibration *c, const struct folder *f, bool decode, double *us)
{
    struct report_file r;
    char path[PATH_BYTES + 32];
    double *start = NULL, *requests = NULL, *tokens = NULL;
    size_t n = 0, kept = 0;
    const char *table = decode ? "/steps/decode" : "/steps/prefill";
    snprintf(path, sizeof path, "%s/results.h5", f->path);
    TRY(report_open(path, &r));
    enum status st = report_column(&r, table, "t_start", &start, &n);
    if (st == OK) st = report_column(&r, table, "requests", &requests, &n);
    if (st == OK) st = report_column(&r, table, "tokens", &tokens, &n);
    report_close(&r);
    for (size_t i = 1; st == OK && i + 2 < n; i++) /* whole steps, after the first */
        if (tokens[i] == tokens[1]) start[kept++] = (start[i + 1] - start[i]) * 1e6;
    if (st == OK && kept < 8) st = error_set(ERR_BUG, "calibrate: %zu steps, expected more", kept);
    if (st == OK) { /* a step in eight: where no other program wanted the cores */
        (void)cal_quartile(c, start, (int)kept);
        *us = start[kept / 8];
    }
    free(start);
    free(requests);
    free(tokens);
    return st;
}

/* What the step's kernels and all-to-all should take, and its operations. */
static enum status kernels_of(const struct calibration *c, const struct tiny_job *j, bool decode,
                              double *us, double *ops)
{
    struct model_config m;
    struct engine_step step;
    struct engine_step_time t;
    struct host_speed *bare = malloc(sizeof *bare);
    if (!bare) return error_set(ERR_RESOURCE, "calibrate: out of memory");
    *bare = c->speed;
    memset(&bare->engine, 0, sizeof bare->engine);
    bare->engine.n = 1;
    bare->engine.ranks[0] = c->ranks;
    tiny_model(j->layers, &m);
    struct engine_unit u = {.host = bare,
                            .model = &m,
                            .decode = decode,
                            .ep = c->ranks,
                            .threads = 1,
                            .node_ranks = c->ranks,
                            .busy = c->ranks};
    enum status st = engine_step_create(&u, 1, true, &step);
    if (st == OK) {
        double in_step = decode ? fmin(j->requests, j->batch * c->ranks)
                                : fmin(j->requests, floor((double)j->chunk * c->ranks / j->prompt));
        double mean = in_step * (decode ? 1 : j->prompt) / c->ranks,
               most = ceil(in_step / c->ranks);
        struct engine_load load = {.tokens = most * (decode ? 1 : j->prompt),
                                   .unit_tokens = mean,
                                   .head_calls = decode ? most > 0 : most,
                                   .head_rows = most};
        struct host_view v = engine_unit_view(&u, mean, 0);
        double keys = j->prompt + 0.5 * j->output;
        double core = decode ? engine_keys_us(&u, &v, most, most * keys, most)
                             : most * engine_segment_us(&u, &v, j->prompt, 0);
        engine_step_time(&step, &v, &load, &core, 0, &t);
        *us = t.kernels_us;
        *ops = step.list.n_ops;
        engine_step_free(&step);
    }
    free(bare);
    return st;
}

/* ---- sharing out ----------------------------------------------------------------------------- */

enum { DECODE_STEP, PREFILL_STEP, OP, ROW, REQUEST, TOKEN, FEATURES };

static void features(const struct calibration *c, const struct tiny_job *j, bool decode, double ops,
                     double x[SPEED_COEFS])
{
    double in_step = fmin(j->requests, floor((double)j->chunk * c->ranks / j->prompt));
    memset(x, 0, SPEED_COEFS * sizeof *x);
    x[decode ? DECODE_STEP : PREFILL_STEP] = 1;
    x[OP] = ops;
    if (decode) x[ROW] = ceil(fmin(j->requests, j->batch * c->ranks) / c->ranks);
    if (!decode) x[REQUEST] = in_step;
    if (!decode) x[TOKEN] = in_step * j->prompt;
}

static void keep(struct calibration *c, double x[JOBS][SPEED_COEFS], double *rest,
                 const double *scale)
{
    struct host_speed *s = &c->speed;
    int at = host_ranks_find(s->engine.ranks, s->engine.n, c->ranks);
    bool known = s->engine.n > 0 && !(s->engine.n == 1 && at == 0); /* from one rank alone */
    double coef[SPEED_COEFS];
    if (at < 0) at = s->engine.n < SPEED_RANKS ? s->engine.n++ : SPEED_RANKS - 1;
    double own[SPEED_COEFS] = {
        0, 0, s->engine.op, s->engine.row, s->engine.request, s->engine.prompt_token};
    for (int i = 0; known && i < JOBS; i++) rest[i] -= host_dot(own, x[i]);
    host_fit(JOBS, known ? OP : FEATURES, (const double(*)[SPEED_COEFS])x, rest, scale, coef);
    s->engine.ranks[at] = c->ranks;
    s->engine.decode_step[at] = coef[DECODE_STEP];
    s->engine.prefill_step[at] = coef[PREFILL_STEP];
    if (known) return;
    s->engine.op = coef[OP];
    s->engine.row = coef[ROW];
    s->engine.request = coef[REQUEST];
    s->engine.prompt_token = coef[TOKEN];
}

/* Memory as calloc leaves it to the kernel for large blocks. */
static double fault_us(struct calibration *c)
{
    enum { MIB = 16, ROUNDS = 9 };
    double us[ROUNDS];
    for (int r = 0; r < ROUNDS; r++) {
        struct timespec a, b;
        size_t bytes = (size_t)MIB << 20;
        char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) return 0;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
        for (size_t i = 0; i < bytes; i += 4096) ((volatile char *)p)[i] = 1;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
        munmap(p, bytes);
        us[r] = ((double)(b.tv_sec - a.tv_sec) * 1e6 + (double)(b.tv_nsec - a.tv_nsec) * 1e-3) /
                (MIB * 1024.0);
    }
    return cal_quartile(c, us, ROUNDS);
}

enum status cal_engine(struct calibration *c)
{
    struct folder f = {0};
    double x[JOBS][SPEED_COEFS], rest[JOBS], scale[JOBS];
    enum status st = c->rank == 0 ? folder_make(&f) : OK;
    MPI_Bcast(&st, (int)sizeof st, MPI_BYTE, 0, MPI_COMM_WORLD);
    MPI_Bcast(&f, (int)sizeof f, MPI_BYTE, 0, MPI_COMM_WORLD);
    for (int i = 0; i < JOBS && st == OK; i++) {
        bool decode = jobs[i].output > 1;
        double us = 0, kernels = 0, ops = 0;
        if (c->rank == 0) st = write_inputs(&f, &jobs[i]);
        MPI_Bcast(&st, (int)sizeof st, MPI_BYTE, 0, MPI_COMM_WORLD);
        if (st == OK) st = run_job(c, &f, &jobs[i]);
        if (st == OK && c->rank == 0) st = period_of(c, &f, decode, &us);
        MPI_Bcast(&st, (int)sizeof st, MPI_BYTE, 0, MPI_COMM_WORLD);
        if (st == OK) st = kernels_of(c, &jobs[i], decode, &kernels, &ops);
        features(c, &jobs[i], decode, ops, x[i]);
        rest[i] = us - kernels;
        scale[i] = us;
        if (c->rank == 0)
            printf("#   %-7s %2d layers, %3d x %3d tokens: %7.1f us a step, its kernels %7.1f\n",
                   decode ? "decode" : "prefill", jobs[i].layers, jobs[i].requests, jobs[i].prompt,
                   us, kernels);
    }
    if (c->rank == 0) folder_remove(&f);
    if (st != OK || c->rank != 0) return st;
    keep(c, x, rest, scale);
    c->speed.engine.fault = fault_us(c);
    const double *copy = c->speed.rows[SPEED_COPY];
    c->speed.engine.transfer = 3 * 256 * (copy[2] + copy[3]); /* in, through, and out of MPI */
    return OK;
}
