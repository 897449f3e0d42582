/* bench_peak_avx512bf16.c - BF16 dot products from 512-bit registers. */
#include "cmd/bench.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>

enum { CHAINS = 24 };

double bench_peak_bf16_avx512bf16(long rounds)
{
    __m512 acc[CHAINS];
    for (int i = 0; i < CHAINS; i++) acc[i] = _mm512_set1_ps((float)i);
    __m512i a = _mm512_set1_epi16(0x3f00), b = _mm512_set1_epi16(0x3c00);
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++)
            acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)a, (__m512bh)b);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int i = 1; i < CHAINS; i++) acc[0] = _mm512_add_ps(acc[0], acc[i]);
    __asm__ volatile("" : : "v"(acc[0]));
    return 64.0 * CHAINS * (double)rounds;
}
#endif
