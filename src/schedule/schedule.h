/* schedule.h - a step as data: which stage of which micro-batch and layer runs in which order.
 *
 * A schedule is a list of ops, each on the compute or the communication lane, with the ops it
 * needs. It is built once per (layers, which layers have routed experts, micro-batches, kind) and
 * used for every step: schedule/runner.h executes it, schedule/list_sim.h executes the same list
 * with stage times. Every rank of a unit uses the same schedule, so the communication ops come in
 * the same order everywhere.
 *
 * Order: compute ops run in the order of the list, one at a time. Communication ops begin in the
 * order of the list, each as soon as its dependencies are complete, at most SCHEDULE_MAX_OPEN
 * begun and not finished; the op that needs one waits for it. An op's dependencies have smaller
 * indices than the op itself, so there are no cycles.
 *
 * Layers: a layer with routed experts has DISPATCH MLP SHARED COMBINE after its attention, a
 * dense layer has DENSE_MLP. SHARED exists in every routed layer; a model without shared experts
 * lets it do nothing. What the next layer reads (and HEAD, after the last one) needs COMBINE and
 * SHARED, so the sum of routed + shared + residual belongs to the consumer or to COMBINE's
 * finish: SHARED has always run before COMBINE is finished.
 *
 * Ownership: a struct schedule owns its lists; schedule_free releases them. Read-only once built.
 * Errors: ERR_BUG for arguments outside the stated ranges, ERR_RESOURCE when memory is out.
 */
#ifndef SCHEDULE_SCHEDULE_H
#define SCHEDULE_SCHEDULE_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

enum stage {
    STAGE_EMBED,     /* token embedding of a micro-batch; layer -1 */
    STAGE_ATTN,      /* prefill: attention block, post-attention norm and gate */
    STAGE_ATTN_0,    /* decode: projections, up to core attention */
    STAGE_ATTN_1,    /* decode: core attention, output projection, norm and gate */
    STAGE_DISPATCH,  /* communication: tokens to the experts' ranks */
    STAGE_MLP,       /* routed experts */
    STAGE_SHARED,    /* shared experts */
    STAGE_COMBINE,   /* communication: experts' rows back to the tokens' ranks */
    STAGE_DENSE_MLP, /* the MLP of a layer without routed experts */
    STAGE_HEAD,      /* final norm, logits, sampling; layer = number of layers */
    STAGE_COUNT
};

enum op_lane { OP_COMPUTE, OP_COMM, OP_LANES };

enum { SCHEDULE_MAX_DEPS = 4, SCHEDULE_MAX_OPEN = 2, SCHEDULE_MAX_MB = 2 };

struct op {
    enum stage stage;
    enum op_lane lane;
    int mb;    /* micro-batch, 0 or 1 */
    int layer; /* 0 .. layers-1; EMBED -1, HEAD layers */
    int index; /* of this op in schedule.ops */
    int n_deps;
    int deps[SCHEDULE_MAX_DEPS]; /* indices of ops, each < index */
};

enum schedule_kind {
    SCHEDULE_PREFILL_SEQUENTIAL, /* one or two micro-batches, nothing overlaps */
    SCHEDULE_PREFILL_DUAL,       /* two micro-batches, prefill order */
    SCHEDULE_DECODE_SEQUENTIAL,
    SCHEDULE_DECODE_FIVE_STAGE /* two micro-batches, decode order */
};

struct schedule {
    enum schedule_kind kind;
    int layers;
    int micro_batches;
    int n_ops;
    struct op *ops;       /* [n_ops] topological */
    int n_lane[OP_LANES]; /* ops per lane */
    int *lane[OP_LANES];  /* [n_lane] indices into ops, in the lane's order (ascending) */
};

/* moe: [layers], true where the layer has routed experts. layers >= 1. out is written only on
 * success.
 *
 * No overlap, the baseline: every op needs the op before it. Per layer ATTN DISPATCH MLP SHARED
 * COMBINE (decode: ATTN_0 ATTN_1 ...). With two micro-batches a layer is run for micro-batch 0,
 * then for micro-batch 1. */
enum status schedule_single_batch(int layers, const bool *moe, int micro_batches, bool decode,
                                  struct schedule *out);

/* Two micro-batches; per layer compute ATTN(1) SHARED(0) ATTN(0) MLP(1) MLP(0) SHARED(1),
 * communication COMBINE(0) DISPATCH(1) DISPATCH(0) COMBINE(1). Micro-batch 0 is one layer ahead:
 * the ATTN(0) and MLP(0) of a round belong to the next layer, so that ATTN(1) of a layer, which
 * needs ATTN(0)'s KV of that layer when a prompt is split over both, comes after it. */
enum status schedule_prefill_dual_batch(int layers, const bool *moe, struct schedule *out);

/* Two micro-batches; per layer SHARED(0) ATTN_0(1) under DISPATCH(0), MLP(0) alone, ATTN_1(1)
 * under COMBINE(0), then the same with 0 and 1 swapped (and 0 in the next layer). */
enum status schedule_decode_five_stage(int layers, const bool *moe, struct schedule *out);

/* The choice of a job file: micro_batches 1 or overlap false gives single_batch. */
enum status schedule_build(int layers, const bool *moe, int micro_batches, bool overlap,
                           bool decode, struct schedule *out);

/* Checks what the runner relies on: every (stage, mb, layer) once and none missing,
 * dependencies backwards and sufficient, lanes complete, at most SCHEDULE_MAX_OPEN open without
 * a forced finish. ERR_BUG with a message. */
enum status schedule_check(const struct schedule *s, const bool *moe);

void schedule_free(struct schedule *s);

/* "ATTN_0" etc. */
const char *stage_name(enum stage stage);

static inline bool stage_is_comm(enum stage stage)
{
    return stage == STAGE_DISPATCH || stage == STAGE_COMBINE;
}

#endif
