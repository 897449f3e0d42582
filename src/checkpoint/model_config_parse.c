/* model_config_parse.c - config.json and generation_config.json into struct model_config: the
 * hub's spelling, transformers 5's, and what is refused.
 */
#include "checkpoint/json_field.h"
#include "checkpoint/model_config.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_BYTES_MAX = 16 << 20 };

/* Integers: name, place, bounds. The bounds keep every product of dimensions far below 2^63 and
 * every row count below 2^31. */
struct int_field {
    const char *name;
    size_t offset;
    int min, max;
    bool required;
};
#define INT_FIELD(json, member, min, max, required)                     \
    {                                                                   \
        json, offsetof(struct model_config, member), min, max, required \
    }

static const struct int_field int_fields[] = {
    INT_FIELD("vocab_size", vocab, 1, 1 << 24, true),
    INT_FIELD("hidden_size", hidden, 1, 1 << 18, true),
    INT_FIELD("num_hidden_layers", layers, 1, 1024, true),
    INT_FIELD("num_attention_heads", heads, 1, 4096, true),
    INT_FIELD("q_lora_rank", q_lora, 1, 1 << 16, false),
    INT_FIELD("kv_lora_rank", kv_lora, 1, 1 << 16, true),
    INT_FIELD("qk_nope_head_dim", dim_nope, 1, 1 << 13, true),
    INT_FIELD("qk_rope_head_dim", dim_rope, 2, 1 << 13, true),
    INT_FIELD("v_head_dim", dim_v, 1, 1 << 13, true),
    INT_FIELD("intermediate_size", intermediate, 1, 1 << 20, true),
    INT_FIELD("moe_intermediate_size", moe_intermediate, 1, 1 << 18, true),
    INT_FIELD("n_routed_experts", experts, 1, 1 << 12, true),
    INT_FIELD("n_shared_experts", shared_experts, 1, 64, true),
    INT_FIELD("num_experts_per_tok", topk, 1, 256, true),
    INT_FIELD("n_group", n_group, 1, 1 << 12, false),
    INT_FIELD("topk_group", topk_group, 1, 1 << 12, false),
    INT_FIELD("first_k_dense_replace", first_dense, 0, 1024, false),
    INT_FIELD("moe_layer_freq", moe_layer_freq, 1, 1024, false),
    INT_FIELD("max_position_embeddings", max_positions, 1, 1 << 28, true),
    INT_FIELD("bos_token_id", bos, 0, INT_MAX, false),
};

static enum status parse_ints(const struct json_source *src, struct model_config *c)
{
    for (size_t i = 0; i < sizeof int_fields / sizeof *int_fields; i++) {
        const struct int_field *f = &int_fields[i];
        int *out = (int *)((char *)c + f->offset);
        TRY(json_field_int(src, f->name, f->min, f->max, f->required, out));
    }
    /* null says "one full-rank q_proj"; without the key the reference would assume 1536. */
    if (!json_object_get(src->object, "q_lora_rank"))
        return json_field_error(src, "q_lora_rank", "an integer or null");
    return OK;
}

static enum status parse_type(const struct json_source *src, struct model_config *c)
{
    static const char *const types[] = {"deepseek_v2", "deepseek_v3", "kimi_k2"};
    static const char *const classes[] = {"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM",
                                          "KimiK2ForCausalLM"};
    static const char expected[] = "\"deepseek_v2\", \"deepseek_v3\" or \"kimi_k2\"";
    const char *type = NULL;
    TRY(json_field_string(src, "model_type", &type));
    bool known = false;
    for (int i = 0; i < 3 && type; i++) known |= strcmp(type, types[i]) == 0;
    if (!known) return json_field_error(src, "model_type", "%s", expected);
    snprintf(c->model_type, sizeof c->model_type, "%s", type);

    json_t *archs = json_field(src, "architectures");
    if (!archs) return OK;
    known = false;
    for (size_t i = 0; i < json_array_size(archs); i++) {
        const char *a = json_string_value(json_array_get(archs, i));
        for (int k = 0; k < 3 && a; k++) known |= strcmp(a, classes[k]) == 0;
    }
    if (!known)
        return json_field_error(src, "architectures",
                                "DeepseekV2ForCausalLM or DeepseekV3ForCausalLM");
    return OK;
}

