/* eplb.h - where the experts of each layer live: placement with redundant experts by load.
 *
 * slots = experts + redundant experts; slot s lives on rank s / (slots / ranks). Same results as
 * the published EPLB algorithm: hierarchical when the number of nodes divides the number of
 * expert groups (whole groups stay on a node, replicas too), else global (over all ranks, groups
 * ignored). One rule of ours on top: no two replicas of an expert on one rank. The published
 * packing is kept where it already obeys; else slots are swapped, deterministically, within the
 * node (hierarchical) or anywhere (global).
 *
 * Ownership: struct placement owns its arrays; placement_free. Read-only once built.
 */
#ifndef BALANCE_EPLB_H
#define BALANCE_EPLB_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

struct eplb_shape {
    int layers;  /* layers with routed experts */
    int experts; /* routed experts of a layer */
    int groups;  /* n_group; 1 where the gate has none */
    int slots;   /* experts + redundant */
    int ranks;   /* EP size */
    int nodes;   /* nodes that the ranks fill evenly, in rank order */
};

struct placement {
    struct eplb_shape shape;
    bool hierarchical; /* every group with all its replicas lives on one node */
    int slots_per_rank;
    int max_replicas;
    int32_t *slot_expert; /* [layers, slots] the published phy2log */
    int32_t *count;       /* [layers, experts] replicas, >= 1 */
    int32_t *expert_slot; /* [layers, experts, max_replicas] log2phy, -1 beyond count */
};

/* load: [layers, experts], any unit, >= 0 (tokens routed to the expert); NULL = uniform.
 * Errors, ERR_INPUT with the arithmetic and the nearest legal number: slots not a multiple of
 * ranks, slots < experts, more replicas than different ranks can hold, a negative or NaN load. */
enum status eplb_place(const struct eplb_shape *shape, const float *load, struct placement *out);
void placement_free(struct placement *p);

static inline const int32_t *placement_slots(const struct placement *p, int layer)
{
    return p->slot_expert + (int64_t)layer * p->shape.slots;
}
static inline int placement_slot_rank(const struct placement *p, int slot)
{
    return slot / p->slots_per_rank;
}
/* The slots of an expert: *n of them. */
static inline const int32_t *placement_replicas(const struct placement *p, int layer, int expert,
                                                int *n)
{
    int64_t at = (int64_t)layer * p->shape.experts + expert;
    *n = p->count[at];
    return p->expert_slot + at * p->max_replicas;
}

/* Largest rank load / mean rank load of a layer, an expert's load being split evenly over its
 * replicas. load: [experts] of that layer; NULL = uniform. 1 when all loads are zero. */
double placement_imbalance(const struct placement *p, int layer, const float *load);

#endif
