/* bench_peak_avx512.c - FP32 multiply-adds from 512-bit registers: the ceiling of AVX-512. */
#include "cmd/bench.h"

#if defined(__AVX512F__)
#include <immintrin.h>

enum { CHAINS = 24 };

double bench_peak_f32_avx512(long rounds)
{
    __m512 acc[CHAINS];
    for (int i = 0; i < CHAINS; i++) acc[i] = _mm512_set1_ps((float)i);
    __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(1e-3f);
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) acc[i] = _mm512_fmadd_ps(acc[i], a, b);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int i = 1; i < CHAINS; i++) acc[0] = _mm512_add_ps(acc[0], acc[i]);
    __asm__ volatile("" : : "v"(acc[0]));
    return 32.0 * CHAINS * (double)rounds;
}
#endif
