/* links: core gemm device */
/* test_gemm.c - every instruction set this host has against the definition in double arithmetic,
 * at ragged shapes, with all buffers ending at an unmapped page; then the bitwise rules.
 * One case alone: make unit-gemm CASE=bitwise (a part of the test's name). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "unit/amx_emulated.h"
#include "core/numfmt.h"
#include "core/rng.h"
#include "gemm/gemm.h"
#if defined(__x86_64__)
#include "gemm/gemm_amx_body.h"
#endif

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- memory that ends where the address space ends ---- */

enum { MAX_GUARDED = 256 };
struct guarded {
    void *base[MAX_GUARDED];
    size_t size[MAX_GUARDED];
    int count;
};

static void *guarded_alloc(struct guarded *g, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t size = (bytes + page - 1) / page * page + page;
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED && g->count < MAX_GUARDED);
    assert_int_equal(mprotect(p + size - page, page, PROT_NONE), 0);
    g->base[g->count] = p;
    g->size[g->count++] = size;
    return p + size - page - bytes;
}

static void guarded_free(struct guarded *g)
{
    while (g->count > 0) {
        g->count--;
        munmap(g->base[g->count], g->size[g->count]);
    }
}

/* ---- what runs here ---- */

static struct lane lane_of(int threads)
{
    struct lane lane;
    lane_init(&lane, device_cpu(), threads);
    return lane;
}

#if defined(__x86_64__)
/* AMX where there is none: the same kernel over tile registers in plain C. */
static const struct ukernel ukernel_amx_emulated = AMX_UKERNEL;
void gemm_entries_amx_emulated(struct kernels *k);
GEMM_ENTRIES(amx_emulated)
#endif

/* Calls test(kernels) for every instruction set of the host and names what is missing. */
static void each_isa(void (*test)(const struct kernels *))
{
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        const char *missing = "";
        if (!isa_supported((enum isa)isa, &missing)) {
            print_message("# isa %s skipped: this host lacks %s\n", isa_name((enum isa)isa),
                          missing);
            continue;
        }
        struct kernels k = {.isa = (enum isa)isa, .name = isa_name((enum isa)isa)};
        assert_int_equal(gemm_kernels_fill(&k, k.isa), OK);
        test(&k);
    }
#if defined(__x86_64__)
    if (!isa_supported(ISA_AMX, NULL) && isa_supported(ISA_AVX512_BF16, NULL)) {
        struct kernels k = {.isa = ISA_AMX, .name = "amx, emulated"};
        gemm_entries_amx_emulated(&k);
        test(&k);
    }
#endif
}

struct pair {
    enum dtype a, w;
    const char *name;
};
static const struct pair pairs[] = {{DT_F32, DT_F32, "f32 x f32"},
                                    {DT_BF16, DT_BF16, "bf16 x bf16"},
                                    {DT_BF16, DT_E4M3, "bf16 x e4m3"},
                                    {DT_E4M3, DT_E4M3, "e4m3 x e4m3"}};
enum { PAIRS = sizeof pairs / sizeof *pairs };

/* ---- random operands ---- */

static void fill(enum dtype type, void *data, size_t n, uint64_t key)
{
    for (size_t i = 0; i < n; i++) {
        float v = (float)rng_normal(key, i);
        if (type == DT_F32) ((float *)data)[i] = v;
        if (type == DT_BF16) ((uint16_t *)data)[i] = bf16_from_f32(v);
        if (type != DT_E4M3) continue;
        uint8_t q = (uint8_t)rng_u64(key, i); /* all codes, denormals too, but NaN */
        ((uint8_t *)data)[i] = (q & 0x7f) == 0x7f ? 0x05 : q;
    }
}

static void fill_scale(float *s, size_t n, uint64_t key)
{
    for (size_t i = 0; i < n; i++) s[i] = (float)(0.001 + 0.01 * rng_uniform(key, i));
}

