/* engine_stage.c - see engine_stage.h; the order of calls follows model/attn.c, model/mlp.c. */
#include "cluster/engine_stage.h"

#include <math.h>
#include <string.h>

enum { FP8_COLUMNS = 128 }; /* that share a scale */

/* ---- types and shapes ------------------------------------------------------------------------ */

static enum speed_type linear_type(const struct engine_unit *u)
{
    if (u->numerics == JOB_NUMERICS_FP32) return SPEED_F32;
    return u->fp8 ? SPEED_FP8 : SPEED_BF16;
}

static enum speed_type plain_type(const struct engine_unit *u)
{
    return u->numerics == JOB_NUMERICS_FP32 ? SPEED_F32 : SPEED_BF16;
}

static double convert_us(const struct engine_unit *u, const struct host_view *v,
                         enum speed_type weights, double m, double n)
{
    if (weights == SPEED_F32) return 0;
    bool fp8 = weights == SPEED_FP8 && u->numerics == JOB_NUMERICS_CHECKPOINT;
    return host_rows_us(v, fp8 ? SPEED_CONVERT_FP8 : SPEED_CONVERT_BF16, m, n);
}

static struct host_weights weights(enum speed_type type, int n0, int n1, int k)
{
    return (struct host_weights){type, n0, n1, k};
}

static int q_dim(const struct model_config *c)
{
    return c->dim_nope + c->dim_rope;
}

/* The stacked input projection, its output split in q part and kv part. */
static struct host_weights q_in(const struct engine_unit *u)
{
    const struct model_config *c = u->model;
    int q = c->q_lora ? c->q_lora : c->heads * q_dim(c);
    return weights(linear_type(u), q, c->kv_lora + c->dim_rope, c->hidden);
}

static struct host_heads heads_of(const struct model_config *c)
{
    return (struct host_heads){c->heads, c->dim_nope, c->dim_rope, c->dim_v, c->kv_lora};
}

static double slots_of(const struct engine_unit *u)
{
    return u->model->experts + u->redundant;
}

/* Rows of the slots of one rank when the unit routes `tokens` tokens in all. */
static struct host_spread slot_rows(const struct engine_unit *u, double tokens)
{
    const struct model_config *c = u->model;
    struct host_spread s = {.n = 0};
    double local = slots_of(u) / u->ep, copies = slots_of(u) / c->experts;
    if (!u->popularity) {
        host_spread_binomial(&s, local, tokens, fmin(1, c->topk / slots_of(u)));
        return s;
    }
    for (int e = 0; e < c->experts; e++)
        host_spread_binomial(&s, copies / u->ep, tokens,
                             fmin(1, u->popularity[e] * c->topk / copies));
    return s;
}

/* ---- what a step reads ----------------------------------------------------------------------- */

double engine_kv_row_bytes(const struct engine_unit *u)
{
    return (u->model->kv_lora + u->model->dim_rope) *
           (u->numerics == JOB_NUMERICS_FP32 ? 4.0 : 2.0);
}

double engine_token_bytes(const struct engine_unit *u)
{
    const struct model_config *c = u->model;
    double q = (double)c->heads * (q_dim(c) + c->dim_v);
    double own = 4.0 * c->hidden + q + c->kv_lora + c->dim_rope + c->q_lora;
    double kv = (double)c->heads * (c->dim_nope + c->dim_v) * 2;
    double routed = (double)c->topk * (2.0 * c->hidden + 2 * c->moe_intermediate);
    return 4 * (own + kv + routed);
}

static double mlp_bytes(const struct engine_unit *u, int inner)
{
    struct host_weights up = weights(linear_type(u), inner, inner, u->model->hidden);
    struct host_weights down = weights(linear_type(u), u->model->hidden, 0, inner);
    return inner ? host_weights_bytes(u->host, &up) + host_weights_bytes(u->host, &down) : 0;
}

