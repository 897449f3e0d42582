/* stage_time.c - see stage_time.h. */
#include "cluster/stage_time.h"

#include <math.h>
#include <string.h>

/* Hidden size of the traces that the small kernels were measured with, and the rows of a
 * micro-batch of the decode trace. */
#define TRACE_HIDDEN 7168.0
#define TRACE_DECODE_TOKENS 128.0

/* Small kernels of a decode stage: each costs a launch whatever the rows, the rest of the traced
 * time grows with them. */
enum { KERNELS_ATTENTION = 5, KERNELS_GATE = 3, KERNELS_SILU = 1 };

const char *stage_bound_name(enum stage_bound b)
{
    static const char *const names[BOUND_COUNT] = {"-",       "launch",  "memory", "compute",
                                                   "network", "latency", "kernels"};
    return names[b];
}

static void add_part(struct stage_time *t, enum stage_bound b, double us)
{
    t->us += us;
    t->part[b] += us;
}

/* A product's time goes to whatever its base time is mostly made of. */
static void add_gemm(struct stage_time *t, struct gemm_time g, double factor)
{
    enum stage_bound b = BOUND_LAUNCH;
    double most = g.launch_us;
    if (g.memory_us > most) b = BOUND_MEMORY, most = g.memory_us;
    if (g.compute_us > most) b = BOUND_COMPUTE;
    add_part(t, b, g.us * factor);
}

static void add_small(const struct stage_model *m, struct stage_time *t, double traced_us,
                      double kernels, double tokens)
{
    double launch = fmin(traced_us, kernels * m->hw.share.launch_us);
    add_part(t, BOUND_KERNELS,
             launch + (traced_us - launch) * tokens / TRACE_DECODE_TOKENS * m->cfg.hidden /
                          TRACE_HIDDEN);
}

static void settle(struct stage_time *t)
{
    for (int b = 1; b < BOUND_COUNT; b++)
        if (t->part[b] > t->part[t->bound]) t->bound = (enum stage_bound)b;
}

/* Rates of core attention: the file's, else the best that the measured points reach, else the
 * shares of the peaks. */
static void core_rates(struct stage_model *m, const struct hardware *hw)
{
    const struct model_config *c = &m->cfg;
    bool decode = m->setup.decode;
    double tflops = decode ? hw->attention.decode_tflops : hw->attention.prefill_tflops;
    double gb_s = hw->attention.decode_gb_s;
    int n;
    const struct hw_point *p = hardware_points(hw, decode ? HW_MLA_DECODE : HW_MLA_PREFILL, &n);
    double best_t = 0, best_b = 0;
    for (int i = 0; i < n; i++) {
        double pairs =
            p[i].c * (decode ? p[i].b * fmax(1, p[i].d) : p[i].b * (p[i].d + 0.5 * (p[i].b + 1)));
        double width = decode ? 2 * c->kv_lora + c->dim_rope : c->dim_nope + c->dim_rope + c->dim_v;
        best_t = fmax(best_t, 2 * p[i].a * pairs * width / (p[i].value * 1e6));
        best_b =
            fmax(best_b, p[i].c * p[i].b * (c->kv_lora + c->dim_rope) * 2 / (p[i].value * 1e3));
    }
    if (!(tflops > 0)) tflops = best_t;
    if (!(gb_s > 0)) gb_s = decode ? fmin(best_b, hw->hbm_gb_s) : 0;
    double share = decode ? hw->share.core_decode : hw->share.core_prefill;
    m->core_tflops = tflops > 0 ? tflops : hw->bf16_tflops * share;
    m->core_gb_s = gb_s > 0 ? gb_s : hw->hbm_gb_s * hw->share.hbm;
}

