/* links: core checkpoint */
/* config.json: published files in both spellings, every refusal with its message, sizes of the
 * published models. Rerun alone: make unit-checkpoint_config
 */
#include "unit/checkpoint_fixtures.h"

#include <setjmp.h>

#include <cmocka.h>

#include "checkpoint/model_config.h"
#include "checkpoint/sizes.h"
#include "checkpoint/synth.h"

#include <jansson.h>
#include <math.h>

static struct model_config parse(const char *text)
{
    struct model_config c;
    error_clear();
    enum status st = model_config_parse("dir/config.json", text, strlen(text), NULL, 0, &c);
    if (st != OK) fail_msg("%s", error_text());
    return c;
}

static void near(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("got %.9g, expected %.9g (tolerance used: %.2g)", got, want,
                 fabs(got - want) / tolerance);
}

static void test_v3(void **state)
{
    (void)state;
    struct model_config c = parse(config_v3);
    struct model_sizes z;
    assert_string_equal(c.model_type, "deepseek_v3");
    assert_int_equal(c.gate, MODEL_GATE_SIGMOID_NOAUX);
    assert_true(c.norm_topk && c.rope.yarn && c.rope.interleave && c.rope.truncate);
    assert_true(c.quant.fp8 && !c.quant.ue8m0);
    assert_int_equal(c.q_lora, 1536);
    assert_int_equal(c.eos_count, 1);
    assert_int_equal(c.eos[0], 1);
    near(model_config_softmax_scale(&c) * sqrt(192), 1.874, 1e-3);
    near(model_config_rope_scale(&c), 1.0, 1e-12);
    model_sizes_compute(&c, NULL, &z);
    near((double)z.params_total / 1e9, 671.026, 0.001);
    near((double)z.params_active / 1e9, 37.55, 0.01);
    /* Without the extra prediction layer; one layer's 256 experts are 11.3 B. */
    assert_int_equal(z.params[PART_ROUTED], (int64_t)58 * 256 * 3 * 7168 * 2048);
    assert_int_equal(z.expert_bytes, 3 * 7168 * 2048 + 3 * 4 * (7168 / 128) * (2048 / 128));
}

static void test_v2(void **state)
{
    (void)state;
    struct model_config c = parse(config_v2);
    struct model_sizes z;
    assert_int_equal(c.gate, MODEL_GATE_SOFTMAX_GROUP);
    assert_false(c.norm_topk);
    assert_int_equal(c.topk_group, 3);
    near(c.routed_scale, 16, 0);
    model_sizes_compute(&c, NULL, &z);
    near((double)z.params_total / 1e9, 235.74, 0.01); /* published: 236 B, 21 B active */
    near((double)z.params_active / 1e9, 21.4, 0.1);
}

static void test_v2_lite(void **state)
{
    (void)state;
    struct model_config c = parse(config_v2_lite);
    struct model_sizes z;
    assert_int_equal(c.gate, MODEL_GATE_SOFTMAX_GREEDY);
    assert_int_equal(c.q_lora, 0);
    assert_int_equal(c.eos[0], 100001);
    near(model_config_rope_scale(&c), 1.0, 1e-12);
    model_sizes_compute(&c, NULL, &z);
    near((double)z.params_total / 1e9, 15.706, 0.001); /* published: 15.7 B, 2.4 B active */
    near((double)z.params_active / 1e9, 2.66, 0.01);   /* with both embeddings */
}

static void test_kimi_and_moonlight(void **state)
{
    (void)state;
    struct model_config c = parse(config_kimi_k2);
    struct model_sizes z;
    assert_string_equal(c.model_type, "kimi_k2");
    assert_int_equal(c.n_group, 1);
    near(c.rope.beta_fast, 1, 0);
    near(c.routed_scale, 2.827, 1e-12);
    model_sizes_compute(&c, NULL, &z);
    near((double)z.params_total / 1e12, 1.0264, 0.0005); /* published: 1 T, 32 B active */
    near((double)z.params_active / 1e9, 32.9, 0.1);

    c = parse(config_moonlight);
    assert_false(c.rope.yarn);
    near(c.rope.theta, 50000, 0);
    near(c.rms_eps, 1e-5, 1e-12);
    near(model_config_softmax_scale(&c), 1 / sqrt(192), 1e-12);
    model_sizes_compute(&c, NULL, &z);
    near((double)z.params_total / 1e9, 15.96, 0.01); /* published: 16 B */
}

