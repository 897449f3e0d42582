/* rows_avx512.c - rmsnorm, rope and kv_write on the avx512 path. */
#include "attention/rows_body.h"

ATTENTION_ROWS(avx512)
