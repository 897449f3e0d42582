/* report_run.h - what `moebatch report` keeps of the results file of a run.
 *
 * Requests are added up as they are read; steps, ranks and expert loads are kept for the charts.
 */
#ifndef CMD_REPORT_RUN_H
#define CMD_REPORT_RUN_H

#include "account/summary.h"
#include "cmd/report_read.h"

#include <stdio.h>

struct report_run {
    struct summary summary;    /* finished: the table of `moebatch run`, from the stored rows */
    struct step_row *steps[2]; /* [n_steps[kind]] by enum step_kind */
    size_t n_steps[2];
    struct rank_row *all_ranks;   /* owned; of all attempts */
    const struct rank_row *ranks; /* [n_ranks] of the last attempt, inside all_ranks */
    size_t n_ranks;
    struct attempt_row *attempts;
    size_t n_attempts;
    struct expert_load_row *load;
    size_t n_load;
    double end_s; /* the last end of a step or an attempt, s since the job's start */
};

/* Whether the file is one of `moebatch run`. */
bool report_run_found(const struct report_file *f);

/* *out is to be freed with report_run_free also after a failure. */
enum status report_run_read(const struct report_file *f, struct report_run **out);
void report_run_free(struct report_run *run);

/* The sections of the page: headline figures and account (report_run_html.c), then what happened
 * when (report_run_time.c), then who carried how much (report_run_load.c). */
enum status report_run_html(const struct report_run *run, FILE *out);
enum status report_run_time_html(const struct report_run *run, FILE *out);
enum status report_run_load_html(const struct report_run *run, FILE *out);

#endif