double engine_step_bytes(const struct engine_unit *u, double tokens)
{
    const struct model_config *c = u->model;
    const struct host_speed *s = u->host;
    struct host_weights in = q_in(u);
    struct host_weights q_b = weights(linear_type(u), c->heads * q_dim(c), 0, c->q_lora);
    struct host_weights o = weights(linear_type(u), c->hidden, 0, c->heads * c->dim_v);
    struct host_weights kv_b =
        weights(linear_type(u), c->heads * (c->dim_nope + c->dim_v), 0, c->kv_lora);
    struct host_weights uk = weights(plain_type(u), c->kv_lora, 0, c->dim_nope);
    struct host_weights uv = weights(plain_type(u), c->dim_v, 0, c->kv_lora);
    struct host_weights gate = weights(SPEED_F32, c->experts, 0, c->hidden);
    struct host_weights head = weights(plain_type(u), c->vocab, 0, c->hidden);
    double layer = host_weights_bytes(s, &in) + host_weights_bytes(s, &o);
    if (c->q_lora) layer += host_weights_bytes(s, &q_b);
    if (u->decode)
        layer += c->heads * (host_weights_bytes(s, &uk) + host_weights_bytes(s, &uv));
    else
        layer += host_weights_bytes(s, &kv_b);
    int moe = model_config_moe_layers(c), dense = c->layers - moe;
    struct host_spread rows = slot_rows(u, tokens * u->ep);
    double routed = moe ? host_spread_busy(&rows) * mlp_bytes(u, c->moe_intermediate) : 0;
    double shared = mlp_bytes(u, c->shared_experts * c->moe_intermediate);
    return c->layers * layer + dense * mlp_bytes(u, c->intermediate) +
           moe * (host_weights_bytes(s, &gate) + shared + routed * u->node_ranks) +
           host_weights_bytes(s, &head);
}

struct host_view engine_unit_view(const struct engine_unit *u, double tokens, double kv_bytes)
{
    double mb = (engine_step_bytes(u, tokens) + kv_bytes) * 1e-6 + u->other_mb;
    return host_view_make(u->host, u->threads, u->busy, mb);
}

/* ---- attention ------------------------------------------------------------------------------- */

static double linear_us(const struct engine_unit *u, const struct host_view *v,
                        const struct host_weights *w, double m)
{
    return convert_us(u, v, w->type, m, w->k) + host_dense_us(v, w, m);
}

/* Sum of routed + shared + residual, where a layer left it to the next reader. */
static double collect_us(const struct engine_unit *u, const struct host_view *v, double m)
{
    int adds = u->model->shared_experts ? 2 : 1;
    return adds * host_rows_us(v, SPEED_ADD, m, u->model->hidden);
}

static double project_us(const struct engine_unit *u, const struct host_view *v, double m)
{
    const struct model_config *c = u->model;
    struct host_weights in = q_in(u);
    struct host_weights q_b = weights(linear_type(u), c->heads * q_dim(c), 0, c->q_lora);
    double us = host_rows_us(v, SPEED_RMSNORM, m, c->hidden) + linear_us(u, v, &in, m);
    if (c->q_lora)
        us += host_rows_us(v, SPEED_RMSNORM, m, c->q_lora) + linear_us(u, v, &q_b, m);
    else
        us += host_rows_us(v, SPEED_COPY, m, (double)c->heads * q_dim(c));
    return us + host_rows_us(v, SPEED_RMSNORM, m, c->kv_lora) +
           host_rows_us(v, SPEED_ROPE, m, (double)c->heads * c->dim_rope) +
           host_rows_us(v, SPEED_ROPE, m, c->dim_rope) +
           host_rows_us(v, SPEED_KV_WRITE, m, c->kv_lora + c->dim_rope);
}

static double project_out_us(const struct engine_unit *u, const struct host_view *v, double m)
{
    const struct model_config *c = u->model;
    struct host_weights o = weights(linear_type(u), c->hidden, 0, c->heads * c->dim_v);
    return linear_us(u, v, &o, m) + host_rows_us(v, SPEED_ADD, m, c->hidden);
}

/* Gate and payload; the norm before them belongs to dense layers too. */
static double gate_us(const struct engine_unit *u, const struct host_view *v, double m)
{
    const struct model_config *c = u->model;
    struct host_weights gate = weights(SPEED_F32, c->experts, 0, c->hidden);
    return host_dense_us(v, &gate, m) + host_rows_us(v, SPEED_GATE, m, c->experts) +
           convert_us(u, v, linear_type(u), m, c->hidden);
}

double engine_segment_us(const struct engine_unit *u, const struct host_view *v, double n,
                         double pos0)
{
    const struct model_config *c = u->model;
    struct host_heads h = heads_of(c);
    struct host_weights kv_b =
        weights(linear_type(u), c->heads * (c->dim_nope + c->dim_v), 0, c->kv_lora);
    double keys = pos0 + n, us = host_rows_us(v, SPEED_GATHER, keys, c->kv_lora);
    if (!(n > 0)) return 0;
    us += linear_us(u, v, &kv_b, keys);
    enum speed_rows split = u->numerics == JOB_NUMERICS_FP32 ? SPEED_COPY : SPEED_CONVERT_BF16;
    us += host_rows_us(v, split, keys * c->heads, c->dim_nope) +
          host_rows_us(v, split, keys * c->heads, c->dim_v);
    return us + host_prefill_us(v, &h, n, pos0);
}

double engine_keys_us(const struct engine_unit *u, const struct host_view *v, double m, double keys,
                      double parts)
{
    struct host_heads h = heads_of(u->model);
    return host_decode_us(v, &h, m, keys, parts);
}

