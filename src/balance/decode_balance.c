/* decode_balance.c - expected pages, admission, the least loaded rank, the victim. */
#include "balance/decode_balance.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum status decode_balance_init(struct decode_balance *b, const struct decode_limits *limits)
{
    memset(b, 0, sizeof *b);
    if (limits->units < 1 || limits->ranks_per_unit < 1 || limits->pages < 1 ||
        limits->page_tokens < 1 || limits->max_batch < 1 || !(limits->high_water > 0))
        return error_set(ERR_BUG,
                         "decode balancer: %d units of %d ranks, %u pages of %u tokens, "
                         "max_batch %u, high water %g",
                         limits->units, limits->ranks_per_unit, limits->pages, limits->page_tokens,
                         limits->max_batch, limits->high_water);
    b->limits = *limits;
    size_t ranks = (size_t)limits->units * (size_t)limits->ranks_per_unit;
    b->expected = calloc(ranks, sizeof *b->expected);
    b->requests = calloc(ranks, sizeof *b->requests);
    b->unit_requests = calloc((size_t)limits->units, sizeof *b->unit_requests);
    if (!b->expected || !b->requests || !b->unit_requests) {
        decode_balance_free(b);
        return error_set(ERR_RESOURCE, "no memory for the decode balancer");
    }
    return OK;
}

void decode_balance_free(struct decode_balance *b)
{
    free(b->expected);
    free(b->requests);
    free(b->unit_requests);
    memset(b, 0, sizeof *b);
}

uint32_t decode_expected_pages(uint32_t prompt, uint32_t max_tokens, uint32_t generated,
                               double mean_output, uint32_t page_tokens)
{
    double output = mean_output > 0 ? ceil(mean_output) : max_tokens;
    if (output <= generated) output = (double)generated + page_tokens;
    if (output > max_tokens) output = max_tokens;
    if (output < 1) output = 1;
    return (uint32_t)ceil((prompt + output) / page_tokens);
}

bool decode_balance_admits(const struct decode_balance *b, int rank, uint32_t pages,
                           uint32_t prompt)
{
    const struct decode_limits *l = &b->limits;
    if (b->requests[rank] == 0) /* else a long prompt would wait for ever */
        return (prompt + 1ull + l->page_tokens - 1) / l->page_tokens <= l->pages;
    return b->requests[rank] < l->max_batch &&
           (double)(b->expected[rank] + pages) <= l->high_water * l->pages;
}

/* Minimises the sum over ranks of (pages / mean pages)^2 + (requests / mean requests)^2: of that,
 * what depends on the rank when a request of `pages` is added to it. A request of many pages so
 * looks for a rank with few pages, one of few pages for a rank with few requests. */
int decode_balance_pick(const struct decode_balance *b, uint32_t pages, uint32_t prompt)
{
    const struct decode_limits *l = &b->limits;
    int ranks = l->units * l->ranks_per_unit, best = -1;
    double mean_pages = pages, mean_requests = 1, best_cost = 0;
    for (int rank = 0; rank < ranks; rank++) {
        mean_pages += (double)b->expected[rank];
        mean_requests += b->requests[rank];
    }
    mean_pages /= ranks;
    mean_requests /= ranks;
    double per_page = mean_pages > 0 ? pages / (mean_pages * mean_pages) : 0;
    double per_request = 1 / (mean_requests * mean_requests);
    for (int rank = 0; rank < ranks; rank++) {
        if (!decode_balance_admits(b, rank, pages, prompt)) continue;
        double cost = (double)b->expected[rank] * per_page + b->requests[rank] * per_request;
        bool lighter_unit = best >= 0 && b->unit_requests[rank / l->ranks_per_unit] <
                                             b->unit_requests[best / l->ranks_per_unit];
        if (best < 0 || cost < best_cost || (cost == best_cost && lighter_unit)) {
            best = rank;
            best_cost = cost;
        }
    }
    return best;
}

void decode_balance_add(struct decode_balance *b, int rank, uint32_t pages)
{
    b->expected[rank] += pages;
    b->requests[rank]++;
    b->unit_requests[rank / b->limits.ranks_per_unit]++;
}

void decode_balance_remove(struct decode_balance *b, int rank, uint32_t pages)
{
    b->expected[rank] -= pages;
    b->requests[rank]--;
    b->unit_requests[rank / b->limits.ranks_per_unit]--;
}

void decode_balance_finished(struct decode_balance *b, uint32_t output_tokens)
{
    b->finished++;
    b->mean_output += (output_tokens - b->mean_output) / (double)b->finished;
}

int decode_victim(const uint64_t *admitted, int n)
{
    if (n < 2) return -1;
    int youngest = 0;
    for (int i = 1; i < n; i++)
        if (admitted[i] > admitted[youngest]) youngest = i;
    return youngest;
}
