/* names.h - the one table of a checkpoint's tensors: which exist in a layer, how they are called,
 * their shape, what they count as, and whether they may be FP8.
 *
 * Reader, validator, synthetic writer and the sizing tables all walk it. Pure arithmetic over
 * struct model_config.
 */
#ifndef CHECKPOINT_NAMES_H
#define CHECKPOINT_NAMES_H

#include "checkpoint/model_config.h"
#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Every kind of tensor. Shapes are [out, in] as the files hold them. */
enum tensor_role {
    ROLE_EMBED,      /* [vocab, hidden] */
    ROLE_FINAL_NORM, /* [hidden] */
    ROLE_HEAD,       /* [vocab, hidden]; the same tensor as ROLE_EMBED when embeddings are tied */
    ROLE_ATTN_NORM,  /* [hidden] input_layernorm */
    ROLE_MLP_NORM,   /* [hidden] post_attention_layernorm */
    ROLE_Q,          /* [heads * (dim_nope + dim_rope), hidden], only without q_lora */
    ROLE_Q_A,        /* [q_lora, hidden] */
    ROLE_Q_A_NORM,   /* [q_lora] */
    ROLE_Q_B,        /* [heads * (dim_nope + dim_rope), q_lora] */
    ROLE_KV_A,       /* [kv_lora + dim_rope, hidden] */
    ROLE_KV_A_NORM,  /* [kv_lora] */
    ROLE_KV_B,       /* [heads * (dim_nope + dim_v), kv_lora] */
    ROLE_O,          /* [hidden, heads * dim_v] */
    ROLE_DENSE_GATE, /* [intermediate, hidden], dense layers */
    ROLE_DENSE_UP,
    ROLE_DENSE_DOWN,  /* [hidden, intermediate] */
    ROLE_GATE,        /* [experts, hidden], MoE layers */
    ROLE_GATE_BIAS,   /* [experts], sigmoid gates only */
    ROLE_SHARED_GATE, /* [shared_experts * moe_intermediate, hidden] */
    ROLE_SHARED_UP,
    ROLE_SHARED_DOWN, /* [hidden, shared_experts * moe_intermediate] */
    ROLE_EXPERT_GATE, /* [moe_intermediate, hidden], one per expert */
    ROLE_EXPERT_UP,
    ROLE_EXPERT_DOWN, /* [hidden, moe_intermediate] */
    ROLE_COUNT
};

/* What a tensor counts as in size tables. */
enum tensor_part {
    PART_EMBED,
    PART_ATTENTION,
    PART_DENSE,
    PART_SHARED,
    PART_ROUTED,
    PART_GATE,
    PART_NORM,
    PART_HEAD,
    PART_COUNT
};
const char *tensor_part_name(enum tensor_part part);
enum tensor_part tensor_role_part(enum tensor_role role);

enum { TENSOR_NAME_MAX = 128 };

struct tensor_spec {
    enum tensor_role role;
    int layer, expert; /* -1 where they mean nothing */
    int rank;          /* 1 or 2 */
    int64_t shape[2];  /* [n, k]; [n, 1] for rank 1 */
    bool fp8_allowed;  /* a linear: may come as e4m3 with a weight_scale_inv */
    enum tensor_part part;
    char name[TENSOR_NAME_MAX];
};

/* Whether this model has such a tensor in this layer (layer is ignored for the three roles
 * outside layers). A tied head is not there. */
bool tensor_role_present(const struct model_config *cfg, enum tensor_role role, int layer);

/* Fills *spec. layer, expert: -1 where the role has none. */
void tensor_spec_make(const struct model_config *cfg, enum tensor_role role, int layer, int expert,
                      struct tensor_spec *spec);

/* Calls fn for every tensor the model must have, in file order: embedding, layers ascending (in
 * a layer by role, experts ascending with gate, up, down together), final norm, head. Stops at
 * the first failure and returns it. FP8 scales are not visited: they belong to their weight. */
enum status tensor_specs_visit(const struct model_config *cfg,
                               enum status (*fn)(void *ctx, const struct tensor_spec *spec),
                               void *ctx);

/* Name of the scales that make a weight FP8: "<weight name>_scale_inv". */
void tensor_scale_name(const char *weight, char buf[TENSOR_NAME_MAX]);

#endif
