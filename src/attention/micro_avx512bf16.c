/* micro_avx512bf16.c - tile arithmetic of attention over a BF16 cache with vdpbf16ps: a cell
 * holds two channels (scores) or two keys (values), multiplied and added together.
 *
 * vdpbf16ps takes denormal inputs as zero and flushes denormal results; the number of its steps
 * in a row's chain depends only on the number of keys the row sees.
 */
#include "attention/attend.h"

#if defined(__AVX512BF16__)
#include "attention/micro_rows.h"

enum { TILE_ROWS = 8, TILE_COLS = 2 * VW };

static inline __m512 dp(__m512 acc, uint32_t a, __m512i b)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
}

/* c[R][2 vectors] (+)= a[R][k0 .. k1) b[k0 .. k1)[2 vectors], then, if `odd`, cell k1 with only
 * the lower half of b; R is a constant after inlining. */
static inline __attribute__((always_inline)) void tile_dp(const int R, int k0, int k1, bool odd,
                                                          const union cell *a, int lda,
                                                          const union cell *b, int ldb, float *c,
                                                          int ldc, bool add)
{
    __m512 acc[TILE_ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        acc[r][0] = add ? _mm512_loadu_ps(c + r * ldc) : _mm512_setzero_ps();
        acc[r][1] = add ? _mm512_loadu_ps(c + r * ldc + VW) : _mm512_setzero_ps();
    }
    for (int k = k0; k < k1; k++) {
        __m512i b0 = _mm512_loadu_si512(b + k * ldb), b1 = _mm512_loadu_si512(b + k * ldb + VW);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            acc[r][0] = dp(acc[r][0], a[r * lda + k].pair, b0);
            acc[r][1] = dp(acc[r][1], a[r * lda + k].pair, b1);
        }
    }
    if (odd) {
        __m512i low = _mm512_set1_epi32(0xffff);
        __m512i b0 = _mm512_and_si512(_mm512_loadu_si512(b + k1 * ldb), low);
        __m512i b1 = _mm512_and_si512(_mm512_loadu_si512(b + k1 * ldb + VW), low);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            acc[r][0] = dp(acc[r][0], a[r * lda + k1].pair, b0);
            acc[r][1] = dp(acc[r][1], a[r * lda + k1].pair, b1);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        _mm512_storeu_ps(c + r * ldc, acc[r][0]);
        _mm512_storeu_ps(c + r * ldc + VW, acc[r][1]);
    }
}

static void scores(int rows, int cols, int dim_k, const union cell *q, const union cell *k,
                   float *s)
{
    int depth = dim_k / 2;
    for (int j = 0; j < cols; j += TILE_COLS) {
        int r = 0;
        for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
            tile_dp(TILE_ROWS, 0, depth, false, q + r * depth, depth, k + j, ATTEND_KEYS,
                    s + r * ATTEND_KEYS + j, ATTEND_KEYS, false);
        for (; r < rows; r++)
            tile_dp(1, 0, depth, false, q + r * depth, depth, k + j, ATTEND_KEYS,
                    s + r * ATTEND_KEYS + j, ATTEND_KEYS, false);
    }
}

static void accumulate(int rows, int key0, int key1, int ld, const union cell *p,
                       const union cell *v, float *o)
{
    int p0 = key0 / 2, p1 = key1 / 2;
    bool odd = key1 & 1;
    for (int j = 0; j < ld; j += TILE_COLS) {
        int r = 0;
        for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
            tile_dp(TILE_ROWS, p0, p1, odd, p + r * ATTEND_KEYS, ATTEND_KEYS, v + j, ld,
                    o + r * ld + j, ld, true);
        for (; r < rows; r++)
            tile_dp(1, p0, p1, odd, p + r * ATTEND_KEYS, ATTEND_KEYS, v + j, ld, o + r * ld + j, ld,
                    true);
    }
}

static void pack_q(int rows, int dim, const float *q, int64_t ld, union cell *out)
{
    for (int r = 0; r < rows; r++) {
        uint16_t *to = (uint16_t *)(void *)(out + r * (dim / 2));
        VF_FOR(d, dim) vf_store_bf16_n(to + d, vf_load_n(q + r * ld + d, dim - d), dim - d);
    }
}

static void pack_k(const void *const *row, int keys, int dim, int dim0, union cell *k)
{
    int depth = dim / 2;
    k += dim0 / 2 * ATTEND_KEYS;
    VF_FOR(j, ATTEND_KEYS)
    {
        VF_FOR(d, depth)
        {
            vf t[VW];
            for (int i = 0; i < VW; i++)
                t[i] = j + i < keys ? vf_load_n((const char *)row[j + i] + 4 * d, depth - d)
                                    : vf_set1(0);
            vf_transpose(t);
            int n = depth - d < VW ? depth - d : VW;
            for (int i = 0; i < n; i++) vf_store(k + (d + i) * ATTEND_KEYS + j, t[i]);
        }
    }
}

static inline __m512i load_u16(const void *row, int d, int dim)
{
    return _mm512_cvtepu16_epi32(
        _mm256_maskz_loadu_epi16(vf_lanes(dim - d), (const uint16_t *)row + d));
}

static void pack_v(const void *const *row, int keys, int dim, int ld, union cell *v)
{
    for (int j = 0; j < keys; j += 2) VF_FOR(d, ld)
        {
            __m512i lo = load_u16(row[j], d, dim);
            __m512i hi = j + 1 < keys ? load_u16(row[j + 1], d, dim) : _mm512_setzero_si512();
            _mm512_storeu_si512(v + j / 2 * ld + d, _mm512_or_si512(lo, _mm512_slli_epi32(hi, 16)));
        }
}

static float softmax(int keys, float scale, const float *s, union cell *p, float *m, float *l)
{
    float best = running_max(keys, scale, s, *m);
    uint16_t *out = (uint16_t *)(void *)p;
    vf sum = vf_set1(0), shift = vf_set1(best);
    VF_FOR(j, keys)
    {
        vf e = vf_exp(vf_sub(vf_mul(vf_load(s + j), vf_set1(scale)), shift));
        e = vf_keep_n(vf_round_bf16(e), keys - j, 0.0f);
        sum = vf_add(sum, e);
        __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(e), 16);
        _mm256_storeu_si256((__m256i *)(void *)(out + j), _mm512_cvtepi32_epi16(bits));
    }
    float f = rescale_factor(*m, best);
    *l = *l * f + vf_sum(sum);
    *m = best;
    return f;
}

const struct attend_micro attend_micro_avx512bf16[1] = {
    {2, pack_q, pack_k, pack_v, scores, softmax, accumulate, scale_row, merge_row, exp_scalar},
};
#else
const struct attend_micro attend_micro_avx512bf16[1] = {{0}};
#endif
