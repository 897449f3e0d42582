/* report_run.c - the rows of a run's file into struct report_run. */
#include "cmd/report_run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The columns of /requests that the summary needs. */
struct request_part {
    char status[8];
    int32_t prompt_tokens, cached_tokens, output_tokens;
    double t_arrival, t_first_token, t_finish;
};

static const struct column request_part[] = {
    COLUMN(struct request_part, status, "status", "text", COLUMN_TEXT),
    COLUMN(struct request_part, prompt_tokens, "prompt_tokens", "tokens", COLUMN_I32),
    COLUMN(struct request_part, cached_tokens, "cached_tokens", "tokens", COLUMN_I32),
    COLUMN(struct request_part, output_tokens, "output_tokens", "tokens", COLUMN_I32),
    COLUMN(struct request_part, t_arrival, "t_arrival", "s", COLUMN_F64),
    COLUMN(struct request_part, t_first_token, "t_first_token", "s", COLUMN_F64),
    COLUMN(struct request_part, t_finish, "t_finish", "s", COLUMN_F64),
};

bool report_run_found(const struct report_file *f)
{
    return report_has(f, "/requests") || report_has(f, "/steps");
}

struct request_scan {
    const struct report_file *file;
    struct summary *summary;
};

static enum status add_requests(void *ctx, const void *rows, size_t n)
{
    const struct request_scan *scan = ctx;
    const struct request_part *r = rows;
    for (size_t i = 0; i < n; i++, r++) {
        struct request_row row = {
            .prompt_tokens = r->prompt_tokens,
            .cached_tokens = r->cached_tokens,
            .output_tokens = r->output_tokens,
            .t_arrival = r->t_arrival,
            .t_first_token = r->t_first_token,
            .t_finish = r->t_finish,
        };
        int s = REQUEST_PENDING;
        while (s <= REQUEST_FAILED && strncmp(r->status, request_status_name(s), sizeof r->status))
            s++;
        if (s > REQUEST_FAILED)
            return error_set(ERR_INPUT,
                             "%s: /requests has status \"%.8s\": expected pending, ok or failed",
                             scan->file->path, r->status);
        row.status = (enum request_status)s;
        summary_add_request(scan->summary, &row);
    }
    return OK;
}

/* The ranks of the last attempt: rows are in the order of attempts. */
static void last_attempt(struct report_run *run, size_t n)
{
    size_t from = n;
    while (from > 0 && run->all_ranks[from - 1].attempt == run->all_ranks[n - 1].attempt) from--;
    run->ranks = run->all_ranks + from;
    run->n_ranks = n - from;
}

static enum status read_tables(const struct report_file *f, struct report_run *run)
{
    void *rows = NULL;
    size_t n = 0;
    for (int kind = 0; kind < 2; kind++) {
        TRY(report_load(f, &results_tables[TABLE_STEPS_PREFILL + kind], &rows, &n));
        run->steps[kind] = rows;
        run->n_steps[kind] = n;
    }
    TRY(report_load(f, &results_tables[TABLE_RANKS], &rows, &n));
    run->all_ranks = rows;
    last_attempt(run, n);
    for (size_t i = 0; i < n; i++) summary_add_rank(&run->summary, &run->all_ranks[i]);
    TRY(report_load(f, &results_tables[TABLE_ATTEMPTS], &rows, &n));
    run->attempts = rows;
    run->n_attempts = n;
    TRY(report_load(f, &results_tables[TABLE_EXPERT_LOAD], &rows, &n));
    run->load = rows;
    run->n_load = n;
    return OK;
}

/* Times that charts can be drawn of: finite, not before the job's start. */
static bool sane(double start, double length)
{
    return isfinite(start) && isfinite(length) && start >= 0 && length >= 0;
}

static enum status add_rows(const struct report_file *f, struct report_run *run)
{
    for (int kind = 0; kind < 2; kind++)
        for (size_t i = 0; i < run->n_steps[kind]; i++) {
            const struct step_row *s = &run->steps[kind][i];
            if (!sane(s->t_start, s->duration))
                return error_set(ERR_INPUT, "%s: row %zu of %s lasts %g s from %g s: damaged file",
                                 f->path, i, results_tables[TABLE_STEPS_PREFILL + kind].name,
                                 s->duration, s->t_start);
            summary_add_step(&run->summary, (enum step_kind)kind, s);
            run->end_s = fmax(run->end_s, s->t_start + s->duration);
        }
    for (size_t i = 0; i < run->n_attempts; i++) {
        const struct attempt_row *a = &run->attempts[i];
        if (!sane(a->t_start, a->wall_s))
            return error_set(ERR_INPUT,
                             "%s: row %zu of /attempts lasts %g s from %g s: damaged file", f->path,
                             i, a->wall_s, a->t_start);
        summary_add_attempt(&run->summary, a);
        run->end_s = fmax(run->end_s, a->t_start + a->wall_s);
    }
    run->end_s = fmax(run->end_s, 1e-9); /* the charts divide by it */
    return OK;
}

static enum status read_prices(const struct report_file *f, struct account_prices *out)
{
    void *rows = NULL;
    size_t n = 0;
    TRY(report_load(f, &results_tables[TABLE_ACCOUNT], &rows, &n));
    enum status st = OK;
    if (n != 1)
        st = error_set(ERR_INPUT, "%s: /account has %zu rows, expected 1", f->path, n);
    else
        *out = ((const struct account_file_row *)rows)->prices;
    free(rows);
    return st;
}

enum status report_run_read(const struct report_file *f, struct report_run **out)
{
    struct report_run *run = *out = calloc(1, sizeof *run);
    if (!run) return error_set(ERR_RESOURCE, "report: out of memory");
    summary_init(&run->summary);
    struct request_scan scan = {f, &run->summary};
    TRY(report_scan(f, "/requests", request_part, sizeof request_part / sizeof *request_part,
                    sizeof(struct request_part), add_requests, &scan));
    TRY(read_tables(f, run));
    TRY(add_rows(f, run));
    struct account_prices prices;
    TRY(read_prices(f, &prices));
    summary_finish(&run->summary, &prices);
    return OK;
}

void report_run_free(struct report_run *run)
{
    if (!run) return;
    for (int kind = 0; kind < 2; kind++) free(run->steps[kind]);
    free(run->all_ranks);
    free(run->attempts);
    free(run->load);
    free(run);
}
