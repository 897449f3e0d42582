/* mlp.c - the second half of a layer: gate and payload, dense MLP, shared and routed experts, and
 * the sum that ends a layer; embedding and logits.
 */
#include "model/model.h"
#include "moe/expert.h"

#include <string.h>

enum dtype model_act_type(const struct model *m, const struct wmat *w)
{
    if (w->type != DT_E4M3) return w->type;
    return m->w->numerics == NUM_CHECKPOINT ? DT_E4M3 : DT_BF16;
}

struct amat model_convert(struct model *m, int rows, int k, const float *x, int ldx,
                          enum dtype type)
{
    struct amat a = {.type = type, .k = k, .data = m->s_act, .ld = k};
    if (type == DT_F32) {
        a.data = x;
        a.ld = ldx;
        return a;
    }
    if (type == DT_E4M3) {
        a.scale = m->s_act_scale;
        a.lds = fp8_blocks(k);
    }
    m->k->act_convert(m->lane, rows, x, ldx, &a, m->cfg->quant.ue8m0);
    return a;
}

void model_linear(struct model *m, int rows, const float *x, int ldx, const struct wmat *w,
                  float *y, int ldy)
{
    struct amat a = model_convert(m, rows, w->k, x, ldx, model_act_type(m, w));
    m->k->gemm(m->lane, rows, &a, w, y, ldy);
}

static void count_load(struct model *m, const struct microbatch *b, int layer)
{
    int64_t *load = m->expert_load + (size_t)layer * (size_t)m->cfg->experts;
    for (int i = 0; i < b->m * m->cfg->topk; i++) load[b->ids[i]]++;
}

void model_gate(struct model *m, struct microbatch *b, int layer)
{
    const struct model_config *c = m->cfg;
    const struct layer_weights *lw = &m->w->layer[layer];
    m->k->rmsnorm(m->lane, b->m, c->hidden, b->h, c->hidden, lw->mlp_norm, (float)c->rms_eps,
                  b->mlp_in, c->hidden);
    if (!lw->moe) return;
    /* The gate reads FP32 activations in every mode. */
    struct amat a = {.type = DT_F32, .k = c->hidden, .data = b->mlp_in, .ld = c->hidden};
    float *logits = m->s_norm;
    m->k->gemm(m->lane, b->m, &a, &lw->gate, logits, c->experts);
    struct gate_params gate = m->gate;
    gate.bias = lw->gate_bias;
    m->k->gate(m->lane, b->m, logits, c->experts, &gate, b->ids, b->gate_weight);
    m->k->act_convert(m->lane, b->m, b->mlp_in, c->hidden, &b->payload, c->quant.ue8m0);
    count_load(m, b, layer);
    b->pending = true;
}

/* One gated MLP over b's own rows. */
static void own_mlp(struct model *m, struct microbatch *b, const struct layer_weights *lw,
                    const struct amat *in, float *out)
{
    int32_t begin = 0, rows = b->m;
    struct moe_ffn ffn = {
        .groups = 1,
        .begin = &begin,
        .rows = &rows,
        .in = *in,
        .gate_up = &lw->mlp_up,
        .down = &lw->mlp_down,
        .act_type = model_act_type(m, &lw->mlp_down),
        .ue8m0 = m->cfg->quant.ue8m0,
        .scratch = m->s_ffn,
        .out = out,
        .ldo = m->cfg->hidden,
    };
    moe_ffn(m->lane, m->k, &ffn);
}

/* The rows of b as the up projection reads them: the DISPATCH payload where the types agree. */
static struct amat own_input(struct model *m, struct microbatch *b, const struct wmat *up)
{
    enum dtype type = model_act_type(m, up);
    if (type == b->payload.type && b->pending) return b->payload;
    return model_convert(m, b->m, m->cfg->hidden, b->mlp_in, m->cfg->hidden, type);
}

