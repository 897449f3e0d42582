/* model.c - buffers of a rank's model: their sizes in one table, allocated together. */
#include "model/model.h"

#include "attention/rope_table.h"
#include "moe/expert.h"
#include "moe/moe.h"

#include <string.h>

enum dtype model_kv_type(enum numerics n)
{
    return n == NUM_FP32 ? DT_F32 : DT_BF16;
}

enum dtype model_dispatch_type(enum numerics n, bool experts_fp8)
{
    if (n == NUM_FP32) return DT_F32;
    return n == NUM_CHECKPOINT && experts_fp8 ? DT_E4M3 : DT_BF16;
}

enum dtype model_combine_type(enum numerics n)
{
    return n == NUM_FP32 ? DT_F32 : DT_BF16;
}

size_t model_page_bytes(const struct model_config *cfg, enum dtype kv_type, int page_tokens)
{
    return (size_t)cfg->layers * (size_t)page_tokens * (size_t)(cfg->kv_lora + cfg->dim_rope) *
           dtype_bytes(kv_type);
}

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

/* One buffer: where its pointer goes and its bytes. */
struct buffer {
    void *slot; /* address of a pointer */
    size_t bytes;
};

enum { MAX_BUFFERS = 64 };

struct buffer_list {
    struct buffer at[MAX_BUFFERS];
    int n;
};

static void want(struct buffer_list *list, void *slot, size_t count, size_t each)
{
    list->at[list->n++] = (struct buffer){slot, count * each};
}

/* Widest row that is converted to a GEMM's type. */
static int widest_activation(const struct model_config *c)
{
    int k = max_int(c->hidden, c->heads * max_int(c->dim_v, c->dim_nope + c->dim_rope));
    k = max_int(k, c->heads * c->kv_lora);
    return max_int(k, max_int(c->q_lora, c->intermediate));
}

static void want_microbatch(struct buffer_list *list, const struct model_config *c,
                            const struct model_limits *lim, struct microbatch *b)
{
    size_t rows = (size_t)lim->max_rows, hidden = (size_t)c->hidden;
    size_t topk = (size_t)max_int(c->topk, 1);
    want(list, &b->tokens, rows, sizeof *b->tokens);
    want(list, &b->pos, rows, sizeof *b->pos);
    want(list, &b->len, rows, sizeof *b->len);
    want(list, &b->pages, rows, sizeof *b->pages);
    want(list, &b->segment, rows, sizeof *b->segment);
    want(list, &b->h, rows * hidden, sizeof(float));
    want(list, &b->mlp_in, rows * hidden, sizeof(float));
    want(list, &b->payload.data, rows * hidden, sizeof(float));
    want(list, &b->payload.scale, rows * (size_t)fp8_blocks(c->hidden), sizeof(float));
    want(list, &b->ids, rows * topk, sizeof *b->ids);
    want(list, &b->gate_weight, rows * topk, sizeof(float));
    want(list, &b->moe, rows * hidden, sizeof(float));
    want(list, &b->shared, rows * hidden, sizeof(float));
    if (lim->decode)
        want(list, &b->q, rows * (size_t)(c->heads * (c->kv_lora + c->dim_rope)), sizeof(float));
}

static void want_scratch(struct buffer_list *list, const struct model_config *c,
                         const struct model_limits *lim, struct model *m)
{
    size_t rows = (size_t)lim->max_rows, ctx = (size_t)lim->max_context;
    size_t q = (size_t)(c->heads * (c->dim_nope + c->dim_rope));
    size_t in = (size_t)((c->q_lora ? c->q_lora : (int)q) + c->kv_lora + c->dim_rope);
    size_t heads = (size_t)c->heads, widest = (size_t)widest_activation(c);
    want(list, &m->rope, ctx * (size_t)c->dim_rope, sizeof(float));
    want(list, &m->s_norm, rows * (size_t)max_int(c->hidden, c->experts), sizeof(float));
    want(list, &m->s_act, rows * widest, sizeof(uint16_t));
    want(list, &m->s_act_scale, rows * (size_t)fp8_blocks((int)widest), sizeof(float));
    want(list, &m->s_in, rows * in, sizeof(float));
    want(list, &m->s_q, rows * q, sizeof(float));
    want(list, &m->s_attn, rows * heads * (size_t)c->dim_v, sizeof(float));
    want(list, &m->s_logits, (size_t)m->logit_rows * (size_t)c->vocab, sizeof(float));
    want(list, &m->expert_load, (size_t)c->layers * (size_t)max_int(c->experts, 1),
         sizeof(int64_t));
    if (lim->decode) want(list, &m->s_latent, rows * heads * (size_t)c->kv_lora, sizeof(float));
}

