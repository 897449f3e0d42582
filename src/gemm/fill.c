/* fill.c - chooses the micro-kernel of an instruction set. */
#include "gemm/entries.h"

int gemm_panel_rows(enum isa isa, enum dtype type)
{
    (void)type; /* one width for all types so far */
#if defined(__x86_64__)
    if (isa >= ISA_AVX512_BF16) return ukernel_avx512bf16.nr; /* AMX too */
    if (isa == ISA_AVX512) return ukernel_avx512.nr;
    if (isa >= ISA_AVX2) return ukernel_avx2.nr;
#endif
    (void)isa;
    return ukernel_portable.nr;
}

enum status gemm_kernels_fill(struct kernels *k, enum isa isa)
{
    const char *missing = "";
    if (!isa_supported(isa, &missing))
        return error_set(ERR_RESOURCE, "isa %s: this host lacks %s; choose a lower isa, or auto",
                         isa_name(isa), missing);
    gemm_entries_portable(k);
#if defined(__x86_64__)
    if (isa >= ISA_AVX2) gemm_entries_avx2(k);
    if (isa >= ISA_AVX512) gemm_entries_avx512(k);
    if (isa >= ISA_AVX512_BF16) gemm_entries_avx512bf16(k);
    if (isa == ISA_AMX) gemm_entries_amx(k);
#endif
    return OK;
}
