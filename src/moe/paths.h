/* paths.h - what one instruction set of moe/ provides. Internal to moe/. */
#ifndef MOE_PATHS_H
#define MOE_PATHS_H

#include "moe/moe.h"

/* Elementwise functions over contiguous rows of n experts. */
struct gate_rows {
    void (*sigmoid)(int n, const float *x, float *y);                /* 1 / (1 + exp(-x)) */
    void (*exp_minus)(int n, const float *x, float shift, float *y); /* exp(x - shift) */
};

/* In gate.c: the whole gate for m tokens, on the lane's threads. */
void gate_tokens(struct lane *lane, int m, const float *logits, int ldl,
                 const struct gate_params *params, const struct gate_rows *rows, int32_t *ids,
                 float *weights);

/* In rows_<path>.c: installs gate, silu_mul, add and combine. */
void moe_rows_portable(struct kernels *k);
void moe_rows_avx2(struct kernels *k);
void moe_rows_avx512(struct kernels *k);

#endif