static void build_attention(struct stage_model *m, const struct hardware *hw, enum gemm_kind lin)
{
    const struct model_config *c = &m->cfg;
    double q_head = c->dim_nope + c->dim_rope;
    gemm_curve_build(hw, lin,
                     (c->q_lora ? c->q_lora : c->heads * q_head) + c->kv_lora + c->dim_rope,
                     c->hidden, &m->q_a);
    if (c->q_lora) gemm_curve_build(hw, lin, c->heads * q_head, c->q_lora, &m->q_b);
    gemm_curve_build(hw, lin, c->heads * (double)(c->dim_nope + c->dim_v), c->kv_lora, &m->kv_b);
    gemm_curve_build(hw, lin, c->hidden, (double)c->heads * c->dim_v, &m->out);
    /* One small product a head, BF16: groups = heads. */
    gemm_curve_build(hw, GEMM_GROUPED_BF16, c->kv_lora, c->dim_nope, &m->up_k);
    gemm_curve_build(hw, GEMM_GROUPED_BF16, c->dim_v, c->kv_lora, &m->up_v);
}

void stage_model_build(const struct hardware *hw, const struct model_config *cfg,
                       const struct stage_setup *setup, struct stage_model *m)
{
    memset(m, 0, sizeof *m);
    m->cfg = *cfg;
    m->setup = *setup;
    m->hw = *hw;
    m->hw.points = NULL;
    m->hw.n_points = 0;
    bool fp8 = cfg->quant.fp8;
    enum gemm_kind lin = fp8 ? GEMM_FP8 : GEMM_BF16;
    enum gemm_kind grp = !fp8            ? GEMM_GROUPED_BF16
                         : setup->decode ? GEMM_MASKED_FP8
                                         : GEMM_GROUPED_FP8;
    double h = cfg->hidden, inter = cfg->moe_intermediate, shared = cfg->shared_experts * inter;
    build_attention(m, hw, lin);
    gemm_curve_build(hw, lin, 2 * shared, h, &m->shared_in);
    gemm_curve_build(hw, lin, h, shared, &m->shared_out);
    gemm_curve_build(hw, grp, 2 * inter, h, &m->expert_in);
    gemm_curve_build(hw, grp, h, inter, &m->expert_out);
    gemm_curve_build(hw, lin, 2.0 * cfg->intermediate, h, &m->dense_in);
    gemm_curve_build(hw, lin, h, cfg->intermediate, &m->dense_out);
    gemm_curve_build(hw, GEMM_BF16, cfg->experts, h, &m->gate);
    gemm_curve_build(hw, GEMM_BF16, cfg->vocab, h, &m->head);
    gemm_curve_build(hw, lin, h, 2 * h, &m->mtp_in);
    core_rates(m, hw);
    int domains = (setup->ep + hw->nvlink_domain - 1) / hw->nvlink_domain;
    struct comm_shape shape = {.ep = setup->ep,
                               .low_latency = setup->decode,
                               .group_tree = setup->group_tree,
                               .nodes =
                                   hw->nvlink_domain > hw->gpus_per_node ? domains : setup->nodes};
    comm_model_build(hw, cfg, &shape, &m->comm);
    bool taken = !setup->decode && setup->overlap && setup->ep > 1;
    m->sm_share = taken ? 1 - (double)hw->comm.comm_sms_prefill / hw->sms : 1;
    m->dispatch_bytes = fp8 ? h + h / 32 : 2 * h;
    m->combine_bytes = 2 * h;
}

double stage_mtp_entry_us(const struct stage_model *m, double tokens)
{
    return gemm_curve_at(&m->mtp_in, tokens, 1, 1).us;
}

static void add_core(const struct stage_model *m, const struct stage_load *l, struct stage_time *t,
                     double factor)
{
    const struct model_config *c = &m->cfg;
    double flops, bytes;
    if (m->setup.decode) {
        flops = 2.0 * c->heads * l->tokens * l->kv * (2 * c->kv_lora + c->dim_rope);
        bytes = l->requests * l->kv * (c->kv_lora + c->dim_rope) * 2;
    } else {
        flops = 2.0 * c->heads * l->pairs * (c->dim_nope + c->dim_rope + c->dim_v);
        bytes = l->tokens * c->heads * 2.0 * (2 * c->dim_nope + 2 * c->dim_rope + 2 * c->dim_v);
    }
    double compute = flops / (m->core_tflops * 1e6) / m->sm_share;
    double memory = bytes / (m->core_gb_s * 1e3);
    add_part(t, compute > memory ? BOUND_COMPUTE : BOUND_MEMORY, fmax(compute, memory) * factor);
    add_part(t, BOUND_LAUNCH, m->hw.share.launch_us);
}

