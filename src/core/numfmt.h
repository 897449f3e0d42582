/* numfmt.h - exact conversions between float and the storage formats BF16, F16, e4m3 (the OCP
 * "fn" variant: no infinities, NaN = 0x7f, largest value 448) and e8m0 scales.
 *
 * These are the reference bits for every kernel: round to nearest, ties to even; e4m3
 * saturates at +-448 as the CUDA conversion with satfinite does; NaN stays NaN.
 */
#ifndef CORE_NUMFMT_H
#define CORE_NUMFMT_H

#include <stdint.h>
#include <string.h>

static inline float num_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t num_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float bf16_to_f32(uint16_t h)
{
    return num_from_bits((uint32_t)h << 16);
}

static inline uint16_t bf16_from_f32(float f)
{
    uint32_t u = num_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u); /* quiet NaN */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

float f16_to_f32(uint16_t h);
uint16_t f16_from_f32(float f);

float e4m3_to_f32(uint8_t b);
uint8_t e4m3_from_f32(float f);

/* 2^(b - 127); b = 255 is NaN. */
float e8m0_to_f32(uint8_t b);

#endif
