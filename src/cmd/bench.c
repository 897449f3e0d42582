/* bench.c - `moebatch bench`: picks one of the benchmarks of bench.h. */
#include "cmd/bench.h"
#include "cmd/cmd.h"

#include <string.h>

static const struct {
    const char *name, *summary;
    enum status (*fn)(int argc, char **argv);
    bool needs_mpi;
} benches[] = {
    {"machine", "peaks, bandwidths: what every other figure is measured against", cmd_bench_machine,
     false},
    {"gemm", "dense, grouped and masked matrix products", cmd_bench_gemm, false},
    {"mla", "prefill attention and paged decode attention", cmd_bench_mla, false},
    {"layer", "stages and kernels of a MoE layer of a checkpoint", cmd_bench_layer, true},
    {"kv", "the disk tier of the KV cache on a folder, or its eviction on a trace", cmd_bench_kv,
     false},
    {"ep", "dispatch and combine over the ranks of mpirun", cmd_bench_ep, true},
};
#define BENCHES (sizeof benches / sizeof *benches)

static void print_help(FILE *out)
{
    fputs("moebatch bench NAME [OPTION]...\n\n", out);
    for (size_t i = 0; i < BENCHES; i++)
        fprintf(out, "  %-10s %s\n", benches[i].name, benches[i].summary);
    fputs("\nEvery kernel is verified before it is timed. moebatch bench NAME --help lists the "
          "options.\n",
          out);
}

bool cmd_bench_needs_mpi(int argc, char **argv)
{
    for (size_t i = 0; i < BENCHES; i++)
        if (argc > 1 && !strcmp(argv[1], benches[i].name)) return benches[i].needs_mpi;
    return false;
}

enum status cmd_bench(int argc, char **argv)
{
    for (size_t i = 0; i < BENCHES; i++)
        if (argc > 1 && !strcmp(argv[1], benches[i].name)) return benches[i].fn(argc - 1, argv + 1);
    if (cmd_wants_help(argc, argv)) {
        print_help(stdout);
        return OK;
    }
    if (argc > 1)
        return error_set(ERR_USAGE, "unknown benchmark %s: see moebatch bench --help", argv[1]);
    return error_set(ERR_USAGE, "which benchmark? see moebatch bench --help");
}
