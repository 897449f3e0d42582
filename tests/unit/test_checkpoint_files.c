/* links: core checkpoint */
/* Damaged and hostile weight files: one message each. Headers are tried in memory, directories on
 * disk. Rerun alone: make unit-checkpoint_files
 */
#include "unit/checkpoint_fixtures.h"

#include <setjmp.h>

#include <cmocka.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_internal.h"
#include "checkpoint/synth.h"
#include "checkpoint/writer.h"

/* A file image: length, header text, `data` bytes of zeros. length < 0: the text's. */
static enum status parse_image(const char *header, int64_t length, size_t data,
                               struct safetensors *st)
{
    static uint8_t image[1 << 16];
    size_t n = strlen(header);
    uint64_t len = length < 0 ? n : (uint64_t)length;
    memset(image, 0, sizeof image);
    for (int i = 0; i < 8; i++) image[i] = (uint8_t)(len >> (8 * i));
    memcpy(image + 8, header, n);
    error_clear();
    return safetensors_parse("dir/m.safetensors", image, 8 + n + data, st);
}

#define T(name, dtype, shape, from, to)                                                            \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" from "," to "]" \
                                                                                               "}"

static void test_good_header(void **state)
{
    (void)state;
    struct safetensors st;
    enum status s = parse_image(
        "{\"__metadata__\":{\"format\":\"pt\"}," T("b", "BF16", "[2,3]", "8", "20") "," T(
            "a", "F32", "[2]", "0", "8") "," T("e", "F8_E4M3", "[0,4]", "3",
                                               "3") "," T("s", "F8_E8M0", "[]", "20", "21") "}  ",
        -1, 21, &st);
    if (s != OK) fail_msg("%s", error_text());
    assert_int_equal(st.count, 4);
    assert_string_equal(st.tensor[0].name, "a");
    assert_string_equal(st.tensor[1].name, "e");
    assert_string_equal(st.tensor[2].name, "b");
    assert_int_equal(st.tensor[2].dtype, TENSOR_BF16);
    assert_int_equal(st.tensor[2].rank, 2);
    assert_int_equal(st.tensor[2].shape[1], 3);
    assert_int_equal(st.tensor[2].bytes, 12);
    assert_int_equal((const uint8_t *)st.tensor[2].data - (st.map + st.header_bytes), 8);
    assert_int_equal(st.tensor[3].rank, 0);
    assert_int_equal(st.tensor[3].bytes, 1);
    safetensors_close(&st);
}

