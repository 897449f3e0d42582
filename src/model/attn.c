/* attn.c - attention stages: what both forms share, then prefill (non-absorbed) and decode
 * (absorbed).
 */
#include "core/numfmt.h"
#include "model/model.h"

#include <string.h>

void model_project(struct model *m, struct microbatch *b, int layer)
{
    const struct model_config *c = m->cfg;
    const struct kernels *k = m->k;
    const struct layer_weights *lw = &m->w->layer[layer];
    int rows = b->m, in_n = lw->q_in.n, q_dim = c->dim_nope + c->dim_rope;
    model_finish_layer(m, b);
    k->rmsnorm(m->lane, rows, c->hidden, b->h, c->hidden, lw->attn_norm, (float)c->rms_eps,
               m->s_norm, c->hidden);
    model_linear(m, rows, m->s_norm, c->hidden, &lw->q_in, m->s_in, in_n);
    float *kv = m->s_in + lw->q_in.source_n[0]; /* [rows, kv_lora | rope], stride in_n */
    if (c->q_lora) {
        k->rmsnorm(m->lane, rows, c->q_lora, m->s_in, in_n, lw->q_a_norm,
                   (float)MODEL_LORA_NORM_EPS, m->s_in, in_n);
        model_linear(m, rows, m->s_in, in_n, &lw->q_b, m->s_q, c->heads * q_dim);
    } else {
        for (int i = 0; i < rows; i++)
            memcpy(m->s_q + (size_t)i * (size_t)(c->heads * q_dim),
                   m->s_in + (size_t)i * (size_t)in_n, sizeof(float) * (size_t)(c->heads * q_dim));
    }
    k->rmsnorm(m->lane, rows, c->kv_lora, kv, in_n, lw->kv_a_norm, (float)MODEL_LORA_NORM_EPS, kv,
               in_n);
    k->rope(m->lane, rows, c->heads, c->dim_rope, m->s_q + c->dim_nope, c->heads * q_dim, q_dim,
            b->pos, m->rope, c->rope.interleave);
    k->rope(m->lane, rows, 1, c->dim_rope, kv + c->kv_lora, in_n, c->dim_rope, b->pos, m->rope,
            c->rope.interleave);
    k->kv_write(m->lane, m->kv_type, rows, c->kv_lora, c->dim_rope, kv, in_n, kv + c->kv_lora, in_n,
                b->pos, b->pages, m->page_tokens, model_cache_layer(m, layer));
}

void model_project_out(struct model *m, struct microbatch *b, int layer)
{
    const struct model_config *c = m->cfg;
    int n = c->heads * c->dim_v;
    model_linear(m, b->m, m->s_attn, n, &m->w->layer[layer].o, m->s_norm, c->hidden);
    m->k->add(m->lane, b->m, c->hidden, m->s_norm, c->hidden, b->h, c->hidden);
}

/* ---- prefill -------------------------------------------------------------------------------- */

/* Cache rows 0 .. n of a sequence, gathered from its pages: latent as FP32, rope keys as stored. */
static void gather_context(struct model *m, int layer, const int32_t *pages, int n)
{
    const struct model_config *c = m->cfg;
    size_t es = dtype_bytes(m->kv_type), row_bytes = (size_t)m->kv_row * es;
    size_t latent = (size_t)c->kv_lora, rope = (size_t)c->dim_rope;
    const char *cache = model_cache_layer(m, layer);
    for (int i = 0; i < n; i++) {
        size_t at = (size_t)pages[i / m->page_tokens] * (size_t)m->page_tokens +
                    (size_t)(i % m->page_tokens);
        const char *row = cache + at * row_bytes;
        float *dst = m->s_ctx + (size_t)i * latent;
        if (m->kv_type == DT_F32) {
            memcpy(dst, row, latent * sizeof(float));
        } else {
            const uint16_t *src = (const uint16_t *)(const void *)row;
            for (size_t j = 0; j < latent; j++) dst[j] = bf16_to_f32(src[j]);
        }
        memcpy(m->s_kr + (size_t)i * rope * es, row + latent * es, rope * es);
    }
}

/* [n * heads] strided vectors of s_kv -> dense kv_type. */
static void split_heads(struct model *m, int n, int first, int dim, char *out)
{
    const struct model_config *c = m->cfg;
    struct amat a = {.type = m->kv_type, .k = dim, .data = out, .ld = dim};
    m->k->act_convert(m->lane, n * c->heads, m->s_kv + first, c->dim_nope + c->dim_v, &a, false);
}

/* kv_b over the whole context, from buffers of its own: it is longer than a step's rows. */
static void expand_context(struct model *m, int layer, int n)
{
    const struct model_config *c = m->cfg;
    const struct wmat *w = &m->w->layer[layer].kv_b;
    struct amat a = {.type = model_act_type(m, w),
                     .k = c->kv_lora,
                     .data = m->s_ctx_act,
                     .ld = c->kv_lora,
                     .scale = m->s_ctx_scale,
                     .lds = fp8_blocks(c->kv_lora)};
    if (a.type == DT_F32)
        a.data = m->s_ctx;
    else
        m->k->act_convert(m->lane, n, m->s_ctx, c->kv_lora, &a, c->quant.ue8m0);
    m->k->gemm(m->lane, n, &a, w, m->s_kv, c->heads * (c->dim_nope + c->dim_v));
}

