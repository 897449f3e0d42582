/* links: core device gemm moe */
/* test_moe.c - the gate against a brute-force selection, the COMBINE tree against its definition,
 * the elementwise kernels and the gated MLP against FP64. Rerun alone: make unit-moe.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/numfmt.h"
#include "core/rng.h"
#include "moe/expert.h"
#include "moe/moe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool path_ready(enum isa isa, struct kernels *k)
{
    const char *why = 0;
    memset(k, 0, sizeof *k);
    if (!isa_supported(isa, &why)) {
        printf("# %s skipped: this host lacks %s\n", isa_name(isa), why);
        return false;
    }
    assert_int_equal(gemm_kernels_fill(k, isa), OK);
    assert_int_equal(moe_kernels_fill(k, isa), OK);
    return true;
}

static float *random_floats(size_t n, uint64_t key, float scale)
{
    float *x = malloc((n ? n : 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = scale * (float)rng_normal(key, i);
    return x;
}

static void check_share(const char *what, enum isa isa, double error, double tolerance)
{
    printf("# %-28s %-11s error %.2e, %.0f %% of the tolerance\n", what, isa_name(isa), error,
           100 * error / tolerance);
    assert_true(error <= tolerance);
}

/* ---- gate ---- */

/* Whether expert (or group) a is chosen before b: higher score, then lower id. */
static bool before(const double *score, int a, int b)
{
    return score[a] > score[b] || (score[a] == score[b] && a < b);
}

/* How many of n come before i. */
static int rank_of(const double *score, int n, int i)
{
    int rank = 0;
    for (int j = 0; j < n; j++) rank += j != i && before(score, j, i);
    return rank;
}

/* Scores that differ by less than rounding may move in FP32: such tokens are left out. Equal
 * ones are true ties, which must go to the lower id. */
static bool too_close(const double *score, int n)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++)
            if (score[i] != score[j] && fabs(score[i] - score[j]) < 2e-6) return true;
    return false;
}

/* The gate by its rules in doubles: full ranking instead of repeated selection. False if FP32
 * rounding could decide the token otherwise. */
static bool gate_reference(const struct gate_params *p, const float *logits, int *ids,
                           double *weights)
{
    double score[64], choice[64], group[64], pair[64][2], sum = 0;
    bool clear = true;
    int size = p->experts / p->n_group;
    double top = -INFINITY;
    for (int e = 0; e < p->experts; e++) top = fmax(top, logits[e]);
    for (int e = 0; e < p->experts; e++) sum += exp(logits[e] - top);
    bool sigmoid = p->kind == GATE_SIGMOID_NOAUX;
    for (int e = 0; e < p->experts; e++) {
        score[e] = sigmoid ? 1 / (1 + exp(-(double)logits[e])) : exp(logits[e] - top) / sum;
        choice[e] = score[e] + (sigmoid ? p->bias[e] : 0);
    }
    for (int g = 0; g < p->n_group; g++) {
        double best[2] = {-INFINITY, -INFINITY};
        for (int e = g * size; e < (g + 1) * size; e++) {
            int r = rank_of(choice + g * size, size, e - g * size);
            if (r < 2) best[r] = choice[e];
        }
        group[g] = sigmoid ? best[0] + best[1] : best[0];
        pair[g][0] = best[0];
        pair[g][1] = best[1];
        for (int h = 0; sigmoid && h < g; h++) /* a sum met in two ways is no true tie */
            if (fabs(group[g] - group[h]) < 2e-6 && memcmp(pair[g], pair[h], sizeof pair[g]))
                clear = false;
    }
    if (too_close(choice, p->experts)) clear = false;
    for (int e = 0; p->kind != GATE_SOFTMAX_GREEDY && e < p->experts; e++)
        if (rank_of(group, p->n_group, e / size) >= p->topk_group)
            choice[e] = sigmoid ? -INFINITY : 0;
    sum = 0;
    for (int e = 0; e < p->experts; e++) {
        int r = rank_of(choice, p->experts, e);
        if (r >= p->topk) continue;
        ids[r] = e;
        weights[r] = score[e];
        sum += score[e];
    }
    for (int t = 0; t < p->topk; t++)
        weights[t] = weights[t] / (p->norm_topk ? sum + 1e-20 : 1) * p->scale;
    return clear;
}

/* Logits on a coarse grid, so that equal scores are common and unequal ones far apart. */
static float *grid_logits(int m, int experts, uint64_t key, float step)
{
    float *x = random_floats((size_t)(m * experts), key, 2);
    for (int i = 0; i < m * experts; i++) x[i] = step * rintf(x[i] / step);
    return x;
}

