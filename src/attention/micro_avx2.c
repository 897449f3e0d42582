/* micro_avx2.c - tile arithmetic of attention: AVX2 and FMA. */
#include "attention/micro_body.h"

const struct attend_micro attend_micro_avx2[2] = ATTEND_MICRO_TABLE;
