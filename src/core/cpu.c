/* cpu.c */
#include "core/cpu.h"

#include <sched.h>
#include <string.h>

static const char *const isa_names[ISA_COUNT] = {"portable", "avx2", "avx512", "avx512_bf16",
                                                 "amx"};

const char *isa_name(enum isa isa)
{
    return isa_names[isa];
}

int isa_parse(const char *name)
{
    for (int i = 0; i < ISA_COUNT; i++)
        if (strcmp(name, isa_names[i]) == 0) return i;
    return -1;
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux gives the 8 KiB of tile state to processes that ask; it holds for all their threads. */
static bool tiles_permitted(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

/* __builtin_cpu_supports also checks that the OS saves the registers. */
static const char *isa_missing(enum isa isa)
{
    __builtin_cpu_init();
    if (isa >= ISA_AVX2) {
        if (!__builtin_cpu_supports("avx2")) return "avx2";
        if (!__builtin_cpu_supports("fma")) return "fma";
    }
    if (isa >= ISA_AVX512) {
        if (!__builtin_cpu_supports("avx512f")) return "avx512f";
        if (!__builtin_cpu_supports("avx512bw")) return "avx512bw";
        if (!__builtin_cpu_supports("avx512dq")) return "avx512dq";
        if (!__builtin_cpu_supports("avx512vl")) return "avx512vl";
    }
    if (isa >= ISA_AVX512_BF16) {
        if (!__builtin_cpu_supports("avx512vbmi")) return "avx512vbmi";
        if (!__builtin_cpu_supports("avx512vbmi2")) return "avx512vbmi2";
        unsigned a = 0, b = 0, c = 0, d = 0;
        if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & (1u << 5))) return "avx512_bf16";
    }
    if (isa == ISA_AMX) {
        unsigned a = 0, b = 0, c = 0, d = 0;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return "amx_bf16";
        if (!(d & (1u << 24))) return "amx_tile";
        if (!(d & (1u << 22))) return "amx_bf16";
        if (!tiles_permitted()) return "the kernel's permission to use amx tiles";
    }
    return 0;
}
#else
static const char *isa_missing(enum isa isa)
{
    return isa == ISA_PORTABLE ? 0 : "x86-64";
}
#endif

bool isa_supported(enum isa isa, const char **why)
{
    const char *missing = isa_missing(isa);
    if (missing && why) *why = missing;
    return !missing;
}

int cpu_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}
