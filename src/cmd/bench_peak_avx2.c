/* bench_peak_avx2.c - FP32 multiply-adds from registers: the ceiling of AVX2; and reading. */
#include "cmd/bench.h"

#if defined(__AVX2__)
#include <immintrin.h>
#include <stdint.h>

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

uint64_t bench_sum_avx2(const uint64_t *data, size_t words)
{
    enum { SUMS = 8, STEP = SUMS * 4 }; /* enough independent sums for two loads a cycle */
    __m256i sum[SUMS];
    for (int j = 0; j < SUMS; j++) sum[j] = _mm256_setzero_si256();
    for (size_t i = 0; i + STEP <= words; i += STEP)
#pragma GCC unroll 8
        for (int j = 0; j < SUMS; j++) {
            const __m256i *at = (const __m256i *)(const void *)(data + i + 4 * j);
            sum[j] = _mm256_add_epi64(sum[j], _mm256_loadu_si256(at));
        }
    for (int j = 1; j < SUMS; j++) sum[0] = _mm256_add_epi64(sum[0], sum[j]);
    uint64_t parts[4];
    _mm256_storeu_si256((__m256i *)(void *)parts, sum[0]);
    return parts[0] + parts[1] + parts[2] + parts[3];
}
#endif
