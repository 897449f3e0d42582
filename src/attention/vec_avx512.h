/* vec_avx512.h - vf of 16 lanes: AVX-512 F, BW, DQ, VL. See vec.h. */
#ifndef ATTENTION_VEC_AVX512_H
#define ATTENTION_VEC_AVX512_H

#include <immintrin.h>

enum { VW = 16 };
typedef __m512 vf;

/* Lanes < n. */
static inline __mmask16 vf_lanes(int n)
{
    return n >= VW ? (__mmask16)0xffff : n <= 0 ? (__mmask16)0 : (__mmask16)((1u << n) - 1);
}

static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_load(const void *p)
{
    return _mm512_loadu_ps(p);
}
static inline void vf_store(void *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
static inline vf vf_load_n(const void *p, int n)
{
    return _mm512_maskz_loadu_ps(vf_lanes(n), p);
}
static inline void vf_store_n(void *p, vf v, int n)
{
    _mm512_mask_storeu_ps(p, vf_lanes(n), v);
}

static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

static inline vf vf_keep_n(vf v, int n, float fill)
{
    return _mm512_mask_blend_ps(vf_lanes(n), _mm512_set1_ps(fill), v);
}

static inline vf vf_round(vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* p * 2^k, rounded once. */
static inline vf vf_ldexp(vf p, vf k)
{
    return _mm512_scalef_ps(p, k);
}

static inline float vf_sum(vf v)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

static inline float vf_hmax(vf v)
{
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}

static inline vf vf_load_bf16_n(const uint16_t *p, int n)
{
    __m512i u = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(vf_lanes(n), p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
}

/* The lanes rounded to BF16 as bf16_from_f32 does, still as FP32. */
static inline vf vf_round_bf16(vf v)
{
    __m512i u = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    __m512i r = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), up, quiet);
    return _mm512_castsi512_ps(_mm512_and_si512(r, _mm512_set1_epi32((int)0xffff0000u)));
}

static inline void vf_store_bf16_n(uint16_t *p, vf v, int n)
{
    __m512i u = _mm512_srli_epi32(_mm512_castps_si512(vf_round_bf16(v)), 16);
    _mm256_mask_storeu_epi16(p, vf_lanes(n), _mm512_cvtepi32_epi16(u));
}

/* r[i][j] <-> r[j][i] */
static inline void vf_transpose(vf r[VW])
{
    vf a[VW], b[VW];
    for (int i = 0; i < VW; i += 2) { /* pairs of rows */
        a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < VW; i += 4) { /* 4 x 4 blocks: b[i + c] has column c of each quarter */
        b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int c = 0; c < 4; c++) { /* quarters */
        vf lo = _mm512_shuffle_f32x4(b[c], b[c + 4], 0x88);
        vf hi = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0x88);
        r[c] = _mm512_shuffle_f32x4(lo, hi, 0x88);
        r[c + 8] = _mm512_shuffle_f32x4(lo, hi, 0xdd);
        lo = _mm512_shuffle_f32x4(b[c], b[c + 4], 0xdd);
        hi = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0xdd);
        r[c + 4] = _mm512_shuffle_f32x4(lo, hi, 0x88);
        r[c + 12] = _mm512_shuffle_f32x4(lo, hi, 0xdd);
    }
}

#endif
