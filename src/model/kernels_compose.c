/* kernels_compose.c */
#include "model/kernels_compose.h"

#include <string.h>

enum status kernels_compose(enum isa isa, struct kernels *k)
{
    memset(k, 0, sizeof *k);
    k->isa = isa;
    k->name = isa_name(isa);
    TRY(gemm_kernels_fill(k, isa));
    TRY(attention_kernels_fill(k, isa));
    return moe_kernels_fill(k, isa);
}
