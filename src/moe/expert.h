/* expert.h - the gated MLP of experts: down(silu(gate(x)) * up(x)), grouped.
 *
 * One function for routed experts (a group per expert), the shared expert and the dense MLP
 * (groups = 1): grouped gate|up GEMM, silu_mul, conversion to the GEMM's input type, grouped
 * down GEMM. It weighs nothing and adds nothing: COMBINE and the residual are the caller's.
 *
 * Who owns what: everything in struct moe_ffn is borrowed; scratch holds moe_ffn_scratch_bytes.
 */
#ifndef MOE_EXPERT_H
#define MOE_EXPERT_H

#include "device/kernels.h"

struct moe_ffn {
    int groups;
    const int32_t *begin;       /* [groups] first row, ascending, groups do not overlap */
    const int32_t *rows;        /* [groups] */
    struct amat in;             /* [span, hidden]; span = the largest begin + rows */
    const struct wmat *gate_up; /* [groups]: sources gate, up; n = 2 * inner */
    const struct wmat *down;    /* [groups]: [hidden, inner] */
    enum dtype act_type;        /* of the down GEMM's input: E4M3 with checkpoint FP8 numerics,
                                  * BF16, or F32 */
    bool ue8m0;
    void *scratch; /* 64-byte aligned device memory */
    float *out;    /* [span, hidden]; rows outside the groups are untouched */
    int ldo;
};

/* Bytes of scratch for `span` rows. */
size_t moe_ffn_scratch_bytes(enum dtype act_type, int span, int inner);

/* Enqueues the MLP on the lane. */
void moe_ffn(struct lane *lane, const struct kernels *kernels, const struct moe_ffn *ffn);

#endif