static void attention(const struct engine_unit *u, const struct host_view *v,
                      const struct engine_load *l, struct engine_stages *out)
{
    const struct model_config *c = u->model;
    double m = l->tokens, collect = collect_us(u, v, m);
    double begin = collect + project_us(u, v, m);
    double end =
        project_out_us(u, v, m) + host_rows_us(v, SPEED_RMSNORM, m, c->hidden) + gate_us(u, v, m);
    if (!u->decode) {
        out->us[STAGE_ATTN] = begin + end;
    } else {
        struct host_weights uk = weights(plain_type(u), c->kv_lora, 0, c->dim_nope);
        struct host_weights uv = weights(plain_type(u), c->dim_v, 0, c->kv_lora);
        struct host_spread all = host_spread_equal(c->heads, m);
        out->us[STAGE_ATTN_0] = begin + convert_us(u, v, uk.type, m, (double)c->heads * q_dim(c)) +
                                host_product_us(v, &uk, &all) +
                                host_rows_us(v, SPEED_COPY, m * c->heads, c->dim_rope);
        out->us[STAGE_ATTN_1] = convert_us(u, v, uv.type, m, (double)c->heads * c->kv_lora) +
                                host_product_us(v, &uv, &all) + end;
    }
    out->first_saves_us = collect;
    out->dense_saves_us = gate_us(u, v, m);
}

/* ---- MLPs ------------------------------------------------------------------------------------ */

/* Up, activation, conversion, down over groups of rows. */
static double ffn_us(const struct engine_unit *u, const struct host_view *v, int inner,
                     const struct host_spread *rows)
{
    struct host_weights up = weights(linear_type(u), inner, inner, u->model->hidden);
    struct host_weights down = weights(linear_type(u), u->model->hidden, 0, inner);
    double m = host_spread_rows(rows);
    return host_product_us(v, &up, rows) + host_rows_us(v, SPEED_SILU, m, inner) +
           convert_us(u, v, down.type, m, inner) + host_product_us(v, &down, rows);
}

/* How much more the busiest of the unit's ranks gets, with `rows` rows a rank on average. */
static double busiest(const struct engine_unit *u, double rows)
{
    if (u->ep == 1 || !(rows > 0)) return 1;
    double normal_max = u->ep == 2 ? 0.5642 : sqrt(2 * log(u->ep)) * 0.8;
    return 1 + normal_max * sqrt((1 - 1.0 / u->ep) / rows);
}

/* Experts that a step leaves out stay away longer: between two uses of one that has rows in a share
 * p of the steps, 1 / (2 - p) of all the others are read. */
static struct host_view routed_view(const struct engine_unit *u, const struct host_view *v,
                                    const struct host_spread *rows)
{
    const struct model_config *c = u->model;
    double slots = slots_of(u) / u->ep, busy = host_spread_busy(rows);
    double away = slots / (2 - fmin(1, busy / slots)) - busy;
    double mb = away * mlp_bytes(u, c->moe_intermediate) * model_config_moe_layers(c) * 1e-6;
    return host_view_make(u->host, u->threads, u->busy, v->mb + fmax(0, mb) * u->node_ranks);
}

static void mlps(const struct engine_unit *u, const struct host_view *v,
                 const struct engine_load *l, struct engine_stages *out)
{
    const struct model_config *c = u->model;
    double m = l->tokens;
    struct host_spread own = host_spread_equal(1, m);
    int shared = c->shared_experts * c->moe_intermediate;
    if (shared) out->us[STAGE_SHARED] = ffn_us(u, v, shared, &own);
    out->us[STAGE_DENSE_MLP] = convert_us(u, v, linear_type(u), m, c->hidden) +
                               ffn_us(u, v, c->intermediate, &own) +
                               host_rows_us(v, SPEED_ADD, m, c->hidden);
    if (!c->experts) return;
    struct host_spread rows = slot_rows(u, l->unit_tokens * u->ep);
    struct host_view far = routed_view(u, v, &rows);
    out->us[STAGE_MLP] =
        ffn_us(u, &far, c->moe_intermediate, &rows) * busiest(u, l->unit_tokens * c->topk);
}

/* ---- the all-to-all -------------------------------------------------------------------------- */

enum status engine_unit_check(const struct engine_unit *u)
{
    const struct host_speed *s = u->host;
    if (host_ranks_find(s->ep.ranks, s->ep.n, 1) < 0)
        return error_set(ERR_INPUT,
                         "%s: ep.ranks has no 1, expected it first: run moebatch "
                         "calibrate again",
                         s->name);
    if (host_ranks_find(s->ep.ranks, s->ep.n, u->ep) >= 0 &&
        host_ranks_find(s->engine.ranks, s->engine.n, u->ep) >= 0)
        return OK;
    return error_set(ERR_INPUT,
                     "the job has units of %d ranks, but the host file (%s, %s) has no "
                     "all-to-all of %d ranks: run mpirun -np %d moebatch calibrate, which adds it",
                     u->ep, s->name, s->date, u->ep, u->ep);
}