static void test_gate(void **state)
{
    (void)state;
    static const struct gate_params kinds[] = {
        {GATE_SIGMOID_NOAUX, 32, 8, 8, 4, true, 2.5f, 0},
        {GATE_SIGMOID_NOAUX, 24, 6, 1, 1, true, 2.827f, 0},
        {GATE_SIGMOID_NOAUX, 18, 1, 3, 2, true, 1.0f, 0},
        {GATE_SIGMOID_NOAUX, 22, 3, 11, 2, false, 1.0f, 0},
        {GATE_SOFTMAX_GREEDY, 37, 6, 1, 1, false, 1.0f, 0},
        {GATE_SOFTMAX_GROUP, 40, 6, 8, 3, false, 16.0f, 0},
        {GATE_SOFTMAX_GROUP, 20, 2, 4, 4, false, 1.0f, 0},
    };
    enum { M = 300 };
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        double worst = 0;
        int checked[2] = {0, 0}, all = M * (int)(sizeof kinds / sizeof *kinds);
        for (size_t c = 0; c < sizeof kinds / sizeof *kinds; c++)
            for (int ties = 0; ties < 2; ties++) {
                struct gate_params p = kinds[c];
                float *logits = grid_logits(M, p.experts, c + 1, ties ? 0.5f : 1e-3f);
                float *bias = calloc((size_t)p.experts, sizeof *bias);
                for (int e = 0; e < p.experts; e++) bias[e] = 0.25f * (float)(e % 5 - 2);
                p.bias = bias;
                int32_t *ids = malloc((size_t)(M * p.topk) * sizeof *ids);
                float *weights = malloc((size_t)(M * p.topk) * sizeof *weights);
                struct lane lane __attribute__((cleanup(lane_free)));
                lane_init(&lane, 0, 2);
                assert_int_equal(moe_check_gate(&p), OK);
                k.gate(&lane, M, logits, p.experts, &p, ids, weights);
                for (int i = 0; i < M; i++) {
                    int want[64];
                    double w[64];
                    if (!gate_reference(&p, logits + i * p.experts, want, w)) continue;
                    checked[ties]++;
                    for (int t = 0; t < p.topk; t++) {
                        assert_int_equal(ids[i * p.topk + t], want[t]);
                        worst = fmax(worst, fabs(weights[i * p.topk + t] - w[t]) / w[t]);
                    }
                }
                free(logits);
                free(bias);
                free(ids);
                free(weights);
            }
        printf("# gate: %d of %d tokens, %d of %d with ties\n", checked[0], all, checked[1], all);
        assert_true(checked[0] > all / 2 && checked[1] > all / 2);
        check_share("gate weights", (enum isa)isa, worst, 1e-6);
    }
}

static void test_gate_refusals(void **state)
{
    (void)state;
    static const float bias[8];
    struct gate_params good = {GATE_SIGMOID_NOAUX, 8, 2, 2, 1, true, 1, bias}, p = good;
    static const struct {
        int experts, topk, n_group, topk_group;
        const char *says;
    } bad[] = {
        {8, 2, 8, 4, "at least two"},
        {8, 2, 3, 1, "must divide"},
        {8, 5, 2, 1, "topk_group"},
        {8, 2, 2, 3, "topk_group is 3"},
        {2000, 2, 2, 1, "n_routed_experts is 2000"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        p = good;
        p.experts = bad[i].experts;
        p.topk = bad[i].topk;
        p.n_group = bad[i].n_group;
        p.topk_group = bad[i].topk_group;
        assert_int_equal(moe_check_gate(&p), ERR_INPUT);
        assert_non_null(strstr(error_text(), bad[i].says));
        error_clear();
    }
    p = good;
    p.bias = 0;
    assert_int_equal(moe_check_gate(&p), ERR_INPUT);
    assert_non_null(strstr(error_text(), "e_score_correction_bias"));
    error_clear();
    p = good;
    p.kind = GATE_SOFTMAX_GREEDY;
    assert_int_equal(moe_check_gate(&p), ERR_INPUT);
    assert_non_null(strstr(error_text(), "norm_topk_prob"));
    error_clear();
}

/* ---- elementwise ---- */

static void test_silu_mul_and_add(void **state)
{
    (void)state;
    static const int widths[] = {1, 6, 17, 128, 2050};
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        double worst = 0;
        for (size_t c = 0; c < sizeof widths / sizeof *widths; c++) {
            int n = widths[c], m = 9;
            struct lane lane __attribute__((cleanup(lane_free)));
            lane_init(&lane, 0, 2);
            float *x = random_floats((size_t)(m * 2 * n), 3, 6);
            float *y = malloc((size_t)(m * n) * sizeof *y);
            k.silu_mul(&lane, m, n, x, 2 * n, y, n);
            for (int i = 0; i < m * n; i++) {
                double g = x[i / n * 2 * n + i % n], u = x[i / n * 2 * n + n + i % n];
                double exact = g / (1 + exp(-g)) * u;
                worst = fmax(worst, fabs(y[i] - exact) / fabs(exact));
            }
            float *z = random_floats((size_t)(m * n), 4, 1);
            float *was = malloc(sizeof *z * (size_t)(m * n));
            memcpy(was, z, sizeof *z * (size_t)(m * n));
            k.add(&lane, m, n, y, n, z, n);
            for (int i = 0; i < m * n; i++) assert_true(z[i] == was[i] + y[i]);
            k.silu_mul(&lane, m, n, x, 2 * n, x, 2 * n); /* in place */
            for (int i = 0; i < m; i++)
                assert_memory_equal(x + i * 2 * n, y + i * n, (size_t)n * sizeof *y);
            free(x);
            free(y);
            free(z);
            free(was);
        }
        check_share("silu_mul", (enum isa)isa, worst, 1e-6);
    }
}

