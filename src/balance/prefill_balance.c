/* prefill_balance.c - greedy choice of a rank, filling of chunks, the cut into micro-batches. */
#include "balance/prefill_balance.h"

#include <stdlib.h>
#include <string.h>

struct prefill_weights prefill_weights_default(void)
{
    return (struct prefill_weights){.per_token = 1, .per_pair = 1.0 / 8192, .reuse = 2};
}

double prefill_work(const struct prefill_weights *w, uint32_t pos0, uint32_t n)
{
    double pairs = (double)n * pos0 + 0.5 * n * ((double)n + 1);
    return w->per_token * n + w->per_pair * pairs;
}

enum status prefill_balance_init(struct prefill_balance *b, int units, int ranks_per_unit,
                                 const struct prefill_weights *w)
{
    memset(b, 0, sizeof *b);
    if (units < 1 || ranks_per_unit < 1)
        return error_set(ERR_BUG, "prefill balancer: %d units of %d ranks", units, ranks_per_unit);
    b->weights = w ? *w : prefill_weights_default();
    b->units = units;
    b->ranks_per_unit = ranks_per_unit;
    size_t ranks = (size_t)units * (size_t)ranks_per_unit;
    b->work = calloc(ranks, sizeof *b->work);
    b->tokens = calloc(ranks, sizeof *b->tokens);
    b->unit_tokens = calloc((size_t)units, sizeof *b->unit_tokens);
    if (!b->work || !b->tokens || !b->unit_tokens) {
        prefill_balance_free(b);
        return error_set(ERR_RESOURCE, "no memory for the prefill balancer");
    }
    return OK;
}

void prefill_balance_free(struct prefill_balance *b)
{
    free(b->work);
    free(b->tokens);
    free(b->unit_tokens);
    memset(b, 0, sizeof *b);
}

/* -1, 0, 1: rank a has fewer queued tokens than rank b, its unit first. */
static int fewer_tokens(const struct prefill_balance *b, int a, int c)
{
    uint64_t ua = b->unit_tokens[a / b->ranks_per_unit], uc = b->unit_tokens[c / b->ranks_per_unit];
    if (ua != uc) return ua < uc ? -1 : 1;
    if (b->tokens[a] != b->tokens[c]) return b->tokens[a] < b->tokens[c] ? -1 : 1;
    return 0;
}

int prefill_balance_pick(const struct prefill_balance *b, uint32_t n, const uint32_t *cached,
                         const bool *may)
{
    int best = -1;
    double best_cost = 0;
    for (int rank = 0; rank < b->units * b->ranks_per_unit; rank++) {
        if (may && !may[rank]) continue;
        uint32_t have = cached ? cached[rank] : 0;
        if (n && have >= n) have = n - 1;
        double cost = b->work[rank] + b->weights.reuse * prefill_work(&b->weights, have, n - have);
        if (best < 0 || cost < best_cost ||
            (cost == best_cost && fewer_tokens(b, rank, best) < 0)) {
            best = rank;
            best_cost = cost;
        }
    }
    return best;
}

void prefill_balance_room(const struct prefill_balance *b, uint32_t chunk_tokens,
                          const struct decode_balance *decode, uint32_t pages, uint32_t n,
                          bool *may)
{
    for (int rank = 0; rank < b->units * b->ranks_per_unit; rank++)
        may[rank] = b->tokens[rank] <= 2 * (uint64_t)chunk_tokens &&
                    (!decode || decode_balance_admits(decode, rank, pages, n));
}

void prefill_balance_add(struct prefill_balance *b, int rank, uint32_t pos0, uint32_t n)
{
    b->work[rank] += prefill_work(&b->weights, pos0, n);
    b->tokens[rank] += n;
    b->unit_tokens[rank / b->ranks_per_unit] += n;
}

void prefill_balance_done(struct prefill_balance *b, int rank, uint32_t pos0, uint32_t n)
{
    b->tokens[rank] -= n;
    b->unit_tokens[rank / b->ranks_per_unit] -= n;
    b->work[rank] -= prefill_work(&b->weights, pos0, n);
    /* Chunks need not sum to the last bit to what was added whole. */
    if (b->tokens[rank] == 0) b->work[rank] = 0;
}

int prefill_chunk_fill(const struct prefill_piece *queue, int n_queue, uint32_t chunk_tokens,
                       int max_pieces, struct prefill_piece *take)
{
    int taken = 0;
    for (; taken < n_queue && taken < max_pieces && chunk_tokens > 0; taken++) {
        take[taken] = queue[taken];
        if (take[taken].n > chunk_tokens) take[taken].n = chunk_tokens;
        chunk_tokens -= take[taken].n;
    }
    return taken;
}

struct microbatch_cut microbatch_cut(const struct prefill_weights *w,
                                     const struct prefill_piece *pieces, int n_pieces)
{
    double half = 0;
    for (int i = 0; i < n_pieces; i++) half += 0.5 * prefill_work(w, pieces[i].pos0, pieces[i].n);
    double before = 0;
    for (int i = 0; i < n_pieces; i++) {
        double all = prefill_work(w, pieces[i].pos0, pieces[i].n);
        if (before + all < half) {
            before += all;
            continue;
        }
        /* The most tokens of this piece that stay within half, then one more if that is nearer. */
        uint32_t lo = 0, hi = pieces[i].n;
        while (lo < hi) {
            uint32_t mid = hi - (hi - lo) / 2;
            if (before + prefill_work(w, pieces[i].pos0, mid) <= half)
                lo = mid;
            else
                hi = mid - 1;
        }
        if (lo < pieces[i].n) {
            double under = half - before - prefill_work(w, pieces[i].pos0, lo);
            double over = before + prefill_work(w, pieces[i].pos0, lo + 1) - half;
            if (over <= under) lo++;
        }
        if (lo < pieces[i].n) return (struct microbatch_cut){i, lo};
        return (struct microbatch_cut){i + 1, 0};
    }
    return (struct microbatch_cut){n_pieces, 0};
}
