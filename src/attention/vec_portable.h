/* vec_portable.h - vf of 4 lanes in the compilers' generic vectors: any processor. See vec.h. */
#ifndef ATTENTION_VEC_PORTABLE_H
#define ATTENTION_VEC_PORTABLE_H

enum { VW = 4 };
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));

static inline vf vf_set1(float x)
{
    return (vf){x, x, x, x};
}

static inline vf vf_load(const void *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void vf_store(void *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

static inline vf vf_load_n(const void *p, int n)
{
    if (n >= VW) return vf_load(p);
    vf v = {0, 0, 0, 0};
    if (n > 0) memcpy(&v, p, (size_t)n * sizeof(float));
    return v;
}

static inline void vf_store_n(void *p, vf v, int n)
{
    if (n >= VW)
        vf_store(p, v);
    else if (n > 0)
        memcpy(p, &v, (size_t)n * sizeof(float));
}

static inline vf vf_add(vf a, vf b)
{
    return a + b;
}
static inline vf vf_sub(vf a, vf b)
{
    return a - b;
}
static inline vf vf_mul(vf a, vf b)
{
    return a * b;
}
static inline vf vf_div(vf a, vf b)
{
    return a / b;
}
/* Two roundings: this path assumes no fused multiply-add. */
static inline vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}

/* a where mask is all ones, b where it is 0 */
static inline vf vf_blend(vi mask, vf a, vf b)
{
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}

static inline vf vf_max(vf a, vf b)
{
    return vf_blend((vi)(a > b), a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return vf_blend((vi)(a < b), a, b);
}

static inline vf vf_keep_n(vf v, int n, float fill)
{
    vi lane = {0, 1, 2, 3};
    return vf_blend((vi)(lane < (vi){n, n, n, n}), v, vf_set1(fill));
}

/* Nearest integer, ties to even, |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction. */
static inline vf vf_round(vf x)
{
    vf magic = vf_set1(12582912.0f);
    return (x + magic) - magic;
}

/* p * 2^k, k an integer in [-252, 254], rounded once: two steps stay in the normal range. */
static inline vf vf_ldexp(vf p, vf k)
{
    vi n = __builtin_convertvector(vf_blend((vi)(k == k), k, vf_set1(0.0f)), vi);
    vi half = n >> 1;
    vf s1 = (vf)((half + 127) << 23), s2 = (vf)((n - half + 127) << 23);
    return p * s1 * s2;
}

static inline float vf_sum(vf v)
{
    return (v[0] + v[2]) + (v[1] + v[3]);
}

static inline float vf_hmax(vf v)
{
    float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
}

static inline vf vf_load_bf16_n(const uint16_t *p, int n)
{
    uint16_t h[VW] = {0, 0, 0, 0};
    if (n > 0) memcpy(h, p, (size_t)(n < VW ? n : VW) * sizeof *h);
    return (vf)((vu){h[0], h[1], h[2], h[3]} << 16);
}

/* Upper halves of the lanes after rounding to BF16, as bf16_from_f32. */
static inline vu vf_bf16_bits(vf v)
{
    vu u = (vu)v, nan = (vu)(v != v);
    vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
    return (nan & ((u | 0x400000u) & 0xffff0000u)) | (~nan & rounded);
}

static inline vf vf_round_bf16(vf v)
{
    return (vf)vf_bf16_bits(v);
}

static inline void vf_store_bf16_n(uint16_t *p, vf v, int n)
{
    vu u = vf_bf16_bits(v) >> 16;
    uint16_t h[VW] = {(uint16_t)u[0], (uint16_t)u[1], (uint16_t)u[2], (uint16_t)u[3]};
    if (n > 0) memcpy(p, h, (size_t)(n < VW ? n : VW) * sizeof *h);
}

/* r[i][j] <-> r[j][i] */
static inline void vf_transpose(vf r[VW])
{
    vf t[VW];
    for (int i = 0; i < VW; i++) t[i] = (vf){r[0][i], r[1][i], r[2][i], r[3][i]};
    for (int i = 0; i < VW; i++) r[i] = t[i];
}

#endif
