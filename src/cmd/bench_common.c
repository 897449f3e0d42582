/* bench_common.c - timing, ceilings and result lines of the kernel benchmarks. */
#include "cmd/bench.h"
#include "core/clock.h"

#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SAMPLES = 101 };

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_seconds(void (*fn)(void *arg), void *arg, double budget_s)
{
    double t0 = clock_now_s();
    fn(arg);
    double first = clock_now_s() - t0;
    /* One sample lasts at least 200 us, so that the clock's own time does not show. */
    int calls = first > 200e-6 ? 1 : (int)(200e-6 / (first + 1e-9)) + 1;
    double sample[MAX_SAMPLES];
    int n = 0;
    double start = clock_now_s();
    while (n < MAX_SAMPLES && (n < 3 || clock_now_s() - start < budget_s)) {
        t0 = clock_now_s();
        for (int i = 0; i < calls; i++) fn(arg);
        sample[n++] = (clock_now_s() - t0) / calls;
    }
    qsort(sample, (size_t)n, sizeof *sample, by_value);
    return sample[n / 2];
}

/* ---- ceilings ---- */

double bench_peak_f32_portable(long rounds)
{
    enum { LANES = 64 };
    float acc[LANES];
    for (int i = 0; i < LANES; i++) acc[i] = (float)i;
    float a = 0.999f, b = 1e-3f;
    for (long r = 0; r < rounds; r++) {
        for (int i = 0; i < LANES; i++) acc[i] = acc[i] * a + b;
        __asm__ volatile("" : "+x"(a), "+x"(b)); /* keeps the loop */
    }
    volatile float sink = 0;
    for (int i = 0; i < LANES; i++) sink = sink + acc[i];
    return 2.0 * LANES * (double)rounds;
}

/* Best of several rounds of all threads together, in operations/s. */
static double peak_rate(int threads, double (*loop)(long))
{
    double best = 0;
    for (int rep = 0; rep < 5; rep++) {
        double ops = 0, t0 = clock_now_s();
#pragma omp parallel num_threads(threads) reduction(+ : ops)
        ops += loop(400000);
        double rate = ops / (clock_now_s() - t0);
        if (rate > best) best = rate;
    }
    return best;
}

static double read_rate(int threads, const uint64_t *data, size_t words)
{
    double best = 0;
    for (int rep = 0; rep < 5; rep++) {
        uint64_t sum = 0;
        double t0 = clock_now_s();
#pragma omp parallel for num_threads(threads) reduction(+ : sum) schedule(static)
        for (size_t i = 0; i < words; i += 512) {
            uint64_t part = 0;
            for (size_t j = 0; j < 512; j++) part += data[i + j];
            sum += part;
        }
        double rate = (double)words * 8 / (clock_now_s() - t0);
        __asm__ volatile("" : : "r"(sum));
        if (rate > best) best = rate;
    }
    return best;
}

enum status bench_machine_measure(int threads, enum isa isa, struct bench_machine *out)
{
    enum { READ_MIB = 256 };
    memset(out, 0, sizeof *out);
    out->threads = threads;
    out->isa = isa;
    out->f32_flops = peak_rate(threads, bench_peak_f32_portable);
#if defined(__x86_64__)
    if (isa >= ISA_AVX2) out->f32_flops = peak_rate(threads, bench_peak_f32_avx2);
    if (isa >= ISA_AVX512_BF16)
        out->f32_flops = peak_rate(threads, bench_peak_f32_avx512bf16);
#endif
    out->bf16_flops = out->f32_flops;
#if defined(__x86_64__)
    if (isa >= ISA_AVX512_BF16)
        out->bf16_flops = peak_rate(threads, bench_peak_bf16_avx512bf16);
#endif
    size_t bytes = (size_t)READ_MIB << 20;
    uint64_t *data = aligned_alloc(4096, bytes);
    if (!data) return error_set(ERR_RESOURCE, "bench: cannot allocate %d MiB", READ_MIB);
    memset(data, 1, bytes);
    out->dram_read = read_rate(threads, data, bytes / 8);
    free(data);
    printf("# ceilings: isa %s, threads %d, f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s, "
           "DRAM read %.1f GB/s\n",
           isa_name(isa), threads, out->f32_flops / 1e9, out->bf16_flops / 1e9,
           out->dram_read / 1e9);
    double load[1];
    if (getloadavg(load, 1) == 1 && load[0] > 0.5 + threads)
        printf("# load average %.1f on %d cores: other programs run, times below are too long\n",
               load[0], cpu_count());
    return OK;
}

enum isa bench_best_isa(void)
{
    for (int i = ISA_COUNT - 1; i > 0; i--)
        if (isa_supported((enum isa)i, NULL)) return (enum isa)i;
    return ISA_PORTABLE;
}

/* ---- lines ---- */

double bench_bound_seconds(const struct bench_machine *m, const struct bench_line *line)
{
    double ops = line->peak_flops > 0 ? line->flops / line->peak_flops : 0;
    double mem = m->dram_read > 0 ? line->bytes / m->dram_read : 0;
    return ops > mem ? ops : mem;
}

void bench_print_header(const char *baseline)
{
    printf("# %-42s %11s %9s %8s %7s %5s", "what", "us", "GFLOP/s", "GB/s", "%bound", "by");
    if (baseline) printf("  x %s", baseline);
    printf("\n");
}

void bench_print_line(const struct bench_machine *m, const struct bench_line *line)
{
    double bound = bench_bound_seconds(m, line);
    bool by_ops = line->peak_flops > 0 && line->flops / line->peak_flops >= bound;
    printf("%-44s %11.1f %9.1f %8.2f %7.1f %5s", line->label, line->seconds * 1e6,
           line->flops / line->seconds / 1e9, line->bytes / line->seconds / 1e9,
           100 * bound / line->seconds, by_ops ? "ops" : "bytes");
    if (line->baseline_s > 0) printf("  %.2f", line->baseline_s / line->seconds);
    printf("\n");
    fflush(stdout);
}

enum status bench_parse_list(const char *option, const char *text, int *values, int max,
                             int *count)
{
    *count = 0;
    while (*text) {
        char *end;
        long v = strtol(text, &end, 10);
        if (end == text || v < 0 || v > 1 << 24 || (*end && *end != ','))
            return error_set(ERR_USAGE, "%s: expected numbers like 1,8,512, found '%s'", option,
                             text);
        if (*count == max)
            return error_set(ERR_USAGE, "%s: at most %d numbers", option, max);
        values[(*count)++] = (int)v;
        text = *end ? end + 1 : end;
    }
    return OK;
}
