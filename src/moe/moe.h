/* moe.h - what the moe part of struct kernels can do.
 *
 * gate, silu_mul, add and combine are documented in device/kernels.h and installed by
 * moe_kernels_fill: portable, avx2 and avx512 paths (avx512_bf16 and amx take avx512's: these
 * kernels have no BF16 products). moe/expert.h chains GEMMs and silu_mul to an expert's MLP.
 *
 * Numbers. combine multiplies, rounds, then adds (never fused), and starts from the first term:
 * its bits are the same on every path, and a partial sum over some of a token's rows is what
 * combine yields for those rows alone with n_group 1. silu_mul may work in place (out == x).
 * The gate's exponentials have at most 2 ulp of error on every path (attention/vec.h).
 */
#ifndef MOE_MOE_H
#define MOE_MOE_H

#include "device/kernels.h"

/* Limits of the gate; a model beyond them is refused at load by moe_check_gate. */
enum { MOE_MAX_EXPERTS = 1024, MOE_MAX_TOPK = 64 };

/* ERR_INPUT when the parameters contradict each other or model.md (a sigmoid gate without bias,
 * experts not divisible by n_group, fewer than two experts a group, top-k beyond the kept
 * groups, norm_topk with a softmax gate). */
enum status moe_check_gate(const struct gate_params *gate);

#endif
