/* schedule_dual.c - the two published orders that hide communication of one micro-batch behind
 * computation of the other. Each loop body is one round of the published steady state; round -1
 * is the prologue, the last round the epilogue, and builder_add leaves out what has no
 * counterpart.
 */
#include "schedule/builder.h"

/* A communication op is appended right after the compute op that it needs, so the list shows
 * under which computation it runs; the order within each lane is what counts. */
static void prefill_round(struct builder *b, int layer)
{
    int next = layer + 1; /* micro-batch 0 is one layer ahead */
    builder_add(b, STAGE_COMBINE, 0, layer);
    builder_add(b, STAGE_ATTN, 1, layer);
    builder_add(b, STAGE_DISPATCH, 1, layer);
    builder_add(b, STAGE_SHARED, 0, layer);
    builder_add(b, STAGE_ATTN, 0, next);
    builder_add(b, STAGE_DISPATCH, 0, next);
    builder_add(b, STAGE_MLP, 1, layer);
    builder_add(b, STAGE_COMBINE, 1, layer);
    builder_add(b, STAGE_MLP, 0, next);
    builder_add(b, STAGE_SHARED, 1, layer);
}

enum status schedule_prefill_dual_batch(int layers, const bool *moe, struct schedule *out)
{
    struct builder b;
    TRY(builder_init(&b, SCHEDULE_PREFILL_DUAL, layers, moe, 2));
    builder_add_each_mb(&b, STAGE_EMBED, -1);
    for (int layer = -1; layer < layers; layer++) prefill_round(&b, layer);
    builder_add_each_mb(&b, STAGE_HEAD, layers);
    return builder_finish(&b, out);
}

/* mb's DISPATCH .. COMBINE of its layer, under the attention of the other micro-batch. */
static void decode_half_round(struct builder *b, int mb, int layer, int other_layer)
{
    builder_add(b, STAGE_DISPATCH, mb, layer);
    builder_add(b, STAGE_SHARED, mb, layer);
    builder_add(b, STAGE_ATTN_0, 1 - mb, other_layer);
    builder_add(b, STAGE_MLP, mb, layer);
    builder_add(b, STAGE_COMBINE, mb, layer);
    builder_add(b, STAGE_ATTN_1, 1 - mb, other_layer);
}

enum status schedule_decode_five_stage(int layers, const bool *moe, struct schedule *out)
{
    struct builder b;
    TRY(builder_init(&b, SCHEDULE_DECODE_FIVE_STAGE, layers, moe, 2));
    builder_add_each_mb(&b, STAGE_EMBED, -1);
    decode_half_round(&b, 1, -1, 0); /* only the attention of micro-batch 0 in layer 0 exists */
    for (int layer = 0; layer < layers; layer++) {
        decode_half_round(&b, 0, layer, layer);
        decode_half_round(&b, 1, layer, layer + 1);
    }
    builder_add_each_mb(&b, STAGE_HEAD, layers);
    return builder_finish(&b, out);
}
