/* rope_table.h - the table of rotary angles and the softmax scale, plain or yarn.
 *
 * Follows model.md "Attention" (the rules and the float32 roundings of Hugging Face's
 * float32 model): inverse frequencies are float32, the angle is the float32 product
 * pos * inv_freq, its cosine and sine are rounded once to float32 and multiplied by the attention
 * factor, at all positions. Powers of theta are correctly rounded; the oracle's vectorised powf is
 * not always: at theta 50000, dim 64, its pair 5 is one ulp larger, which turns that pair by
 * 1.2e-4 at position 8191 and 2.0e-3 at 131071. At theta 10000, dim 64 all pairs agree. Does not
 * touch activations: struct kernels' rope() applies the table.
 *
 * Who owns what: the caller owns the table's memory; nothing is allocated here.
 */
#ifndef ATTENTION_ROPE_TABLE_H
#define ATTENTION_ROPE_TABLE_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>

/* What config.json says about positions. Fields after `yarn` are read only if yarn is set. */
struct rope_params {
    double theta;      /* rope_theta */
    int dim;           /* qk_rope_head_dim, even */
    int max_positions; /* max_position_embeddings: rows of the table */
    bool yarn;
    double factor;           /* 0 or NaN: max_positions / original_max */
    double original_max;     /* original_max_position_embeddings; 0: max_positions */
    double beta_fast;        /* 0: 32 */
    double beta_slow;        /* 0: 1 */
    double mscale;           /* read if has_mscale */
    double mscale_all_dim;   /* read if has_mscale_all_dim */
    double attention_factor; /* NaN or 0: absent */
    bool has_mscale, has_mscale_all_dim;
    bool truncate;   /* round the ramp's ends to whole dimensions (default true) */
    bool interleave; /* pairs (x0, x1), (x2, x3), ...; handed to the rope kernel */
};

/* Number of floats of the table: max_positions * dim. */
size_t rope_table_floats(const struct rope_params *params);

/* Fills table [max_positions][dim/2][2] = cos, sin. ERR_INPUT if a field makes no sense. */
enum status rope_table_build(const struct rope_params *params, float *table);

/* The dim/2 inverse frequencies; a part of rope_table_build, for tests and `model` output. */
void rope_inv_freq(const struct rope_params *params, float *inv_freq);

/* What cos and sin are multiplied by; 1 without yarn. */
double rope_attention_factor(const struct rope_params *params);

/* Softmax scale of attention: qk_head_dim^-0.5, with yarn times m(factor, mscale_all_dim)^2. */
float rope_softmax_scale(const struct rope_params *params, int qk_head_dim);

#endif
