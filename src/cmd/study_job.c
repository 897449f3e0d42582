/* study_job.c - reads a job as `run` does, its token file and the host's figures; prints what a run
 * would take; writes the figures as a study's results file. */
#include "cmd/study_job.h"

#include "account/results.h"
#include "account/study_results.h"
#include "cluster/engine_time.h"
#include "cmd/cmd.h"
#include "core/clock.h"
#include "plan/plan_tokens.h"

#include <math.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SETS_MAX = 64 };

struct job_study {
    const char *path, *hardware, *results;
    const char *set[SETS_MAX];
    int n_set;
    bool force;
    struct job job;
    struct model_config model;
    struct host_speed host;
    struct plan_tokens tokens;
    double *expert_load;
    struct engine_time time;
};

bool study_is_job(const char *path)
{
    char line[4096];
    bool job = false;
    FILE *f = fopen(path, "r");
    while (f && !job && fgets(line, sizeof line, f)) {
        size_t key = strcspn(line, ": \t\n");
        job = key == 6 && !strncmp(line, "tokens", 6) && strchr(line, ':');
    }
    if (f) fclose(f);
    return job;
}

static enum status parse(int argc, char **argv, struct job_study *s)
{
    for (int i = 1; i < argc; i++) {
        bool value = i + 1 < argc;
        if (!strcmp(argv[i], "--set") && value) {
            if (s->n_set == SETS_MAX) return error_set(ERR_USAGE, "more than %d --set", SETS_MAX);
            s->set[s->n_set++] = argv[++i];
        } else if (!strcmp(argv[i], "--hardware") && value)
            s->hardware = argv[++i];
        else if (!strcmp(argv[i], "--output") && value)
            s->results = argv[++i];
        else if (!strcmp(argv[i], "--force"))
            s->force = true;
        else if (argv[i][0] == '-' || s->path)
            return error_set(ERR_USAGE,
                             "study: unexpected argument %s: for a job file there are "
                             "--set, --hardware, --output and --force",
                             argv[i]);
        else
            s->path = argv[i];
    }
    return OK;
}

/* As if mpirun had started the ranks that the job asks for, on one node of the calibrated host. */
static enum status resolve(struct job_study *s)
{
    int ranks = job_ranks(&s->job);
    struct job_facts facts = {.ranks = ranks > 0 ? ranks : 1,
                              .cores_per_node = s->host.cores,
                              .experts = s->model.experts,
                              .n_group = s->model.n_group};
    facts.ranks_on_node = facts.ranks;
    return job_resolve(&s->job, &facts);
}

static enum status read_load(struct job_study *s)
{
    if (!s->job.experts.load[0]) return OK;
    size_t cells = (size_t)s->model.layers * (size_t)s->model.experts;
    s->expert_load = calloc(cells + 1, sizeof *s->expert_load);
    if (!s->expert_load) return error_set(ERR_RESOURCE, "no memory for the expert load");
    return results_read_expert_load(s->job.experts.load, s->model.layers, s->model.experts,
                                    s->expert_load);
}

static enum status read_all(struct job_study *s)
{
    TRY(job_read(s->path, s->n_set, s->set, &s->job));
    TRY(host_speed_find(s->hardware, &s->host));
    TRY(model_config_read(s->job.model, &s->model));
    TRY(resolve(s));
    TRY(read_load(s));
    TRY(plan_tokens_read(&s->job, &s->model, &s->tokens));
    if (s->tokens.n > 0) return OK;
    return error_set(ERR_INPUT, "%s: no request can run: %s", s->job.tokens,
                     s->tokens.first_error[0] ? s->tokens.first_error : "it is empty");
}

static enum status predict(struct job_study *s)
{
    struct engine_time_setup setup = {.host = &s->host,
                                      .model = &s->model,
                                      .job = &s->job,
                                      .fp8_experts = s->model.quant.fp8,
                                      .expert_load = s->expert_load,
                                      .requests = s->tokens.list,
                                      .n_requests = s->tokens.n};
    if (s->job.kv.pages_per_rank > 0) setup.pages[0] = setup.pages[1] = s->job.kv.pages_per_rank;
    return engine_time_predict(&setup, &s->time);
}

static void print_role(const char *name, const struct job_role *r)
{
    if (r->present)
        printf("# %s: %d unit(s) of %d rank(s), %d redundant experts, %d micro-batch(es), overlap "
               "%s\n",
               name, r->units, r->ep, r->redundant_experts, r->microbatches,
               r->overlap ? "on" : "off");
}

static void print(const struct job_study *s)
{
    const struct engine_time *t = &s->time;
    printf("# predicted run of %s on %s (%s, %s, measured %s)\n", s->path, s->host.name,
           s->host.cpu, s->host.isa, s->host.date);
    print_role("prefill", &s->job.prefill);
    print_role("decode", &s->job.decode);
    print_role("mixed", &s->job.mixed);
    printf("# %lld requests, %d thread(s) a rank\n"
           "# phase        tokens   steps    span s     tokens/s   busy %%  exposed %%\n",
           (long long)s->tokens.n, s->job.threads_per_rank);
    printf("  prefill  %10lld %7lld %9.3f %12.1f %8.1f %10.1f\n", (long long)t->prefill_tokens,
           (long long)t->prefill_steps, t->prefill_span_s, t->prefill_tokens_per_s,
           100 * t->busy[0], 100 * t->exposed[0]);
    printf("  decode   %10lld %7lld %9.3f %12.1f %8.1f %10.1f\n", (long long)t->decode_tokens,
           (long long)t->decode_steps, t->decode_span_s, t->decode_tokens_per_s, 100 * t->busy[1],
           100 * t->exposed[1]);
    printf("# ms of a step   attn dispatch      mlp   shared  combine     head    whole\n");
    for (int k = 0; k < 2; k++) {
        printf("  %-8s", k ? "decode" : "prefill");
        for (int i = 0; i < ENGINE_STAGES; i++) printf(" %8.3f", t->stage_ms[k][i]);
        int64_t steps = k ? t->decode_steps : t->prefill_steps;
        double s = k ? t->decode_step_s : t->prefill_step_s;
        printf(" %8.3f\n", steps ? 1e3 * s / (double)steps : 0);
    }
    printf("  total %.3f s, mean batch %.1f; TTFT %.4f s p50 %.4f p90 %.4f; TPOT %.3f ms p50 %.3f "
           "p90 %.3f\n",
           t->total_s, t->mean_batch, t->ttft_s.mean, t->ttft_s.p50, t->ttft_s.p90,
           1e3 * t->tpot_s.mean, 1e3 * t->tpot_s.p50, 1e3 * t->tpot_s.p90);
    if (*t->note) printf("# %s\n", t->note);
}