/* Variants of the architecture that would need other arithmetic. */
static enum status refuse_variants(const struct json_source *src, const struct model_config *c)
{
    static const char *const must_be_false[] = {"attention_bias", "mlp_bias"};
    for (int i = 0; i < 2; i++) {
        bool on = false;
        TRY(json_field_bool(src, must_be_false[i], &on));
        if (on) return json_field_error(src, must_be_false[i], "false (no bias is supported)");
    }
    const char *act = "silu";
    TRY(json_field_string(src, "hidden_act", &act));
    if (strcmp(act, "silu") != 0) return json_field_error(src, "hidden_act", "\"silu\"");
    int kv_heads = c->heads;
    TRY(json_field_int(src, "num_key_value_heads", 1, 4096, false, &kv_heads));
    if (kv_heads != c->heads)
        return json_field_error(src, "num_key_value_heads",
                                "num_attention_heads (%d): latent attention has no groups",
                                c->heads);
    double rotary = 1;
    TRY(json_field_real(src, "partial_rotary_factor", 0, 1, NULL, &rotary));
    if (rotary != 1) return json_field_error(src, "partial_rotary_factor", "1");
    return OK;
}

/* topk_method and scoring_func decide, else the model type. */
static enum status parse_gate(const struct json_source *src, struct model_config *c)
{
    const char *method = NULL, *score = NULL;
    bool v2 = strcmp(c->model_type, "deepseek_v2") == 0;
    TRY(json_field_string(src, "topk_method", &method));
    TRY(json_field_string(src, "scoring_func", &score));
    if (score && strcmp(score, "sigmoid") != 0 && strcmp(score, "softmax") != 0)
        return json_field_error(src, "scoring_func", "\"sigmoid\" or \"softmax\"");
    if (!method) {
        bool sigmoid = score ? strcmp(score, "sigmoid") == 0 : !v2;
        method = sigmoid ? "noaux_tc" : "greedy";
    }
    if (strcmp(method, "noaux_tc") == 0)
        c->gate = MODEL_GATE_SIGMOID_NOAUX;
    else if (strcmp(method, "greedy") == 0)
        c->gate = MODEL_GATE_SOFTMAX_GREEDY;
    else if (strcmp(method, "group_limited_greedy") == 0)
        c->gate = MODEL_GATE_SOFTMAX_GROUP;
    else
        return json_field_error(src, "topk_method",
                                "\"noaux_tc\", \"greedy\" or \"group_limited_greedy\"");
    const char *needs = c->gate == MODEL_GATE_SIGMOID_NOAUX ? "sigmoid" : "softmax";
    if (score && strcmp(score, needs) != 0)
        return json_field_error(src, "scoring_func", "\"%s\" with topk_method \"%s\"", needs,
                                method);

    bool sigmoid = c->gate == MODEL_GATE_SIGMOID_NOAUX;
    c->norm_topk = sigmoid;
    TRY(json_field_bool(src, "norm_topk_prob", &c->norm_topk));
    if (!sigmoid && c->norm_topk)
        return json_field_error(src, "norm_topk_prob",
                                "false: no reference defines it for a softmax gate");
    c->routed_scale = sigmoid ? 2.5 : 1.0;
    TRY(json_field_real(src, "routed_scaling_factor", 0, 1e6, NULL, &c->routed_scale));
    /* A greedy gate never looks at groups. */
    if (c->gate == MODEL_GATE_SOFTMAX_GREEDY) c->n_group = c->topk_group = 1;
    return OK;
}

static enum status parse_yarn(const struct json_source *src, struct model_config *c)
{
    struct model_rope *r = &c->rope;
    TRY(json_field_real(src, "factor", 0, 1e6, NULL, &r->factor));
    TRY(json_field_real(src, "beta_fast", -1, 1e6, NULL, &r->beta_fast));
    TRY(json_field_real(src, "beta_slow", -1, 1e6, NULL, &r->beta_slow));
    /* The reference reads 0 as "not given". */
    if (r->beta_fast == 0) r->beta_fast = 32;
    if (r->beta_slow == 0) r->beta_slow = 1;
    if (r->beta_fast < 0) return json_field_error(src, "beta_fast", "a positive number");
    if (r->beta_slow < 0) return json_field_error(src, "beta_slow", "a positive number");
    TRY(json_field_real(src, "mscale", -1e6, 1e6, &r->has_mscale, &r->mscale));
    TRY(json_field_real(src, "mscale_all_dim", -1e6, 1e6, &r->has_mscale_all_dim,
                        &r->mscale_all_dim));
    TRY(json_field_real(src, "attention_factor", 0, 1e6, &r->has_attention_factor,
                        &r->attention_factor));
    TRY(json_field_bool(src, "truncate", &r->truncate));
    return json_field_int(src, "original_max_position_embeddings", 1, 1 << 28, false,
                          &r->original_max);
}

