/* model_config_write.c - struct model_config as config.json in the hub's spelling, and
 * generation_config.json.
 */
#include "checkpoint/model_config.h"
#include "checkpoint/writer.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* 15 digits give back every number a person wrote. */
enum { JSON_STYLE = JSON_INDENT(2) | JSON_REAL_PRECISION(15) };

static json_t *eos_json(const struct model_config *c)
{
    if (c->eos_count == 0) return json_null();
    if (c->eos_count == 1) return json_integer(c->eos[0]);
    json_t *list = json_array();
    for (int i = 0; i < c->eos_count; i++) json_array_append_new(list, json_integer(c->eos[i]));
    return list;
}

static json_t *rope_json(const struct model_rope *r)
{
    if (!r->yarn) return json_null();
    json_t *o = json_pack("{s:s, s:f, s:i, s:f, s:f}", "type", "yarn", "factor", r->factor,
                          "original_max_position_embeddings", r->original_max, "beta_fast",
                          r->beta_fast, "beta_slow", r->beta_slow);
    if (r->has_mscale) json_object_set_new(o, "mscale", json_real(r->mscale));
    if (r->has_mscale_all_dim)
        json_object_set_new(o, "mscale_all_dim", json_real(r->mscale_all_dim));
    if (r->has_attention_factor)
        json_object_set_new(o, "attention_factor", json_real(r->attention_factor));
    if (!r->truncate) json_object_set_new(o, "truncate", json_false());
    return o;
}

static json_t *quant_json(const struct model_quant *q)
{
    json_t *o = json_pack("{s:s, s:s, s:s, s:[i, i]}", "quant_method", "fp8", "fmt", "e4m3",
                          "activation_scheme", "dynamic", "weight_block_size", 128, 128);
    if (q->ue8m0) json_object_set_new(o, "scale_fmt", json_string("ue8m0"));
    return o;
}

static json_t *config_json(const struct model_config *c)
{
    bool v2 = strcmp(c->model_type, "deepseek_v2") == 0;
    bool sigmoid = c->gate == MODEL_GATE_SIGMOID_NOAUX;
    const char *method = sigmoid                                ? "noaux_tc"
                         : c->gate == MODEL_GATE_SOFTMAX_GREEDY ? "greedy"
                                                                : "group_limited_greedy";
    json_t *o = json_pack(
        "{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}",
        "architectures", v2 ? "DeepseekV2ForCausalLM" : "DeepseekV3ForCausalLM", "model_type",
        c->model_type, "vocab_size", c->vocab, "hidden_size", c->hidden, "num_hidden_layers",
        c->layers, "num_attention_heads", c->heads, "num_key_value_heads", c->heads, "kv_lora_rank",
        c->kv_lora, "qk_nope_head_dim", c->dim_nope, "qk_rope_head_dim", c->dim_rope, "v_head_dim",
        c->dim_v, "intermediate_size", c->intermediate, "moe_intermediate_size",
        c->moe_intermediate, "n_routed_experts", c->experts, "n_shared_experts", c->shared_experts,
        "num_experts_per_tok", c->topk, "max_position_embeddings", c->max_positions);
    if (!o) return NULL;
    json_object_set_new(o, "q_lora_rank", c->q_lora ? json_integer(c->q_lora) : json_null());
    json_object_set_new(o, "n_group", json_integer(c->n_group));
    json_object_set_new(o, "topk_group", json_integer(c->topk_group));
    json_object_set_new(o, "topk_method", json_string(method));
    json_object_set_new(o, "scoring_func", json_string(sigmoid ? "sigmoid" : "softmax"));
    json_object_set_new(o, "norm_topk_prob", json_boolean(c->norm_topk));
    json_object_set_new(o, "routed_scaling_factor", json_real(c->routed_scale));
    json_object_set_new(o, "first_k_dense_replace", json_integer(c->first_dense));
    json_object_set_new(o, "moe_layer_freq", json_integer(c->moe_layer_freq));
    json_object_set_new(o, "num_nextn_predict_layers", json_integer(0));
    json_object_set_new(o, "hidden_act", json_string("silu"));
    json_object_set_new(o, "attention_bias", json_false());
    json_object_set_new(o, "rms_norm_eps", json_real(c->rms_eps));
    json_object_set_new(o, "rope_theta", json_real(c->rope.theta));
    json_object_set_new(o, "rope_scaling", rope_json(&c->rope));
    if (!c->rope.interleave) json_object_set_new(o, "rope_interleave", json_false());
    json_object_set_new(o, "tie_word_embeddings", json_boolean(c->tie_embeddings));
    json_object_set_new(o, "bos_token_id", c->bos < 0 ? json_null() : json_integer(c->bos));
    json_object_set_new(o, "eos_token_id", eos_json(c));
    if (*c->dtype) json_object_set_new(o, "torch_dtype", json_string(c->dtype));
    if (c->quant.fp8) json_object_set_new(o, "quantization_config", quant_json(&c->quant));
    return o;
}

static enum status write_json(const char *dir, const char *name, json_t *o)
{
    char *text = o ? json_dumps(o, JSON_STYLE) : NULL;
    json_decref(o);
    if (!text) return error_set(ERR_RESOURCE, "%s: no memory to write %s", dir, name);
    enum status st = writer_text_file(dir, name, text);
    free(text);
    return st;
}

enum status model_config_write(const char *dir, const struct model_config *c)
{
    json_t *gen = json_pack("{s:b, s:o}", "_from_model_config", 1, "eos_token_id", eos_json(c));
    TRY(write_json(dir, "generation_config.json", gen));
    return write_json(dir, "config.json", config_json(c));
}