/* ---- combine ---- */

/* One number of the tree, by the definition: groups ascending, slots in top-k order. */
static float combine_reference(enum dtype type, int topk, int n, int j, const float *rows,
                               const int32_t *ids, const float *w, int experts, int n_group)
{
    volatile float total = 0;
    bool any = false;
    for (int g = 0; g < n_group; g++) {
        volatile float sum = 0;
        bool in_group = false;
        for (int t = 0; t < topk; t++) {
            if (ids[t] / (experts / n_group) != g) continue;
            volatile float term = w[t] * rows[t * n + j];
            sum = in_group ? sum + term : term;
            in_group = true;
        }
        if (!in_group) continue;
        float part = n_group > 1 && type == DT_BF16 ? bf16_to_f32(bf16_from_f32(sum)) : sum;
        total = any ? total + part : part;
        any = true;
    }
    return total;
}

static void test_combine(void **state)
{
    (void)state;
    enum { M = 5, EXPERTS = 24 };
    static const int shapes[][3] = {{8, 6, 37}, {8, 1, 20}, {1, 4, 64}, {6, 24, 5}};
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        for (int t = 0; t < 2; t++)
            for (size_t c = 0; c < sizeof shapes / sizeof *shapes; c++) {
                enum dtype type = t ? DT_BF16 : DT_F32;
                int topk = shapes[c][0], groups = shapes[c][1], n = shapes[c][2];
                size_t count = (size_t)(M * topk * n);
                float *rows = random_floats(count, 5, 1), *w = random_floats(M * 8, 6, 1);
                uint16_t *half = malloc(count * sizeof *half);
                int32_t ids[M * 8];
                for (size_t i = 0; i < count; i++) {
                    half[i] = bf16_from_f32(rows[i]);
                    if (t) rows[i] = bf16_to_f32(half[i]);
                }
                for (int i = 0; i < M; i++) /* distinct experts in no order */
                    for (int s = 0; s < topk; s++) ids[i * topk + s] = (i * 7 + s * 5) % EXPERTS;
                float *out = malloc((size_t)(M * n) * sizeof *out);
                struct lane lane __attribute__((cleanup(lane_free)));
                lane_init(&lane, 0, 2);
                k.combine(&lane, type, M, n, topk, t ? (void *)half : rows, ids, w, EXPERTS, groups,
                          out, n);
                for (int i = 0; i < M * n; i++) {
                    int row = i / n;
                    float want =
                        combine_reference(type, topk, n, i % n, rows + row * topk * n,
                                          ids + row * topk, w + row * topk, EXPERTS, groups);
                    assert_memory_equal(&out[i], &want, sizeof want);
                }
                free(rows);
                free(half);
                free(w);
                free(out);
            }
    }
}

/* ---- gated MLP ---- */

struct experts {
    int groups, hidden, inner;
    float *gate, *up, *down; /* [groups][inner][hidden] twice, [groups][hidden][inner] */
    struct wmat *gate_up_w, *down_w;
    void **memory;
};

