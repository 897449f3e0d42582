/* schedule.c - what every kind of schedule shares: appending ops, the dependencies of each
 * stage, the sequential order, the check. The two overlapping orders are in
 * schedule/schedule_dual.c.
 */
#include "schedule/schedule.h"

#include "schedule/builder.h"

#include <stdlib.h>
#include <string.h>

static const char *const stage_names[STAGE_COUNT] = {"EMBED",     "ATTN", "ATTN_0", "ATTN_1",
                                                     "DISPATCH",  "MLP",  "SHARED", "COMBINE",
                                                     "DENSE_MLP", "HEAD"};

const char *stage_name(enum stage stage)
{
    return (unsigned)stage < STAGE_COUNT ? stage_names[stage] : "?";
}

void schedule_free(struct schedule *s)
{
    free(s->ops);
    for (int lane = 0; lane < OP_LANES; lane++) free(s->lane[lane]);
    memset(s, 0, sizeof *s);
}

/* At most six ops a layer and micro-batch, and EMBED and HEAD. */
enum { OPS_PER_LAYER = 6 };

static size_t builder_slot(enum stage stage, int mb, int layer)
{
    return ((size_t)(layer + 1) * SCHEDULE_MAX_MB + (size_t)mb) * STAGE_COUNT + stage;
}

int builder_find(const struct builder *b, enum stage stage, int mb, int layer)
{
    return b->where[builder_slot(stage, mb, layer)];
}

enum status builder_init(struct builder *b, enum schedule_kind kind, int layers, const bool *moe,
                         int micro_batches)
{
    memset(b, 0, sizeof *b);
    if (layers < 1 || !moe || micro_batches < 1 || micro_batches > SCHEDULE_MAX_MB)
        return error_set(ERR_BUG,
                         "schedule: %d layers and %d micro-batches, expected at least 1 "
                         "layer and 1 or 2 micro-batches",
                         layers, micro_batches);
    b->moe = moe;
    b->s.kind = kind;
    b->s.layers = layers;
    b->s.micro_batches = micro_batches;
    size_t cap = (size_t)micro_batches * ((size_t)layers * OPS_PER_LAYER + 2);
    size_t slots = (size_t)(layers + 2) * SCHEDULE_MAX_MB * STAGE_COUNT;
    b->s.ops = calloc(cap, sizeof *b->s.ops);
    for (int lane = 0; lane < OP_LANES; lane++)
        b->s.lane[lane] = calloc(cap, sizeof *b->s.lane[lane]);
    b->where = malloc(slots * sizeof *b->where);
    if (!b->s.ops || !b->s.lane[0] || !b->s.lane[1] || !b->where) {
        builder_abandon(b);
        return error_set(ERR_RESOURCE, "schedule: no memory for %zu operations", cap);
    }
    for (size_t i = 0; i < slots; i++) b->where[i] = -1;
    return OK;
}

void builder_abandon(struct builder *b)
{
    schedule_free(&b->s);
    free(b->where);
    b->where = NULL;
}

static void op_need(struct op *op, int dep)
{
    for (int i = 0; i < op->n_deps; i++)
        if (op->deps[i] == dep) return;
    if (dep >= 0 && op->n_deps < SCHEDULE_MAX_DEPS) op->deps[op->n_deps++] = dep;
}

static bool stage_decodes(enum schedule_kind kind)
{
    return kind == SCHEDULE_DECODE_SEQUENTIAL || kind == SCHEDULE_DECODE_FIVE_STAGE;
}

/* What a layer leaves for the next one (or HEAD): the embedding before layer 0. */
static void need_layer_output(const struct builder *b, struct op *op, int layer)
{
    if (layer < 0) {
        op_need(op, builder_find(b, STAGE_EMBED, op->mb, -1));
    } else if (b->moe[layer]) {
        op_need(op, builder_find(b, STAGE_COMBINE, op->mb, layer));
        op_need(op, builder_find(b, STAGE_SHARED, op->mb, layer));
    } else {
        op_need(op, builder_find(b, STAGE_DENSE_MLP, op->mb, layer));
    }
}

/* The data an op reads. ATTN of micro-batch 1 reads the KV that micro-batch 0 wrote in this layer
 * when a prompt is split over both; in decode no request is in both. */
