/* gemm_avx2.c - the micro-kernel for AVX2 + FMA: everything is widened exactly to FP32 and
 * multiplied in tiles of 6 x 16. */
#include "core/numfmt.h"
#include "gemm/act.h"
#include "gemm/entries.h"

#if defined(__AVX2__)
#include <immintrin.h>

enum { NR = 16, MR = 6, VECS = NR / 8 };
#define INLINE static inline __attribute__((always_inline))

/* ---- packing ---- */

/* 8 x 8 units. */
INLINE void transpose8(const char *src, size_t stride, uint32_t *dst, size_t ldd)
{
    __m256 r[8], t[8], v[8];
    for (int i = 0; i < 8; i++)
        r[i] = _mm256_loadu_ps((const float *)(const void *)(src + (size_t)i * stride));
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int h = 0; h < 2; h++) {
            v[i + 2 * h] = _mm256_shuffle_ps(t[i + h], t[i + 2 + h], 0x44);
            v[i + 2 * h + 1] = _mm256_shuffle_ps(t[i + h], t[i + 2 + h], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        float *lo = (float *)(void *)(dst + (size_t)i * ldd);
        float *hi = (float *)(void *)(dst + (size_t)(i + 4) * ldd);
        _mm256_storeu_ps(lo, _mm256_permute2f128_ps(v[i], v[i + 4], 0x20));
        _mm256_storeu_ps(hi, _mm256_permute2f128_ps(v[i], v[i + 4], 0x31));
    }
}

static void transpose16(enum dtype type, const void *src, size_t stride, uint32_t *dst, size_t ldd)
{
    (void)type;
    const char *s = src;
    for (int r = 0; r < 16; r += 8)
        for (int u = 0; u < 16; u += 8)
            transpose8(s + (size_t)r * stride + (size_t)u * 4, stride, dst + (size_t)u * ldd + r,
                       ldd);
}

/* ---- widening ---- */

/* The low bytes of 8 integers, e4m3 (upper bits zero), as FP32. A denormal is read as if its
 * implicit one were there and then loses it, which is exact and never meets a denormal FP32. */
INLINE __m256 e4m3_widen(__m256i x)
{
    const __m256i seven_f = _mm256_set1_epi32(0x7f);
    __m256i mag = _mm256_and_si256(x, seven_f);
    __m256i sign = _mm256_slli_epi32(_mm256_andnot_si256(seven_f, x), 24);
    __m256i denormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), mag);
    __m256i nan = _mm256_srli_epi32(_mm256_cmpeq_epi32(mag, seven_f), 1);
    __m256i bias = _mm256_sub_epi32(_mm256_set1_epi32(120), denormal);
    __m256i bits = _mm256_add_epi32(_mm256_slli_epi32(mag, 20), _mm256_slli_epi32(bias, 23));
    __m256 one = _mm256_and_ps(_mm256_castsi256_ps(denormal), _mm256_set1_ps(0x1p-6f));
    __m256 value = _mm256_sub_ps(_mm256_castsi256_ps(bits), one);
    return _mm256_or_ps(value, _mm256_castsi256_ps(_mm256_or_si256(sign, nan)));
}

INLINE void widen_units(enum dtype from, __m256i x, float *out, size_t ldo)
{
    if (from == DT_BF16) {
        const __m256i high = _mm256_set1_epi32((int)0xffff0000);
        _mm256_storeu_ps(out, _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)));
        _mm256_storeu_ps(out + ldo, _mm256_castsi256_ps(_mm256_and_si256(x, high)));
        return;
    }
    const __m256i low = _mm256_set1_epi32(0xff);
    _mm256_storeu_ps(out, e4m3_widen(_mm256_and_si256(x, low)));
    _mm256_storeu_ps(out + ldo, e4m3_widen(_mm256_and_si256(_mm256_srli_epi32(x, 8), low)));
    _mm256_storeu_ps(out + 2 * ldo, e4m3_widen(_mm256_and_si256(_mm256_srli_epi32(x, 16), low)));
    _mm256_storeu_ps(out + 3 * ldo, e4m3_widen(_mm256_srli_epi32(x, 24)));
}

static void widen_block(enum dtype from, const void *block, int depth, void *wide)
{
    const uint32_t *in = block;
    float *out = wide;
    int per_unit = 4 / (int)dtype_bytes(from);
    for (int k = 0; k < depth; k += per_unit, in += NR)
        for (int j = 0; j < NR; j += 8) {
            _mm_prefetch((const char *)(in + j) + 2048, _MM_HINT_T0);
            __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(in + j));
            widen_units(from, x, out + k * NR + j, NR);
        }
}

static void widen_row(enum dtype from, const void *src, int n, void *dst)
{
    float *out = dst;
    const uint16_t *h = src;
    const uint8_t *q = src;
    int i = 0;
    for (; from == DT_BF16 && i + 8 <= n; i += 8) {
        __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(h + i));
        __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16);
        _mm256_storeu_ps(out + i, _mm256_castsi256_ps(wide));
    }
    for (; from == DT_E4M3 && i + 8 <= n; i += 8) {
        __m128i x = _mm_loadl_epi64((const __m128i *)(const void *)(q + i));
        _mm256_storeu_ps(out + i, e4m3_widen(_mm256_cvtepu8_epi32(x)));
    }
    for (; i < n; i++) out[i] = from == DT_BF16 ? bf16_to_f32(h[i]) : e4m3_to_f32(q[i]);
}

/* ---- the tile ---- */

INLINE void tile_rows(const int rows, const struct gemm_tile *t)
{
    const float *a = t->a, *b = t->b;
    __m256 acc[MR][VECS];
    bool from_zero = t->first || t->scaled;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < VECS; v++)
            acc[r][v] = from_zero ? _mm256_setzero_ps() : _mm256_loadu_ps(t->c + r * NR + v * 8);
    for (int k = 0; k < t->depth; k++, a++, b += NR) {
        __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m256 x = _mm256_broadcast_ss(a + r * GEMM_KC);
            acc[r][0] = _mm256_fmadd_ps(x, b0, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(x, b1, acc[r][1]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < VECS; v++) {
            float *c = t->c + r * NR + v * 8;
            __m256 sum = acc[r][v];
            if (t->scaled) {
                __m256 s = _mm256_set1_ps(t->a_scale[r] * t->w_scale);
                __m256 before = t->first ? _mm256_setzero_ps() : _mm256_loadu_ps(c);
                sum = _mm256_fmadd_ps(sum, s, before);
            }
            _mm256_storeu_ps(c, sum);
        }
}

static void tile(enum dtype type, int rows, const struct gemm_tile *t)
{
    (void)type; /* blocks are always widened to FP32 first */
    GEMM_EACH_HEIGHT(rows, tile_rows, t)
}

const struct ukernel ukernel_avx2 = {
    .nr = NR,
    .mr = MR,
    .wide = DT_F32,
    .fused_rows = 0,
    .poll_work = 1.5e6,
    .transpose16 = transpose16,
    .widen_block = widen_block,
    .widen_row = widen_row,
    .tile = tile,
    .row_bf16 = act_row_bf16,
    .row_e4m3 = act_row_e4m3,
};

GEMM_ENTRIES(avx2)
#endif
