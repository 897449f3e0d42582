/* rows_avx2.c - rmsnorm, rope and kv_write on the avx2 path. */
#include "attention/rows_body.h"

ATTENTION_ROWS(avx2)
