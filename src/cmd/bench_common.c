/* bench_common.c - timing and result lines of the kernel benchmarks. */
#include "cmd/bench.h"
#include "core/clock.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

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

enum status bench_parse_list(const char *option, const char *text, int *values, int max, int *count)
{
    *count = 0;
    while (*text) {
        char *end;
        long v = strtol(text, &end, 10);
        if (end == text || v < 0 || v > 1 << 24 || (*end && *end != ','))
            return error_set(ERR_USAGE, "%s: expected numbers like 1,8,512, found '%s'", option,
                             text);
        if (*count == max) return error_set(ERR_USAGE, "%s: at most %d numbers", option, max);
        values[(*count)++] = (int)v;
        text = *end ? end + 1 : end;
    }
    return OK;
}