static enum status parse_rope(const struct json_source *src, struct model_config *c)
{
    struct model_rope *r = &c->rope;
    TRY(json_field_bool(src, "rope_interleave", &r->interleave));
    if (strcmp(c->model_type, "deepseek_v2") == 0) r->interleave = true; /* V2 has no other form */
    TRY(json_field_real(src, "rope_theta", 1, 1e12, NULL, &r->theta));

    /* rope_scaling, the older name, wins where a file has both, as in the reference. */
    struct json_source in = {src->file, "rope_scaling.", NULL};
    TRY(json_field_object(src, "rope_scaling", &in.object));
    if (!in.object || json_object_size(in.object) == 0) {
        in.prefix = "rope_parameters.";
        TRY(json_field_object(src, "rope_parameters", &in.object));
    }
    const char *type = "default";
    if (in.object) {
        TRY(json_field_string(&in, "type", &type));
        TRY(json_field_string(&in, "rope_type", &type));
        TRY(json_field_real(&in, "rope_theta", 1, 1e12, NULL, &r->theta));
        double rotary = 1;
        TRY(json_field_real(&in, "partial_rotary_factor", 0, 1, NULL, &rotary));
        if (rotary != 1) return json_field_error(&in, "partial_rotary_factor", "1");
        if (json_is_object(json_object_get(in.object, "full_attention")))
            return json_field_error(&in, "full_attention", "one set of numbers for all layers");
    }
    if (strcmp(type, "default") == 0) return OK;
    if (strcmp(type, "yarn") != 0)
        return json_field_error(&in, json_field(&in, "rope_type") ? "rope_type" : "type",
                                "\"yarn\" or \"default\"");
    r->yarn = true;
    r->original_max = c->max_positions;
    TRY(parse_yarn(&in, c));
    TRY(json_field_int(src, "original_max_position_embeddings", 1, 1 << 28, false,
                       &r->original_max));
    if (r->factor == 0) r->factor = (double)c->max_positions / r->original_max;
    return OK;
}

/* The FP8 of DeepSeek-V3: 128 x 128 weight blocks, activations quantised as they come. */
static enum status parse_fp8(const struct json_source *src, struct model_config *c)
{
    const char *fmt = "e4m3", *activations = "dynamic", *scale = "";
    TRY(json_field_string(src, "fmt", &fmt));
    if (strcmp(fmt, "e4m3") != 0) return json_field_error(src, "fmt", "\"e4m3\"");
    TRY(json_field_string(src, "activation_scheme", &activations));
    if (strcmp(activations, "dynamic") != 0)
        return json_field_error(src, "activation_scheme", "\"dynamic\"");
    json_t *block = json_field(src, "weight_block_size");
    if (json_array_size(block) != 2 || json_integer_value(json_array_get(block, 0)) != 128 ||
        json_integer_value(json_array_get(block, 1)) != 128)
        return json_field_error(src, "weight_block_size", "[128, 128]");
    TRY(json_field_string(src, "scale_fmt", &scale));
    if (*scale && strcmp(scale, "ue8m0") != 0 && strcmp(scale, "float") != 0)
        return json_field_error(src, "scale_fmt", "\"ue8m0\" or \"float\"");
    c->quant.fp8 = true;
    c->quant.ue8m0 = strcmp(scale, "ue8m0") == 0;
    return OK;
}

static enum status parse_quant(const struct json_source *src, struct model_config *c)
{
    struct json_source in = {src->file, "quantization_config.", NULL};
    TRY(json_field_object(src, "quantization_config", &in.object));
    if (!in.object) {
        in.prefix = "compression_config.";
        TRY(json_field_object(src, "compression_config", &in.object));
    }
    if (!in.object) return OK;
    const char *method = NULL;
    TRY(json_field_string(&in, "quant_method", &method));
    if (method && strcmp(method, "compressed-tensors") == 0)
        return error_set(ERR_INPUT,
                         "%s: %squant_method is \"compressed-tensors\" (INT4 and other packed "
                         "weights), expected \"fp8\" or none: use the BF16 or FP8 release of this "
                         "model",
                         in.file, in.prefix);
    if (!method || strcmp(method, "fp8") != 0)
        return json_field_error(&in, "quant_method", "\"fp8\" (or no quantization_config)");
    return parse_fp8(&in, c);
}