static struct weight_src weights_make(struct guarded *g, enum dtype type, int n, int k,
                                      uint64_t key)
{
    struct weight_src w = {.type = type, .n = n, .k = k, .ldk = k + 3, .lds = fp8_blocks(k) + 1};
    /* The last row has no padding: reading past its k elements would fault. */
    size_t elements = (size_t)(n - 1) * (size_t)w.ldk + (size_t)k;
    void *data = guarded_alloc(g, elements * dtype_bytes(type));
    fill(type, data, elements, key);
    w.data = data;
    if (type == DT_E4M3) {
        size_t scales = (size_t)(fp8_blocks(n) - 1) * (size_t)w.lds + (size_t)fp8_blocks(k);
        float *s = guarded_alloc(g, scales * sizeof *s);
        fill_scale(s, scales, key + 1);
        w.scale = s;
    }
    return w;
}

static struct amat rows_make(struct guarded *g, enum dtype type, int m, int k, uint64_t key)
{
    struct amat a = {.type = type, .k = k, .ld = k + 5, .lds = fp8_blocks(k) + 2};
    size_t rows = m > 0 ? (size_t)m : 1;
    size_t elements = (rows - 1) * (size_t)a.ld + (size_t)k;
    void *data = guarded_alloc(g, elements * dtype_bytes(type));
    fill(type, data, elements, key);
    a.data = data;
    size_t scales = (rows - 1) * (size_t)a.lds + (size_t)fp8_blocks(k);
    float *s = guarded_alloc(g, scales * sizeof *s);
    fill_scale(s, scales, key + 1);
    if (type == DT_E4M3) a.scale = s;
    return a;
}

static struct wmat packed(struct guarded *g, const struct kernels *k, enum dtype type,
                          const struct weight_src *src, int sources)
{
    int n[2] = {src[0].n, sources > 1 ? src[1].n : 0};
    size_t bytes = k->gemm_packed_bytes(type, n, sources, src[0].k);
    assert_int_equal(bytes % 64, 0);
    struct wmat w;
    void *dst = guarded_alloc(g, bytes);
    memset(dst, 0xff, bytes); /* packing must write its own zeros */
    assert_int_equal(k->gemm_pack(type, src, sources, dst, &w), OK);
    assert_int_equal(w.n, n[0] + n[1]);
    return w;
}

/* Rows from row on. */
static struct amat rows_from(const struct amat *a, int row)
{
    struct amat b = *a;
    b.data = (const char *)a->data + (size_t)row * (size_t)a->ld * dtype_bytes(a->type);
    if (a->scale) b.scale = a->scale + (size_t)row * (size_t)a->lds;
    return b;
}

/* ---- against the definition ---- */

static const float untouched = -7.5f;

/* Largest share of the tolerance used by c [m, n] with row stride ldc; padding must be intact. */
static double share_used(int m, int n, int k, const float *c, int ldc, const double *want,
                         const double *mag)
{
    double worst = 0, unit = (4 + 4 * sqrt(k)) * 0x1p-24;
    for (int i = 0; i < m; i++)
        for (int j = 0; j < ldc && (i < m - 1 || j < n); j++) {
            float got = c[i * ldc + j];
            if (j >= n) {
                assert_true(got == untouched);
                continue;
            }
            double tolerance = unit * mag[i * n + j] + 1e-30;
            double share = fabs(got - want[i * n + j]) / tolerance;
            if (!(share <= 1))
                print_message("row %d column %d of [%d, %d] k %d: %g, expected %g +- %g\n", i, j, m,
                              n, k, (double)got, want[i * n + j], tolerance);
            assert_true(share <= 1);
            if (share > worst) worst = share;
        }
    return worst;
}

