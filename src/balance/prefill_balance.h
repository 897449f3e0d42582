/* prefill_balance.h - which rank prefills a request, what goes in a chunk, where a chunk is cut
 * into two micro-batches.
 *
 * Work of computing tokens [pos0, pos0 + n) of a prompt:
 *     per_token * n + per_pair * (number of (query, key) pairs = n * pos0 + n (n + 1) / 2)
 * so one number covers both what grows with tokens (projections, experts) and what grows with
 * context (core attention). Plain arithmetic, no clock, deterministic.
 *
 * Ranks are numbered over all prefill (or mixed) units: unit = rank / ranks_per_unit.
 */
#ifndef BALANCE_PREFILL_BALANCE_H
#define BALANCE_PREFILL_BALANCE_H

#include "balance/decode_balance.h"
#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

struct prefill_weights {
    double per_token;
    double per_pair;
    double reuse; /* how much dearer work added to the total is than waiting in a queue, >= 1 */
};
/* per_token 1, per_pair 1/8192 (DeepSeek-V3: with 8,192 tokens of context the core attention of a
 * token costs about as much as the rest of it on its rank), reuse 2. */
struct prefill_weights prefill_weights_default(void);

double prefill_work(const struct prefill_weights *w, uint32_t pos0, uint32_t n);

struct prefill_balance {
    struct prefill_weights weights;
    int units, ranks_per_unit;
    double *work;          /* [units * ranks_per_unit] queued, owned */
    uint64_t *tokens;      /* [units * ranks_per_unit] queued, owned */
    uint64_t *unit_tokens; /* [units] queued, owned */
};

enum status prefill_balance_init(struct prefill_balance *b, int units, int ranks_per_unit,
                                 const struct prefill_weights *w);
void prefill_balance_free(struct prefill_balance *b);

/* The rank with the least (queued work + reuse * the request's work there), ties to the unit,
 * then the rank, with fewer queued tokens, then to the lower number. A prompt of n tokens of
 * which cached[rank] need not be computed there (NULL: none cached); the cached part is at most
 * n - 1. Only ranks with may[rank] are looked at (NULL: all); -1 when there is none. Pure:
 * prefill_balance_add records the choice. */
int prefill_balance_pick(const struct prefill_balance *b, uint32_t n, const uint32_t *cached,
                         const bool *may);

/* may: [units * ranks_per_unit] out, who may take a request of n tokens now. A rank with more than
 * two chunks queued is full, and passed over even if it holds the prefix: its work would wait while
 * others have none. A rank of mixed units needs room to decode, too (decode, with the request's
 * expected pages; NULL: units that only prefill). */
void prefill_balance_room(const struct prefill_balance *b, uint32_t chunk_tokens,
                          const struct decode_balance *decode, uint32_t pages, uint32_t n,
                          bool *may);

/* Tokens [pos0, pos0 + n) are queued on the rank; the same numbers, whole or chunk by chunk, are
 * taken off when computed (or dropped). */
void prefill_balance_add(struct prefill_balance *b, int rank, uint32_t pos0, uint32_t n);
void prefill_balance_done(struct prefill_balance *b, int rank, uint32_t pos0, uint32_t n);

/* A piece of a prompt: tokens [pos0, pos0 + n). */
struct prefill_piece {
    uint32_t pos0, n;
};

/* Fills a chunk from a queue in FIFO order: take[i].pos0 = queue[i].pos0 and take[i].n <=
 * queue[i].n, in sum at most chunk_tokens; only the last piece taken may be partial. queue: what
 * is left of each prompt. take: [at least min(n_queue, max_pieces)]. Returns the pieces taken. */
int prefill_chunk_fill(const struct prefill_piece *queue, int n_queue, uint32_t chunk_tokens,
                       int max_pieces, struct prefill_piece *take);

/* Where to cut a chunk into two micro-batches of equal work: micro-batch 0 gets pieces [0, piece)
 * and the first `tokens` tokens of pieces[piece]; micro-batch 1 the rest. tokens < n of that
 * piece; piece = n_pieces, tokens = 0 when micro-batch 0 gets all. With per_token = 0 only
 * attention counts. The difference is at most the work of one token. */
struct microbatch_cut {
    int piece;
    uint32_t tokens;
};
struct microbatch_cut microbatch_cut(const struct prefill_weights *w,
                                     const struct prefill_piece *pieces, int n_pieces);

#endif
