/* rows_avx2.c - gate, silu_mul, add and combine on the avx2 path. */
#include "moe/rows_body.h"

MOE_ROWS(avx2)
