/* summary.h - the figures of a finished (or interrupted) job, added up row by row in bounded
 * memory, and the table that `moebatch run` prints at the end.
 *
 * The same struct feeds /throughput and /account of the results file, so the table and the file
 * cannot disagree. Percentiles come from a histogram of logarithmic buckets, 2 % wide: a printed
 * percentile is within 1 % of a sample that has that rank.
 */
#ifndef ACCOUNT_SUMMARY_H
#define ACCOUNT_SUMMARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "account/account.h"
#include "account/results.h"

/* 1 us to 1e6 s; values outside are clamped into the first or last bucket. */
enum { HISTOGRAM_BUCKETS = 1400 };

struct histogram {
    int64_t count;
    double sum, min, max;
    int64_t bucket[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *h, double value);
double histogram_mean(const struct histogram *h);                /* NaN when empty */
double histogram_quantile(const struct histogram *h, double q); /* q in [0, 1]; NaN when empty */

struct spread { /* over ranks, or over steps */
    double min, max, sum;
    int64_t n;
};

enum { SUMMARY_UNITS = 64 };

struct summary {
    struct histogram ttft, tpot; /* s, of answered requests */
    int64_t ok, failed, pending;
    int64_t hit_tokens, miss_tokens, output_tokens; /* of answered requests */
    /* steps, by enum step_kind */
    int64_t steps[2], step_tokens[2];
    double first_start[2], last_end[2], step_s[2];
    double deviation_sum[2][3], deviation_weight[2][3]; /* attention, KV, experts: max/mean, weighted
                                                           by the step's duration */
    char unit[2][SUMMARY_UNITS][RESULTS_UNIT_MAX];
    int units[2];
    /* ranks, last attempt, by role */
    struct spread busy[2], exposed[2], idle[2]; /* shares of the rank's time, 0..1 */
    int32_t ranks[2], nodes[2];
    int32_t all_ranks, all_nodes;
    uint64_t node_seen[2][64]; /* bit set of node numbers below 4096 */
    /* attempts */
    int64_t attempts;
    double gpu_s, wall_s;
    char isa[16], transport[32];
    /* filled by summary_finish */
    struct throughput_row throughput;
    struct account account;
    struct account_prices prices;
    bool valid;
    char reason[256]; /* why not, or what VALID stands on */
};

void summary_init(struct summary *s);
void summary_add_request(struct summary *s, const struct request_row *row);
void summary_add_step(struct summary *s, enum step_kind kind, const struct step_row *row);
/* Rows of earlier attempts than `last_attempt` count for nothing but their GPU-seconds. */
void summary_add_rank(struct summary *s, const struct rank_row *row);
void summary_add_attempt(struct summary *s, const struct attempt_row *row);
/* Computes throughput, account and the verdict: VALID when every request ended (ok or failed). */
void summary_finish(struct summary *s, const struct account_prices *prices);
/* Makes the verdict INVALID; the first reason stays. */
void summary_invalid(struct summary *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The closing table; lines other than the verdict start with "# " only where they are headings. */
void summary_print(const struct summary *s, const char *results_path, FILE *out);

#endif
