/* micro_avx512.c - tile arithmetic of attention: AVX-512 with FMA. */
#include "attention/micro_body.h"

const struct attend_micro attend_micro_avx512[2] = ATTEND_MICRO_TABLE;