static void test_saved(void **state)
{
    (void)state;
    struct model_config c = parse(config_v3_saved);
    assert_int_equal(c.gate, MODEL_GATE_SIGMOID_NOAUX); /* from the model type */
    assert_int_equal(c.moe_layer_freq, 1);
    assert_string_equal(c.dtype, "float32");
    near(c.rope.theta, 20000, 0);
    near(c.rope.factor, 8, 0);
    near(c.rope.beta_fast, 32, 0);
    near(c.rope.beta_slow, 1, 0);
    assert_int_equal(c.rope.original_max, 512);
    assert_int_equal(c.eos_count, 2);
    assert_int_equal(c.eos[1], 7);
}

/* A file's fields replaced by those of `edit`; "~" deletes. The caller frees it. */
static char *edited(const char *base, const char *edit)
{
    json_t *o = json_loads(base, 0, NULL), *e = json_loads(edit, 0, NULL);
    const char *key;
    json_t *v;
    assert_non_null(o);
    assert_non_null(e);
    json_object_foreach(e, key, v)
    {
        const char *s = json_string_value(v);
        if (s && strcmp(s, "~") == 0)
            json_object_del(o, key);
        else
            json_object_set(o, key, v);
    }
    char *text = json_dumps(o, 0);
    json_decref(o);
    json_decref(e);
    return text;
}

static struct model_config parse_edited(const char *base, const char *edit)
{
    char *text = edited(base, edit);
    struct model_config c = parse(text);
    free(text);
    return c;
}

