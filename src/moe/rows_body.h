/* rows_body.h - silu_mul, add, combine and the gate's elementwise functions, written once over
 * vf. Included by rows_<path>.c.
 */
#include "attention/vec.h"
#include "moe/paths.h"

/* Rows of n numbers that are worth waking a thread. */
static int rows_grain(int n)
{
    enum { NUMBERS_MIN = 1 << 13 };
    return n >= NUMBERS_MIN ? 1 : NUMBERS_MIN / (n + 1) + 1;
}

/* g / (1 + exp(-g)) */
static inline vf vf_silu(vf g)
{
    vf minus = vf_sub(vf_set1(0.0f), g);
    return vf_div(g, vf_add(vf_set1(1.0f), vf_exp(minus)));
}

static void silu_mul_row(int n, const float *x, float *out)
{
    VF_FOR(i, n)
    {
        vf g = vf_load_n(x + i, n - i), up = vf_load_n(x + n + i, n - i);
        vf_store_n(out + i, vf_mul(vf_silu(g), up), n - i);
    }
}

/* A call of silu_mul or add: rows of x into rows of y. */
struct two_rows {
    int n, ldx, ldy;
    const float *x;
    float *y;
};

static void silu_mul_rows(void *arg, int first, int end, struct lane *poll)
{
    const struct two_rows *c = arg;
    for (int i = first; i < end; i++) {
        silu_mul_row(c->n, c->x + (int64_t)i * c->ldx, c->y + (int64_t)i * c->ldy);
        lane_poll(poll);
    }
}

static void silu_mul(struct lane *lane, int m, int n, const float *x, int ldx, float *out, int ldo)
{
    struct two_rows c = {n, ldx, ldo, x, out};
    lane_rows(lane, m, rows_grain(n), silu_mul_rows, &c);
}

static void add_rows(void *arg, int first, int end, struct lane *poll)
{
    const struct two_rows *c = arg;
    int n = c->n;
    for (int i = first; i < end; i++) {
        const float *from = c->x + (int64_t)i * c->ldx;
        float *to = c->y + (int64_t)i * c->ldy;
        VF_FOR(j, n)
        vf_store_n(to + j, vf_add(vf_load_n(to + j, n - j), vf_load_n(from + j, n - j)), n - j);
        lane_poll(poll);
    }
}

static void add(struct lane *lane, int m, int n, const float *x, int ldx, float *y, int ldy)
{
    struct two_rows c = {n, ldx, ldy, x, y};
    lane_rows(lane, m, rows_grain(n), add_rows, &c);
}

/* A token's top-k slots by group: groups ascending, inside a group in top-k order. */
struct combine_order {
    int groups;
    int end[MOE_MAX_TOPK]; /* of each group, into slot */
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
        bool last =
            t + 1 == topk || ids[o->slot[t]] / group_size != ids[o->slot[t + 1]] / group_size;
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
    VF_FOR(i, n)
    {
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

struct combine_call {
    enum dtype type;
    int n, topk, group_size, ldo;
    bool round;
    const char *rows;
    const int32_t *ids;
    const float *weights;
    float *out;
};

static void combine_rows(void *arg, int first, int end, struct lane *poll)
{
    const struct combine_call *c = arg;
    size_t token_bytes = (size_t)c->topk * (size_t)c->n * dtype_bytes(c->type);
    for (int i = first; i < end; i++) {
        struct combine_order order;
        const char *from = c->rows + (size_t)i * token_bytes;
        const float *w = c->weights + (int64_t)i * c->topk;
        float *to = c->out + (int64_t)i * c->ldo;
        order_slots(c->topk, c->ids + (int64_t)i * c->topk, c->group_size, &order);
        if (c->type == DT_F32)
            combine_token(DT_F32, false, c->n, from, &order, w, to);
        else
            combine_token(DT_BF16, c->round, c->n, from, &order, w, to);
        lane_poll(poll);
    }
}

static void combine(struct lane *lane, enum dtype type, int m, int n, int topk, const void *rows,
                    const int32_t *ids, const float *weights, int experts, int n_group, float *out,
                    int ldo)
{
    struct combine_call c = {
        .type = type,
        .n = n,
        .topk = topk,
        .group_size = experts / n_group,
        .ldo = ldo,
        .round = type == DT_BF16 && n_group > 1,
        .rows = rows,
        .ids = ids,
        .weights = weights,
        .out = out,
    };
    lane_rows(lane, m, rows_grain(n), combine_rows, &c);
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

#define MOE_ROWS(path)                      \
    void moe_rows_##path(struct kernels *k) \
    {                                       \
        k->gate = gate;                     \
        k->silu_mul = silu_mul;             \
        k->add = add;                       \
        k->combine = combine;               \
    }
