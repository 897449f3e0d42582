/* rows_portable.c - gate, silu_mul, add and combine on the portable path. */
#include "moe/rows_body.h"

MOE_ROWS(portable)