/* The three published yarn cases for factor 40, and the fields that change them. */
static void test_yarn(void **state)
{
    static const struct {
        const char *rope;
        double cos_sin, softmax;
    } cases[] = {
        {"\"mscale\": 1, \"mscale_all_dim\": 1", 1.0, 1.874},
        {"\"mscale\": 1, \"mscale_all_dim\": 0.5", 1.156, 1.403},
        {"\"mscale\": 1, \"mscale_all_dim\": 0", 1.369, 1.0},
        {"\"mscale\": 0.5", 1.369, 1.0},
        {"\"mscale\": 1, \"mscale_all_dim\": 1, \"attention_factor\": 0.7", 0.7, 1.874},
        {"\"mscale\": null, \"attention_factor\": null, \"beta_fast\": null", 1.369, 1.0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char edit[256];
        snprintf(edit, sizeof edit,
                 "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40, "
                 "\"original_max_position_embeddings\": 4096, %s}}",
                 cases[i].rope);
        struct model_config c = parse_edited(config_v3, edit);
        near(model_config_rope_scale(&c), cases[i].cos_sin, 6e-4);
        near(model_config_softmax_scale(&c) * sqrt(192), cases[i].softmax, 6e-4);
        near(c.rope.beta_fast, 32, 0);
    }
    struct model_config c = parse_edited(
        config_v3, "{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": null, "
                   "\"original_max_position_embeddings\": 4096, \"truncate\": false}}");
    near(c.rope.factor, 40, 0);
    assert_false(c.rope.truncate);
    c = parse_edited(config_v3, "{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4}}");
    assert_int_equal(c.rope.original_max, 163840);
}

static void test_accepted_variants(void **state)
{
    (void)state;
    struct model_config c = parse_edited(config_v3, "{\"rope_interleave\": false}");
    assert_false(c.rope.interleave);
    c = parse_edited(config_v2, "{\"rope_interleave\": false}");
    assert_true(c.rope.interleave); /* V2 has no other form */
    c = parse_edited(config_v3, "{\"quantization_config\": {\"quant_method\": \"fp8\", "
                                "\"weight_block_size\": [128, 128], \"scale_fmt\": \"ue8m0\"}}");
    assert_true(c.quant.fp8 && c.quant.ue8m0);
    c = parse_edited(config_v2_lite, "{\"topk_method\": \"~\", \"scoring_func\": \"~\", "
                                     "\"n_group\": null, \"topk_group\": null}");
    assert_int_equal(c.gate, MODEL_GATE_SOFTMAX_GREEDY);
    assert_int_equal(c.n_group, 1);
    c = parse_edited(config_v3, "{\"topk_method\": \"~\"}");
    assert_int_equal(c.gate, MODEL_GATE_SIGMOID_NOAUX);
    c = parse_edited(config_v3, "{\"moe_layer_freq\": 2, \"eos_token_id\": null}");
    assert_int_equal(c.eos_count, 0);
    assert_false(model_config_layer_is_moe(&c, 2)); /* below first_k_dense_replace */
    assert_false(model_config_layer_is_moe(&c, 3));
    assert_true(model_config_layer_is_moe(&c, 4));
    assert_int_equal(model_config_moe_layers(&c), 29);
    c = parse_edited(config_v3, "{\"tie_word_embeddings\": true, \"quantization_config\": null}");
    assert_true(c.tie_embeddings && !c.quant.fp8);
}

static void test_refused(void **state)
{
    static const struct {
        const char *base, *edit, *message;
    } cases[] = {
        {"v3", "{\"model_type\": \"llama\"}", "config.json: model_type is \"llama\", expected"},
        {"v3", "{\"model_type\": \"~\"}", "config.json: model_type is missing, expected"},
        {"v3", "{\"model_type\": \"deepseek_v32\"}", "model_type is \"deepseek_v32\""},
        {"v3", "{\"architectures\": [\"DeepseekV3ForSequenceClassification\"]}",
         "architectures is [\"DeepseekV3ForSequenceClassification\"], expected"},
        {"v3", "{\"hidden_size\": \"~\"}", "hidden_size is missing, expected an integer from 1"},
        {"v3", "{\"hidden_size\": \"big\"}", "hidden_size is \"big\", expected an integer"},
        {"v3", "{\"hidden_size\": 7168.5}", "hidden_size is 7168.5, expected an integer"},
        {"v3", "{\"hidden_size\": -1}", "hidden_size is -1, expected an integer from 1"},
        {"v3", "{\"vocab_size\": 4611686018427387904}", "vocab_size is 4611686018427387904"},
        {"v3", "{\"num_hidden_layers\": 0}", "num_hidden_layers is 0"},
        {"v3", "{\"n_routed_experts\": null}", "n_routed_experts is null, expected an integer"},
        {"v3", "{\"q_lora_rank\": \"~\"}", "q_lora_rank is missing, expected an integer or null"},
        {"v3", "{\"qk_rope_head_dim\": 63}", "qk_rope_head_dim is 63, expected an even number"},
        {"v3", "{\"n_group\": 7}", "n_group is 7, expected a divisor of n_routed_experts (256)"},
        {"v3", "{\"n_group\": 256}", "expected at least two"},
        {"v3", "{\"topk_group\": 9}", "topk_group is 9, expected at most n_group (8)"},
        {"v3", "{\"num_experts_per_tok\": 129}",
         "num_experts_per_tok is 129, expected at most 128 (topk_group 4 x 32"},
        {"v3", "{\"attention_bias\": true}", "attention_bias is true, expected false"},
        {"v3", "{\"hidden_act\": \"gelu\"}", "hidden_act is \"gelu\", expected \"silu\""},
        {"v3", "{\"num_key_value_heads\": 8}", "num_key_value_heads is 8, expected"},
        {"v3", "{\"scoring_func\": \"softmax\"}",
         "scoring_func is \"softmax\", expected \"sigmoid\" with topk_method \"noaux_tc\""},
        {"v3", "{\"scoring_func\": \"tanh\"}", "scoring_func is \"tanh\""},
        {"v3", "{\"topk_method\": \"best\"}", "topk_method is \"best\", expected \"noaux_tc\""},
        {"v2", "{\"norm_topk_prob\": true}", "norm_topk_prob is true, expected false"},
        {"v2", "{\"norm_topk_prob\": \"yes\"}", "norm_topk_prob is \"yes\", expected true or"},
        {"v3", "{\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8}}",
         "rope_scaling.type is \"llama3\", expected \"yarn\" or \"default\""},
        {"v3", "{\"rope_scaling\": {\"rope_type\": \"dynamic\"}}",
         "rope_scaling.rope_type is \"dynamic\""},
        {"saved", "{\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 2.0}}",
         "rope_parameters.rope_type is \"linear\""},
        {"v3", "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": \"40\"}}",
         "rope_scaling.factor is \"40\", expected a number"},
        {"v3", "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 0.5}}",
         "yarn's factor is 0.5, expected at least 1"},
        {"v3", "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2, \"beta_fast\": 0.5}}",
         "beta_fast is 0.5, expected at least beta_slow (1)"},
        {"v3", "{\"rope_scaling\": 40}", "rope_scaling is 40, expected an object"},
        {"saved", "{\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}}",
         "rope_parameters.full_attention is"},
        {"v3", "{\"partial_rotary_factor\": 0.5}", "partial_rotary_factor is 0.5, expected 1"},
        {"v3", "{\"rms_norm_eps\": 0}", "rms_norm_eps is 0"},
        {"v3", "{\"quantization_config\": {\"quant_method\": \"compressed-tensors\"}}",
         "quant_method is \"compressed-tensors\" (INT4"},
        {"v3", "{\"quantization_config\": {\"quant_method\": \"gptq\"}}",
         "quantization_config.quant_method is \"gptq\", expected \"fp8\""},
        {"v3", "{\"quantization_config\": {\"quant_method\": \"fp8\"}}",
         "quantization_config.weight_block_size is missing, expected [128, 128]"},
        {"v3",
         "{\"quantization_config\": {\"quant_method\": \"fp8\", "
         "\"weight_block_size\": [64, 128]}}",
         "weight_block_size is [64,128], expected [128, 128]"},
        {"v3", "{\"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e5m2\"}}",
         "quantization_config.fmt is \"e5m2\", expected \"e4m3\""},
        {"v3",
         "{\"quantization_config\": {\"quant_method\": \"fp8\", "
         "\"activation_scheme\": \"static\"}}",
         "activation_scheme is \"static\", expected \"dynamic\""},
        {"v3", "{\"eos_token_id\": \"</s>\"}", "eos_token_id is \"</s>\", expected a token id"},
        {"v3", "{\"eos_token_id\": [1, -2]}", "eos_token_id is [1,-2], expected a token id"},
        {"v3", "{\"eos_token_id\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}",
         "expected at most 16 token ids"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *base = strcmp(cases[i].base, "v2") == 0      ? config_v2
                           : strcmp(cases[i].base, "saved") == 0 ? config_v3_saved
                                                                 : config_v3;
        char *text = edited(base, cases[i].edit);
        struct model_config c = {.vocab = -7};
        error_clear();
        enum status st = model_config_parse("dir/config.json", text, strlen(text), NULL, 0, &c);
        if (st != ERR_INPUT || !strstr(error_text(), cases[i].message) ||
            strncmp(error_text(), "dir/config.json: ", 17) != 0)
            fail_msg("%s: status %d, message: %s\nexpected: %s", cases[i].edit, (int)st,
                     error_text(), cases[i].message);
        assert_int_equal(c.vocab, -7); /* outputs are set only on success */
        free(text);
    }
}

static void test_not_json(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "not JSON"},
        {"{\"hidden_size\": 12", "not JSON"},
        {"[1, 2]", "the top level is not a JSON object"},
        {"{\"a\": 1, \"a\": 2}", "duplicate object key"},
        {"{\"a\": 123456789012345678901234567890}", "too big integer"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config c;
        error_clear();
        enum status st =
            model_config_parse("d/config.json", cases[i].text, strlen(cases[i].text), NULL, 0, &c);
        assert_int_equal(st, ERR_INPUT);
        if (!strstr(error_text(), cases[i].message)) fail_msg("%s", error_text());
    }
}

static void test_generation_config(void **state)
{
    static const struct {
        const char *text;
        int count, first;
    } cases[] = {
        {"{\"eos_token_id\": 163586}", 1, 163586},
        {"{\"eos_token_id\": [5, 6, 7]}", 3, 5},
        {"{\"bos_token_id\": 0}", 1, 1}, /* falls back to config.json's */
        {"{\"eos_token_id\": null}", 1, 1},
    };
    (void)state;
    char *dir = fixture_dir();
    fixture_write(dir, "config.json", config_v3, strlen(config_v3));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config c;
        fixture_write(dir, "generation_config.json", cases[i].text, strlen(cases[i].text));
        assert_int_equal(model_config_read(dir, &c), OK);
        assert_int_equal(c.eos_count, cases[i].count);
        assert_int_equal(c.eos[0], cases[i].first);
    }
    struct model_config c;
    error_clear();
    fixture_write(dir, "generation_config.json", "{\"eos_token_id\": {}}", 20);
    assert_int_equal(model_config_read(dir, &c), ERR_INPUT);
    assert_non_null(strstr(error_text(), "/generation_config.json: eos_token_id is {}"));
    error_clear();
    assert_int_equal(model_config_read("/nonexistent/model", &c), ERR_INPUT);
    assert_non_null(strstr(error_text(), "/nonexistent/model/config.json: cannot open"));
    fixture_remove(dir);
}

