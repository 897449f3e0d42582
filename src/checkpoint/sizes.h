/* sizes.h - how many parameters and bytes a model has, by component, and per rank under expert
 * parallelism. From the configuration alone, or from an open checkpoint's real types.
 */
#ifndef CHECKPOINT_SIZES_H
#define CHECKPOINT_SIZES_H

#include "checkpoint/checkpoint.h"

struct model_sizes {
    int64_t params[PART_COUNT]; /* elements, scales not counted */
    int64_t bytes[PART_COUNT];  /* as stored, FP8 scales included */
    int64_t params_total, bytes_total;
    int64_t params_active; /* used by one token: all but the experts not chosen */
    int64_t expert_bytes;  /* one routed expert of one layer (the largest) */
    int moe_layers;
};

/* ck may be NULL: then types are what the configuration announces (FP8 linears with F32 scales,
 * or its dtype, BF16 if it names none). */
void model_sizes_compute(const struct model_config *cfg, const struct checkpoint *ck,
                         struct model_sizes *sizes);

/* One rank of an expert-parallel group of `ep` ranks, with the fewest redundant experts that make
 * the slots divisible. */
struct model_rank_sizes {
    int slots;          /* expert slots a rank and layer */
    int redundant;      /* slots * ep - experts */
    int64_t replicated; /* bytes of everything but routed experts: the same on every rank */
    int64_t routed;     /* bytes of the rank's experts, all layers */
};
void model_sizes_rank(const struct model_config *cfg, const struct model_sizes *sizes, int ep,
                      struct model_rank_sizes *rank);

#endif
