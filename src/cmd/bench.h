/* bench.h - what the kernel benchmarks share: timing, the machine's ceilings, result lines.
 *
 * `moebatch bench gemm|mla|ep` verifies a kernel against its reference, then times it. Every
 * data line gives the time, the rates, and the share of the bound that applies: operations /
 * peak or bytes / bandwidth, whichever takes longer, both measured in the same run. Lines
 * that carry no result start with '#'. Nothing here asserts on time.
 */
#ifndef CMD_BENCH_H
#define CMD_BENCH_H

#include "core/cpu.h"
#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>

/* Entries of `moebatch bench`; argv[0] is the name of the benchmark ("gemm"). */
enum status cmd_bench_gemm(int argc, char **argv);
enum status cmd_bench_mla(int argc, char **argv);
enum status cmd_bench_ep(int argc, char **argv);

/* Measured ceilings of `threads` threads together. */
struct bench_machine {
    int threads;
    enum isa isa;
    double f32_flops;  /* FP32 fused multiply-adds from registers, operations/s */
    double bf16_flops; /* BF16 dot products; equals f32_flops where the ISA has none */
    double dram_read;  /* bytes/s over a buffer much larger than the caches */
};

/* Measures (about 0.5 s) and prints the ceilings as one '#' line. */
enum status bench_machine_measure(int threads, enum isa isa, struct bench_machine *out);

/* Seconds per call of fn(arg): one untimed call, then the median of at least 3 samples (each
 * long enough for the clock), stopping after about budget_s seconds. */
double bench_seconds(void (*fn)(void *arg), void *arg, double budget_s);

/* One measured line. */
struct bench_line {
    const char *label; /* first column, at most 44 characters: operation, types, shape */
    double seconds;    /* per call */
    double flops;      /* operations of one call */
    double bytes;      /* bytes that one call must read and write */
    double peak_flops; /* the ceiling that applies (a field of bench_machine) */
    double baseline_s; /* seconds of the baseline's call; 0: none */
};

/* The longer of operations / peak and bytes / bandwidth, in seconds. */
double bench_bound_seconds(const struct bench_machine *m, const struct bench_line *line);

/* Column titles (a '#' line) and one result line. baseline: what the ratio compares with
 * ("onednn_bf16"), NULL for none. */
void bench_print_header(const char *baseline);
void bench_print_line(const struct bench_machine *m, const struct bench_line *line);

/* Parses "1,2,4" into values (at most max); ERR_USAGE names the option. */
enum status bench_parse_list(const char *option, const char *text, int *values, int max,
                             int *count);

/* The best ISA that this host runs. */
enum isa bench_best_isa(void);

/* Register-resident peak loops, one file per instruction set: returns operations done in
 * `rounds` rounds on one thread. */
double bench_peak_f32_portable(long rounds);
double bench_peak_f32_avx2(long rounds);
double bench_peak_f32_avx512bf16(long rounds);
double bench_peak_bf16_avx512bf16(long rounds);

#endif
