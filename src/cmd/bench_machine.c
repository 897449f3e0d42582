/* bench_machine.c - `moebatch bench machine`: arithmetic peaks per instruction set and bandwidths per
 * level of memory, of one thread and of all; and the ceilings of the other benchmarks. */
#include "cmd/bench.h"
#include "core/clock.h"

#include <getopt.h>
#include <hwloc.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DRAM_BYTES = 256 << 20, PEAK_ROUNDS = 400000, REPEATS = 5 };

double bench_peak_f32_portable(long rounds)
{
    enum { LANES = 64 };
    float acc[LANES];
    for (int i = 0; i < LANES; i++) acc[i] = (float)i;
    float a = 0.999f, b = 1e-3f;
    for (long r = 0; r < rounds; r++) {
        for (int i = 0; i < LANES; i++) acc[i] = acc[i] * a + b;
#if defined(__x86_64__)
        __asm__ volatile("" : "+x"(a), "+x"(b)); /* keeps the loop */
#endif
    }
    volatile float sink = 0;
    for (int i = 0; i < LANES; i++) sink = sink + acc[i];
    return 2.0 * LANES * (double)rounds;
}

double bench_peak_rate(int threads, bench_peak_fn *loop)
{
    double best = 0;
    for (int rep = 0; rep < REPEATS; rep++) {
        double ops = 0, t0 = clock_now_s();
#pragma omp parallel num_threads(threads) reduction(+ : ops)
        ops += loop(PEAK_ROUNDS);
        double rate = ops / (clock_now_s() - t0);
        if (rate > best) best = rate;
    }
    return best;
}

/* ---- memory ---- */

static uint64_t sum_portable(const uint64_t *data, size_t words)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < words; i++) sum += data[i];
    return sum;
}

static uint64_t sum_words(const uint64_t *data, size_t words)
{
#if defined(__x86_64__)
    if (isa_supported(ISA_AVX2, NULL)) return bench_sum_avx2(data, words);
#endif
    return sum_portable(data, words);
}

/* Each thread passes over its own part, at least 64 MiB in all, between two barriers. */
static double memory_rate(int threads, size_t bytes_each, bool copy)
{
    enum { PASS_BYTES = 64 << 20 };
    size_t passes = PASS_BYTES / bytes_each + 1, half = bytes_each / 2;
    char *data = aligned_alloc(4096, bytes_each * (size_t)threads);
    if (!data) return 0;
    double best = 0;
    for (int rep = 0; rep < REPEATS; rep++) {
        double t0 = 0;
        uint64_t sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
        {
            char *mine = data + bytes_each * (size_t)omp_get_thread_num();
            if (rep == 0) memset(mine, 1, bytes_each);
#pragma omp barrier
#pragma omp master
            t0 = clock_now_s();
            for (size_t p = 0; p < passes; p++) {
                if (copy)
                    memcpy(mine + p % 2 * half, mine + (p + 1) % 2 * half, half);
                else
                    sum += sum_words((const uint64_t *)(const void *)mine, bytes_each / 8);
                __asm__ volatile("" : : "r"(mine) : "memory");
            }
        }
        double rate = (double)bytes_each * (double)passes * threads / (clock_now_s() - t0);
        __asm__ volatile("" : : "r"(sum));
        if (rate > best) best = rate;
    }
    free(data);
    return best;
}

double bench_read_rate(int threads, size_t bytes_each)
{
    return memory_rate(threads, bytes_each, false);
}

double bench_copy_rate(int threads, size_t bytes_each)
{
    return memory_rate(threads, bytes_each, true);
}

/* ---- the ceilings of the other benchmarks ---- */

static const struct {
    enum isa isa;
    bool bf16;
    const char *label;
    bench_peak_fn *loop;
} peaks[] = {
    {ISA_PORTABLE, false, "f32 portable C", bench_peak_f32_portable},
#if defined(__x86_64__)
    {ISA_AVX2, false, "f32 AVX2 FMA", bench_peak_f32_avx2},
    {ISA_AVX512, false, "f32 AVX-512 FMA", bench_peak_f32_avx512},
    {ISA_AVX512_BF16, true, "bf16 AVX-512 BF16", bench_peak_bf16_avx512bf16},
    {ISA_AMX, true, "bf16 AMX tiles", bench_peak_bf16_amx},
#endif
};
#define PEAKS (sizeof peaks / sizeof *peaks)

static void print_load(int threads)
{
    double load[1];
    if (getloadavg(load, 1) == 1 && load[0] > 0.5 + threads)
        printf("# load average %.1f on %d cores: other programs run, times below are too long\n",
               load[0], cpu_count());
}

enum status bench_machine_measure(int threads, enum isa isa, struct bench_machine *out)
{
    *out = (struct bench_machine){.threads = threads, .isa = isa};
    for (size_t i = 0; i < PEAKS; i++) {
        if (peaks[i].isa > isa) continue;
        double rate = bench_peak_rate(threads, peaks[i].loop);
        *(peaks[i].bf16 ? &out->bf16_flops : &out->f32_flops) = rate;
    }
    if (out->bf16_flops == 0) out->bf16_flops = out->f32_flops;
    out->dram_read = bench_read_rate(threads, DRAM_BYTES / (size_t)threads);
    if (out->dram_read == 0)
        return error_set(ERR_RESOURCE, "bench: cannot allocate %d bytes", DRAM_BYTES);
    printf("# ceilings: isa %s, threads %d, f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s, "
           "DRAM read %.1f GB/s\n",
           isa_name(isa), threads, out->f32_flops / 1e9, out->bf16_flops / 1e9,
           out->dram_read / 1e9);
    print_load(threads);
    return OK;
}