/* The presets are the published files; what is written is read back the same. */
static void test_write_read(void **state)
{
    static const struct {
        const char *like, *const *text;
    } cases[] = {{"deepseek-v3", &config_v3},
                 {"deepseek-v2", &config_v2},
                 {"deepseek-v2-lite", &config_v2_lite},
                 {"kimi-k2", &config_kimi_k2},
                 {"moonlight", &config_moonlight}};
    (void)state;
    char *dir = fixture_dir();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config preset, want = parse(*cases[i].text), got;
        assert_int_equal(synth_preset(cases[i].like, &preset), OK);
        snprintf(preset.dtype, sizeof preset.dtype, "%s", want.dtype);
        preset.quant = want.quant;
        want.eos[0] = preset.eos[0]; /* Kimi's base and instruct releases differ */
        assert_int_equal(model_config_write(dir, &preset), OK);
        assert_int_equal(model_config_read(dir, &got), OK);
        assert_int_equal(got.hidden, want.hidden);
        assert_memory_equal(&got.rope, &want.rope, sizeof got.rope);
        assert_memory_equal(&got, &want, sizeof got);
    }
    struct model_config c;
    error_clear();
    assert_int_equal(synth_preset("gpt-2", &c), ERR_USAGE);
    assert_non_null(strstr(error_text(), "--like is \"gpt-2\", expected deepseek-v3"));
    fixture_remove(dir);
}

static void test_rank_sizes(void **state)
{
    (void)state;
    struct model_config c = parse(config_v3);
    struct model_sizes z;
    struct model_rank_sizes r;
    model_sizes_compute(&c, NULL, &z);
    model_sizes_rank(&c, &z, 144, &r);
    assert_int_equal(r.slots, 2);
    assert_int_equal(r.redundant, 32);
    assert_int_equal(r.routed, 2 * 58 * z.expert_bytes);
    model_sizes_rank(&c, &z, 1, &r);
    assert_int_equal(r.redundant, 0);
    assert_int_equal(r.routed + r.replicated, z.bytes_total);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_v3),
        cmocka_unit_test(test_v2),
        cmocka_unit_test(test_v2_lite),
        cmocka_unit_test(test_kimi_and_moonlight),
        cmocka_unit_test(test_saved),
        cmocka_unit_test(test_yarn),
        cmocka_unit_test(test_accepted_variants),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_not_json),
        cmocka_unit_test(test_generation_config),
        cmocka_unit_test(test_write_read),
        cmocka_unit_test(test_rank_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
