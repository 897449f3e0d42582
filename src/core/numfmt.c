/* numfmt.c - scalar conversions, written for exactness, not speed. */
#include "core/numfmt.h"

#include <math.h>

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exp = (h >> 10) & 31u, man = h & 1023u;
    if (exp == 31) return num_from_bits(sign | 0x7f800000u | (man << 13));
    if (exp == 0) {
        float v = (float)man * 0x1p-24f;
        return sign ? -v : v;
    }
    return num_from_bits(sign | ((exp + 112) << 23) | (man << 13));
}

uint16_t f16_from_f32(float f)
{
    uint16_t sign = (uint16_t)((num_bits(f) >> 16) & 0x8000u);
    float a = fabsf(f);
    if (isnan(f)) return (uint16_t)(sign | 0x7e00u);
    if (a >= 65520.0f) return (uint16_t)(sign | 0x7c00u);
    if (a < 0x1p-14f) return (uint16_t)(sign | (uint16_t)lrintf(a * 0x1p24f));
    uint32_t u = num_bits(a);
    u += 0xfffu + ((u >> 13) & 1u);
    return (uint16_t)(sign | ((u >> 13) - (112u << 10)));
}

float e4m3_to_f32(uint8_t b)
{
    uint32_t exp = (b >> 3) & 15u, man = b & 7u;
    float v;
    if ((b & 0x7f) == 0x7f)
        v = num_from_bits(0x7fc00000u);
    else if (exp == 0)
        v = (float)man * 0x1p-9f;
    else
        v = num_from_bits(((exp + 120) << 23) | (man << 20));
    return (b & 0x80) ? -v : v;
}

uint8_t e4m3_from_f32(float f)
{
    uint8_t sign = (uint8_t)((num_bits(f) >> 24) & 0x80u);
    float a = fabsf(f);
    if (isnan(f)) return (uint8_t)(sign | 0x7f);
    if (a >= 448.0f) return (uint8_t)(sign | 0x7e);
    if (a < 0x1p-6f) return (uint8_t)(sign | (uint8_t)lrintf(a * 0x1p9f));
    uint32_t u = num_bits(a);
    u += 0x7ffffu + ((u >> 20) & 1u);
    uint32_t r = (u >> 20) - (120u << 3);
    return (uint8_t)(sign | (r > 0x7e ? 0x7e : r));
}

float e8m0_to_f32(uint8_t b)
{
    if (b == 255) return num_from_bits(0x7fc00000u);
    return ldexpf(1.0f, (int)b - 127);
}