static double check_shape(const struct kernels *kern, const struct pair *p, enum dtype src_type,
                          int m, int n0, int n1, int k)
{
    struct guarded g = {0};
    int n = n0 + n1, sources = n1 ? 2 : 1, ldc = n + 3;
    uint64_t key = (uint64_t)(m * 1000003 + n0 * 1009 + n1 * 31 + k);
    struct weight_src src[2] = {weights_make(&g, src_type, n0, k, key)};
    if (n1) src[1] = weights_make(&g, src_type, n1, k, key + 7);
    struct wmat w = packed(&g, kern, p->w, src, sources);
    struct amat a = rows_make(&g, p->a, m, k, key + 11);
    size_t cells = m > 0 ? (size_t)(m - 1) * (size_t)ldc + (size_t)n : 1;
    float *c = guarded_alloc(&g, cells * sizeof *c);
    for (size_t i = 0; i < cells; i++) c[i] = untouched;
    double *want = calloc((size_t)(m * n + 1), sizeof *want);
    double *mag = calloc((size_t)(m * n + 1), sizeof *mag);
    assert_true(want && mag);
    gemm_ref(m, &a, src, sources, want, mag);
    struct lane lane __attribute__((cleanup(lane_free))) = lane_of(1);
    kern->gemm(&lane, m, &a, &w, c, ldc);
    double share = share_used(m, n, k, c, ldc, want, mag);
    if (m == 0) assert_true(c[0] == untouched);
    free(want);
    free(mag);
    guarded_free(&g);
    return share;
}

static void shapes_of_isa(const struct kernels *kern)
{
    static const int shape[][2] = {{1, 1},     {5, 3},     {16, 64},   {63, 127}, {64, 128},
                                   {65, 129},  {127, 192}, {128, 200}, {129, 4},  {192, 576},
                                   {200, 130}, {576, 258}, {1, 576}};
    static const int rows[] = {0, 1, 2, 3, 5, 6, 7, 17};
    for (int p = 0; p < PAIRS; p++) {
        double worst = 0;
        for (size_t s = 0; s < sizeof shape / sizeof *shape; s++)
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
                double share =
                    check_shape(kern, &pairs[p], pairs[p].w, rows[r], shape[s][0], 0, shape[s][1]);
                if (share > worst) worst = share;
            }
        print_message("# %-12s %s: %.0f %% of the tolerance used\n", kern->name, pairs[p].name,
                      100 * worst);
    }
}

static void test_shapes(void **state)
{
    (void)state;
    each_isa(shapes_of_isa);
}

/* gate|up and q_a|kv_a: two scale grids, the second begins anywhere. */
static void stacked_of_isa(const struct kernels *kern)
{
    static const int n[][2] = {{64, 64}, {100, 40}, {129, 71}, {1, 1}, {200, 128}};
    for (int p = 0; p < PAIRS; p++)
        for (size_t s = 0; s < sizeof n / sizeof *n; s++)
            for (int m = 1; m < 9; m += 7)
                check_shape(kern, &pairs[p], pairs[p].w, m, n[s][0], n[s][1], 300);
}

static void test_stacked(void **state)
{
    (void)state;
    each_isa(stacked_of_isa);
}

/* Packing that converts: FP8 and BF16 to F32 exactly, F32 to BF16 rounded. */
static void converted_of_isa(const struct kernels *kern)
{
    check_shape(kern, &pairs[0], DT_E4M3, 3, 130, 0, 200);
    check_shape(kern, &pairs[0], DT_BF16, 3, 65, 70, 129);
    struct guarded g = {0};
    struct weight_src f = weights_make(&g, DT_F32, 70, 150, 3), h = f;
    h.type = DT_BF16;
    size_t elements = (size_t)(f.n - 1) * (size_t)f.ldk + (size_t)f.k;
    uint16_t *rounded = guarded_alloc(&g, elements * sizeof *rounded);
    for (size_t i = 0; i < elements; i++) rounded[i] = bf16_from_f32(((const float *)f.data)[i]);
    h.data = rounded;
    struct wmat a = packed(&g, kern, DT_BF16, &f, 1), b = packed(&g, kern, DT_BF16, &h, 1);
    int n[2] = {f.n, 0};
    assert_memory_equal(a.data, b.data, kern->gemm_packed_bytes(DT_BF16, n, 1, f.k));
    struct wmat bad;
    assert_int_equal(kern->gemm_pack(DT_E4M3, &f, 1, NULL, &bad), ERR_BUG);
    error_clear();
    guarded_free(&g);
}

