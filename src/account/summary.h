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
#include "account/straggler.h"

/* 1 us to 1e6 s; values outside are clamped into the first or last bucket. */
enum { HISTOGRAM_BUCKETS = 1400 };

struct histogram {
    int64_t count;
    double sum, min, max;
    int64_t bucket[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *h, double value);
double histogram_mean(const struct histogram *h);               /* NaN when empty */
double histogram_quantile(const struct histogram *h, double q); /* q in [0, 1]; NaN when empty */
double histogram_edge(int bucket); /* its lower edge; bucket + 1 for the upper one */

struct spread { /* over ranks, or over steps */
    double min, max, sum;
    int64_t n;
};

/* Indices into the arrays by role. A phase's ranks are those of its own role and the mixed ones. */
enum summary_role { ROLE_PREFILL, ROLE_DECODE, ROLE_MIXED, ROLES };
enum summary_load { LOAD_ATTENTION, LOAD_KV, LOAD_EXPERTS, LOADS };

/* Fill it with the functions below only; read it freely after summary_finish(). */
struct summary {
    struct histogram ttft, tpot; /* s, of answered requests */
    int64_t ok, failed, pending;
    int64_t hit_tokens, miss_tokens, output_tokens; /* of answered requests */
    int64_t hit_tokens_disk;                        /* of hit_tokens, read from the disk tier */
    /* steps, by enum step_kind */
    int64_t steps[2], step_tokens[2];
    double first_start[2], last_end[2], step_s[2];         /* s; step_s adds up over units */
    double deviation_sum[2][LOADS], deviation_s[2][LOADS]; /* max / mean of a step, weighted by
                                                              its duration */
    /* ranks of the last attempt */
    int32_t rank_attempt;
    struct spread busy[ROLES], exposed[ROLES], idle[ROLES]; /* shares of a rank's time, 0..1 */
    int32_t ranks[ROLES], units[ROLES];
    uint64_t node_seen[ROLES][64]; /* bit set of node numbers below 4096 */
    /* attempts */
    int64_t attempts;
    double gpu_s, node_s, wall_s;
    char isa[16], transport[32];
    /* Prompt tokens that a modelled cache would find in file order and as they were sent; set by
     * the caller where requests went out by prefix. */
    bool by_prefix;
    int64_t hit_in_file, hit_as_sent;
    /* filled by summary_finish */
    struct throughput_row throughput;
    struct account account;
    struct account_prices prices;
    char slow_rank[STRAGGLER_TEXT], slow_link[STRAGGLER_TEXT]; /* "" where none is; straggler.h */
    bool valid;
    char reason[256]; /* why not, or what VALID stands on */
};

void summary_init(struct summary *s);
void summary_add_request(struct summary *s, const struct request_row *row);
void summary_add_step(struct summary *s, enum step_kind kind, const struct step_row *row);
/* Rows in ascending order of attempts: the first row of a new attempt forgets those before. */
void summary_add_rank(struct summary *s, const struct rank_row *row);
void summary_add_attempt(struct summary *s, const struct attempt_row *row);
/* Computes throughput, account and the verdict: VALID when every request ended (ok or failed). */
void summary_finish(struct summary *s, const struct account_prices *prices);
/* Makes the verdict INVALID; the first reason stays. After summary_finish(). */
void summary_invalid(struct summary *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* max / mean load of a phase, weighted by step time; NaN without steps. */
double summary_deviation(const struct summary *s, enum step_kind kind, enum summary_load load);

/* The closing table: headings start with '#', the last line is VALID or INVALID and why. */
void summary_print(const struct summary *s, const char *results_path, FILE *out);

#endif
