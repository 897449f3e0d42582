/* memory_model.c - see memory_model.h. */
#include "cluster/memory_model.h"

#include <math.h>

/* The MTP module: one layer with experts, and the product that takes it in. Embedding and head
 * are the main model's. */
static void add_mtp(const struct model_config *m, const struct memory_setup *s,
                    const struct model_sizes *z, struct unit_memory *out)
{
    double per = m->quant.fp8 ? 1 : 2, layers = m->layers;
    double shared = z->moe_layers ? (double)z->bytes[PART_SHARED] / z->moe_layers : 0;
    out->replicated +=
        (double)z->bytes[PART_ATTENTION] / layers + shared + 2.0 * m->hidden * m->hidden * per;
    out->routed += (double)s->slots_per_gpu * z->expert_bytes;
}

static double decode_buffers(const struct model_config *m, const struct memory_setup *s)
{
    double tokens = (double)s->max_batch / s->micro_batches * (s->mtp ? 2 : 1);
    double rows = (double)s->slots_per_gpu * s->ep * tokens;
    double row = (m->quant.fp8 ? m->hidden * (1 + 1.0 / 32) : 2.0 * m->hidden) + 2.0 * m->hidden;
    return s->ep > 1 ? 2 * rows * row : 0; /* two sets */
}

void memory_model(const struct hardware *hw, const struct model_config *m,
                  const struct memory_setup *s, struct unit_memory *out)
{
    struct model_sizes z;
    if (s->sizes)
        z = *s->sizes;
    else
        model_sizes_compute(m, NULL, &z);
    *out = (struct unit_memory){.capacity = hw->memory_bytes, .reserve = hw->reserve_bytes};
    out->replicated = (double)(z.bytes_total - z.bytes[PART_ROUTED]);
    out->routed = (double)s->slots_per_gpu * z.moe_layers * z.expert_bytes;
    double layers = m->layers + (s->mtp ? 1 : 0);
    if (s->mtp) add_mtp(m, s, &z, out);
    double heads = m->heads, q_head = m->dim_nope + m->dim_rope;
    double tokens = s->decode ? (double)s->max_batch * (s->mtp ? 2 : 1) : s->chunk_tokens;
    double mb = tokens / s->micro_batches, rows = mb * m->topk;
    if (s->decode) { /* W_UK and W_UV of kv_b_proj stand beside it in BF16 */
        out->absorbed = layers * heads * (m->dim_nope + m->dim_v) * m->kv_lora * 2.0;
        out->comm = decode_buffers(m, s);
    } else if (s->ep > 1) { /* room for twice the mean load, both directions */
        out->comm = s->micro_batches * 2 * mb * m->topk / 2 * 4.0 * m->hidden;
    }
    double attention = mb * heads * (q_head + q_head + m->dim_v) * 2;
    double experts = 2 * rows * (3.0 * m->moe_intermediate + m->hidden) * 2;
    double logits = (s->decode ? tokens : 64) * m->vocab * 4.0;
    out->activation = tokens * m->hidden * 4.0 * 2 + fmax(attention, experts) + logits;
    out->kv_per_token = layers * (m->kv_lora + m->dim_rope) * 2.0;
    out->kv = out->capacity - out->replicated - out->routed - out->absorbed - out->comm -
              out->activation - out->reserve;
}