static void test_pack_converts(void **state)
{
    (void)state;
    each_isa(converted_of_isa);
}

/* ---- exactness and special values ---- */

static void codes_of_isa(const struct kernels *kern)
{
    struct guarded g = {0};
    struct lane lane __attribute__((cleanup(lane_free))) = lane_of(1);
    uint8_t code[256];
    uint16_t one_bf16 = bf16_from_f32(1);
    uint8_t one_e4m3 = e4m3_from_f32(1);
    float unit[2] = {1, 1}, ones[256], *c = guarded_alloc(&g, sizeof(float) * 256);
    for (int i = 0; i < 256; i++) code[i] = (uint8_t)i, ones[i] = 1;
    for (int rows = 1; rows <= 8; rows += 7) { /* the fused and the widening path */
        uint16_t many[8];
        for (int i = 0; i < 8; i++) many[i] = one_bf16;
        struct weight_src src = {
            .type = DT_E4M3, .n = 256, .k = 1, .data = code, .ldk = 1, .scale = unit, .lds = 1};
        struct wmat w = packed(&g, kern, DT_E4M3, &src, 1);
        struct amat a = {.type = DT_BF16, .k = 1, .data = many, .ld = 1};
        float out[8][256];
        kern->gemm(&lane, rows, &a, &w, out[0], 256);
        for (int i = 0; i < 256; i++) {
            float want = e4m3_to_f32((uint8_t)i), got = out[rows - 1][i];
            assert_true(isnan(want) ? isnan(got) : got == want);
        }
    }
    struct weight_src src = {
        .type = DT_E4M3, .n = 1, .k = 1, .data = &one_e4m3, .ldk = 1, .scale = unit, .lds = 1};
    struct wmat w = packed(&g, kern, DT_E4M3, &src, 1);
    struct amat a = {.type = DT_E4M3, .k = 1, .data = code, .ld = 1, .scale = ones, .lds = 1};
    kern->gemm(&lane, 256, &a, &w, c, 1);
    for (int i = 0; i < 256; i++) {
        float want = e4m3_to_f32((uint8_t)i);
        assert_true(isnan(want) ? isnan(c[i]) : c[i] == want);
    }
    guarded_free(&g);
}

static void test_every_e4m3_code_is_exact(void **state)
{
    (void)state;
    each_isa(codes_of_isa);
}

/* Fills `a` with NaN. */
static void all_nan(const struct amat *a, int m)
{
    static const unsigned char bytes[] = {0xff, 0xff, 0x7f};
    memset((void *)(uintptr_t)a->data, bytes[a->type],
           ((size_t)(m - 1) * (size_t)a->ld + (size_t)a->k) * dtype_bytes(a->type));
}

/* A NaN stays in its row and reaches all of it; and since a product of NaN rows of the same
 * padded shape ran before, whatever the scratch still holds must have been overwritten. */
static void nan_of_shape(const struct kernels *kern, const struct pair *p, int k)
{
    enum { M = 9, N = 70, PADDED = 144 };
    struct guarded g = {0};
    struct lane lane __attribute__((cleanup(lane_free))) = lane_of(1);
    float *c = guarded_alloc(&g, sizeof(float) * M * N);
    struct weight_src src = weights_make(&g, p->w, N, PADDED, 5);
    struct wmat w = packed(&g, kern, p->w, &src, 1);
    struct amat a = rows_make(&g, p->a, M, PADDED, 6);
    all_nan(&a, M);
    kern->gemm(&lane, M, &a, &w, c, N);
    for (int i = 0; i < M * N; i++) assert_true(isnan(c[i]));

    src = weights_make(&g, p->w, N, k, 5);
    w = packed(&g, kern, p->w, &src, 1);
    a = rows_make(&g, p->a, M, k, 6);
    struct amat row = rows_from(&a, 4);
    all_nan(&row, 1);
    kern->gemm(&lane, M, &a, &w, c, N);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) assert_int_equal(isnan(c[i * N + j]) != 0, i == 4);
    guarded_free(&g);
}

