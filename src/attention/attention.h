/* attention.h - what the attention part of struct kernels can do, and its fixed constants.
 *
 * The functions themselves (rmsnorm, rope, kv_write, mla_prefill, mla_decode) are documented in
 * device/kernels.h and installed by attention_kernels_fill. Paths:
 *   portable     4-lane C vectors, no instruction set assumed
 *   avx2         8 lanes, FMA
 *   avx512       16 lanes, FMA
 *   avx512_bf16  as avx512; with a BF16 cache both products use vdpbf16ps, keys and (up to eight
 *                heads) values straight from the cache's rows
 *   amx          the avx512_bf16 functions (tiles are not used yet)
 * All are the same frame (attend.c) over a small table of row and tile kernels (attend.h).
 *
 * Numbers. kv_type F32: everything in FP32. kv_type BF16: the query and the softmax weights are
 * rounded to BF16 on every path, products are accumulated in FP32 in ascending order of the
 * channel or key, softmax is FP32 and its denominator sums the rounded weights. Keys are taken
 * in blocks of ATTENTION_KEY_BLOCK absolute positions with a running softmax; decode restarts
 * it every ATTENTION_SPLIT positions and merges the parts ascending. A masked key takes part in
 * no operation of the query, so not even an infinity in it can be seen.
 *
 * Who owns what: nothing is kept between calls; each thread's tiles (about 0.7 MiB) lie on its
 * stack.
 */
#ifndef ATTENTION_ATTENTION_H
#define ATTENTION_ATTENTION_H

#include "core/status.h"

enum {
    ATTENTION_KEY_BLOCK = 64,
    ATTENTION_SPLIT = 512, /* a multiple of the key block */
    ATTENTION_MAX_DIM_K = 576,
    ATTENTION_MAX_DIM_V = 512
};

/* Whether the kernels serve these sizes: all even; nope + rope and latent + rope at most
 * ATTENTION_MAX_DIM_K, v and latent at most ATTENTION_MAX_DIM_V. ERR_INPUT with the numbers
 * otherwise. Ask once when a model is loaded; the kernels themselves do not check. */
enum status attention_check_dims(int dim_nope, int dim_rope, int dim_v, int dim_latent);

#endif