/* What a sequence's whole context needs in prefill. */
static void want_context(struct buffer_list *list, const struct model_config *c, size_t ctx,
                         enum dtype kv_type, struct model *m)
{
    size_t heads = (size_t)c->heads, es = dtype_bytes(kv_type);
    list->n = 0;
    want(list, &m->s_ctx, ctx * (size_t)c->kv_lora, sizeof(float));
    want(list, &m->s_ctx_act, ctx * (size_t)c->kv_lora, sizeof(uint16_t));
    want(list, &m->s_ctx_scale, ctx * (size_t)fp8_blocks(c->kv_lora), sizeof(float));
    want(list, &m->s_kv, ctx * heads * (size_t)(c->dim_nope + c->dim_v), sizeof(float));
    want(list, &m->s_k, ctx * heads * (size_t)c->dim_nope, es);
    want(list, &m->s_v, ctx * heads * (size_t)c->dim_v, es);
    want(list, &m->s_kr, ctx * (size_t)c->dim_rope, es);
}

static int choose_logit_rows(const struct model_config *c, const struct model_limits *lim)
{
    /* Logits are made in groups: at most 16 MiB of them at a time, but at least one row. */
    int fit = (int)(((size_t)16 << 20) / ((size_t)c->vocab * sizeof(float)));
    int rows = fit < 1 ? 1 : fit;
    return rows < lim->max_rows ? rows : lim->max_rows;
}

static void list_buffers(struct buffer_list *list, const struct model_config *c,
                         const struct model_limits *lim, struct model *m)
{
    list->n = 0;
    m->logit_rows = choose_logit_rows(c, lim);
    for (int i = 0; i < MODEL_MICROBATCHES; i++) want_microbatch(list, c, lim, &m->mb[i]);
    want_scratch(list, c, lim, m);
}

static size_t list_bytes(const struct buffer_list *list)
{
    size_t sum = 0;
    for (int i = 0; i < list->n; i++) sum += (list->at[i].bytes + 63) / 64 * 64;
    return sum;
}

static void free_list(struct device *dev, const struct buffer_list *list)
{
    for (int i = 0; i < list->n; i++) {
        void *p = 0;
        memcpy(&p, list->at[i].slot, sizeof p);
        dev->free(dev, p);
        p = 0;
        memcpy(list->at[i].slot, &p, sizeof p);
    }
}

static enum status alloc_list(struct device *dev, const struct buffer_list *list)
{
    for (int i = 0; i < list->n; i++) {
        void *p = dev->alloc(dev, list->at[i].bytes);
        if (!p)
            return error_set(ERR_RESOURCE, "no memory for activations: %zu bytes",
                             list->at[i].bytes);
        memcpy(list->at[i].slot, &p, sizeof p);
    }
    return OK;
}

enum status model_fit_context(struct model *m, int positions)
{
    struct device *dev = m->lane->dev;
    struct buffer_list list;
    if (positions <= m->ctx_rows) return OK;
    int rows = positions + positions / 2;
    if (rows > m->limits.max_context) rows = m->limits.max_context;
    want_context(&list, m->cfg, (size_t)rows, m->kv_type, m);
    free_list(dev, &list);
    m->ctx_rows = 0;
    TRY(alloc_list(dev, &list));
    m->ctx_rows = rows;
    return OK;
}

static int widest_inner(const struct model_config *c)
{
    return max_int(c->intermediate, c->shared_experts * c->moe_intermediate);
}

/* Buffers that follow the load are made half as large again as what asked for them. */
static int with_room(int rows)
{
    return rows + rows / 2;
}

static size_t context_bytes(const struct model_config *c, enum dtype kv_type, int rows)
{
    struct model m;
    struct buffer_list list;
    want_context(&list, c, (size_t)rows, kv_type, &m);
    return list_bytes(&list);
}

struct model_memory model_memory(const struct model_config *c, enum numerics n,
                                 const struct model_limits *limits, int microbatches, int longest,
                                 int recv_rows)
{
    struct model m;
    struct buffer_list list;
    list_buffers(&list, c, limits, &m);
    size_t own = moe_ffn_scratch_bytes(DT_F32, limits->max_rows, widest_inner(c));
    struct model_memory out = {.start = list_bytes(&list) + own};
    int rows = with_room(longest > 0 ? longest : MODEL_PLAN_CONTEXT);
    if (rows > limits->max_context) rows = limits->max_context;
    if (limits->prefill) out.context = context_bytes(c, model_kv_type(n), rows);
    if (model_config_moe_layers(c) == 0) return out;
    rows = with_room(recv_rows);
    size_t routed = moe_ffn_scratch_bytes(DT_F32, rows, c->moe_intermediate);
    out.routed = (size_t)microbatches * (size_t)rows * (size_t)c->hidden * sizeof(float) +
                 (routed > own ? routed - own : 0);
    return out;
}

