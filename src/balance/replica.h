/* replica.h - which replica of an expert takes a token.
 *
 * A deterministic function of (source rank, token index, expert). A source prefers the replica on
 * its own rank, then those on its node, as far as every replica still gets an equal share of all
 * sources' tokens; what is left is spread over the shares that are left. Results do not depend on
 * the choice, only load and traffic do.
 *
 * One table per source rank and layer, built at start: an expert with one replica costs nothing,
 * another one a row of REPLICA_CYCLE slots.
 */
#ifndef BALANCE_REPLICA_H
#define BALANCE_REPLICA_H

#include "balance/eplb.h"
#include "core/status.h"

#include <stdint.h>

enum { REPLICA_CYCLE = 64 };

struct replica_table {
    int experts;
    int source_rank;
    int n_rows;     /* experts with more than one replica */
    int32_t *first; /* [experts] the only slot, or -1 - row; owned */
    int32_t *rows;  /* [n_rows, REPLICA_CYCLE] slots; owned */
};

/* ranks_per_node: ranks source_rank / ranks_per_node share a node; >= 1. */
enum status replica_table_build(const struct placement *p, int layer, int ranks_per_node,
                                int source_rank, struct replica_table *out);
void replica_table_free(struct replica_table *t);

/* The slot that takes the token; its rank is placement_slot_rank. token_index: the token's number
 * on its source rank in this step. */
static inline int replica_choose(const struct replica_table *t, int expert, uint32_t token_index)
{
    int32_t first = t->first[expert];
    if (first >= 0) return first;
    /* 27 is odd: consecutive tokens visit the whole cycle, hopping over neighbours; the phase
     * keeps sources and experts from marching in step. */
    uint32_t phase = (uint32_t)t->source_rank * 13u + (uint32_t)expert * 5u;
    uint32_t at = (token_index * 27u + phase) % REPLICA_CYCLE;
    return t->rows[(int64_t)(-1 - first) * REPLICA_CYCLE + at];
}

#endif
