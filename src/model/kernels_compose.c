/* kernels_compose.c */
#include "model/kernels_compose.h"

#include <string.h>

enum status kernels_choose_isa(int wanted, int *isa)
{
    /* Until the tile kernels exist, amx is served by other paths and so is not a choice. */
    int best = ISA_AVX512_BF16;
    const char *why = "";
    if (wanted == ISA_AMX)
        return error_set(ERR_RESOURCE, "isa: amx has no kernels in this build: use avx512_bf16");
    if (wanted >= 0 && !isa_supported((enum isa)wanted, &why))
        return error_set(ERR_RESOURCE,
                         "isa: %s needs the instruction set %s, which this host "
                         "does not have: use isa: auto",
                         isa_name((enum isa)wanted), why);
    while (!isa_supported((enum isa)best, &why)) best--;
    *isa = wanted >= 0 ? wanted : best;
    return OK;
}

enum status kernels_compose(enum isa isa, struct kernels *k)
{
    memset(k, 0, sizeof *k);
    k->isa = isa;
    k->name = isa_name(isa);
    TRY(gemm_kernels_fill(k, isa));
    TRY(attention_kernels_fill(k, isa));
    return moe_kernels_fill(k, isa);
}