static void special_of_isa(const struct kernels *kern)
{
    for (int p = 0; p < PAIRS; p++)
        for (int k = 141; k <= 144; k++) nan_of_shape(kern, &pairs[p], k);
}

static void test_nan_stays_in_its_row(void **state)
{
    (void)state;
    each_isa(special_of_isa);
}

/* ---- bitwise rules ---- */

enum { BIT_M = 401, BIT_N0 = 129, BIT_N1 = 71, BIT_N = BIT_N0 + BIT_N1, BIT_K = 579 };

static void same_bits(const struct kernels *kern, const char *what, const float *a, const float *b,
                      size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (num_bits(a[i]) != num_bits(b[i]))
            fail_msg("%s: %s: element %zu: %a and %a", kern->name, what, i, (double)a[i],
                     (double)b[i]);
}

static void bits_grouped(const struct kernels *kern, struct lane *lane, const struct amat *a,
                         const struct wmat *w, const float *want, float *c)
{
    /* Contiguous with empty groups and uneven rows, then slots of a fixed capacity. */
    static const int32_t rows[] = {0, 1, 6, 0, 200, 13, 5, 0};
    enum { GROUPS = sizeof rows / sizeof *rows, CAPACITY = 40 };
    int32_t begin[GROUPS], counts[GROUPS];
    struct wmat all[GROUPS];
    int total = 0;
    for (int g = 0; g < GROUPS; g++) {
        begin[g] = total;
        total += rows[g];
        all[g] = *w;
    }
    memset(c, 0, sizeof *c * BIT_M * BIT_N);
    kern->gemm_grouped(lane, GROUPS, begin, rows, a, all, c, BIT_N);
    same_bits(kern, "grouped-contiguous", c, want, (size_t)total * BIT_N);
    for (int i = total * BIT_N; i < BIT_M * BIT_N; i++) assert_true(c[i] == 0);

    memset(c, 0, sizeof *c * BIT_M * BIT_N);
    for (int g = 0; g < GROUPS; g++) {
        begin[g] = g * CAPACITY;
        counts[g] = rows[g] > CAPACITY ? CAPACITY : rows[g];
    }
    kern->gemm_grouped(lane, GROUPS, begin, counts, a, all, c, BIT_N);
    for (int g = 0; g < GROUPS; g++) {
        const float *slot = c + begin[g] * BIT_N;
        same_bits(kern, "grouped-masked", slot, want + begin[g] * BIT_N,
                  (size_t)(counts[g] * BIT_N));
        for (int i = counts[g] * BIT_N; i < CAPACITY * BIT_N; i++) assert_true(slot[i] == 0);
    }
}