static void add_gate(const struct stage_model *m, double tokens, struct stage_time *t)
{
    add_gemm(t, gemm_curve_at(&m->gate, tokens, 1, m->sm_share), 1);
}

static void attention_prefill(const struct stage_model *m, const struct stage_load *l,
                              struct stage_times *out)
{
    struct stage_time *t = &out->stage[STAGE_ATTN];
    double f = m->setup.calibrated ? m->hw.calibrated.gemm_prefill : 1;
    add_gemm(t, gemm_curve_at(&m->q_a, l->tokens, 1, m->sm_share), f);
    if (m->cfg.q_lora) add_gemm(t, gemm_curve_at(&m->q_b, l->tokens, 1, m->sm_share), f);
    add_gemm(t, gemm_curve_at(&m->kv_b, l->tokens, 1, m->sm_share), f);
    add_gemm(t, gemm_curve_at(&m->out, l->tokens, 1, m->sm_share), f);
    add_core(m, l, t, m->setup.calibrated ? m->hw.calibrated.core_prefill : 1);
    add_gate(m, l->tokens, t);
    if (!m->setup.calibrated) return;
    add_part(t, BOUND_KERNELS,
             m->hw.calibrated.elementwise_attn_us_per_token * l->tokens * m->cfg.hidden /
                 TRACE_HIDDEN);
}

static void attention_decode(const struct stage_model *m, const struct stage_load *l,
                             struct stage_times *out)
{
    struct stage_time *a = &out->stage[STAGE_ATTN_0], *b = &out->stage[STAGE_ATTN_1];
    bool cal = m->setup.calibrated;
    double f = cal ? m->hw.calibrated.gemm_decode : 1;
    add_gemm(a, gemm_curve_at(&m->q_a, l->tokens, 1, 1), f);
    if (m->cfg.q_lora) add_gemm(a, gemm_curve_at(&m->q_b, l->tokens, 1, 1), f);
    add_gemm(a, gemm_curve_at(&m->up_k, l->tokens, m->cfg.heads, 1), 1);
    add_core(m, l, b, cal ? m->hw.calibrated.core_decode : 1);
    add_gemm(b, gemm_curve_at(&m->up_v, l->tokens, m->cfg.heads, 1), 1);
    add_gemm(b, gemm_curve_at(&m->out, l->tokens, 1, 1), f);
    if (!cal) {
        add_gate(m, l->tokens, b);
        return;
    }
    double half = m->hw.calibrated.elementwise_attn_decode_us / 2;
    add_small(m, a, half, KERNELS_ATTENTION / 2.0, l->tokens);
    add_small(m, b, half, KERNELS_ATTENTION / 2.0, l->tokens);
    add_small(m, b, m->hw.calibrated.elementwise_gate_decode_us, KERNELS_GATE, l->tokens);
}

/* In, activation, out: of the shared expert and of a dense layer. */
static void plain_mlp(const struct stage_model *m, const struct gemm_curve *in,
                      const struct gemm_curve *outp, double tokens, double width, double factor,
                      struct stage_time *t)
{
    if (width <= 0) return;
    add_gemm(t, gemm_curve_at(in, tokens, 1, m->sm_share), factor);
    add_gemm(t, gemm_curve_at(outp, tokens, 1, m->sm_share), factor);
    if (!m->setup.calibrated) return;
    if (m->setup.decode)
        add_small(m, t, m->hw.calibrated.silu_decode_us, KERNELS_SILU, tokens);
    else
        add_part(t, BOUND_KERNELS,
                 m->hw.calibrated.elementwise_mlp_us_per_row * tokens * width /
                     m->cfg.moe_intermediate * m->cfg.hidden / TRACE_HIDDEN);
}

