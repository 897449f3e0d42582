/* rows_portable.c - rmsnorm, rope and kv_write on the portable path. */
#include "attention/rows_body.h"

ATTENTION_ROWS(portable)