static void bits_of_pair(const struct kernels *kern, const struct pair *p)
{
    struct guarded g = {0};
    struct weight_src src[2] = {weights_make(&g, p->w, BIT_N0, BIT_K, 1),
                                weights_make(&g, p->w, BIT_N1, BIT_K, 2)};
    struct wmat w = packed(&g, kern, p->w, src, 2);
    struct amat a = rows_make(&g, p->a, BIT_M, BIT_K, 3);
    float *want = guarded_alloc(&g, sizeof(float) * BIT_M * BIT_N);
    float *c = guarded_alloc(&g, sizeof(float) * BIT_M * BIT_N);
    struct lane one __attribute__((cleanup(lane_free))) = lane_of(1);
    kern->gemm(&one, BIT_M, &a, &w, want, BIT_N);

    static const int step[] = {1, 2, 3, 5, 6, 7, 37};
    for (size_t s = 0; s < sizeof step / sizeof *step; s++) {
        memset(c, 0, sizeof *c * BIT_M * BIT_N);
        for (int i = 0; i < BIT_M; i += step[s]) {
            struct amat part = rows_from(&a, i);
            int m = BIT_M - i < step[s] ? BIT_M - i : step[s];
            kern->gemm(&one, m, &part, &w, c + i * BIT_N, BIT_N);
        }
        same_bits(kern, "rows in parts", c, want, BIT_M * BIT_N);
    }
    for (int threads = 1; threads <= 3; threads++) {
        struct lane lane __attribute__((cleanup(lane_free))) = lane_of(threads);
        memset(c, 0, sizeof *c * BIT_M * BIT_N);
        kern->gemm(&lane, BIT_M, &a, &w, c, BIT_N);
        same_bits(kern, "threads", c, want, BIT_M * BIT_N);
        bits_grouped(kern, &lane, &a, &w, want, c);
        memset(c, 0, sizeof *c * BIT_M * BIT_N);
        if (p->a == DT_E4M3) continue; /* rows apart by ld are no multiple of a scale block */
        struct wmat both[4] = {w, w, w, w};
        kern->gemm_batched(&lane, 4, 100, &a, 100 * (int64_t)a.ld, both, c, BIT_N, 100 * BIT_N);
        same_bits(kern, "batched", c, want, 400 * BIT_N);
    }
    guarded_free(&g);
}

static void bits_of_isa(const struct kernels *kern)
{
    for (int p = 0; p < PAIRS; p++) bits_of_pair(kern, &pairs[p]);
}

static void test_bitwise(void **state)
{
    (void)state;
    each_isa(bits_of_isa);
}

/* Heads side by side in a row: batch b reads k columns from b * stride on and writes its own. FP8
 * rows need strides that are whole scales; a head may be narrower. */
static void heads_of_width(const struct kernels *kern, int k, int stride)
{
    enum { HEADS = 3, M = 5, N = 70 };
    for (int p = 0; p < PAIRS; p++) {
        struct guarded g = {0};
        struct weight_src src[HEADS];
        struct wmat w[HEADS];
        struct amat a = rows_make(&g, pairs[p].a, M, HEADS * stride, 8);
        float c[M][HEADS][N], want[M][N];
        for (int h = 0; h < HEADS; h++) {
            src[h] = weights_make(&g, pairs[p].w, N, k, 9 + (uint64_t)h);
            w[h] = packed(&g, kern, pairs[p].w, &src[h], 1);
        }
        struct amat head = a;
        head.k = k;
        struct lane lane __attribute__((cleanup(lane_free))) = lane_of(2);
        kern->gemm_batched(&lane, HEADS, M, &head, stride, w, c[0][0], HEADS * N, N);
        for (int h = 0; h < HEADS; h++) {
            struct amat one = head;
            one.data = (const char *)a.data + (size_t)(h * stride) * dtype_bytes(a.type);
            if (a.scale) one.scale = a.scale + h * stride / 128;
            kern->gemm(&lane, M, &one, &w[h], want[0], N);
            for (int i = 0; i < M; i++) same_bits(kern, "heads", c[i][h], want[i], N);
        }
        guarded_free(&g);
    }
}

static void heads_of_isa(const struct kernels *kern)
{
    heads_of_width(kern, 128, 128);
    heads_of_width(kern, 128, 256);
    heads_of_width(kern, 100, 128);
    heads_of_width(kern, 200, 256);
}

static void test_batched_heads(void **state)
{
    (void)state;
    each_isa(heads_of_isa);
}

static void count_poll(void *arg)
{
    ++*(int *)arg;
}