/* ---- the command ---- */

struct cache {
    const char *name;
    size_t bytes; /* of one instance; 0: not reported */
    int sharers;  /* cores of this process behind it */
};

/* Data caches of the first core, as the operating system reports them. */
static int read_caches(struct cache cache[3], char *cpu_model, size_t size)
{
    static const hwloc_obj_type_t type[3] = {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L2CACHE,
                                             HWLOC_OBJ_L3CACHE};
    static const char *const names[3] = {"L1", "L2", "L3"};
    hwloc_topology_t t;
    int found = 0;
    snprintf(cpu_model, size, "unknown");
    if (hwloc_topology_init(&t) != 0) return 0;
    if (hwloc_topology_load(t) == 0) {
        hwloc_obj_t root = hwloc_get_root_obj(t);
        hwloc_obj_t package = hwloc_get_obj_by_type(t, HWLOC_OBJ_PACKAGE, 0);
        const char *model = package ? hwloc_obj_get_info_by_name(package, "CPUModel") : NULL;
        if (!model) model = hwloc_obj_get_info_by_name(root, "CPUModel");
        if (model) snprintf(cpu_model, size, "%s", model);
        for (int i = 0; i < 3; i++) {
            hwloc_obj_t obj = hwloc_get_obj_by_type(t, type[i], 0);
            if (!obj || obj->attr->cache.size == 0) continue;
            int cores = hwloc_get_nbobjs_inside_cpuset_by_type(t, obj->cpuset, HWLOC_OBJ_CORE);
            cache[found++] = (struct cache){names[i], obj->attr->cache.size, cores > 0 ? cores : 1};
        }
    }
    hwloc_topology_destroy(t);
    return found;
}

static void print_peaks(int threads)
{
    printf("# %-28s %14s %14s\n", "operations, GFLOP/s", "one thread", "all threads");
    for (size_t i = 0; i < PEAKS; i++) {
        const char *missing = "";
        if (!isa_supported(peaks[i].isa, &missing)) {
            printf("# %-28s not on this host: it lacks %s\n", peaks[i].label, missing);
            continue;
        }
        printf("  %-28s %14.1f %14.1f\n", peaks[i].label, bench_peak_rate(1, peaks[i].loop) / 1e9,
               bench_peak_rate(threads, peaks[i].loop) / 1e9);
        fflush(stdout);
    }
}

static void print_rates(const char *label, size_t one, size_t all, int threads)
{
    printf("  %-28s %14.1f %14.1f\n", label, bench_read_rate(1, one) / 1e9,
           bench_read_rate(threads, all) / 1e9);
    fflush(stdout);
}

static void print_memory(int threads, const struct cache *cache, int caches)
{
    char label[64];
    printf("# %-28s %14s %14s\n", "bandwidth, GB/s", "one thread", "all threads");
    for (int i = 0; i < caches; i++) {
        /* Half of a thread's share: what it reads stays there. */
        int sharers = cache[i].sharers < threads ? cache[i].sharers : threads;
        size_t one = cache[i].bytes / 2 / 8192 * 8192;
        size_t all = cache[i].bytes / 2 / (size_t)sharers / 8192 * 8192;
        snprintf(label, sizeof label, "%s read (%zu KiB)", cache[i].name, cache[i].bytes >> 10);
        if (all > 0 && one <= DRAM_BYTES / 2) print_rates(label, one, all, threads);
    }
    size_t share = DRAM_BYTES / (size_t)threads / 8192 * 8192;
    print_rates("DRAM read", DRAM_BYTES, share, threads);
    printf("  %-28s %14.1f %14.1f\n", "DRAM copy (read + write)",
           bench_copy_rate(1, DRAM_BYTES) / 1e9, bench_copy_rate(threads, share) / 1e9);
}

enum status cmd_bench_machine(int argc, char **argv)
{
    static const struct option table[] = {
        {"threads", 1, 0, 't'}, {"help", 0, 0, 'h'}, {0, 0, 0, 0}};
    int threads = cpu_count(), count;
    optind = 0;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "h", table, NULL)) != -1;) {
        if (c == 'h') {
            fputs(
                "usage: moebatch bench machine [--threads T]\n"
                "Peaks from register-resident loops for each instruction set of this host, and\n"
                "read and copy bandwidth per level of memory, of one thread and of all (default:\n"
                "all cores): the bounds of the other benchmarks. Best of several rounds.\n",
                stdout);
            return OK;
        }
        if (c != 't') return error_set(ERR_USAGE, "bench machine: see bench machine --help");
        TRY(bench_parse_list("--threads", optarg, &threads, 1, &count));
    }
    if (optind < argc || threads < 1)
        return error_set(ERR_USAGE, "bench machine: see bench machine --help");
    struct cache cache[3];
    char model[128];
    int caches = read_caches(cache, model, sizeof model);
    printf("# %s, %d cores for this process, %d threads, best isa %s\n", model, cpu_count(),
           threads, isa_name(bench_best_isa()));
    print_load(threads);
    print_peaks(threads);
    print_memory(threads, cache, caches);
    return OK;
}