struct model_memory model_memory_held(const struct model *m)
{
    const struct model_config *c = m->cfg;
    struct model copy = *m;
    struct buffer_list list;
    list_buffers(&list, c, &m->limits, &copy);
    size_t own = moe_ffn_scratch_bytes(DT_F32, m->limits.max_rows, widest_inner(c));
    struct model_memory out = {.start = list_bytes(&list) + own};
    if (m->ctx_rows > 0) out.context = context_bytes(c, m->kv_type, m->ctx_rows);
    for (int i = 0; i < MODEL_MICROBATCHES; i++)
        out.routed += (size_t)m->mb[i].expert_out_rows * (size_t)c->hidden * sizeof(float);
    out.routed += m->s_ffn_bytes - own;
    return out;
}

static void fill_gate(const struct model_config *c, struct gate_params *g)
{
    *g = (struct gate_params){
        .kind = c->gate == MODEL_GATE_SIGMOID_NOAUX    ? GATE_SIGMOID_NOAUX
                : c->gate == MODEL_GATE_SOFTMAX_GREEDY ? GATE_SOFTMAX_GREEDY
                                                       : GATE_SOFTMAX_GROUP,
        .experts = c->experts,
        .topk = c->topk,
        .n_group = c->n_group,
        .topk_group = c->topk_group,
        .norm_topk = c->norm_topk,
        .scale = (float)c->routed_scale,
    };
}

/* The bias is each layer's own; here it only has to be there. */
static enum status check_gate(const struct model_config *c, const struct gate_params *g)
{
    static const float some_bias = 0;
    struct gate_params probe = *g;
    if (probe.kind == GATE_SIGMOID_NOAUX) probe.bias = &some_bias;
    return model_config_moe_layers(c) ? moe_check_gate(&probe) : OK;
}

static enum status fill_rope(struct model *m)
{
    const struct model_rope *r = &m->cfg->rope;
    struct rope_params p = {
        .theta = r->theta,
        .dim = m->cfg->dim_rope,
        .max_positions = m->limits.max_context,
        .yarn = r->yarn,
        .factor = r->factor,
        .original_max = r->original_max,
        .beta_fast = r->beta_fast,
        .beta_slow = r->beta_slow,
        .has_mscale = r->has_mscale,
        .mscale = r->mscale,
        .has_mscale_all_dim = r->has_mscale_all_dim,
        .mscale_all_dim = r->mscale_all_dim,
        .attention_factor = r->has_attention_factor ? r->attention_factor : 0,
        .truncate = r->truncate,
        .interleave = r->interleave,
    };
    m->softmax_scale = rope_softmax_scale(&p, m->cfg->dim_nope + m->cfg->dim_rope);
    return rope_table_build(&p, m->rope);
}

enum status model_create(struct weights *w, struct lane *lane, const struct model_limits *limits,
                         int page_tokens, int pages, void *cache, struct model *m)
{
    memset(m, 0, sizeof *m);
    const struct model_config *c = w->cfg;
    m->cfg = c;
    m->k = w->k;
    m->w = w;
    m->lane = lane;
    m->limits = *limits;
    m->kv_type = model_kv_type(w->numerics);
    m->dispatch_type = model_dispatch_type(w->numerics, w->experts_fp8);
    m->combine_type = model_combine_type(w->numerics);
    m->kv_row = c->kv_lora + c->dim_rope;
    m->page_tokens = page_tokens;
    m->pages = pages;
    m->cache = cache;
    fill_gate(c, &m->gate);
    TRY(check_gate(c, &m->gate));
    struct buffer_list list;
    list_buffers(&list, c, limits, m);
    enum status st = alloc_list(lane->dev, &list);
    if (st != OK) {
        model_free(m);
        return st;
    }
    for (int i = 0; i < MODEL_MICROBATCHES; i++) {
        struct amat *a = &m->mb[i].payload;
        a->type = m->dispatch_type;
        a->k = a->ld = c->hidden;
        a->lds = fp8_blocks(c->hidden);
    }
    m->s_ffn_bytes = moe_ffn_scratch_bytes(DT_F32, limits->max_rows, widest_inner(c));
    m->s_ffn = lane->dev->alloc(lane->dev, m->s_ffn_bytes);
    if (!m->s_ffn) {
        model_free(m);
        return error_set(ERR_RESOURCE, "no memory for the MLP: %zu bytes", m->s_ffn_bytes);
    }
    return fill_rope(m);
}

void model_free(struct model *m)
{
    if (!m->lane) return;
    struct device *dev = m->lane->dev;
    struct buffer_list list;
    list_buffers(&list, m->cfg, &m->limits, m);
    free_list(dev, &list);
    want_context(&list, m->cfg, 0, m->kv_type, m);
    free_list(dev, &list);
    for (int i = 0; i < MODEL_MICROBATCHES; i++) dev->free(dev, m->mb[i].expert_out);
    dev->free(dev, m->s_ffn);
    memset(m, 0, sizeof *m);
}