static void experts(const struct stage_model *m, double tokens, struct stage_time *t)
{
    const struct model_config *c = &m->cfg;
    double rows = tokens * c->topk * m->setup.imbalance, slots = m->setup.slots_per_gpu;
    bool cal = m->setup.calibrated, decode = m->setup.decode;
    double f = !cal     ? 1
               : decode ? m->hw.calibrated.masked_decode
                        : m->hw.calibrated.grouped_prefill;
    /* Slots without a row read no weights. */
    double busy = slots * (1 - exp(-rows / slots));
    add_gemm(t, gemm_curve_at(&m->expert_in, rows / busy, busy, m->sm_share), f);
    add_gemm(t, gemm_curve_at(&m->expert_out, rows / busy, busy, m->sm_share), f);
    if (!cal || m->hw.expert_rows_whole) return;
    if (decode)
        add_small(m, t, m->hw.calibrated.silu_decode_us, KERNELS_SILU, tokens);
    else
        add_part(t, BOUND_KERNELS,
                 m->hw.calibrated.elementwise_mlp_us_per_row * rows * c->hidden / TRACE_HIDDEN);
}

static void all_to_all(const struct stage_model *m, double tokens, struct stage_times *out)
{
    if (m->setup.ep == 1) return;
    bool cal = m->setup.calibrated && m->setup.overlap;
    double bytes[2] = {m->dispatch_bytes, m->combine_bytes};
    double factor[2];
    factor[0] = m->setup.decode ? m->hw.calibrated.ll_dispatch : m->hw.calibrated.normal_dispatch;
    factor[1] = m->setup.decode ? m->hw.calibrated.ll_combine : m->hw.calibrated.normal_combine;
    for (int i = 0; i < 2; i++) {
        struct stage_time *t = &out->stage[i ? STAGE_COMBINE : STAGE_DISPATCH];
        double f = cal ? factor[i] : 1;
        if (m->setup.decode) {
            double kb = tokens * m->cfg.topk * bytes[i] * 1e-3 * m->setup.imbalance;
            add_part(t, BOUND_LATENCY, m->comm.ll[i].fixed_us * f);
            add_part(t, BOUND_NETWORK, m->comm.ll[i].us_per_kb * kb * f);
        } else {
            double kb = tokens * m->comm.rows_per_token[i] * bytes[i] * 1e-3 * m->setup.imbalance;
            add_part(t, BOUND_NETWORK, kb / m->comm.normal_gb_s[i] * f);
        }
    }
}

void stage_times_at(const struct stage_model *m, const struct stage_load *l,
                    struct stage_times *out)
{
    memset(out, 0, sizeof *out);
    if (!(l->tokens > 0)) return;
    const struct model_config *c = &m->cfg;
    bool cal = m->setup.calibrated, decode = m->setup.decode;
    double shared = (double)c->shared_experts * c->moe_intermediate;
    double f_shared = !cal     ? 1
                      : decode ? m->hw.calibrated.gemm_decode
                               : m->hw.calibrated.shared_prefill;
    (decode ? attention_decode : attention_prefill)(m, l, out);
    plain_mlp(m, &m->shared_in, &m->shared_out, l->tokens, shared, f_shared,
              &out->stage[STAGE_SHARED]);
    plain_mlp(m, &m->dense_in, &m->dense_out, l->tokens, c->intermediate, f_shared,
              &out->stage[STAGE_DENSE_MLP]);
    experts(m, l->tokens, &out->stage[STAGE_MLP]);
    all_to_all(m, l->tokens, out);
    add_part(&out->stage[STAGE_EMBED], BOUND_LAUNCH, m->hw.share.launch_us);
    add_gemm(&out->stage[STAGE_HEAD], gemm_curve_at(&m->head, l->head_tokens, 1, 1), 1);
    if (cal) /* once a micro-batch and layer, in a stage that communication never hides */
        add_part(&out->stage[decode ? STAGE_MLP : STAGE_ATTN], BOUND_KERNELS,
                 decode ? m->hw.calibrated.gap_decode_us : m->hw.calibrated.gap_prefill_us);
    for (int s = 0; s < STAGE_COUNT; s++) settle(&out->stage[s]);
}
