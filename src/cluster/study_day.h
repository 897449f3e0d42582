/* study_day.h - runs the days of a study and turns them into rows, totals and a table beside
 * published figures. The caller prints and writes; all is plain data of its own (study_day_free).
 */
#ifndef CLUSTER_STUDY_DAY_H
#define CLUSTER_STUDY_DAY_H

#include "account/study_results.h"
#include "cluster/study_plant.h"

#include <stdio.h>

enum { STUDY_FIGURES = 24 };

struct study_day {
    struct sim_result sim;
    struct study_period_row *minute, *hour; /* [sim.minutes], [sim.hours] */
    struct study_unit_row *unit;            /* [hours x units] */
    struct account account;
    double prefill_node_s, decode_node_s; /* paid for */
    double peak_nodes, lent_node_hours;
    double slo_ttft_missed_minutes, slo_tpot_missed_minutes;
    double output_speed; /* tokens/s of a request, mean over output tokens */
    struct study_figure_row figure[STUDY_FIGURES];
    int n_figures;
};

/* A day's sums and means: what a sweep's row shows of it. NaN: nothing to divide by. */
struct study_day_totals {
    double seconds; /* simulated, without the warm-up */
    double requests, finished;
    double hit_tokens, miss_tokens, output_tokens;
    double ttft_s[3], tpot_s[3]; /* p50, p90, p99 of all requests finished */
    double tokens_per_s_request; /* mean over output tokens */
    double tokens_per_s_gpu;     /* output over all GPUs paid for */
    double batch;                /* running requests of a decode GPU, mean of minutes */
    double prefill_utilisation, decode_utilisation;
    double nodes_mean, nodes_peak, node_hours;
    double cost_usd, revenue_usd, profit_usd, margin_on_cost, usd_per_m_output;
    double ttft_missed_minutes, tpot_missed_minutes, minutes; /* p90 beyond the SLO */
};
void study_day_total(const struct study_plant *p, const struct study_day *d,
                     struct study_day_totals *out);

/* One point of a sweep: the study of a plant from study_plant_build (its workload.hours of the
 * curve, or its trace), simulated on this rank alone; no output. Once for a
 * plant, which stays the caller's. */
enum status study_day_point(struct study_plant *p, struct study_day_totals *out);

/* All ranks together; every rank gets the same result. */
enum status study_day_run(struct study_plant *p, const struct exchange *ex, double progress_s,
                          struct study_day *out);
void study_day_free(struct study_day *d);

void study_day_print(const struct study_plant *p, const struct study_day *d, FILE *out);
/* Rank 0. */
enum status study_day_write(const struct study_plant *p, const struct study_day *d,
                            struct study_file *f);

#endif
