/* micro_body.h - the arithmetic of struct attend_micro in FP32, written once over vf.
 *
 * Included by micro_<path>.c; BF16 caches are widened while packing, with the query and the
 * softmax weights rounded to BF16. The same functions serve FP32 caches without the rounding.
 */
#include "attention/micro_rows.h"

/* Rows of one register tile; 2 vectors wide. AVX-512 has 32 registers, the others 16. */
#if defined(__AVX512F__)
enum { TILE_ROWS = 8 };
#else
enum { TILE_ROWS = 4 };
#endif
enum { TILE_COLS = 2 * VW };

/* c[R][2 vectors] (+)= a[R][k0 .. k1) b[k0 .. k1)[2 vectors]; R is a constant after inlining. */
static inline __attribute__((always_inline)) void tile_fma(const int R, int k0, int k1,
                                                           const union cell *a, int lda,
                                                           const union cell *b, int ldb, float *c,
                                                           int ldc, bool add)
{
    vf acc[TILE_ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        acc[r][0] = add ? vf_load(c + r * ldc) : vf_set1(0);
        acc[r][1] = add ? vf_load(c + r * ldc + VW) : vf_set1(0);
    }
    for (int k = k0; k < k1; k++) {
        vf b0 = vf_load(b + k * ldb), b1 = vf_load(b + k * ldb + VW);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            vf ar = vf_set1(a[r * lda + k].f);
            acc[r][0] = vf_fma(ar, b0, acc[r][0]);
            acc[r][1] = vf_fma(ar, b1, acc[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        vf_store(c + r * ldc, acc[r][0]);
        vf_store(c + r * ldc + VW, acc[r][1]);
    }
}

/* A register tile keeps two columns of vectors of b in the first cache for all row tiles. */
static void product(int rows, int cols, int k0, int k1, const union cell *a, int lda,
                    const union cell *b, int ldb, float *c, int ldc, bool add)
{
    for (int j = 0; j < cols; j += TILE_COLS) {
        int r = 0;
        for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
            tile_fma(TILE_ROWS, k0, k1, a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, add);
        for (; r < rows; r++)
            tile_fma(1, k0, k1, a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, add);
    }
}

static void scores(int rows, int cols, int dim_k, const union cell *q, const union cell *k,
                   float *s)
{
    product(rows, cols, 0, dim_k, q, dim_k, k, ATTEND_KEYS, s, ATTEND_KEYS, false);
}

static void accumulate(int rows, int key0, int key1, int ld, const union cell *p,
                       const union cell *v, float *o)
{
    product(rows, ld, key0, key1, p, ATTEND_KEYS, v, ld, o, ld, true);
}

static void pack_q_f32(int rows, int dim, const float *q, int64_t ld, union cell *out)
{
    for (int r = 0; r < rows; r++)
        VF_FOR(d, dim) vf_store_n(out + r * dim + d, vf_load_n(q + r * ld + d, dim - d), dim - d);
}

static void pack_q_bf16(int rows, int dim, const float *q, int64_t ld, union cell *out)
{
    for (int r = 0; r < rows; r++) VF_FOR(d, dim)
    vf_store_n(out + r * dim + d, vf_round_bf16(vf_load_n(q + r * ld + d, dim - d)), dim - d);
}

static inline vf load_channel(bool bf16, const void *row, int d, int n)
{
    return bf16 ? vf_load_bf16_n((const uint16_t *)row + d, n)
                : vf_load_n((const float *)row + d, n);
}

static inline __attribute__((always_inline)) void pack_k(const bool bf16, const void *const *row,
                                                         int keys, int dim, int dim0, union cell *k)
{
    VF_FOR(j, ATTEND_KEYS)
    {
        VF_FOR(d, dim)
        {
            vf t[VW];
            for (int i = 0; i < VW; i++)
                t[i] = j + i < keys ? load_channel(bf16, row[j + i], d, dim - d) : vf_set1(0);
            vf_transpose(t);
            int n = dim - d < VW ? dim - d : VW;
            for (int i = 0; i < n; i++) vf_store(k + (dim0 + d + i) * ATTEND_KEYS + j, t[i]);
        }
    }
}

static void pack_k_f32(const void *const *row, int keys, int dim, int dim0, union cell *k)
{
    pack_k(false, row, keys, dim, dim0, k);
}

static void pack_k_bf16(const void *const *row, int keys, int dim, int dim0, union cell *k)
{
    pack_k(true, row, keys, dim, dim0, k);
}

static inline __attribute__((always_inline)) void pack_v(const bool bf16, const void *const *row,
                                                         int keys, int dim, int ld, union cell *v)
{
    for (int j = 0; j < keys; j++)
        VF_FOR(d, ld) vf_store(v + j * ld + d, load_channel(bf16, row[j], d, dim - d));
}

static void pack_v_f32(const void *const *row, int keys, int dim, int ld, union cell *v)
{
    pack_v(false, row, keys, dim, ld, v);
}

static void pack_v_bf16(const void *const *row, int keys, int dim, int ld, union cell *v)
{
    pack_v(true, row, keys, dim, ld, v);
}

/* A NaN score is skipped by the maximum but not by the sum, so it reaches the whole row. */
static float running_max(int keys, float scale, const float *s, float m)
{
    vf best = vf_set1(m);
    VF_FOR(j, keys)
    best = vf_max(vf_keep_n(vf_mul(vf_load(s + j), vf_set1(scale)), keys - j, -INFINITY), best);
    return vf_hmax(best);
}

static float rescale_factor(float before, float after)
{
    return before == after ? 1.0f : exp_scalar(before - after);
}

static inline __attribute__((always_inline)) float
softmax(const bool bf16, int keys, float scale, const float *s, union cell *p, float *m, float *l)
{
    float best = running_max(keys, scale, s, *m);
    vf sum = vf_set1(0), shift = vf_set1(best);
    VF_FOR(j, keys)
    {
        vf e = vf_exp(vf_sub(vf_mul(vf_load(s + j), vf_set1(scale)), shift));
        e = vf_keep_n(bf16 ? vf_round_bf16(e) : e, keys - j, 0.0f);
        sum = vf_add(sum, e);
        vf_store(p + j, e);
    }
    float f = rescale_factor(*m, best);
    *l = *l * f + vf_sum(sum);
    *m = best;
    return f;
}

static float softmax_f32(int keys, float scale, const float *s, union cell *p, float *m, float *l)
{
    return softmax(false, keys, scale, s, p, m, l);
}

static float softmax_bf16(int keys, float scale, const float *s, union cell *p, float *m, float *l)
{
    return softmax(true, keys, scale, s, p, m, l);
}

/* The two entries of an attend_micro_<path> table. */
#define ATTEND_MICRO_TABLE             \
    {                                  \
        {.pack_q = pack_q_f32,         \
         .pack_k = pack_k_f32,         \
         .pack_v = pack_v_f32,         \
         .scores = scores,             \
         .softmax = softmax_f32,       \
         .accumulate = accumulate,     \
         .scale_row = scale_row,       \
         .merge_row = merge_row,       \
         .exp = exp_scalar},           \
            {.pack_q = pack_q_bf16,    \
             .pack_k = pack_k_bf16,    \
             .pack_v = pack_v_bf16,    \
             .scores = scores,         \
             .softmax = softmax_bf16,  \
             .accumulate = accumulate, \
             .scale_row = scale_row,   \
             .merge_row = merge_row,   \
             .exp = exp_scalar},       \
    }
