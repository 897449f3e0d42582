/* decode_balance.h - which rank decodes a request, when one may be admitted, who gives up pages.
 *
 * Equalises expected KV pages and request counts over the ranks of all decode (or mixed) units;
 * admits by expected output length (running mean of finished outputs) up to a high-water mark.
 * Plain arithmetic, no clock, deterministic. Ranks are numbered over all units.
 */
#ifndef BALANCE_DECODE_BALANCE_H
#define BALANCE_DECODE_BALANCE_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

struct decode_limits {
    int units, ranks_per_unit;
    uint32_t pages; /* KV pages of a rank */
    uint32_t page_tokens;
    uint32_t max_batch; /* requests of a rank, all micro-batches */
    double high_water;  /* share of the pages that expected use may fill; 0.95 */
};

struct decode_balance {
    struct decode_limits limits;
    uint64_t *expected;      /* [ranks] sum of the requests' expected pages; owned */
    uint32_t *requests;      /* [ranks]; owned */
    uint64_t *unit_requests; /* [units]; owned */
    uint64_t finished;       /* outputs in the mean */
    double mean_output;      /* tokens; 0 until one has finished */
};

enum status decode_balance_init(struct decode_balance *b, const struct decode_limits *limits);
void decode_balance_free(struct decode_balance *b);

/* Pages of a request at its end: prompt + min(max_tokens, expected output), where the expected
 * output is the mean (max_tokens while mean is 0; generated + 1 page once `generated` tokens have
 * passed the mean). Never less than prompt + 1 token. */
uint32_t decode_expected_pages(uint32_t prompt, uint32_t max_tokens, uint32_t generated,
                               double mean_output, uint32_t page_tokens);

/* The admissible rank where the request least disturbs the balance of both expected pages and
 * request counts (sum of squares, each relative to its mean); ties to the unit with fewer
 * requests, then to the lower number. -1 when no rank may take it now. An empty rank takes any
 * request whose prompt + 1 token fits. pages: decode_expected_pages of the request. Pure:
 * decode_balance_add records it. */
int decode_balance_pick(const struct decode_balance *b, uint32_t pages, uint32_t prompt);
/* Same question for one rank, when pages there are about to be taken. */
bool decode_balance_admits(const struct decode_balance *b, int rank, uint32_t pages,
                           uint32_t prompt);

void decode_balance_add(struct decode_balance *b, int rank, uint32_t pages);
/* A request left the rank: finished, failed or moved to host memory. */
void decode_balance_remove(struct decode_balance *b, int rank, uint32_t pages);
/* Output tokens of a finished request, into the running mean. */
void decode_balance_finished(struct decode_balance *b, uint32_t output_tokens);

/* Whose pages move out when the pool is empty: the youngest, by admission number; -1 when fewer
 * than two run (the oldest always goes on, so the batch always moves). admitted: [n], distinct. */
int decode_victim(const uint64_t *admitted, int n);

#endif