static struct study_figure_row figure(const char *name, const char *units, double value)
{
    struct study_figure_row r = {.published = NAN,
                                 .published_high = NAN,
                                 .predicted = value,
                                 .error = NAN,
                                 .tolerance = NAN};
    snprintf(r.figure, sizeof r.figure, "%s", name);
    snprintf(r.units, sizeof r.units, "%s", units);
    return r;
}

static int figures(const struct engine_time *t, struct study_figure_row *r)
{
    int n = 0;
    r[n++] = figure("prefill_tokens_per_s", "tokens/s", t->prefill_tokens_per_s);
    r[n++] = figure("decode_tokens_per_s", "tokens/s", t->decode_tokens_per_s);
    r[n++] = figure("prefill_span_s", "s", t->prefill_span_s);
    r[n++] = figure("decode_span_s", "s", t->decode_span_s);
    r[n++] = figure("prefill_step_s", "s", t->prefill_step_s);
    r[n++] = figure("decode_step_s", "s", t->decode_step_s);
    r[n++] = figure("prefill_steps", "steps", (double)t->prefill_steps);
    r[n++] = figure("decode_steps", "steps", (double)t->decode_steps);
    r[n++] = figure("total_s", "s", t->total_s);
    r[n++] = figure("mean_batch", "requests", t->mean_batch);
    r[n++] = figure("ttft_mean_s", "s", t->ttft_s.mean);
    r[n++] = figure("ttft_p50_s", "s", t->ttft_s.p50);
    r[n++] = figure("ttft_p90_s", "s", t->ttft_s.p90);
    r[n++] = figure("tpot_mean_s", "s", t->tpot_s.mean);
    r[n++] = figure("tpot_p50_s", "s", t->tpot_s.p50);
    r[n++] = figure("tpot_p90_s", "s", t->tpot_s.p90);
    return n;
}

static enum status attributes(struct study_file *f, const struct job_study *s, const char *argv,
                              const char *start)
{
    char utc[32], host[4 * SPEED_TEXT + 8];
    clock_utc(utc);
    snprintf(host, sizeof host, "%s, %s, %s, %s", s->host.host, s->host.cpu, s->host.isa,
             s->host.date);
    char *yaml = job_yaml(&s->job);
    if (!yaml) return error_set(ERR_RESOURCE, "study: no memory");
    enum status st = study_file_attr(f, "job_yaml", yaml);
    free(yaml);
    if (st == OK) st = study_file_attr(f, "hardware", host);
    if (st == OK) st = study_file_attr(f, "argv", argv);
    if (st == OK) st = study_file_attr(f, "program_version", cmd_gitrev());
    if (st == OK) st = study_file_attr(f, "git_revision", cmd_gitrev());
    if (st == OK) st = study_file_attr(f, "level", "calibrated");
    if (st == OK) st = study_file_attr(f, "start_utc", start);
    if (st == OK) st = study_file_attr(f, "end_utc", utc);
    return st;
}

static enum status write_file(const struct job_study *s, const char *argv, const char *start)
{
    struct study_figure_row rows[32];
    struct study_file *f;
    if (!s->results) return OK;
    if (!s->force && access(s->results, F_OK) == 0)
        return error_set(ERR_INPUT,
                         "--output: %s exists and would be overwritten: pass --force, "
                         "or choose another name",
                         s->results);
    TRY(study_file_create(s->results, &f));
    enum status st = attributes(f, s, argv, start);
    if (st == OK) st = study_file_figures(f, rows, (size_t)figures(&s->time, rows));
    if (st != OK) {
        study_file_abort(f);
        return st;
    }
    st = study_file_commit(f);
    if (st == OK) printf("# results: %s\n", s->results);
    return st;
}

enum status cmd_study_job(int argc, char **argv)
{
    int rank = 0;
    char start[32], line[4096] = "moebatch";
    struct job_study *s = calloc(1, sizeof *s);
    if (!s) return error_set(ERR_RESOURCE, "study: no memory");
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    clock_utc(start);
    for (int i = 0; i < argc; i++) {
        strncat(line, " ", sizeof line - strlen(line) - 1);
        strncat(line, argv[i], sizeof line - strlen(line) - 1);
    }
    enum status st = parse(argc, argv, s);
    if (st == OK && rank == 0) {
        st = read_all(s);
        if (st == OK) st = predict(s);
        if (st == OK) print(s);
        if (st == OK) st = write_file(s, line, start);
    }
    int all = (int)st;
    MPI_Bcast(&all, 1, MPI_INT, 0, MPI_COMM_WORLD);
    plan_tokens_free(&s->tokens);
    free(s->expert_load);
    free(s);
    return (enum status)all;
}
