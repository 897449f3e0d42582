/* links: core device attention */
/* test_attention.c - every path of the attention kernels against FP64 at ragged and at the
 * published models' shapes. Rerun alone: make unit-attention.
 */
#include "test_attention_case.h"

/* Prints and checks the share of the tolerance. */
static void check_share(const char *what, enum isa isa, double error, double tolerance)
{
    printf("# %-28s %-11s error %.2e, %.0f %% of the tolerance\n", what, isa_name(isa), error,
           100 * error / tolerance);
    assert_true(error <= tolerance);
}

/* The larger; NaN counts as the largest. */
static double worse(double a, double b)
{
    return b <= a ? a : b;
}

/* FP32: products, exponentials and their sums. BF16: softmax weights rounded (2^-9 each). */
static double tolerance_of(enum dtype type)
{
    return type == DT_F32 ? 4e-6 : 0x1p-8;
}

static void test_prefill(void **state)
{
    (void)state;
    static const int shapes[][5] = {
        /* heads, nope, rope, v, tokens */
        {3, 6, 4, 10, 1},       {2, 6, 4, 20, 67},       {1, 2, 2, 2, 130},    {3, 34, 6, 66, 65},
        {2, 128, 64, 128, 150}, {1, 18, 14, 33 + 1, 64}, {1, 64, 64, 32, 129},
    };
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        for (int t = 0; t < 2; t++) {
            enum dtype type = t ? DT_BF16 : DT_F32;
            double worst = 0;
            for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
                const int *s = shapes[i];
                struct sequence seq = sequence_make(type, s[0], s[1], s[2], s[3], s[4]);
                float *out = sequence_run(&seq, &k, 1, s[4]);
                worst = worse(worst, sequence_error(&seq, out));
                free(out);
                sequence_free(&seq);
            }
            check_share(t ? "prefill bf16" : "prefill f32", (enum isa)isa, worst,
                        tolerance_of(type));
        }
    }
}

static void test_decode(void **state)
{
    (void)state;
    static const int shapes[][3] = {{3, 20, 4}, {70, 66, 6}, {16, 512, 64}, {1, 2, 2}};
    static const int len[] = {1, 63, 600, 64, 1030, 17};
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        for (int t = 0; t < 2; t++) {
            enum dtype type = t ? DT_BF16 : DT_F32;
            double worst = 0;
            for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
                const int *s = shapes[i];
                int m = s[1] == 512 ? 3 : 6;
                struct batch b = batch_make(type, m, len, s[0], s[1], s[2]);
                float *out = batch_run(&b, &k, 1, 0, m, 64, 5);
                worst = worse(worst, batch_error(&b, out));
                free(out);
                batch_free(&b);
            }
            check_share(t ? "decode bf16" : "decode f32", (enum isa)isa, worst, tolerance_of(type));
        }
    }
}

/* The largest sizes the header promises: 192 heads, and an empty cache. */
static void test_decode_limits(void **state)
{
    (void)state;
    static const int len[] = {0, 70};
    struct kernels k;
    enum isa best = ISA_COUNT;
    while (best-- > 0 && !path_ready(best, &k)) {}
    struct batch b = batch_make(DT_BF16, 2, len, 192, 512, 64);
    float *out = batch_run(&b, &k, 2, 0, 2, 64, 3);
    for (int i = 0; i < 192 * 512; i++) assert_true(out[i] == 0.0f);
    check_share("decode bf16 192x(512+64)", best, batch_error(&b, out), tolerance_of(DT_BF16));
    free(out);
    batch_free(&b);
    assert_int_equal(attention_check_dims(128, 64, 128, 512), OK);
    assert_int_equal(attention_check_dims(128, 64, 128, 576), ERR_INPUT);
    assert_non_null(strstr(error_text(), "640 channels"));
    error_clear();
    assert_int_equal(attention_check_dims(127, 64, 128, 512), ERR_INPUT);
    assert_non_null(strstr(error_text(), "qk_nope_head_dim is 127"));
    error_clear();
}

static double ulp_error(float x, float got)
{
    double exact = exp((double)x);
    int e;
    frexp(exact, &e);
    double ulp = ldexp(1, (e < -125 ? -125 : e) - 24);
    return fabs(got - exact) / ulp;
}

static void test_exp(void **state)
{
    (void)state;
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        float (*e)(float) = attend_micro_get((enum isa)isa, DT_F32)->exp;
        double worst = 0;
        for (int i = 0; i < 300000; i++) {
            float x = (float)(-103.9 + 192.6 * rng_uniform(9, (uint64_t)i));
            double u = ulp_error(x, e(x));
            if (!(u <= worst)) worst = u;
        }
        check_share("exp, ulp", (enum isa)isa, worst, 2);
        assert_true(e(0.0f) == 1.0f);
        assert_true(e(88.8f) == INFINITY && e(1e30f) == INFINITY && e(INFINITY) == INFINITY);
        assert_true(e(-104.5f) == 0.0f && e(-INFINITY) == 0.0f && isnan(e(NAN)));
    }
}