static void attend_segment(struct model *m, struct microbatch *b, int layer,
                           const struct segment *s)
{
    const struct model_config *c = m->cfg;
    int q_dim = c->dim_nope + c->dim_rope, n = s->pos0 + s->n;
    gather_context(m, layer, s->pages, n);
    expand_context(m, layer, n);
    split_heads(m, n, 0, c->dim_nope, m->s_k);
    split_heads(m, n, c->dim_nope, c->dim_v, m->s_v);
    struct mla_prefill_args args = {
        .kv_type = m->kv_type,
        .heads = c->heads,
        .dim_nope = c->dim_nope,
        .dim_rope = c->dim_rope,
        .dim_v = c->dim_v,
        .softmax_scale = m->softmax_scale,
        .m = s->n,
        .pos0 = s->pos0,
        .q = m->s_q + (size_t)s->row0 * (size_t)(c->heads * q_dim),
        .ldq = c->heads * q_dim,
        .k_nope = m->s_k,
        .v = m->s_v,
        .ldk = c->heads * c->dim_nope,
        .ldv = c->heads * c->dim_v,
        .k_rope = m->s_kr,
        .ldr = c->dim_rope,
        .out = m->s_attn + (size_t)s->row0 * (size_t)(c->heads * c->dim_v),
        .ldo = c->heads * c->dim_v,
    };
    m->k->mla_prefill(m->lane, &args);
    m->attn_work += (double)s->n * (s->pos0 + 0.5 * (s->n + 1));
    (void)b;
}

enum status model_attn_prefill(struct model *m, struct microbatch *b, int layer)
{
    if (b->m == 0) return OK;
    model_project(m, b, layer);
    for (int s = 0; s < b->segments; s++) {
        TRY(model_fit_context(m, b->segment[s].pos0 + b->segment[s].n));
        attend_segment(m, b, layer, &b->segment[s]);
    }
    model_project_out(m, b, layer);
    model_gate(m, b, layer);
    return OK;
}

/* ---- decode --------------------------------------------------------------------------------- */

void model_attn_decode_0(struct model *m, struct microbatch *b, int layer)
{
    if (b->m == 0) return;
    const struct model_config *c = m->cfg;
    const struct layer_weights *lw = &m->w->layer[layer];
    int q_dim = c->dim_nope + c->dim_rope, ldq = c->heads * q_dim, ldabs = c->heads * m->kv_row;
    model_project(m, b, layer);
    struct amat a = model_convert(m, b->m, ldq, m->s_q, ldq, model_act_type(m, &lw->w_uk[0]));
    a.k = c->dim_nope;
    m->k->gemm_batched(m->lane, c->heads, b->m, &a, q_dim, lw->w_uk, b->q, ldabs, m->kv_row);
    for (int i = 0; i < b->m; i++)
        for (int h = 0; h < c->heads; h++)
            memcpy(b->q + (size_t)i * (size_t)ldabs + (size_t)(h * m->kv_row + c->kv_lora),
                   m->s_q + (size_t)i * (size_t)ldq + (size_t)(h * q_dim + c->dim_nope),
                   sizeof(float) * (size_t)c->dim_rope);
}

void model_attn_decode_1(struct model *m, struct microbatch *b, int layer)
{
    if (b->m == 0) return;
    const struct model_config *c = m->cfg;
    const struct layer_weights *lw = &m->w->layer[layer];
    int ldl = c->heads * c->kv_lora;
    struct mla_decode_args args = {
        .kv_type = m->kv_type,
        .heads = c->heads,
        .dim_latent = c->kv_lora,
        .dim_rope = c->dim_rope,
        .page_tokens = m->page_tokens,
        .softmax_scale = m->softmax_scale,
        .m = b->m,
        .q = b->q,
        .ldq = c->heads * m->kv_row,
        .cache = model_cache_layer(m, layer),
        .pages = b->pages,
        .len = b->len,
        .out = m->s_latent,
        .ldo = ldl,
    };
    m->k->mla_decode(m->lane, &args);
    struct amat a = model_convert(m, b->m, ldl, m->s_latent, ldl, model_act_type(m, &lw->w_uv[0]));
    a.k = c->kv_lora;
    m->k->gemm_batched(m->lane, c->heads, b->m, &a, c->kv_lora, lw->w_uv, m->s_attn,
                       c->heads * c->dim_v, c->dim_v);
    model_project_out(m, b, layer);
    model_gate(m, b, layer);
    for (int i = 0; i < b->m; i++) m->attn_work += b->len[i];
}