static enum status parse_eos(const struct json_source *src, struct model_config *c)
{
    json_t *v = json_field(src, "eos_token_id");
    if (!v) return OK;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > MODEL_EOS_MAX)
        return json_field_error(src, "eos_token_id", "at most %d token ids", MODEL_EOS_MAX);
    c->eos_count = 0;
    for (size_t i = 0; i < n; i++) {
        json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        json_int_t x = json_integer_value(id);
        if (!json_is_integer(id) || x < 0 || x > INT_MAX)
            return json_field_error(src, "eos_token_id", "a token id or a list of token ids");
        c->eos[c->eos_count++] = (int)x;
    }
    return OK;
}

static enum status parse_config(const struct json_source *src, struct model_config *c)
{
    TRY(parse_type(src, c));
    c->first_dense = strcmp(c->model_type, "deepseek_v2") == 0 ? 0 : 3;
    TRY(parse_ints(src, c));
    TRY(refuse_variants(src, c));
    TRY(parse_gate(src, c));
    TRY(json_field_real(src, "rms_norm_eps", 0, 1, NULL, &c->rms_eps));
    TRY(json_field_bool(src, "tie_word_embeddings", &c->tie_embeddings));
    TRY(parse_rope(src, c));
    TRY(parse_quant(src, c));
    const char *dtype = "";
    TRY(json_field_string(src, "torch_dtype", &dtype));
    TRY(json_field_string(src, "dtype", &dtype));
    snprintf(c->dtype, sizeof c->dtype, "%s", dtype);
    TRY(parse_eos(src, c));
    return model_config_validate(src->file, c);
}

enum status model_config_parse(const char *name, const char *text, size_t bytes,
                               const char *generation, size_t generation_bytes,
                               struct model_config *cfg)
{
    struct model_config c = {
        .n_group = 1,
        .topk_group = 1,
        .moe_layer_freq = 1,
        .rms_eps = 1e-6,
        .bos = -1,
        .rope = {
            .theta = 10000, .interleave = true, .truncate = true, .beta_fast = 32, .beta_slow = 1}};
    struct json_source src = {name, "", NULL};
    TRY(json_parse_object(name, text, bytes, &src.object));
    enum status st = parse_config(&src, &c);
    json_decref(src.object);
    if (st != OK) return st;

    if (generation) {
        char gen[4096];
        snprintf(gen, sizeof gen, "%.*s/generation_config.json",
                 (int)(strrchr(name, '/') ? strrchr(name, '/') - name : 1),
                 strrchr(name, '/') ? name : ".");
        struct json_source g = {gen, "", NULL};
        TRY(json_parse_object(gen, generation, generation_bytes, &g.object));
        st = parse_eos(&g, &c);
        json_decref(g.object);
    }
    if (st == OK) *cfg = c;
    return st;
}

enum status model_config_read(const char *dir, struct model_config *cfg)
{
    char name[4096], gen_name[4096], *text = NULL, *gen = NULL;
    size_t bytes = 0, gen_bytes = 0;
    int len = snprintf(name, sizeof name, "%s/config.json", dir);
    int gen_len = snprintf(gen_name, sizeof gen_name, "%s/generation_config.json", dir);
    if (len >= (int)sizeof name || gen_len >= (int)sizeof gen_name)
        return error_set(ERR_INPUT, "model directory: path of %zu bytes is too long", strlen(dir));
    enum status st = json_read_file(name, CONFIG_BYTES_MAX, &text, &bytes);
    if (st != OK) return st;
    FILE *f = fopen(gen_name, "rb");
    if (f) {
        fclose(f);
        st = json_read_file(gen_name, CONFIG_BYTES_MAX, &gen, &gen_bytes);
    }
    if (st == OK) st = model_config_parse(name, text, bytes, gen, gen_bytes, cfg);
    free(gen);
    free(text);
    return st;
}
