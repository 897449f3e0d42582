/* gemm.h - matrix products of activations with packed weights, and what prepares both.
 *
 * Fills the gemm part of struct kernels (device/kernels.h has the contracts): packing, dense,
 * grouped and batched products, conversion of activations. Instruction sets: portable C, AVX2
 * + FMA, AVX-512 in FP32, AVX-512 with BF16 dot products, AMX tiles.
 *
 * Order of operations, hence bits (one ISA; rows and columns never influence one another):
 *   F32 x F32    c = sum over k ascending, one chain of fused multiply-adds per element
 *   BF16 x BF16  avx512_bf16: one chain of vdpbf16ps over pairs of k, ascending;
 *                amx: per 32 of k the chains over even k and over odd k from zero, each of fused
 *                multiply-adds, ascending; then c + (even + odd), as TDPBF16PS does
 *                else: widened exactly to FP32, then as F32 x F32
 *   x E4M3       per 128-deep block of k that chain gives p, then c = fma(p, s, c), blocks
 *                ascending, s = w_scale, or a_scale * w_scale (rounded once) for E4M3
 *                activations; e4m3 is widened exactly (tables or integer arithmetic)
 * Portable C multiplies and adds separately instead of fusing. No path depends on m, the place
 * of a row, the group, the entry point or the number of threads.
 *
 * Exactness: every e4m3 number, its denormals (multiples of 2^-9) included, is a normal BF16
 * number, so vdpbf16ps, which flushes denormal inputs and results to zero, loses none of
 * them. BF16 x BF16 on that ISA does flush products of BF16 denormals (below 2^-126). NaN of
 * e4m3 (0x7f, 0xff) becomes a quiet NaN; NaN and infinities propagate.
 *
 * Padding: ragged k and n are padded with zeros inside the packed weights and inside the
 * copies of activations that each thread makes; callers' buffers are never read beyond their
 * rows' k elements, and columns beyond n are never written.
 *
 * Memory: packed weights are the caller's. Each thread keeps one scratch (packed activations,
 * one panel block, one panel of output: a few MiB at most) that grows to the largest product
 * it has seen and lives as long as the thread. The products cannot report errors: a scratch
 * that cannot be allocated ends the process with a message.
 *
 * Threads: the lane's (lane_run), where the product is worth waking them. The caller's thread
 * serves the lane between blocks, about every 50 us.
 */
#ifndef GEMM_GEMM_H
#define GEMM_GEMM_H

#include "device/kernels.h"

/* Rows of the stack per panel for an ISA and storage type; each source starts on a new panel. */
int gemm_panel_rows(enum isa isa, enum dtype type);

/* The plain reference: the definition in double arithmetic over unpacked sources, used by
 * tests and benches. a: as struct amat, w: `sources` stacked; c [m, sum n] double; mag (NULL or
 * same shape) receives the sum of |products|, the natural unit of a tolerance. */
void gemm_ref(int m, const struct amat *a, const struct weight_src *w, int sources, double *c,
              double *mag);

/* Activation quantisation of one row by its definition, one element at a time. */
void act_e4m3_ref(int k, const float *x, bool ue8m0, uint8_t *q, float *scale);

#endif
