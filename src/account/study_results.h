/* study_results.h - the results file of a study: the same container, provenance and account as a
 * run's (results.h), but with modelled values only. Nothing in it was measured: the root attribute
 * `kind` is "study", every dataset has an attribute `values` = "modelled", and no table has
 * the name of one of a run's.
 *
 *   /minutes         one row a minute: nodes, arrivals, tokens, queues, latencies, money
 *   /account/hourly  one row an hour: the same added up
 *   /account/units   one row a unit and hour
 *   /account/total   the columns of a run's /account
 *   /published       figure by figure: published, predicted, error
 *   /sweep           one row a point
 *   /unit/batches    study --unit: one row a role, level and load of a step
 *   /unit/stages     one row a role, level and stage, at the largest load
 *   /unit/memory     one row a role and level
 *
 * Serial HDF5, rank 0. Written under PATH.tmp and renamed by study_file_commit. NaN: not defined.
 */
#ifndef ACCOUNT_STUDY_RESULTS_H
#define ACCOUNT_STUDY_RESULTS_H

#include "account/account.h"
#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

enum { STUDY_TEXT = 512 };

/* A minute or an hour. Rates over the row's own time. */
struct study_period_row {
    double t_start; /* since the start of the day */
    double hour_of_day;
    int32_t prefill_units, decode_units; /* paid for at its end */
    double prefill_nodes, decode_nodes;  /* paid for, mean */
    double lent_nodes;                   /* of the largest deployment, free for other work; mean */
    double published_nodes;              /* NaN: none */
    int64_t requests, sessions, finished;
    int64_t hit_tokens, miss_tokens, output_tokens;
    int64_t queued_requests; /* prefill_queue + decode_waiting, at its end */
    int64_t prefill_queue, prefill_queue_tokens, decode_waiting, decode_running;
    int64_t kv_pages, cache_pages, moved_requests;
    double kv_occupancy; /* of the pages of the units paid for, 0..1, at its end */
    double prefill_utilisation, decode_utilisation; /* share of paid unit time inside steps */
    int64_t preempted_requests, on_host;            /* pages to host memory; there at its end */
    double prefill_imbalance, decode_imbalance;     /* of expert load, busiest rank / mean; mean */
    double prefill_imbalance_unplanned, decode_imbalance_unplanned; /* had the first plan stayed */
    double kv_per_output; /* tokens of context read for an output token, mean */
    double ttft_mean_s, ttft_p50_s, ttft_p90_s, ttft_p99_s;
    double tpot_mean_s, tpot_p50_s, tpot_p90_s, tpot_p99_s;
    double input_tokens_per_s_node, output_tokens_per_s_node; /* of the role's own nodes */
    double cost_usd, revenue_usd, profit_usd, margin_on_cost;
    double published_revenue_usd; /* NaN: none */
};

struct study_unit_row {
    char unit[24];
    int32_t hour, reserved;
    int64_t requests, tokens, steps;
    double busy_s; /* inside steps */
};

struct study_figure_row {
    char figure[64], units[24];
    double published, published_high, predicted, error; /* error: relative; 0 within the range */
    double tolerance;                                   /* NaN: none asked */
};

struct study_sweep_row {
    int32_t point, feasible; /* feasible: 0 with the reason in `reason` */
    char values[STUDY_TEXT]; /* "decode.ep=144 decode.max_batch=64" */
    char reason[STUDY_TEXT];
    int32_t prefill_ep, decode_ep, prefill_units, decode_units;
    double batch; /* decode requests a GPU */
    double tpot_s, ttft_s;
    double tokens_per_s_request, decode_tokens_per_s_gpu, prefill_tokens_per_s_gpu;
    double tokens_per_s_gpu; /* output tokens over all GPUs, prefill included */
    double usd_per_m_output;
    double prefill_gpus_per_decode_gpu; /* that the workload asks for, or the deployment's */
    double margin_on_cost;
    int32_t meets_slo, best, pareto;
    int32_t extrapolated; /* an all-to-all lies beyond the measured sizes */
};

struct study_batch_row {
    char role[12], level[12]; /* prefill | decode, tables | calibrated */
    int32_t load;             /* prefill: tokens a GPU and step; decode: requests a GPU */
    int32_t fits;             /* decode: the KV cache holds so many */
    double step_s, exposed_s, tpot_s, tokens_per_s_request; /* NaN: prefill has none */
    double tokens_per_s_gpu, tokens_per_s_node;
};

struct study_stage_row {
    char role[12], level[12], stage[16], bound[12];
    double us; /* of a micro-batch, the sum of the following */
    double launch_us, memory_us, compute_us, network_us, latency_us, kernels_us;
};

struct study_memory_row {
    char role[12], level[12];
    double capacity, replicated, experts, absorbed, buffers, workspace, reserve, kv_cache;
    double kv_bytes_per_token, kv_tokens;
};

struct study_file;

enum status study_file_create(const char *path, struct study_file **out);
enum status study_file_attr(struct study_file *f, const char *key, const char *value);
enum status study_file_minutes(struct study_file *f, const struct study_period_row *r, size_t n);
enum status study_file_hours(struct study_file *f, const struct study_period_row *r, size_t n);
enum status study_file_units(struct study_file *f, const struct study_unit_row *r, size_t n);
enum status study_file_figures(struct study_file *f, const struct study_figure_row *r, size_t n);
enum status study_file_sweep(struct study_file *f, const struct study_sweep_row *r, size_t n);
enum status study_file_batches(struct study_file *f, const struct study_batch_row *r, size_t n);
enum status study_file_stages(struct study_file *f, const struct study_stage_row *r, size_t n);
enum status study_file_memory(struct study_file *f, const struct study_memory_row *r, size_t n);
enum status study_file_account(struct study_file *f, const struct account *a,
                               const struct account_prices *p);
enum status study_file_commit(struct study_file *f); /* frees f also on failure */
void study_file_abort(struct study_file *f);         /* NULL is fine */

#endif
