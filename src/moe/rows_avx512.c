/* rows_avx512.c - gate, silu_mul, add and combine on the avx512 path. */
#include "moe/rows_body.h"

MOE_ROWS(avx512)
