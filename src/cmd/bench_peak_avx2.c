/* bench_peak_avx2.c - FP32 multiply-adds from registers: the ceiling of AVX2. */
#include "cmd/bench.h"

#if defined(__AVX2__)
#include <immintrin.h>

double bench_peak_f32_avx2(long rounds)
{
    enum { CHAINS = 12 };
    __m256 acc[CHAINS];
    for (int i = 0; i < CHAINS; i++) acc[i] = _mm256_set1_ps((float)i);
    __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(1e-3f);
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) acc[i] = _mm256_fmadd_ps(acc[i], a, b);
        __asm__ volatile("" : "+x"(a), "+x"(b));
    }
    for (int i = 1; i < CHAINS; i++) acc[0] = _mm256_add_ps(acc[0], acc[i]);
    __asm__ volatile("" : : "x"(acc[0]));
    return 16.0 * CHAINS * (double)rounds;
}
#endif