static void test_rmsnorm(void **state)
{
    (void)state;
    static const int widths[] = {1, 7, 20, 33, 512, 1536, 7168};
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        double worst = 0;
        for (size_t c = 0; c < sizeof widths / sizeof *widths; c++) {
            int n = widths[c], m = 3, ld = n + 2;
            struct lane lane __attribute__((cleanup(lane_free)));
            lane_init(&lane, 0, 2);
            float *x = random_floats((size_t)(2 * ld + n), 3, 2);
            float *w = random_floats((size_t)n, 4, 1);
            float *y = malloc((size_t)(m * n) * sizeof *y);
            k.rmsnorm(&lane, m, n, x, ld, w, 1e-6f, y, n);
            for (int i = 0; i < m; i++) {
                double sq = 0;
                for (int j = 0; j < n; j++) sq += (double)x[i * ld + j] * x[i * ld + j];
                double f = 1 / sqrt(sq / n + 1e-6);
                for (int j = 0; j < n; j++) {
                    double exact = x[i * ld + j] * f * w[j];
                    double e = fabs(y[i * n + j] - exact) / fabs(exact);
                    if (!(e <= worst)) worst = e;
                }
            }
            k.rmsnorm(&lane, m, n, x, ld, w, 1e-6f, x, ld); /* in place */
            for (int i = 0; i < m; i++)
                assert_memory_equal(x + i * ld, y + i * n, (size_t)n * sizeof *y);
            free(x);
            free(w);
            free(y);
        }
        check_share("rmsnorm", (enum isa)isa, worst, 1e-6);
    }
}

/* Both pairings; the output has the first components first. */
static void test_rope(void **state)
{
    (void)state;
    enum { M = 3, HEADS = 2, DIM = 10, STRIDE = 16, LD = 2 * STRIDE + 3, MAX = 9 };
    static const int32_t pos[M] = {0, 8, 5};
    float *table = random_floats(MAX * DIM, 8, 1);
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        for (int interleaved = 0; interleaved < 2; interleaved++) {
            struct lane lane __attribute__((cleanup(lane_free)));
            lane_init(&lane, 0, 1);
            size_t n = (M - 1) * LD + STRIDE + DIM;
            float *x = random_floats(n, 7, 1), *was = heap_copy(x, n * sizeof *x);
            k.rope(&lane, M, HEADS, DIM, x, LD, STRIDE, pos, table, interleaved);
            for (int i = 0; i < M; i++)
                for (int h = 0; h < HEADS; h++)
                    for (int j = 0; j < DIM / 2; j++) {
                        const float *v = was + i * LD + h * STRIDE;
                        double a = interleaved ? v[2 * j] : v[j];
                        double b = interleaved ? v[2 * j + 1] : v[j + DIM / 2];
                        double c = table[pos[i] * DIM + 2 * j];
                        double s = table[pos[i] * DIM + 2 * j + 1];
                        const float *got = x + i * LD + h * STRIDE;
                        double size = fabs(a) + fabs(b);
                        assert_true(fabs(got[j] - (a * c - b * s)) < 3e-7 * size);
                        assert_true(fabs(got[j + DIM / 2] - (b * c + a * s)) < 3e-7 * size);
                    }
            assert_memory_equal(x + DIM, was + DIM, (STRIDE - DIM) * sizeof *x);
            free(x);
            free(was);
        }
    }
    free(table);
}

static void test_kv_write(void **state)
{
    (void)state;
    enum { M = 3, LATENT = 22, ROPE = 6, ROW = LATENT + ROPE, PAGE = 4, PAGES = 5 };
    static const int32_t pos[M] = {0, 5, 7}, table[] = {3, 1}, other[] = {0, 4};
    const int32_t *pages[M] = {table, table, other};
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        struct kernels k;
        if (!path_ready((enum isa)isa, &k)) continue;
        for (int t = 0; t < 2; t++) {
            enum dtype type = t ? DT_BF16 : DT_F32;
            struct lane lane __attribute__((cleanup(lane_free)));
            lane_init(&lane, 0, 1);
            float *lat = random_floats(M * LATENT, 5, 1), *rope = random_floats(M * ROPE, 6, 1);
            lat[0] = 1e-40f; /* a denormal stays one */
            size_t unit = dtype_bytes(type);
            char *cache = calloc(PAGES * PAGE * ROW, unit);
            char *want = calloc(PAGES * PAGE * ROW, unit);
            for (int i = 0; i < M; i++) {
                size_t row = (size_t)(pages[i][pos[i] / PAGE] * PAGE + pos[i] % PAGE) * ROW * unit;
                void *a = typed_copy(type, lat + i * LATENT, LATENT, 0);
                void *b = typed_copy(type, rope + i * ROPE, ROPE, 0);
                memcpy(want + row, a, LATENT * unit);
                memcpy(want + row + LATENT * unit, b, ROPE * unit);
                free(a);
                free(b);
            }
            k.kv_write(&lane, type, M, LATENT, ROPE, lat, LATENT, rope, ROPE, pos, pages, PAGE,
                       cache);
            assert_memory_equal(cache, want, PAGES * PAGE * ROW * unit);
            free(lat);
            free(rope);
            free(cache);
            free(want);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill),       cmocka_unit_test(test_decode),
        cmocka_unit_test(test_decode_limits), cmocka_unit_test(test_exp),
        cmocka_unit_test(test_rmsnorm),       cmocka_unit_test(test_rope),
        cmocka_unit_test(test_kv_write),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