/* Of a row there (with its scales) and back. */
static void payload_bytes(const struct engine_unit *u, double bytes[2])
{
    double h = u->model->hidden;
    bool fp8 = u->fp8 && u->numerics == JOB_NUMERICS_CHECKPOINT;
    bytes[0] = bytes[1] = u->numerics == JOB_NUMERICS_FP32 ? 4 * h : 2 * h;
    if (fp8) bytes[0] = h + 4 * ceil(h / FP8_COLUMNS);
}

static void all_to_all(const struct engine_unit *u, const struct engine_load *l,
                       struct engine_stages *out)
{
    const struct model_config *c = u->model;
    const struct host_speed *s = u->host;
    double f[SPEED_COEFS], part[SPEED_EP_PARTS], wide[SPEED_EP_PARTS], bytes[2];
    if (!c->experts) return;
    payload_bytes(u, bytes);
    for (int p = 0; p < SPEED_EP_PARTS; p++) {
        bool back = p >= SPEED_COMBINE_BEGIN;
        host_ep_features(l->tokens, c->topk, bytes[back], c->hidden, slots_of(u), f);
        part[p] = host_ep_us(s, 1, u->decode, (enum speed_ep_part)p, f);
        wide[p] = host_ep_us(s, u->ep, u->decode, (enum speed_ep_part)p, f);
    }
    out->us[u->decode ? STAGE_ATTN_1 : STAGE_ATTN] += part[SPEED_DISPATCH_BEGIN];
    out->dense_saves_us += part[SPEED_DISPATCH_BEGIN];
    out->us[STAGE_MLP] += part[SPEED_DISPATCH_FINISH] + part[SPEED_COMBINE_BEGIN];
    out->us[u->decode ? STAGE_ATTN_0 : STAGE_ATTN] += part[SPEED_COMBINE_FINISH];
    out->first_saves_us += part[SPEED_COMBINE_FINISH];
    out->head_collects_us += part[SPEED_COMBINE_FINISH];
    if (u->ep == 1) return;
    out->us[STAGE_DISPATCH] = fmax(0, wide[SPEED_DISPATCH_BEGIN] + wide[SPEED_DISPATCH_FINISH] -
                                          part[SPEED_DISPATCH_BEGIN] - part[SPEED_DISPATCH_FINISH]);
    out->us[STAGE_COMBINE] = fmax(0, wide[SPEED_COMBINE_BEGIN] + wide[SPEED_COMBINE_FINISH] -
                                         part[SPEED_COMBINE_BEGIN] - part[SPEED_COMBINE_FINISH]);
}

/* ---- embedding and head ---------------------------------------------------------------------- */

static void ends(const struct engine_unit *u, const struct host_view *v,
                 const struct engine_load *l, struct engine_stages *out)
{
    const struct model_config *c = u->model;
    struct host_weights head = weights(plain_type(u), c->vocab, 0, c->hidden);
    out->us[STAGE_EMBED] = host_rows_us(v, SPEED_EMBED, l->tokens, c->hidden);
    out->head_collects_us += collect_us(u, v, l->tokens);
    double us = out->head_collects_us;
    if (l->head_calls > 0) {
        /* The first call brings the head's weights in, the others find what fits a cache. */
        double rows = l->head_rows / l->head_calls;
        double mb = host_weights_bytes(u->host, &head) * 1e-6 * u->busy / v->threads;
        struct host_view again = host_view_make(u->host, u->threads, u->busy, mb);
        us +=
            linear_us(u, v, &head, rows) + (l->head_calls - 1) * linear_us(u, &again, &head, rows);
        us += l->head_calls * (host_rows_us(v, SPEED_COPY, rows, c->hidden) +
                               host_rows_us(v, SPEED_RMSNORM, rows, c->hidden));
    }
    us += host_rows_us(v, SPEED_GREEDY, l->head_rows - l->sampled_rows, c->vocab) +
          host_rows_us(v, SPEED_SORT, l->sampled_rows, c->vocab * log2(c->vocab)) +
          host_rows_us(v, SPEED_LOGPROB, l->logprob_rows, c->vocab);
    out->us[STAGE_HEAD] = us;
}

void engine_stages_at(const struct engine_unit *u, const struct host_view *v,
                      const struct engine_load *l, struct engine_stages *out)
{
    memset(out, 0, sizeof *out);
    attention(u, v, l, out);
    mlps(u, v, l, out);
    all_to_all(u, l, out);
    ends(u, v, l, out);
}