void model_dense(struct model *m, struct microbatch *b, int layer)
{
    if (b->m == 0) return;
    const struct layer_weights *lw = &m->w->layer[layer];
    int n = m->cfg->hidden;
    struct amat in = own_input(m, b, &lw->mlp_up);
    own_mlp(m, b, lw, &in, b->shared);
    m->k->add(m->lane, b->m, n, b->shared, n, b->h, n);
}

void model_shared(struct model *m, struct microbatch *b, int layer)
{
    const struct layer_weights *lw = &m->w->layer[layer];
    if (b->m == 0 || lw->mlp_up.n == 0) return;
    struct amat in = own_input(m, b, &lw->mlp_up);
    own_mlp(m, b, lw, &in, b->shared);
}

void model_finish_layer(struct model *m, struct microbatch *b)
{
    if (!b->pending) return;
    int n = m->cfg->hidden;
    /* The fixed order of sums: (combined + shared), then the residual. */
    if (m->cfg->shared_experts) m->k->add(m->lane, b->m, n, b->shared, n, b->moe, n);
    m->k->add(m->lane, b->m, n, b->moe, n, b->h, n);
    b->pending = false;
}

void model_embed(struct model *m, struct microbatch *b)
{
    b->pending = false;
    weights_embed(m->w, b->m, b->tokens, b->h);
}

const float *model_logits(struct model *m, struct microbatch *b, const int32_t *rows, int n)
{
    const struct model_config *c = m->cfg;
    size_t hidden = (size_t)c->hidden;
    model_finish_layer(m, b);
    for (int i = 0; i < n; i++)
        memcpy(m->s_norm + (size_t)i * hidden, b->h + (size_t)rows[i] * hidden,
               hidden * sizeof(float));
    m->k->rmsnorm(m->lane, n, c->hidden, m->s_norm, c->hidden, m->w->final_norm, (float)c->rms_eps,
                  m->s_norm, c->hidden);
    model_linear(m, n, m->s_norm, c->hidden, &m->w->head, m->s_logits, c->vocab);
    return m->s_logits;
}

/* Receives vary from step to step; their buffers grow to the largest one seen. */
static enum status fit_received(struct model *m, struct microbatch *b, int rows)
{
    struct device *dev = m->lane->dev;
    if (rows > b->expert_out_rows) {
        int want = rows + rows / 2;
        dev->free(dev, b->expert_out);
        b->expert_out_rows = 0;
        b->expert_out =
            dev->alloc(dev, (size_t)want * (size_t)m->cfg->hidden * sizeof *b->expert_out);
        if (!b->expert_out)
            return error_set(ERR_RESOURCE, "no memory for %d rows of routed experts", want);
        b->expert_out_rows = want;
    }
    size_t need = moe_ffn_scratch_bytes(DT_F32, rows, m->cfg->moe_intermediate);
    if (need > m->s_ffn_bytes) {
        dev->free(dev, m->s_ffn);
        m->s_ffn_bytes = 0;
        m->s_ffn = dev->alloc(dev, need + need / 2);
        if (!m->s_ffn) return error_set(ERR_RESOURCE, "no memory for %d rows of experts", rows);
        m->s_ffn_bytes = need + need / 2;
    }
    return OK;
}

enum status model_experts(struct model *m, struct microbatch *b, int layer)
{
    const struct layer_weights *lw = &m->w->layer[layer];
    const struct ep_recv *r = &b->recv;
    TRY(fit_received(m, b, r->total));
    if (r->total == 0) return OK;
    struct moe_ffn ffn = {
        .groups = r->groups,
        .begin = r->begin,
        .rows = r->rows,
        .in = r->x,
        .gate_up = lw->expert_up,
        .down = lw->expert_down,
        .act_type = model_act_type(m, &lw->expert_down[0]),
        .ue8m0 = m->cfg->quant.ue8m0,
        .scratch = m->s_ffn,
        .out = b->expert_out,
        .ldo = m->cfg->hidden,
    };
    moe_ffn(m->lane, m->k, &ffn);
    for (int g = 0; g < r->groups; g++) m->expert_rows += r->rows[g];
    return OK;
}