static void *packed_alloc(size_t bytes)
{
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static struct experts experts_make(const struct kernels *k, enum dtype type, int groups, int hidden,
                                   int inner)
{
    size_t n = (size_t)(groups * hidden * inner), one = (size_t)(hidden * inner);
    struct experts e = {.groups = groups, .hidden = hidden, .inner = inner};
    e.gate = random_floats(n, 31, 0.3f);
    e.up = random_floats(n, 32, 0.3f);
    e.down = random_floats(n, 33, 0.3f);
    e.gate_up_w = malloc((size_t)groups * sizeof *e.gate_up_w);
    e.down_w = malloc((size_t)groups * sizeof *e.down_w);
    e.memory = malloc((size_t)groups * 2 * sizeof *e.memory);
    for (size_t i = 0; type == DT_BF16 && i < n; i++) {
        e.gate[i] = bf16_to_f32(bf16_from_f32(e.gate[i]));
        e.up[i] = bf16_to_f32(bf16_from_f32(e.up[i]));
        e.down[i] = bf16_to_f32(bf16_from_f32(e.down[i]));
    }
    for (int g = 0; g < groups; g++) {
        struct weight_src up[2] = {{DT_F32, inner, hidden, e.gate + (size_t)g * one, hidden, 0, 0},
                                   {DT_F32, inner, hidden, e.up + (size_t)g * one, hidden, 0, 0}};
        struct weight_src down = {DT_F32, hidden, inner, e.down + (size_t)g * one, inner, 0, 0};
        int two[2] = {inner, inner};
        e.memory[2 * g] = packed_alloc(k->gemm_packed_bytes(type, two, 2, hidden));
        e.memory[2 * g + 1] = packed_alloc(k->gemm_packed_bytes(type, &hidden, 1, inner));
        assert_int_equal(k->gemm_pack(type, up, 2, e.memory[2 * g], &e.gate_up_w[g]), OK);
        assert_int_equal(k->gemm_pack(type, &down, 1, e.memory[2 * g + 1], &e.down_w[g]), OK);
    }
    return e;
}

static void experts_free(struct experts *e)
{
    for (int g = 0; g < 2 * e->groups; g++) free(e->memory[g]);
    free(e->memory);
    free(e->gate_up_w);
    free(e->down_w);
    free(e->gate);
    free(e->up);
    free(e->down);
}

/* The largest |out - exact| / sum of |terms| of one row. */
static double mlp_error(const struct experts *e, int g, const float *x, const float *out)
{
    double act[64], worst = 0;
    size_t one = (size_t)(e->hidden * e->inner);
    for (int i = 0; i < e->inner; i++) {
        double a = 0, b = 0;
        for (int h = 0; h < e->hidden; h++) {
            a += (double)x[h] * e->gate[(size_t)g * one + (size_t)(i * e->hidden + h)];
            b += (double)x[h] * e->up[(size_t)g * one + (size_t)(i * e->hidden + h)];
        }
        act[i] = a / (1 + exp(-a)) * b;
    }
    for (int h = 0; h < e->hidden; h++) {
        double sum = 0, size = 0;
        for (int i = 0; i < e->inner; i++) {
            double t = act[i] * e->down[(size_t)g * one + (size_t)(h * e->inner + i)];
            sum += t;
            size += fabs(t);
        }
        double err = fabs(out[h] - sum) / size;
        if (!(err <= worst)) worst = err;
    }
    return worst;
}

/* Groups with a gap, without rows and side by side; rows outside them stay as they were. */
static void test_ffn(void **state)
{
    (void)state;
    enum { GROUPS = 4, HIDDEN = 50, INNER = 38, SPAN = 16 };
    static const int32_t begin[GROUPS] = {0, 5, 7, 12}, count[GROUPS] = {5, 0, 3, 4};
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        for (int t = 0; t < 2; t++) {
            enum dtype type = t ? DT_BF16 : DT_F32;
            struct experts e = experts_make(&k, type, GROUPS, HIDDEN, INNER);
            float *x = random_floats(SPAN * HIDDEN, 40, 1);
            uint16_t *half = malloc(SPAN * HIDDEN * sizeof *half);
            for (int i = 0; i < SPAN * HIDDEN; i++) {
                half[i] = bf16_from_f32(x[i]);
                if (t) x[i] = bf16_to_f32(half[i]);
            }
            float *out = malloc(SPAN * HIDDEN * sizeof *out);
            memset(out, 0x55, SPAN * HIDDEN * sizeof *out);
            struct lane lane __attribute__((cleanup(lane_free)));
            lane_init(&lane, 0, 2);
            size_t bytes = moe_ffn_scratch_bytes(type, SPAN, INNER);
            struct moe_ffn f = {
                .groups = GROUPS,
                .begin = begin,
                .rows = count,
                .in = {type, HIDDEN, t ? (void *)half : x, HIDDEN, 0, 0},
                .gate_up = e.gate_up_w,
                .down = e.down_w,
                .act_type = type,
                .scratch = aligned_alloc(64, (bytes + 63) / 64 * 64),
                .out = out,
                .ldo = HIDDEN,
            };
            moe_ffn(&lane, &k, &f);
            double worst = 0;
            for (int g = 0; g < GROUPS; g++)
                for (int r = begin[g]; r < begin[g] + count[g]; r++)
                    worst = fmax(worst, mlp_error(&e, g, x + r * HIDDEN, out + r * HIDDEN));
            check_share(t ? "MLP bf16" : "MLP f32", (enum isa)isa, worst, t ? 0x1p-7 : 2e-6);
            static const int outside[] = {5, 6, 10, 11};
            for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
                for (int h = 0; h < HIDDEN; h++)
                    assert_int_equal(num_bits(out[outside[i] * HIDDEN + h]), 0x55555555);
            free(f.scratch);
            free(out);
            free(x);
            free(half);
            experts_free(&e);
        }
    }
}

