/* model_config.h - what config.json (and generation_config.json) of a DeepSeek-V2/V3-family
 * checkpoint say, in one plain struct with every rule about spelling and defaults applied.
 *
 * Accepts the hub's files (rope_theta, rope_scaling, torch_dtype, scoring_func, topk_method) and
 * transformers 5's (rope_parameters, dtype). What the engine cannot compute exactly is refused
 * here, with file, field, found and expected value, as ERR_INPUT. Knows nothing of tensors.
 *
 * struct model_config owns no memory; copy it freely.
 */
#ifndef CHECKPOINT_MODEL_CONFIG_H
#define CHECKPOINT_MODEL_CONFIG_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How a token picks its experts. */
enum model_gate_kind {
    MODEL_GATE_SIGMOID_NOAUX,  /* V3: sigmoid, bias added for the choice only, group = two best */
    MODEL_GATE_SOFTMAX_GREEDY, /* V2-Lite: plain top-k */
    MODEL_GATE_SOFTMAX_GROUP   /* V2: group = its best expert */
};

/* Rotary embedding. Optional numbers carry a has_ flag; without yarn only theta and interleave
 * mean something. */
struct model_rope {
    double theta;
    bool interleave; /* pairs (x0, x1), (x2, x3) ... */
    bool yarn;
    double factor;    /* resolved: max_positions / original_max when the file says null */
    int original_max; /* resolved: max_positions when absent */
    double beta_fast, beta_slow;
    bool has_mscale, has_mscale_all_dim, has_attention_factor;
    double mscale, mscale_all_dim, attention_factor;
    bool truncate; /* round the correction range to whole dimensions */
};

/* FP8 by 128 x 128 blocks, as the file announces it; which tensors are FP8 is the tensors' word. */
struct model_quant {
    bool fp8;
    bool ue8m0; /* activation scales are powers of two (scale_fmt "ue8m0") */
};

enum { MODEL_EOS_MAX = 16 };

struct model_config {
    char model_type[32]; /* "deepseek_v2", "deepseek_v3", "kimi_k2" */
    char dtype[16];      /* "bfloat16", ...: what the file announces; "" when absent */

    int vocab, hidden, layers;
    int max_positions;

    int heads;
    int q_lora; /* 0: one q_proj instead of q_a_proj, q_a_layernorm, q_b_proj */
    int kv_lora;
    int dim_nope, dim_rope, dim_v; /* per head */

    int intermediate;     /* dense layers' MLP */
    int moe_intermediate; /* one expert's; the shared expert's is shared_experts times this */
    int experts, shared_experts, topk;
    int n_group, topk_group; /* 1, 1 when the gate has no groups */
    enum model_gate_kind gate;
    bool norm_topk;
    double routed_scale;
    int first_dense;    /* first_k_dense_replace: layers below have a dense MLP */
    int moe_layer_freq; /* of the others, those divisible by this have experts */

    double rms_eps; /* all norms but q_a and kv_a, which use MODEL_LORA_NORM_EPS */
    struct model_rope rope;
    struct model_quant quant;
    bool tie_embeddings; /* lm_head is embed_tokens */

    int eos[MODEL_EOS_MAX]; /* end tokens: generation_config.json's, else config.json's */
    int eos_count;
    int bos; /* -1: none */
};

#define MODEL_LORA_NORM_EPS 1e-6

/* Reads DIR/config.json and, if it is there, DIR/generation_config.json. *cfg is set only on OK. */
enum status model_config_read(const char *dir, struct model_config *cfg);

/* The same from text in memory; `name` stands for the file in messages. generation may be NULL. */
enum status model_config_parse(const char *name, const char *text, size_t bytes,
                               const char *generation, size_t generation_bytes,
                               struct model_config *cfg);

/* Writes DIR/config.json in the hub's spelling and DIR/generation_config.json. */
enum status model_config_write(const char *dir, const struct model_config *cfg);

/* The cross-field rules (bounds, groups, top-k); model_config_parse calls it. */
enum status model_config_validate(const char *name, const struct model_config *cfg);

/* Whether this layer has experts (else a dense MLP). */
bool model_config_layer_is_moe(const struct model_config *cfg, int layer);
int model_config_moe_layers(const struct model_config *cfg);

/* What q k^T is multiplied with: (dim_nope + dim_rope)^-0.5, times yarn's m(factor, all_dim)^2. */
double model_config_softmax_scale(const struct model_config *cfg);

/* What every cos and sin is multiplied with (1 without yarn). */
double model_config_rope_scale(const struct model_config *cfg);

const char *model_gate_name(enum model_gate_kind kind);

#endif
