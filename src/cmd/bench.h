/* bench.h - what the kernel benchmarks share: timing, the machine's ceilings, result lines.
 *
 * `moebatch bench gemm|mla|...` verifies a kernel against its reference, then times it. Every
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
#include <stdint.h>

/* Entries of `moebatch bench`; argv[0] is the name of the benchmark ("gemm"). */
enum status cmd_bench_machine(int argc, char **argv);
enum status cmd_bench_gemm(int argc, char **argv);
enum status cmd_bench_mla(int argc, char **argv);
enum status cmd_bench_layer(int argc, char **argv);
enum status cmd_bench_ep(int argc, char **argv);
enum status cmd_bench_kv(int argc, char **argv);

/* bench kv --trace: index and eviction of the disk tier on a trace's hash_ids. */
enum status bench_kv_trace(const char *path);

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

/* ---- ceilings (bench_machine.c) ---- */

/* A register-resident loop of one instruction set (bench_peak_*.c): returns the operations of
 * `rounds` rounds on one thread. */
typedef double bench_peak_fn(long rounds);
bench_peak_fn bench_peak_f32_portable, bench_peak_f32_avx2, bench_peak_f32_avx512,
    bench_peak_bf16_avx512bf16, bench_peak_bf16_amx;

/* The sum of `words` words (a multiple of 512) with wide loads. */
uint64_t bench_sum_avx2(const uint64_t *data, size_t words);

/* Best of several rounds of `threads` threads together, in operations/s. */
double bench_peak_rate(int threads, bench_peak_fn *loop);

/* Bytes/s that `threads` threads read of a buffer of that many bytes each, or copy from one half of
 * it to the other (bytes read + bytes written); best of several rounds. 0 when there is no
 * memory. Prefetchers and wide loads are the compiler's and the processor's own. */
double bench_read_rate(int threads, size_t bytes_each);
double bench_copy_rate(int threads, size_t bytes_each);

#endif
