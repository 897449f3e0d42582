/* moe.c - picks the path of an instruction set and fills the table. */
#include "moe/moe.h"

#include "moe/paths.h"

enum status moe_kernels_fill(struct kernels *k, enum isa isa)
{
    static void (*const fill[ISA_COUNT])(struct kernels *) = {
        [ISA_PORTABLE] = moe_rows_portable, [ISA_AVX2] = moe_rows_avx2,
        [ISA_AVX512] = moe_rows_avx512,     [ISA_AVX512_BF16] = moe_rows_avx512,
        [ISA_AMX] = moe_rows_avx512,
    };
    const char *why = 0;
    if (!isa_supported(isa, &why))
        return error_set(ERR_RESOURCE, "isa %s: this host lacks %s; choose isa: auto",
                         isa_name(isa), why);
    fill[isa](k);
    return OK;
}
