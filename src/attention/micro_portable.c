/* micro_portable.c - tile arithmetic of attention: plain C vectors. */
#include "attention/micro_body.h"

const struct attend_micro attend_micro_portable[2] = ATTEND_MICRO_TABLE;