/* Communication is served from inside a product, with one thread and with several. */
static void test_polls(void **state)
{
    (void)state;
    struct kernels k = {0};
    assert_int_equal(gemm_kernels_fill(&k, ISA_PORTABLE), OK);
    struct guarded g = {0};
    struct weight_src src = weights_make(&g, DT_F32, 256, 512, 1);
    struct wmat w = packed(&g, &k, DT_F32, &src, 1);
    struct amat a = rows_make(&g, DT_F32, 100, 512, 2);
    float *c = guarded_alloc(&g, sizeof(float) * 100 * 256);
    for (int threads = 1; threads <= 2; threads++) {
        int polls = 0;
        struct lane lane __attribute__((cleanup(lane_free))) = lane_of(threads);
        lane.poll = count_poll;
        lane.poll_arg = &polls;
        k.gemm(&lane, 100, &a, &w, c, 256);
        assert_true(polls > 0);
    }
    guarded_free(&g);
}

/* ---- activations ---- */

enum { ACT_M = 9, ACT_K = 300 };

/* Rows: normal, zero, below 1e-4, NaN, infinite, wide range, ties of the rounding. */
static void act_rows(float x[ACT_M][ACT_K])
{
    for (int i = 0; i < ACT_M; i++)
        for (int k = 0; k < ACT_K; k++) x[i][k] = (float)rng_normal(40 + (uint64_t)i, (uint64_t)k);
    memset(x[1], 0, sizeof x[1]);
    for (int k = 0; k < ACT_K; k++) {
        x[2][k] *= 1e-6f;
        x[5][k] *= ldexpf(1, k % 40 - 20);
        /* Scale exactly 1: the largest is 448. The others are codes and midpoints of codes. */
        x[6][k] = k % 128 == 0 ? 448 : e4m3_to_f32((uint8_t)(k % 127));
        float lo = e4m3_to_f32((uint8_t)(k % 126)), hi = e4m3_to_f32((uint8_t)(k % 126 + 1));
        x[7][k] = k % 128 == 0 ? -448 : 0.5f * (lo + hi);
        x[8][k] = 3.0e38f;
    }
    x[3][200] = NAN;
    x[4][10] = INFINITY;
}

static void act_of_isa(const struct kernels *kern)
{
    struct guarded g = {0};
    static float x[ACT_M][ACT_K];
    act_rows(x);
    enum { LD = ACT_K + 1, LDS = 3, CELLS = (ACT_M - 1) * LD + ACT_K };
    uint8_t *q = guarded_alloc(&g, CELLS), want[ACT_K];
    float *scale = guarded_alloc(&g, sizeof(float) * ACT_M * LDS), want_scale[LDS];
    uint16_t *h = guarded_alloc(&g, sizeof(uint16_t) * CELLS);
    for (int ue8m0 = 0; ue8m0 < 2; ue8m0++)
        for (int threads = 1; threads < 3; threads++) {
            struct lane lane __attribute__((cleanup(lane_free))) = lane_of(threads);
            struct amat out = {
                .type = DT_E4M3, .k = ACT_K, .data = q, .ld = LD, .scale = scale, .lds = LDS};
            kern->act_convert(&lane, ACT_M, x[0], ACT_K, &out, ue8m0);
            for (int i = 0; i < ACT_M; i++) {
                act_e4m3_ref(ACT_K, x[i], ue8m0, want, want_scale);
                for (int b = 0; b < LDS; b++) {
                    float got = scale[i * LDS + b];
                    assert_true(isnan(want_scale[b]) ? isnan(got) : got == want_scale[b]);
                }
                for (int k = 0; k < ACT_K; k++) {
                    uint8_t got = q[i * LD + k];
                    if ((want[k] & 0x7f) == 0x7f)
                        assert_int_equal(got & 0x7f, 0x7f);
                    else
                        assert_int_equal(got, want[k]);
                }
            }
            for (int b = 0; b < LDS; b++) assert_true(scale[LDS + b] > 0);
            for (int k = 0; k < ACT_K; k++) assert_int_equal(q[LD + k] & 0x7f, 0);
            assert_int_equal(q[6 * LD + 7], 7);
        }
    struct lane lane __attribute__((cleanup(lane_free))) = lane_of(1);
    struct amat out = {.type = DT_BF16, .k = ACT_K, .data = h, .ld = LD};
    kern->act_convert(&lane, ACT_M, x[0], ACT_K, &out, false);
    for (int i = 0; i < ACT_M; i++)
        for (int k = 0; k < ACT_K; k++) assert_int_equal(h[i * LD + k], bf16_from_f32(x[i][k]));
    kern->act_convert(&lane, 0, NULL, ACT_K, &out, false);
    guarded_free(&g);
}

