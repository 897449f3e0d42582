/* avx512_body.h - what the two AVX-512 micro-kernels share: the width of panels and tiles, the transpose
 * that packs, and the FP32 tile. Included by gemm_avx512.c and gemm_avx512bf16.c.
 */
#ifndef GEMM_AVX512_BODY_H
#define GEMM_AVX512_BODY_H

#include "gemm/ukernel.h"

#include <immintrin.h>

enum { NR = 64, MR = 6, VECS = NR / 16, AHEAD = 4096 };
#define INLINE static inline __attribute__((always_inline))

/* ---- packing ---- */

/* 16 rows of 16 units, `stride` bytes apart, to t[unit]: pairs of rows, then quarters, then a 4 x 4
 * of lanes. */
INLINE void transpose_units(const void *src, size_t stride, __m512i t[16])
{
    const char *s = src;
    __m512i r[16];
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
    for (int j = 0; j < 4; j++) { /* a 4 x 4 transpose of lanes */
        __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x44);
        __m512i b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x44);
        __m512i c = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xee);
        __m512i d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xee);
        t[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}

/* ---- the FP32 tile: sums of rows x NR in registers ---- */

struct acc {
    __m512 v[MR][VECS];
};

INLINE void acc_begin(const int rows, const struct gemm_tile *t, struct acc *acc)
{
    bool from_zero = t->first || t->scaled;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++)
            acc->v[r][v] =
                from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(t->c + r * NR + v * 16);
}

INLINE void acc_end(const int rows, const struct gemm_tile *t, struct acc *acc)
{
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        float *c = t->c + r * NR;
        __m512 scale = _mm512_set1_ps(t->scaled ? t->a_scale[r] * t->w_scale : 1);
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) {
            __m512 sum = acc->v[r][v];
            if (t->scaled) {
                __m512 before = t->first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + v * 16);
                sum = _mm512_fmadd_ps(sum, scale, before);
            }
            _mm512_storeu_ps(c + v * 16, sum);
        }
    }
}

INLINE void tile_f32(const int rows, const struct gemm_tile *t)
{
    const float *a = t->a, *b = t->b;
    struct acc acc;
    acc_begin(rows, t, &acc);
    for (int k = 0; k < t->depth; k++, a++, b += NR) {
        __m512 w[VECS];
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) w[v] = _mm512_loadu_ps(b + v * 16);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m512 x = _mm512_set1_ps(a[r * GEMM_KC]);
#pragma GCC unroll 4
            for (int v = 0; v < VECS; v++) acc.v[r][v] = _mm512_fmadd_ps(x, w[v], acc.v[r][v]);
        }
    }
    acc_end(rows, t, &acc);
}

#endif