static void need_inputs(const struct builder *b, struct op *op)
{
    bool decode = stage_decodes(b->s.kind);
    enum stage attn_end = decode ? STAGE_ATTN_1 : STAGE_ATTN;
    switch (op->stage) {
    case STAGE_ATTN:
        need_layer_output(b, op, op->layer - 1);
        if (op->mb == 1) op_need(op, builder_find(b, STAGE_ATTN, 0, op->layer));
        break;
    case STAGE_ATTN_0:
    case STAGE_HEAD: need_layer_output(b, op, op->layer - 1); break;
    case STAGE_ATTN_1: op_need(op, builder_find(b, STAGE_ATTN_0, op->mb, op->layer)); break;
    case STAGE_DISPATCH:
    case STAGE_SHARED:
    case STAGE_DENSE_MLP: op_need(op, builder_find(b, attn_end, op->mb, op->layer)); break;
    case STAGE_MLP: op_need(op, builder_find(b, STAGE_DISPATCH, op->mb, op->layer)); break;
    case STAGE_COMBINE: op_need(op, builder_find(b, STAGE_MLP, op->mb, op->layer)); break;
    case STAGE_EMBED:
    case STAGE_COUNT: break;
    }
}

void builder_add(struct builder *b, enum stage stage, int mb, int layer)
{
    struct schedule *s = &b->s;
    bool routed = stage == STAGE_DISPATCH || stage == STAGE_SHARED || stage == STAGE_COMBINE;
    if (stage != STAGE_EMBED && stage != STAGE_HEAD) {
        if (layer < 0 || layer >= s->layers) return;
        if (routed && !b->moe[layer]) return;
        if (stage == STAGE_MLP && !b->moe[layer]) stage = STAGE_DENSE_MLP;
    }
    struct op *op = &s->ops[s->n_ops];
    *op = (struct op){.stage = stage,
                      .lane = stage_is_comm(stage) ? OP_COMM : OP_COMPUTE,
                      .mb = mb,
                      .layer = layer,
                      .index = s->n_ops};
    need_inputs(b, op);
    if (b->chain && op->index > 0) op_need(op, op->index - 1);
    s->lane[op->lane][s->n_lane[op->lane]++] = op->index;
    b->where[builder_slot(stage, mb, layer)] = op->index;
    s->n_ops++;
}

void builder_add_each_mb(struct builder *b, enum stage stage, int layer)
{
    for (int mb = 0; mb < b->s.micro_batches; mb++) builder_add(b, stage, mb, layer);
}

enum status builder_finish(struct builder *b, struct schedule *out)
{
    enum status st = schedule_check(&b->s, b->moe);
    if (st != OK) {
        builder_abandon(b);
        return st;
    }
    free(b->where);
    b->where = NULL;
    *out = b->s;
    return OK;
}

enum status schedule_single_batch(int layers, const bool *moe, int micro_batches, bool decode,
                                  struct schedule *out)
{
    struct builder b;
    TRY(builder_init(&b, decode ? SCHEDULE_DECODE_SEQUENTIAL : SCHEDULE_PREFILL_SEQUENTIAL, layers,
                     moe, micro_batches));
    b.chain = true;
    builder_add_each_mb(&b, STAGE_EMBED, -1);
    for (int layer = 0; layer < layers; layer++) {
        for (int mb = 0; mb < micro_batches; mb++) {
            if (decode) {
                builder_add(&b, STAGE_ATTN_0, mb, layer);
                builder_add(&b, STAGE_ATTN_1, mb, layer);
            } else {
                builder_add(&b, STAGE_ATTN, mb, layer);
            }
            builder_add(&b, STAGE_DISPATCH, mb, layer);
            builder_add(&b, STAGE_MLP, mb, layer);
            builder_add(&b, STAGE_SHARED, mb, layer);
            builder_add(&b, STAGE_COMBINE, mb, layer);
        }
    }
    builder_add_each_mb(&b, STAGE_HEAD, layers);
    return builder_finish(&b, out);
}

enum status schedule_build(int layers, const bool *moe, int micro_batches, bool overlap,
                           bool decode, struct schedule *out)
{
    if (micro_batches == 1 || !overlap)
        return schedule_single_batch(layers, moe, micro_batches, decode, out);
    if (micro_batches != 2)
        return error_set(ERR_BUG, "schedule: %d micro-batches, expected 1 or 2", micro_batches);
    return decode ? schedule_decode_five_stage(layers, moe, out)
                  : schedule_prefill_dual_batch(layers, moe, out);
}