static void test_act_convert(void **state)
{
    (void)state;
    each_isa(act_of_isa);
}

/* The definition itself at chosen values. */
static void test_act_definition(void **state)
{
    (void)state;
    float x[130] = {0}, scale[2];
    uint8_t q[130];
    act_e4m3_ref(130, x, false, q, scale);
    assert_true(scale[0] == 1e-4f / 448 && scale[1] == 1e-4f / 448);
    x[3] = -896;
    x[129] = 1;
    act_e4m3_ref(130, x, false, q, scale);
    assert_true(scale[0] == 2 && scale[1] == 1.0f / 448);
    assert_int_equal(q[3], 0xfe);
    assert_int_equal(q[129], 0x7e);
    x[3] = 900;
    act_e4m3_ref(130, x, true, q, scale);
    assert_true(scale[0] == 4 && scale[1] == 0x1p-8f);
    x[3] = 896; /* exactly a power of two stays */
    act_e4m3_ref(130, x, true, q, scale);
    assert_true(scale[0] == 2);
}

/* A whole grid of floats: the branchless rounding equals the reference conversion. */
static void grid_of_isa(const struct kernels *kern)
{
    enum { ROWS = 512 };
    static float x[ROWS][FP8_BLOCK];
    static uint8_t q[ROWS][FP8_BLOCK];
    static float scale[ROWS];
    for (int i = 0; i < ROWS; i++) {
        x[i][0] = 448; /* scale 1 */
        for (int k = 1; k < FP8_BLOCK; k++) {
            uint64_t r = rng_u64(9, (uint64_t)(i * FP8_BLOCK + k));
            x[i][k] = ldexpf(1 + (float)(r & 0xfff) / 4096, (int)(r >> 12 & 31) - 24);
            if (fabsf(x[i][k]) > 448) x[i][k] = 400;
            if (r >> 20 & 1) x[i][k] = -x[i][k];
        }
    }
    struct amat out = {
        .type = DT_E4M3, .k = FP8_BLOCK, .data = q, .ld = FP8_BLOCK, .scale = scale, .lds = 1};
    struct lane lane __attribute__((cleanup(lane_free))) = lane_of(2);
    kern->act_convert(&lane, ROWS, x[0], FP8_BLOCK, &out, false);
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < FP8_BLOCK; k++) assert_int_equal(q[i][k], e4m3_from_f32(x[i][k]));
}

static void test_act_rounding(void **state)
{
    (void)state;
    each_isa(grid_of_isa);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_act_definition),
        cmocka_unit_test(test_act_convert),
        cmocka_unit_test(test_act_rounding),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_stacked),
        cmocka_unit_test(test_pack_converts),
        cmocka_unit_test(test_every_e4m3_code_is_exact),
        cmocka_unit_test(test_nan_stays_in_its_row),
        cmocka_unit_test(test_bitwise),
        cmocka_unit_test(test_batched_heads),
        cmocka_unit_test(test_polls),
    };
    char filter[64];
    if (argc > 1) {
        snprintf(filter, sizeof filter, "*%s*", argv[1]);
        cmocka_set_test_filter(filter);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
