/* names.c - the table behind names.h. */
#include "checkpoint/names.h"

#include <stdio.h>
#include <string.h>

/* Where a role appears. */
enum place { PLACE_MODEL, PLACE_LAYER, PLACE_DENSE, PLACE_MOE, PLACE_EXPERT };

/* Dimensions a shape is built of. */
enum dim {
    DIM_ONE,
    DIM_VOCAB,
    DIM_HIDDEN,
    DIM_Q_LORA,
    DIM_Q_HEADS,
    DIM_KV_A,
    DIM_KV_LORA,
    DIM_KV_HEADS,
    DIM_V_HEADS,
    DIM_DENSE,
    DIM_SHARED,
    DIM_EXPERT,
    DIM_EXPERTS
};

static const struct {
    const char *name; /* inside "model.layers.L." unless PLACE_MODEL; %d is the expert */
    enum place place;
    enum dim n, k;
    enum tensor_part part;
    bool fp8;
} roles[ROLE_COUNT] = {
#define A "self_attn."
#define E "mlp.experts.%d."
#define S "mlp.shared_experts."
    [ROLE_EMBED] = {"model.embed_tokens.weight", PLACE_MODEL, DIM_VOCAB, DIM_HIDDEN, PART_EMBED, 0},
    [ROLE_FINAL_NORM] = {"model.norm.weight", PLACE_MODEL, DIM_HIDDEN, DIM_ONE, PART_NORM, 0},
    [ROLE_HEAD] = {"lm_head.weight", PLACE_MODEL, DIM_VOCAB, DIM_HIDDEN, PART_HEAD, 0},
    [ROLE_ATTN_NORM] = {"input_layernorm.weight", PLACE_LAYER, DIM_HIDDEN, DIM_ONE, PART_NORM, 0},
    [ROLE_MLP_NORM] = {"post_attention_layernorm.weight", PLACE_LAYER, DIM_HIDDEN, DIM_ONE,
                       PART_NORM, 0},
    [ROLE_Q] = {A "q_proj.weight", PLACE_LAYER, DIM_Q_HEADS, DIM_HIDDEN, PART_ATTENTION, 1},
    [ROLE_Q_A] = {A "q_a_proj.weight", PLACE_LAYER, DIM_Q_LORA, DIM_HIDDEN, PART_ATTENTION, 1},
    [ROLE_Q_A_NORM] = {A "q_a_layernorm.weight", PLACE_LAYER, DIM_Q_LORA, DIM_ONE, PART_NORM, 0},
    [ROLE_Q_B] = {A "q_b_proj.weight", PLACE_LAYER, DIM_Q_HEADS, DIM_Q_LORA, PART_ATTENTION, 1},
    [ROLE_KV_A] = {A "kv_a_proj_with_mqa.weight", PLACE_LAYER, DIM_KV_A, DIM_HIDDEN, PART_ATTENTION,
                   1},
    [ROLE_KV_A_NORM] = {A "kv_a_layernorm.weight", PLACE_LAYER, DIM_KV_LORA, DIM_ONE, PART_NORM, 0},
    [ROLE_KV_B] = {A "kv_b_proj.weight", PLACE_LAYER, DIM_KV_HEADS, DIM_KV_LORA, PART_ATTENTION, 1},
    [ROLE_O] = {A "o_proj.weight", PLACE_LAYER, DIM_HIDDEN, DIM_V_HEADS, PART_ATTENTION, 1},
    [ROLE_DENSE_GATE] = {"mlp.gate_proj.weight", PLACE_DENSE, DIM_DENSE, DIM_HIDDEN, PART_DENSE, 1},
    [ROLE_DENSE_UP] = {"mlp.up_proj.weight", PLACE_DENSE, DIM_DENSE, DIM_HIDDEN, PART_DENSE, 1},
    [ROLE_DENSE_DOWN] = {"mlp.down_proj.weight", PLACE_DENSE, DIM_HIDDEN, DIM_DENSE, PART_DENSE, 1},
    [ROLE_GATE] = {"mlp.gate.weight", PLACE_MOE, DIM_EXPERTS, DIM_HIDDEN, PART_GATE, 0},
    [ROLE_GATE_BIAS] = {"mlp.gate.e_score_correction_bias", PLACE_MOE, DIM_EXPERTS, DIM_ONE,
                        PART_GATE, 0},
    [ROLE_SHARED_GATE] = {S "gate_proj.weight", PLACE_MOE, DIM_SHARED, DIM_HIDDEN, PART_SHARED, 1},
    [ROLE_SHARED_UP] = {S "up_proj.weight", PLACE_MOE, DIM_SHARED, DIM_HIDDEN, PART_SHARED, 1},
    [ROLE_SHARED_DOWN] = {S "down_proj.weight", PLACE_MOE, DIM_HIDDEN, DIM_SHARED, PART_SHARED, 1},
    [ROLE_EXPERT_GATE] = {E "gate_proj.weight", PLACE_EXPERT, DIM_EXPERT, DIM_HIDDEN, PART_ROUTED,
                          1},
    [ROLE_EXPERT_UP] = {E "up_proj.weight", PLACE_EXPERT, DIM_EXPERT, DIM_HIDDEN, PART_ROUTED, 1},
    [ROLE_EXPERT_DOWN] = {E "down_proj.weight", PLACE_EXPERT, DIM_HIDDEN, DIM_EXPERT, PART_ROUTED,
                          1},
#undef A
#undef E
#undef S
};

