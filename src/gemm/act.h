/* act.h - private to gemm/: one row of activations to BF16 or e4m3, as loops that the compiler
 * vectorises with each instruction set's flags. All sets give the same bits.
 */
#ifndef GEMM_ACT_H
#define GEMM_ACT_H

#include "core/numfmt.h"
#include "device/kernels.h"

#include <string.h>

/* max(amax, 1e-4) / 448 from the bits of amax; NaN stays NaN, infinity stays infinity. */
static inline float act_scale(uint32_t amax_bits, bool ue8m0)
{
    float amax = num_from_bits(amax_bits);
    float scale = (amax < 1e-4f ? 1e-4f : amax) / 448.0f;
    uint32_t bits = num_bits(scale);
    if (ue8m0 && bits < 0x7f800000u) scale = num_from_bits((bits + 0x7fffffu) & 0x7f800000u);
    return scale;
}

/* All ones where `yes`: masks, because choices do not vectorise with every instruction set. */
static inline uint32_t act_mask(bool yes)
{
    return 0u - (uint32_t)yes;
}

/* e4m3_from_f32 without branches: normal numbers are rounded as integers, denormals (below
 * 2^-6) by adding 2^14, whose unit in the last place is their step 2^-9. Comparisons are signed,
 * which all vector units have; magnitudes are positive. */
static inline uint32_t act_e4m3(float y)
{
    uint32_t u = num_bits(y), mag = u & 0x7fffffffu;
    uint32_t normal = ((mag + 0x7ffffu + (mag >> 20 & 1u)) >> 20) - (120u << 3);
    uint32_t denormal = num_bits(num_from_bits(mag) + 16384.0f) - 0x46800000u;
    uint32_t small = act_mask((int32_t)mag < 0x3c800000);
    uint32_t large = act_mask((int32_t)mag > 0x43e00000); /* 448, the greatest */
    uint32_t nan = act_mask((int32_t)mag > 0x7f800000);
    uint32_t q = (denormal & small) | (normal & ~small);
    q = (q & ~large) | (0x7eu & large) | (1u & nan);
    return q | (u >> 24 & 0x80u);
}

static inline void act_row_e4m3(int n, const float *x, bool ue8m0, uint8_t *q, float *scale)
{
    for (int b = 0; b * FP8_BLOCK < n; b++) {
        const float *xb = x + b * FP8_BLOCK;
        uint8_t *qb = q + b * FP8_BLOCK;
        int len = n - b * FP8_BLOCK < FP8_BLOCK ? n - b * FP8_BLOCK : FP8_BLOCK;
        /* As integers, magnitudes keep their order and NaN is the largest. */
        uint32_t amax = 0;
        for (int i = 0; i < len; i++) {
            uint32_t mag = num_bits(xb[i]) & 0x7fffffffu;
            amax = mag > amax ? mag : amax;
        }
        float s = act_scale(amax, ue8m0); /* a copy: the bytes written might be scale's */
        scale[b] = s;
        for (int i = 0; i < len; i++) qb[i] = (uint8_t)act_e4m3(xb[i] / s);
    }
}

static inline void act_row_bf16(int n, const float *x, uint16_t *out)
{
    for (int i = 0; i < n; i++) {
        uint32_t u = num_bits(x[i]);
        uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
        uint32_t nan = (u >> 16) | 0x40u;
        out[i] = (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
    }
}

#endif