/* FP8: the down GEMM's input is quantised per 128 channels; scales and bytes share the row. */
static void test_ffn_fp8(void **state)
{
    (void)state;
    enum { HIDDEN = 40, INNER = 200, ROWS = 6, BLOCKS = 2 };
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        struct lane lane __attribute__((cleanup(lane_free)));
        lane_init(&lane, 0, 1);
        uint8_t w[3][HIDDEN * INNER], in[ROWS * HIDDEN], want_q[ROWS * INNER];
        float scale[4] = {0.01f, 0.02f, 0.03f, 0.04f}, in_scale[ROWS], want_s[ROWS * BLOCKS];
        float mid[ROWS * 2 * INNER], want[ROWS * HIDDEN], out[ROWS * HIDDEN];
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < HIDDEN * INNER; j++)
                w[i][j] = e4m3_from_f32((float)rng_normal(50 + (uint64_t)i, (uint64_t)j));
        for (int j = 0; j < ROWS * HIDDEN; j++)
            in[j] = e4m3_from_f32(100 * (float)rng_normal(60, (uint64_t)j));
        for (int i = 0; i < ROWS; i++) in_scale[i] = 0.01f * (float)(i + 1);
        struct weight_src up[2] = {{DT_E4M3, INNER, HIDDEN, w[0], HIDDEN, scale, 1},
                                   {DT_E4M3, INNER, HIDDEN, w[1], HIDDEN, scale + 2, 1}};
        struct weight_src down = {DT_E4M3, HIDDEN, INNER, w[2], INNER, scale, BLOCKS};
        int two[2] = {INNER, INNER}, one = HIDDEN;
        struct wmat up_w, down_w;
        void *m0 = packed_alloc(k.gemm_packed_bytes(DT_E4M3, two, 2, HIDDEN));
        void *m1 = packed_alloc(k.gemm_packed_bytes(DT_E4M3, &one, 1, INNER));
        assert_int_equal(k.gemm_pack(DT_E4M3, up, 2, m0, &up_w), OK);
        assert_int_equal(k.gemm_pack(DT_E4M3, &down, 1, m1, &down_w), OK);
        struct amat a = {DT_E4M3, HIDDEN, in, HIDDEN, in_scale, 1};
        struct amat q = {DT_E4M3, INNER, want_q, INNER, want_s, BLOCKS};
        k.gemm(&lane, ROWS, &a, &up_w, mid, 2 * INNER); /* the same steps, apart */
        k.silu_mul(&lane, ROWS, INNER, mid, 2 * INNER, mid, 2 * INNER);
        k.act_convert(&lane, ROWS, mid, 2 * INNER, &q, true);
        k.gemm(&lane, ROWS, &q, &down_w, want, HIDDEN);
        int32_t begin = 0, rows = ROWS;
        struct moe_ffn f = {
            .groups = 1,
            .begin = &begin,
            .rows = &rows,
            .in = a,
            .gate_up = &up_w,
            .down = &down_w,
            .act_type = DT_E4M3,
            .ue8m0 = true,
            .scratch = malloc(moe_ffn_scratch_bytes(DT_E4M3, ROWS, INNER)),
            .out = out,
            .ldo = HIDDEN,
        };
        moe_ffn(&lane, &k, &f);
        assert_memory_equal(out, want, sizeof want);
        free(f.scratch);
        free(m0);
        free(m1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gate),
        cmocka_unit_test(test_gate_refusals),
        cmocka_unit_test(test_silu_mul_and_add),
        cmocka_unit_test(test_combine),
        cmocka_unit_test(test_ffn),
        cmocka_unit_test(test_ffn_fp8),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
