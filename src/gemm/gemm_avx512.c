/* gemm_avx512.c - the micro-kernel for AVX-512 without BF16 products: tiles of 6 x 64 in FP32
 * multiply-adds; BF16 and E4M3 are widened to FP32 first. An element's chain of operations is
 * gemm_avx2.c's, so both give the same bits. */
#include "core/numfmt.h"
#include "gemm/act.h"
#include "gemm/entries.h"

#if defined(__AVX512F__)
#include "gemm/avx512_body.h"

/* ---- packing ---- */

static void transpose16(enum dtype type, const void *src, size_t stride, uint32_t *dst, size_t ldd)
{
    (void)type; /* units move whole */
    __m512i t[16];
    transpose_units(src, stride, t);
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

static void tile(enum dtype type, int rows, const struct gemm_tile *t)
{
    (void)type; /* blocks are always widened to FP32 first */
    GEMM_EACH_HEIGHT(rows, tile_f32, t)
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
    .row_bf16 = act_row_bf16,
    .row_e4m3 = act_row_e4m3,
};

GEMM_ENTRIES(avx512)
#endif
