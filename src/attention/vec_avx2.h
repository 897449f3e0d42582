/* vec_avx2.h - vf of 8 lanes: AVX2 and FMA. See vec.h. */
#ifndef ATTENTION_VEC_AVX2_H
#define ATTENTION_VEC_AVX2_H

#include <immintrin.h>

enum { VW = 8 };
typedef __m256 vf;

static inline vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}
static inline vf vf_load(const void *p)
{
    return _mm256_loadu_ps(p);
}
static inline void vf_store(void *p, vf v)
{
    _mm256_storeu_ps(p, v);
}

/* All ones in lanes < n, 0 <= n <= 8. */
static inline __m256i vf_lanes(int n)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}

static inline vf vf_load_n(const void *p, int n)
{
    return n >= VW ? vf_load(p) : _mm256_maskload_ps(p, vf_lanes(n));
}

static inline void vf_store_n(void *p, vf v, int n)
{
    if (n >= VW)
        vf_store(p, v);
    else
        _mm256_maskstore_ps(p, vf_lanes(n), v);
}

static inline vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}

static inline vf vf_keep_n(vf v, int n, float fill)
{
    return _mm256_blendv_ps(_mm256_set1_ps(fill), v, _mm256_castsi256_ps(vf_lanes(n)));
}

static inline vf vf_round(vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* p * 2^k, k an integer in [-252, 254], rounded once: two steps stay in the normal range. */
static inline vf vf_ldexp(vf p, vf k)
{
    __m256i bias = _mm256_set1_epi32(127), n = _mm256_cvtps_epi32(k);
    __m256i half = _mm256_srai_epi32(n, 1), rest = _mm256_sub_epi32(n, half);
    __m256i s1 = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i s2 = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(s1)), _mm256_castsi256_ps(s2));
}

static inline float vf_sum(vf v)
{
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

static inline float vf_hmax(vf v)
{
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}

static inline vf vf_load_bf16_n(const uint16_t *p, int n)
{
    uint16_t tail[VW] = {0};
    if (n < VW) {
        if (n > 0) memcpy(tail, p, (size_t)n * sizeof *p);
        p = tail;
    }
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}

/* The lanes rounded to BF16 as bf16_from_f32 does, still as FP32. */
static inline vf vf_round_bf16(vf v)
{
    __m256i u = _mm256_castps_si256(v), high = _mm256_set1_epi32((int)0xffff0000u);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    __m256i r = _mm256_blendv_epi8(up, quiet, _mm256_castps_si256(nan));
    return _mm256_castsi256_ps(_mm256_and_si256(r, high));
}

static inline void vf_store_bf16_n(uint16_t *p, vf v, int n)
{
    __m256i u = _mm256_srli_epi32(_mm256_castps_si256(vf_round_bf16(v)), 16);
    __m128i h = _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1));
    if (n >= VW) {
        _mm_storeu_si128((__m128i *)p, h);
    } else if (n > 0) {
        uint16_t tail[VW];
        _mm_storeu_si128((__m128i *)tail, h);
        memcpy(p, tail, (size_t)n * sizeof *p);
    }
}

/* r[i][j] <-> r[j][i] */
static inline void vf_transpose(vf r[VW])
{
    vf a[VW], b[VW];
    for (int i = 0; i < VW; i += 2) { /* pairs of rows */
        a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < VW; i += 4) { /* 4 x 4 blocks */
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) { /* halves */
        r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

#endif
