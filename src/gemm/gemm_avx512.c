/* gemm_avx512.c - the micro-kernel for AVX-512 without BF16 products: tiles of 6 x 64 in FP32
 * multiply-adds; BF16 and E4M3 are widened to FP32 first. An element's chain of operations is
 * gemm_avx2.c's, so both give the same bits. */
#include "core/numfmt.h"
#include "gemm/act.h"
#include "gemm/entries.h"

#if defined(__AVX512F__)
#include <immintrin.h>

enum { NR = 64, MR = 6, VECS = NR / 16, AHEAD = 4096 };
#define INLINE static inline __attribute__((always_inline))

/* ---- packing ---- */

/* 16 rows of 16 units to columns: pairs of rows, then quarters, then a 4 x 4 of lanes. */
static void transpose16(enum dtype type, const void *src, size_t stride, uint32_t *dst, size_t ldd)
{
    (void)type; /* units move whole */
    const char *s = src;
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(s + (size_t)i * stride);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) { /* r[i + j]: lane l holds unit 4l + j of rows i..i+3 */
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x44);
        __m512i b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x44);
        __m512i c = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xee);
        __m512i d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xee);
        t[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
#pragma GCC unroll 16
    for (int u = 0; u < 16; u++) _mm512_storeu_si512(dst + (size_t)u * ldd, t[u]);
}

/* ---- widening ---- */

/* 16 e4m3 in the low bytes to FP32. A denormal is read as 2^-6 * 1.m and 2^-6 is taken off, which
 * is exact and never meets a denormal FP32. */
INLINE __m512 e4m3_widen(__m512i x)
{
    const __m512i seven_f = _mm512_set1_epi32(0x7f);
    __m512i mag = _mm512_and_si512(x, seven_f);
    __m512i sign = _mm512_slli_epi32(_mm512_andnot_si512(seven_f, x), 24);
    __mmask16 denormal = _mm512_cmplt_epi32_mask(mag, _mm512_set1_epi32(8));
    __mmask16 nan = _mm512_cmpeq_epi32_mask(mag, seven_f);
    __m512i bits = _mm512_add_epi32(_mm512_slli_epi32(mag, 20), _mm512_set1_epi32(120 << 23));
    bits = _mm512_mask_add_epi32(bits, denormal, bits, _mm512_set1_epi32(1 << 23));
    __m512 value = _mm512_castsi512_ps(bits);
    value = _mm512_mask_sub_ps(value, denormal, value, _mm512_set1_ps(0x1p-6f));
    bits = _mm512_mask_mov_epi32(_mm512_castps_si512(value), nan, _mm512_set1_epi32(0x7fffffff));
    return _mm512_castsi512_ps(_mm512_or_si512(bits, sign));
}

INLINE void widen_units(enum dtype from, __m512i x, float *out, size_t ldo)
{
    if (from == DT_BF16) {
        const __m512i high = _mm512_set1_epi32((int)0xffff0000);
        _mm512_storeu_ps(out, _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)));
        _mm512_storeu_ps(out + ldo, _mm512_castsi512_ps(_mm512_and_si512(x, high)));
        return;
    }
    const __m512i low = _mm512_set1_epi32(0xff);
    _mm512_storeu_ps(out, e4m3_widen(_mm512_and_si512(x, low)));
    _mm512_storeu_ps(out + ldo, e4m3_widen(_mm512_and_si512(_mm512_srli_epi32(x, 8), low)));
    _mm512_storeu_ps(out + 2 * ldo, e4m3_widen(_mm512_and_si512(_mm512_srli_epi32(x, 16), low)));
    _mm512_storeu_ps(out + 3 * ldo, e4m3_widen(_mm512_srli_epi32(x, 24)));
}

static void widen_block(enum dtype from, const void *block, int depth, void *wide)
{
    const uint32_t *in = block;
    float *out = wide;
    int per_unit = 4 / (int)dtype_bytes(from);
    for (int k = 0; k < depth; k += per_unit, in += NR)
#pragma GCC unroll 4
        for (int j = 0; j < NR; j += 16) {
            _mm_prefetch((const char *)(in + j) + AHEAD, _MM_HINT_T0);
            widen_units(from, _mm512_loadu_si512(in + j), out + k * NR + j, NR);
        }
}

static void widen_row(enum dtype from, const void *src, int n, void *dst)
{
    float *out = dst;
    const uint16_t *h = src;
    const uint8_t *q = src;
    for (int i = 0; i < n; i += 16) {
        __mmask16 mask = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512 wide;
        if (from == DT_BF16) {
            __m256i x = _mm256_maskz_loadu_epi16(mask, h + i);
            wide = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
        } else {
            __m128i x = _mm_maskz_loadu_epi8(mask, q + i);
            wide = e4m3_widen(_mm512_cvtepu8_epi32(x));
        }
        _mm512_mask_storeu_ps(out + i, mask, wide);
    }
}

/* ---- the tile ---- */

INLINE void tile_rows(const int rows, const struct gemm_tile *t)
{
    const float *a = t->a, *b = t->b;
    __m512 acc[MR][VECS];
    bool from_zero = t->first || t->scaled;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++)
            acc[r][v] = from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(t->c + r * NR + v * 16);
    for (int k = 0; k < t->depth; k++, a++, b += NR) {
        __m512 w[VECS];
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) w[v] = _mm512_loadu_ps(b + v * 16);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m512 x = _mm512_set1_ps(a[r * GEMM_KC]);
#pragma GCC unroll 4
            for (int v = 0; v < VECS; v++) acc[r][v] = _mm512_fmadd_ps(x, w[v], acc[r][v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        float *c = t->c + r * NR;
        __m512 scale = _mm512_set1_ps(t->scaled ? t->a_scale[r] * t->w_scale : 1);
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) {
            __m512 sum = acc[r][v];
            if (t->scaled) {
                __m512 before = t->first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + v * 16);
                sum = _mm512_fmadd_ps(sum, scale, before);
            }
            _mm512_storeu_ps(c + v * 16, sum);
        }
    }
}

static void tile(enum dtype type, int rows, const struct gemm_tile *t)
{
    (void)type; /* blocks are always widened to FP32 first */
    switch (rows) {
    case 1: tile_rows(1, t); break;
    case 2: tile_rows(2, t); break;
    case 3: tile_rows(3, t); break;
    case 4: tile_rows(4, t); break;
    case 5: tile_rows(5, t); break;
    default: tile_rows(6, t); break;
    }
}

static void row_bf16(int n, const float *x, uint16_t *out)
{
    act_row_bf16(n, x, out);
}

static void row_e4m3(int n, const float *x, bool ue8m0, uint8_t *q, float *scale)
{
    act_row_e4m3(n, x, ue8m0, q, scale);
}

const struct ukernel ukernel_avx512 = {
    .nr = NR,
    .mr = MR,
    .wide = DT_F32,
    .fused_rows = 0,
    .poll_work = 3e6,
    .transpose16 = transpose16,
    .widen_block = widen_block,
    .widen_row = widen_row,
    .tile = tile,
    .row_bf16 = row_bf16,
    .row_e4m3 = row_e4m3,
};

GEMM_ENTRIES(avx512)
#endif
