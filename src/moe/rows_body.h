/* rows_body.h - silu_mul, add, combine and the gate's elementwise functions, written once over
 * vf. Included by rows_<path>.c.
 */
#include "attention/vec.h"
#include "moe/paths.h"

#include <omp.h>

/* Below this many numbers a call is not worth waking the threads. */
enum { ROWS_PARALLEL_MIN = 1 << 14 };

static bool worth_threads(int m, int n)
{
    return m > 1 && (int64_t)m * n > ROWS_PARALLEL_MIN;
}

static void poll_first(struct lane *lane)
{
    if (omp_get_thread_num() == 0) lane_poll(lane);
}

/* g / (1 + exp(-g)) */
static inline vf vf_silu(vf g)
{
    vf minus = vf_sub(vf_set1(0.0f), g);
    return vf_div(g, vf_add(vf_set1(1.0f), vf_exp(minus)));
}

static void silu_mul_row(int n, const float *x, float *out)
{
    VF_FOR(i, n) {
        vf g = vf_load_n(x + i, n - i), up = vf_load_n(x + n + i, n - i);
        vf_store_n(out + i, vf_mul(vf_silu(g), up), n - i);
    }
}

static void silu_mul(struct lane *lane, int m, int n, const float *x, int ldx, float *out,
                     int ldo)
{
#pragma omp parallel for num_threads(lane->threads) if (worth_threads(m, n))
    for (int i = 0; i < m; i++) {
        silu_mul_row(n, x + (int64_t)i * ldx, out + (int64_t)i * ldo);
        poll_first(lane);
    }
}

static void add(struct lane *lane, int m, int n, const float *x, int ldx, float *y, int ldy)
{
#pragma omp parallel for num_threads(lane->threads) if (worth_threads(m, n))
    for (int i = 0; i < m; i++) {
        const float *from = x + (int64_t)i * ldx;
        float *to = y + (int64_t)i * ldy;
        VF_FOR(j, n)
            vf_store_n(to + j, vf_add(vf_load_n(to + j, n - j), vf_load_n(from + j, n - j)),
                       n - j);
        poll_first(lane);
    }
}

/* A token's top-k slots by group: groups ascending, inside a group in top-k order. */
struct combine_order {
    int groups;
    int end[MOE_MAX_TOPK];  /* of each group, into slot */
    int slot[MOE_MAX_TOPK];
};

static void order_slots(int topk, const int32_t *ids, int group_size, struct combine_order *o)
{
    for (int t = 0; t < topk; t++) { /* stable insertion */
        int at = t;
        for (; at > 0 && ids[o->slot[at - 1]] / group_size > ids[t] / group_size; at--)
            o->slot[at] = o->slot[at - 1];
        o->slot[at] = t;
    }
    o->groups = 0;
    for (int t = 0; t < topk; t++) {
        bool last = t + 1 == topk ||
                    ids[o->slot[t]] / group_size != ids[o->slot[t + 1]] / group_size;
        if (last) o->end[o->groups++] = t + 1;
    }
}

static inline vf load_payload(const enum dtype type, const void *row, int i, int n)
{
    return type == DT_F32 ? vf_load_n((const float *)row + i, n - i)
                          : vf_load_bf16_n((const uint16_t *)row + i, n - i);
}

/* Multiply, round, add; each sum starts from its first term. */
static inline __attribute__((always_inline)) void combine_token(const enum dtype type, bool round,
                                                                int n, const char *rows,
                                                                const struct combine_order *o,
                                                                const float *weights, float *out)
{
    size_t row_bytes = (size_t)n * dtype_bytes(type);
    VF_FOR(i, n) {
        vf total = vf_set1(0);
        for (int g = 0, t = 0; g < o->groups; g++) {
            vf sum = vf_set1(0);
            for (int first = t; t < o->end[g]; t++) {
                const char *row = rows + (size_t)o->slot[t] * row_bytes;
                vf term = vf_mul(vf_set1(weights[o->slot[t]]), load_payload(type, row, i, n));
                sum = t == first ? term : vf_add(sum, term);
            }
            if (round) sum = vf_round_bf16(sum);
            total = g == 0 ? sum : vf_add(total, sum);
        }
        vf_store_n(out + i, total, n - i);
    }
}

static void combine(struct lane *lane, enum dtype type, int m, int n, int topk, const void *rows,
                    const int32_t *ids, const float *weights, int experts, int n_group,
                    float *out, int ldo)
{
    size_t token_bytes = (size_t)topk * (size_t)n * dtype_bytes(type);
    bool round = type == DT_BF16 && n_group > 1;
#pragma omp parallel for num_threads(lane->threads) if (worth_threads(m, n))
    for (int i = 0; i < m; i++) {
        struct combine_order order;
        const char *from = (const char *)rows + (size_t)i * token_bytes;
        const float *w = weights + (int64_t)i * topk;
        float *to = out + (int64_t)i * ldo;
        order_slots(topk, ids + (int64_t)i * topk, experts / n_group, &order);
        if (type == DT_F32) combine_token(DT_F32, false, n, from, &order, w, to);
        else combine_token(DT_BF16, round, n, from, &order, w, to);
        poll_first(lane);
    }
}

static void sigmoid_row(int n, const float *x, float *y)
{
    VF_FOR(i, n) vf_store_n(y + i, vf_sigmoid(vf_load_n(x + i, n - i)), n - i);
}

static void exp_minus_row(int n, const float *x, float shift, float *y)
{
    VF_FOR(i, n)
        vf_store_n(y + i, vf_exp(vf_sub(vf_load_n(x + i, n - i), vf_set1(shift))), n - i);
}

static void gate(struct lane *lane, int m, const float *logits, int ldl,
                 const struct gate_params *params, int32_t *ids, float *weights)
{
    static const struct gate_rows rows = {sigmoid_row, exp_minus_row};
    gate_tokens(lane, m, logits, ldl, params, &rows, ids, weights);
}

#define MOE_ROWS(path)                        \
    void moe_rows_##path(struct kernels *k) \
    {                                         \
        k->gate = gate;                       \
        k->silu_mul = silu_mul;               \
        k->add = add;                         \
        k->combine = combine;                 \
    }