const char *tensor_part_name(enum tensor_part part)
{
    static const char *const names[PART_COUNT] = {[PART_EMBED] = "embedding",
                                                  [PART_ATTENTION] = "attention",
                                                  [PART_DENSE] = "dense mlp",
                                                  [PART_SHARED] = "shared experts",
                                                  [PART_ROUTED] = "routed experts",
                                                  [PART_GATE] = "gate",
                                                  [PART_NORM] = "norms",
                                                  [PART_HEAD] = "head"};
    return (unsigned)part < PART_COUNT ? names[part] : "?";
}

enum tensor_part tensor_role_part(enum tensor_role role)
{
    return roles[role].part;
}

static int64_t dim_size(const struct model_config *c, enum dim d)
{
    switch (d) {
    case DIM_ONE: return 1;
    case DIM_VOCAB: return c->vocab;
    case DIM_HIDDEN: return c->hidden;
    case DIM_Q_LORA: return c->q_lora;
    case DIM_Q_HEADS: return (int64_t)c->heads * (c->dim_nope + c->dim_rope);
    case DIM_KV_A: return (int64_t)c->kv_lora + c->dim_rope;
    case DIM_KV_LORA: return c->kv_lora;
    case DIM_KV_HEADS: return (int64_t)c->heads * (c->dim_nope + c->dim_v);
    case DIM_V_HEADS: return (int64_t)c->heads * c->dim_v;
    case DIM_DENSE: return c->intermediate;
    case DIM_SHARED: return (int64_t)c->shared_experts * c->moe_intermediate;
    case DIM_EXPERT: return c->moe_intermediate;
    case DIM_EXPERTS: return c->experts;
    }
    return 0;
}

bool tensor_role_present(const struct model_config *c, enum tensor_role role, int layer)
{
    switch (role) {
    case ROLE_HEAD: return !c->tie_embeddings;
    case ROLE_Q: return c->q_lora == 0;
    case ROLE_Q_A:
    case ROLE_Q_A_NORM:
    case ROLE_Q_B: return c->q_lora != 0;
    default: break;
    }
    switch (roles[role].place) {
    case PLACE_MODEL:
    case PLACE_LAYER: return true;
    case PLACE_DENSE: return !model_config_layer_is_moe(c, layer);
    case PLACE_MOE:
        if (role == ROLE_GATE_BIAS && c->gate != MODEL_GATE_SIGMOID_NOAUX) return false;
        return model_config_layer_is_moe(c, layer);
    case PLACE_EXPERT: return model_config_layer_is_moe(c, layer);
    }
    return false;
}

void tensor_spec_make(const struct model_config *c, enum tensor_role role, int layer, int expert,
                      struct tensor_spec *s)
{
    s->role = role;
    s->layer = layer;
    s->expert = expert;
    s->rank = roles[role].k == DIM_ONE ? 1 : 2;
    s->shape[0] = dim_size(c, roles[role].n);
    s->shape[1] = dim_size(c, roles[role].k);
    s->fp8_allowed = roles[role].fp8;
    s->part = roles[role].part;
    int at = 0;
    if (roles[role].place != PLACE_MODEL)
        at = snprintf(s->name, sizeof s->name, "model.layers.%d.", layer);
    if (roles[role].place == PLACE_EXPERT) {
        /* The table's only format: the expert's number. */
        const char *mark = strstr(roles[role].name, "%d");
        snprintf(s->name + at, sizeof s->name - (size_t)at, "%.*s%d%s",
                 (int)(mark - roles[role].name), roles[role].name, expert, mark + 2);
    } else {
        snprintf(s->name + at, sizeof s->name - (size_t)at, "%s", roles[role].name);
    }
}

struct visitor {
    const struct model_config *cfg;
    enum status (*fn)(void *ctx, const struct tensor_spec *spec);
    void *ctx;
};

static enum status visit(const struct visitor *v, enum tensor_role role, int layer, int expert)
{
    struct tensor_spec s;
    if (!tensor_role_present(v->cfg, role, layer)) return OK;
    tensor_spec_make(v->cfg, role, layer, expert, &s);
    return v->fn(v->ctx, &s);
}

enum status tensor_specs_visit(const struct model_config *cfg,
                               enum status (*fn)(void *ctx, const struct tensor_spec *spec),
                               void *ctx)
{
    struct visitor v = {cfg, fn, ctx};
    TRY(visit(&v, ROLE_EMBED, -1, -1));
    for (int l = 0; l < cfg->layers; l++) {
        for (int r = ROLE_ATTN_NORM; r < ROLE_EXPERT_GATE; r++)
            TRY(visit(&v, (enum tensor_role)r, l, -1));
        int experts = model_config_layer_is_moe(cfg, l) ? cfg->experts : 0;
        for (int e = 0; e < experts; e++)
            for (int r = ROLE_EXPERT_GATE; r <= ROLE_EXPERT_DOWN; r++)
                TRY(visit(&v, (enum tensor_role)r, l, e));
    }
    TRY(visit(&v, ROLE_FINAL_NORM, -1, -1));
    return visit(&v, ROLE_HEAD, -1, -1);
}

void tensor_scale_name(const char *weight, char buf[TENSOR_NAME_MAX])
{
    snprintf(buf, TENSOR_NAME_MAX, "%s_scale_inv", weight);
}
