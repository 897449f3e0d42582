/* replica.c - the shares of each source rank's tokens that go to each replica of an expert.
 *
 * Count one unit of tokens per source rank. With R ranks and k replicas a fair replica takes R/k
 * units. A rank that holds a replica uses it (1 unit <= R/k). Then the other ranks of a node fill
 * what is left of the fair shares on their node; the rest of all tokens is spread in proportion
 * over the shares left anywhere. Closed form, so every source computes its own table.
 */
#include "balance/replica.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct nodes {
    int ranks, per_node, n;
};

static int node_ranks(const struct nodes *nodes, int node)
{
    int first = node * nodes->per_node;
    return nodes->ranks - first < nodes->per_node ? nodes->ranks - first : nodes->per_node;
}

/* Units that the ranks of a node without a replica give to the node's `held` replicas. */
static double node_local_units(const struct nodes *nodes, int node, int held, double fair)
{
    double room = held * (fair - 1), demand = node_ranks(nodes, node) - held;
    return room < demand ? room : demand;
}

/* share: [k] of one source, sums to 1. held: [nodes.n] replicas on each node. */
static void replica_shares(const struct placement *p, const struct nodes *nodes,
                           const int32_t *slots, int k, int source, const int *held, double *share)
{
    double fair = (double)nodes->ranks / k;
    int my_node = source / nodes->per_node;
    for (int j = 0; j < k; j++) share[j] = 0;
    for (int j = 0; j < k; j++)
        if (placement_slot_rank(p, slots[j]) == source) {
            share[j] = 1;
            return;
        }
    double local = 0; /* my share that stays on the node: I am one of its sources without one */
    if (held[my_node])
        local = node_local_units(nodes, my_node, held[my_node], fair) /
                (node_ranks(nodes, my_node) - held[my_node]);
    double left_total = 0;
    for (int node = 0; node < nodes->n; node++)
        if (held[node])
            left_total += held[node] * (fair - 1) - node_local_units(nodes, node, held[node], fair);
    for (int j = 0; j < k; j++) {
        int node = placement_slot_rank(p, slots[j]) / nodes->per_node;
        double left = fair - 1 - node_local_units(nodes, node, held[node], fair) / held[node];
        if (node == my_node) share[j] += local / held[node];
        if (left_total > 1e-9) share[j] += (1 - local) * left / left_total;
    }
}

/* Shares to whole places of the cycle. The source's own phase in the rounding makes the places
 * average to the shares over the sources. */
static void fill_row(const int32_t *slots, const double *share, int k, int source, int32_t *row)
{
    double sum = 0, upto = 0, phase = fmod(source * 0.6180339887498949, 1.0);
    for (int j = 0; j < k; j++) sum += share[j];
    int at = 0;
    for (int j = 0; j < k; j++) {
        upto += share[j];
        int end = j == k - 1 ? REPLICA_CYCLE : (int)(upto / sum * REPLICA_CYCLE + phase);
        for (; at < end && at < REPLICA_CYCLE; at++) row[at] = slots[j];
    }
}

enum status replica_table_build(const struct placement *p, int layer, int ranks_per_node,
                                int source_rank, struct replica_table *out)
{
    struct replica_table t = {.experts = p->shape.experts, .source_rank = source_rank};
    struct nodes nodes = {p->shape.ranks, ranks_per_node, 0};
    if (ranks_per_node < 1 || source_rank < 0 || source_rank >= p->shape.ranks)
        return error_set(ERR_BUG, "replica table: rank %d of %d, %d ranks a node", source_rank,
                         p->shape.ranks, ranks_per_node);
    nodes.n = (nodes.ranks + ranks_per_node - 1) / ranks_per_node;
    int n = 0;
    for (int e = 0; e < t.experts; e++) {
        placement_replicas(p, layer, e, &n);
        t.n_rows += n > 1;
    }
    t.first = calloc((size_t)t.experts, sizeof *t.first);
    t.rows = calloc((size_t)t.n_rows + 1, REPLICA_CYCLE * sizeof *t.rows);
    double *share = calloc((size_t)p->max_replicas, sizeof *share);
    int *held = calloc((size_t)nodes.n, sizeof *held);
    if (!t.first || !t.rows || !share || !held) {
        free(share);
        free(held);
        replica_table_free(&t);
        return error_set(ERR_RESOURCE, "no memory for the table of expert replicas");
    }
    for (int e = 0, row = 0; e < t.experts; e++) {
        const int32_t *slots = placement_replicas(p, layer, e, &n);
        t.first[e] = n > 1 ? -1 - row : slots[0];
        if (n == 1) continue;
        memset(held, 0, (size_t)nodes.n * sizeof *held);
        for (int j = 0; j < n; j++) held[placement_slot_rank(p, slots[j]) / ranks_per_node]++;
        replica_shares(p, &nodes, slots, n, source_rank, held, share);
        fill_row(slots, share, n, source_rank, t.rows + (int64_t)row++ * REPLICA_CYCLE);
    }
    free(share);
    free(held);
    *out = t;
    return OK;
}

void replica_table_free(struct replica_table *t)
{
    free(t->first);
    free(t->rows);
    memset(t, 0, sizeof *t);
}