static void test_bad_headers(void **state)
{
    static const struct {
        const char *header;
        int64_t length;
        size_t data;
        const char *message;
    } cases[] = {
        {"{}", 1000, 0, "header length is 1000, expected at most 2 (the file is truncated)"},
        {"{}", 200000000, 0, "header length is 200000000, expected at most 100000000"},
        {"{}", INT64_MAX, 0, "header length is 9223372036854775807, expected at most 100000000"},
        {"{\"a\":", -1, 0, "not JSON"},
        {"[]", -1, 0, "the top level is not a JSON object"},
        {"{\"a\":1}", -1, 0, "tensor a: entry is not an object"},
        {"{\"a\":{}}", -1, 0, "tensor a: dtype is missing"},
        {"{" T("a", "FP64", "[1]", "0", "8") "}", -1, 8, "tensor a: dtype is \"FP64\", expected"},
        {"{\"a\":{\"dtype\":\"F32\"}}", -1, 8, "tensor a: shape is missing"},
        {"{" T("a", "F32", "[-1]", "0", "4") "}", -1, 4, "tensor a: shape holds something else"},
        {"{" T("a", "F32", "[1.5]", "0", "4") "}", -1, 4, "tensor a: shape holds something else"},
        {"{" T("a", "F32", "[1,1,1,1,1]", "0", "4") "}", -1, 4, "5 dimensions, expected at most"},
        {"{" T("a", "F32", "[4294967296,4294967296]", "0", "4") "}", -1, 4, "overflows 64 bits"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", -1, 4, "data_offsets is not a pair"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", -1, 4, "not a pair"},
        {"{" T("a", "F32", "[1]", "-4", "0") "}", -1, 4, "data_offsets are [-4, 0], expected"},
        {"{" T("a", "F32", "[1]", "4", "0") "}", -1, 4, "data_offsets are [4, 0], expected"},
        {"{" T("a", "F32", "[2]", "0", "8") "}", -1, 4,
         "data_offsets are [0, 8], expected an ascending pair within the file's 4 bytes of data "
         "(is the file truncated?)"},
        {"{" T("a", "F32", "[2]", "0", "4") "}", -1, 8,
         "data_offsets span 4 bytes, expected 8 (F32 [2])"},
        {"{" T("a", "F32", "[2]", "0", "8") "," T("b", "F32", "[2]", "4", "12") "}", -1, 12,
         "tensor b overlaps tensor a"},
        {"{" T("a", "F32", "[1]", "0", "4") "," T("b", "F32", "[1]", "0", "4") "}", -1, 4,
         "overlaps tensor"},
        {"{" T("a", "F32", "[1]", "0", "4") "," T("a", "F32", "[1]", "4", "8") "}", -1, 8,
         "duplicate object key"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct safetensors st;
        enum status s = parse_image(cases[i].header, cases[i].length, cases[i].data, &st);
        if (s != ERR_INPUT || strncmp(error_text(), "dir/m.safetensors: ", 19) != 0 ||
            !strstr(error_text(), cases[i].message))
            fail_msg("%s: status %d, message: %s\nexpected: %s", cases[i].header, (int)s,
                     error_text(), cases[i].message);
    }
    struct safetensors st;
    error_clear();
    assert_int_equal(safetensors_parse("f", "1234", 4, &st), ERR_INPUT);
    assert_non_null(strstr(error_text(), "f: 4 bytes, expected at least 8"));
}

static void expect_same_tensors(const struct safetensors *a, const struct safetensors *b)
{
    assert_int_equal(a->count, b->count);
    for (int i = 0; i < a->count; i++) {
        const struct tensor_view *x = &a->tensor[i], *y = &b->tensor[i];
        assert_string_equal(x->name, y->name);
        assert_int_equal(x->dtype, y->dtype);
        assert_int_equal(x->rank, y->rank);
        assert_memory_equal(x->shape, y->shape, sizeof x->shape);
        assert_ptr_equal(x->data, y->data);
        assert_int_equal(x->bytes, y->bytes);
    }
}

/* The scan takes the usual form, leaves everything else to the parser, and never disagrees. */
static void test_scan(void **state)
{
    static const struct {
        const char *header;
        bool scanned;
    } cases[] = {
        {"{}", true},
        {" { } \n", true},
        {"{\"__metadata__\":{\"format\":\"pt\",\"q\":\"\\u00e9 \\\"\"}," T("a", "F32", "[2]", "0",
                                                                           "8") "}",
         true},
        {"{\"__metadata__\": {} }", true},
        {"{" T("b", "BF16", "[2,3]", "8", "20") " , " T("a", "F32", "[ 2 ]", " 0 ", "8") "}  ",
         true},
        {"{" T("", "U8", "[]", "0", "1") "," T("e", "F8_E4M3", "[0,4,7,1]", "3", "3") "}", true},
        {"{\"a\":{\"shape\":[2],\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", false},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", false},
        {"{" T("\xc3\xa9", "U8", "[1]", "0", "1") "}", false},
        {"{" T("a\\nb", "U8", "[1]", "0", "1") "}", false},
        {"{" T("a", "U8", "[1]", "0", "1") ",\"__metadata__\":{}}", false},
        {"{" T("a", "F32", "[2]", "0", "8") "," T("a", "F32", "[2]", "8", "16") "}", false},
        {"{" T("a", "F32", "[02]", "0", "8") "}", false},
        {"{" T("a", "F32", "[2.0]", "0", "8") "}", false},
        {"{" T("a", "F32", "[2,]", "0", "8") "}", false},
        {"{" T("a", "F32", "[2]", "0", "8") ",}", false},
        {"{" T("a", "F32", "[2]", "0", "8") "} {", false},
        {"{" T("a", "F32", "[2]", "-0", "8") "}", false},
        {"{" T("a", "U8", "[9999999999999999999,0]", "0", "0") "}", false},
        {"{" T("a", "F32", "[2]", "24", "32") "}", false}, /* beyond the data */
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t image[512] = {0};
        size_t n = strlen(cases[i].header), bytes = 8 + n + 28;
        image[0] = (uint8_t)n;
        image[1] = (uint8_t)(n >> 8);
        memcpy(image + 8, cases[i].header, n);
        struct safetensors s = {.path = (char[]){"f"},
                                .map = image,
                                .map_bytes = bytes,
                                .header_bytes = 8 + n},
                           a, b;
        if (safetensors_scan(&s) != cases[i].scanned) fail_msg("scanned: %s", cases[i].header);
        free(s.tensor);
        free(s.names);
        error_clear();
        enum status sa = safetensors_parse("f", image, bytes, &a);
        char *text = strdup(error_text());
        error_clear();
        enum status sb = safetensors_parse_json("f", image, bytes, &b);
        assert_int_equal(sa, sb);
        assert_string_equal(text, error_text());
        free(text);
        if (sa != OK) continue;
        expect_same_tensors(&a, &b);
        safetensors_close(&a);
        safetensors_close(&b);
    }
}

/* A small V3: dense layer 0, MoE layer 1. */
static struct model_config tiny(void)
{
    struct model_config c;
    assert_int_equal(synth_preset("deepseek-v3", &c), OK);
    c.vocab = 40;
    c.hidden = 24;
    c.layers = 2;
    c.heads = 2;
    c.q_lora = 20;
    c.kv_lora = 16;
    c.dim_nope = c.dim_v = 8;
    c.dim_rope = 4;
    c.intermediate = 32;
    c.moe_intermediate = 12;
    c.experts = 16;
    c.topk = 2;
    c.first_dense = 1;
    return c;
}

static char *make_tiny(enum tensor_dtype dtype, int shards)
{
    struct model_config c = tiny();
    struct synth_options opt = {.dtype = dtype, .shards = shards, .threads = 1};
    size_t bytes = 0;
    char *dir = fixture_dir();
    error_clear();
    if (synth_write(dir, &c, &opt, &bytes) != OK) fail_msg("%s", error_text());
    return dir;
}

static void expect_open_error(const char *dir, const char *message)
{
    struct checkpoint *ck = NULL;
    error_clear();
    enum status st = checkpoint_open(dir, &ck);
    if (st != ERR_INPUT || ck || !strstr(error_text(), message))
        fail_msg("status %d, message: %s\nexpected: %s", (int)st, error_text(), message);
}

static void path_of(const char *dir, const char *name, char path[512])
{
    snprintf(path, 512, "%s/%s", dir, name);
}

static void replace_in_file(const char *dir, const char *name, const char *from, const char *to)
{
    char path[512], *text, *at;
    path_of(dir, name, path);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    text = calloc(1, 1 << 20);
    size_t n = fread(text, 1, (1 << 20) - 1, f);
    fclose(f);
    at = strstr(text, from);
    assert_non_null(at);
    FILE *out = fopen(path, "wb");
    fwrite(text, 1, (size_t)(at - text), out);
    fputs(to, out);
    fwrite(at + strlen(from), 1, n - (size_t)(at - text) - strlen(from), out);
    fclose(out);
    free(text);
}

static void test_directories(void **state)
{
    static const char *const index = "model.safetensors.index.json";
    static const char *const second = "model-00002-of-00003.safetensors";
    (void)state;
    char path[512], *dir = make_tiny(TENSOR_BF16, 3);
    struct checkpoint *ck = NULL;
    assert_int_equal(checkpoint_open(dir, &ck), OK);
    assert_int_equal(checkpoint_file_count(ck), 3);
    assert_int_equal(checkpoint_validate(ck), OK);
    checkpoint_close(ck);

    path_of(dir, second, path);
    assert_int_equal(truncate(path, 5), 0);
    expect_open_error(dir, "00002-of-00003.safetensors: 5 bytes, expected at least 8");
    unlink(path);
    expect_open_error(dir, "model-00002-of-00003.safetensors: cannot open: No such file");
    fixture_remove(dir);

    dir = make_tiny(TENSOR_BF16, 3);
    path_of(dir, second, path);
    truncate(path, 4000);
    expect_open_error(dir, "truncated");
    fixture_remove(dir);

    dir = make_tiny(TENSOR_BF16, 3);
    replace_in_file(dir, index, second, "../weights.safetensors");
    expect_open_error(dir, "is \"../weights.safetensors\", expected the name of a file in this");
    replace_in_file(dir, index, "../weights.safetensors", "/etc/passwd");
    expect_open_error(dir, "is \"/etc/passwd\", expected the name of a file in this directory");
    replace_in_file(dir, index, "\"/etc/passwd\"", "17");
    expect_open_error(dir, "is \"not a string\"");
    fixture_remove(dir);

    dir = make_tiny(TENSOR_BF16, 3);
    replace_in_file(dir, index, "\"model.norm.weight\"", "\"model.gone.weight\"");
    expect_open_error(dir, "tensor model.gone.weight should be in model-00003-of-00003."
                           "safetensors, found it nowhere");
    replace_in_file(dir, index, "\"weight_map\"", "\"weights\"");
    expect_open_error(dir, "index.json: weight_map is missing or not an object");
    path_of(dir, index, path);
    unlink(path);
    expect_open_error(dir, ": neither model.safetensors nor model.safetensors.index.json is here");
    path_of(dir, "config.json", path);
    unlink(path);
    expect_open_error(dir, "/config.json: cannot open");
    fixture_remove(dir);
}

/* The same tensor in two shards. */
static void test_duplicate(void **state)
{
    static const char h[] = "{" T("a", "U8", "[1]", "0", "1") "}";
    static const char index[] = "{\"weight_map\":{\"a\":\"x.safetensors\","
                                "\"b\":\"y.safetensors\"}}";
    (void)state;
    char *dir = fixture_dir(), image[256] = {(char)(sizeof h - 1)};
    memcpy(image + 8, h, sizeof h);
    fixture_write(dir, "config.json", config_v3, strlen(config_v3));
    fixture_write(dir, "x.safetensors", image, 8 + sizeof h);
    fixture_write(dir, "y.safetensors", image, 8 + sizeof h);
    fixture_write(dir, "model.safetensors.index.json", index, strlen(index));
    expect_open_error(dir, "/y.safetensors: tensor a is also in");
    fixture_remove(dir);
}

/* ---- validation: the tensors of `tiny` with one of them changed ---- */

struct change {
    const char *name; /* which tensor; "name_scale_inv" for its scales */
    bool drop;
    int dtype;    /* -1: as it is */
    int64_t rows; /* 0: as it is */
    const char *message;
};

struct build {
    struct writer *w;
    const struct change *change;
    bool fp8;
};

static void declare(struct build *b, const char *name, enum tensor_dtype dtype, int rank,
                    const int64_t *shape)
{
    int id;
    int64_t s[2] = {shape[0], rank == 2 ? shape[1] : 1};
    if (b->change && strcmp(b->change->name, name) == 0) {
        if (b->change->drop) return;
        if (b->change->dtype >= 0) dtype = (enum tensor_dtype)b->change->dtype;
        if (b->change->rows) s[0] = b->change->rows;
    }
    assert_int_equal(writer_declare(b->w, name, dtype, rank, s, &id), OK);
}

static enum status declare_spec(void *ctx, const struct tensor_spec *s)
{
    struct build *b = ctx;
    char scale[TENSOR_NAME_MAX];
    bool fp8 = b->fp8 && s->fp8_allowed;
    declare(b, s->name, fp8 ? TENSOR_E4M3 : TENSOR_BF16, s->rank, s->shape);
    if (!fp8) return OK;
    int64_t blocks[2] = {(s->shape[0] + 127) / 128, (s->shape[1] + 127) / 128};
    tensor_scale_name(s->name, scale);
    declare(b, scale, TENSOR_F32, 2, blocks);
    return OK;
}

static enum status validate_changed(const struct model_config *cfg, bool fp8,
                                    const struct change *change)
{
    char *dir = fixture_dir();
    struct build b = {.change = change, .fp8 = fp8};
    struct checkpoint *ck = NULL;
    int id;
    assert_int_equal(writer_create(dir, &b.w), OK);
    assert_int_equal(tensor_specs_visit(cfg, declare_spec, &b), OK);
    /* What real files carry beyond the table. */
    assert_int_equal(
        writer_declare(b.w, "model.layers.9.mlp.gate.weight", TENSOR_I64, 1, (int64_t[]){3}, &id),
        OK);
    assert_int_equal(writer_declare(b.w, "model.layers.0.self_attn.rotary_emb.inv_freq", TENSOR_F32,
                                    1, (int64_t[]){2}, &id),
                     OK);
    assert_int_equal(writer_begin(b.w, 1), OK);
    assert_int_equal(writer_finish(b.w), OK);
    writer_close(b.w);
    assert_int_equal(model_config_write(dir, cfg), OK);
    error_clear();
    enum status st = checkpoint_open(dir, &ck);
    if (st == OK) st = checkpoint_validate(ck);
    checkpoint_close(ck);
    fixture_remove(dir);
    return st;
}

static void test_validate(void **state)
{
    static const struct change bf16[] = {
        {"lm_head.weight", true, -1, 0,
         "tensor lm_head.weight is missing, expected [40, 24] (tie_word_embeddings is false)"},
        {"model.layers.1.mlp.gate.e_score_correction_bias", true, -1, 0,
         "e_score_correction_bias is missing, expected [16]: a sigmoid gate chooses with it"},
        {"model.layers.1.mlp.experts.15.down_proj.weight", true, -1, 0,
         "tensor model.layers.1.mlp.experts.15.down_proj.weight is missing, expected [24, 12]"},
        {"model.layers.0.mlp.up_proj.weight", false, -1, 31,
         "model.safetensors: tensor model.layers.0.mlp.up_proj.weight: shape is [31, 24], "
         "expected [32, 24]"},
        {"model.norm.weight", false, TENSOR_I16, 0,
         "tensor model.norm.weight: dtype is I16, expected BF16, F16 or F32"},
        {"model.embed_tokens.weight", false, TENSOR_E4M3, 0,
         "tensor model.embed_tokens.weight: dtype is F8_E4M3, expected BF16, F16 or F32"},
        {"model.layers.0.self_attn.o_proj.weight", false, TENSOR_E5M2, 0,
         "dtype is F8_E5M2, expected BF16, F16, F32 or F8_E4M3 with block scales"},
        {"model.layers.0.self_attn.o_proj.weight", false, TENSOR_E4M3, 0,
         "dtype is F8_E4M3 but model.layers.0.self_attn.o_proj.weight_scale_inv is missing"},
    };
    static const struct change fp8[] = {
        {"model.layers.0.self_attn.kv_b_proj.weight_scale_inv", true, -1, 0,
         "kv_b_proj.weight: dtype is F8_E4M3 but"},
        {"model.layers.0.self_attn.kv_b_proj.weight_scale_inv", false, TENSOR_BF16, 0,
         "kv_b_proj.weight_scale_inv: dtype is BF16, expected F32, F8_E8M0 or U8"},
        {"model.layers.0.self_attn.kv_b_proj.weight_scale_inv", false, -1, 2,
         "kv_b_proj.weight_scale_inv: shape is [2, 1], expected [1, 1]"},
        {"model.layers.1.mlp.shared_experts.up_proj.weight", false, TENSOR_BF16, 0,
         "up_proj.weight: dtype is BF16, expected F8_E4M3 ("},
    };
    (void)state;
    struct model_config c = tiny();
    if (validate_changed(&c, false, NULL) != OK) fail_msg("%s", error_text());
    if (validate_changed(&c, true, NULL) != OK) fail_msg("%s", error_text());
    for (size_t i = 0; i < sizeof bf16 / sizeof *bf16 + sizeof fp8 / sizeof *fp8; i++) {
        bool is_fp8 = i >= sizeof bf16 / sizeof *bf16;
        const struct change *ch = is_fp8 ? &fp8[i - sizeof bf16 / sizeof *bf16] : &bf16[i];
        enum status st = validate_changed(&c, is_fp8, ch);
        if (st != ERR_INPUT || !strstr(error_text(), ch->message))
            fail_msg("%s: status %d, message: %s\nexpected: %s", ch->name, (int)st, error_text(),
                     ch->message);
    }
    /* U8 scales hold the same bits as F8_E8M0; a tied model needs no head, a softmax gate no
     * bias, q_lora null a q_proj. */
    struct change u8 = {"model.layers.0.self_attn.kv_b_proj.weight_scale_inv", false, TENSOR_U8, 0,
                        NULL};
    assert_int_equal(validate_changed(&c, true, &u8), OK);
    c.tie_embeddings = true;
    struct change no_head = {"lm_head.weight", true, -1, 0, NULL};
    assert_int_equal(validate_changed(&c, false, &no_head), OK);
    c = tiny();
    c.q_lora = 0;
    c.gate = MODEL_GATE_SOFTMAX_GROUP;
    c.norm_topk = false;
    assert_int_equal(validate_changed(&c, false, NULL), OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_header), cmocka_unit_test(test_bad_headers),
        cmocka_unit_test(test_scan),        cmocka_unit_test(test_directories),
        cmocka_unit_test(test_duplicate),   cmocka_unit_test(test_validate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
