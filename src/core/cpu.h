/* cpu.h - what this processor can do, read once from CPUID (and the OS's saved state). */
#ifndef CORE_CPU_H
#define CORE_CPU_H

#include <stdbool.h>

enum isa { ISA_PORTABLE, ISA_AVX2, ISA_AVX512, ISA_AVX512_BF16, ISA_AMX, ISA_COUNT };

/* "portable", "avx2", "avx512", "avx512_bf16", "amx". */
const char *isa_name(enum isa isa);

/* Parses a name; -1 when unknown. */
int isa_parse(const char *name);

/* Whether this host can run it. When not and why is non-NULL, *why names the missing
 * instruction ("avx512_bf16"). */
bool isa_supported(enum isa isa, const char **why);

/* Cores this process may use (sched_getaffinity). */
int cpu_count(void);

#endif
