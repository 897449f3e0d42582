/* links: core checkpoint */
/* Random-weight checkpoints: reproducible bytes, what is written is read back, FP8 with ragged
 * blocks, fingerprints; and every checkpoint in tests/golden and inputs/models is valid.
 * Rerun alone: make unit-checkpoint_synth
 */
#include "unit/checkpoint_fixtures.h"

#include <setjmp.h>

#include <cmocka.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/sizes.h"
#include "checkpoint/synth.h"
#include "checkpoint/writer.h"
#include "core/numfmt.h"

#include <glob.h>
#include <math.h>
#include <sys/stat.h>

/* No dimension a multiple of 128: every FP8 matrix has ragged blocks. */
static struct model_config ragged(void)
{
    struct model_config c;
    assert_int_equal(synth_preset("deepseek-v3", &c), OK);
    c.vocab = 300;
    c.hidden = 200;
    c.layers = 2;
    c.heads = 3;
    c.q_lora = 150;
    c.kv_lora = 130;
    c.dim_nope = 48;
    c.dim_v = 40;
    c.dim_rope = 16;
    c.intermediate = 260;
    c.moe_intermediate = 136;
    c.experts = 16;
    c.topk = 2;
    c.first_dense = 1;
    return c;
}

static char *make(struct model_config c, struct synth_options opt)
{
    size_t bytes = 0;
    char *dir = fixture_dir();
    error_clear();
    if (synth_write(dir, &c, &opt, &bytes) != OK) fail_msg("%s", error_text());
    return dir;
}

static struct checkpoint *open_valid(const char *dir)
{
    struct checkpoint *ck = NULL;
    error_clear();
    if (checkpoint_open(dir, &ck) != OK || checkpoint_validate(ck) != OK)
        fail_msg("%s", error_text());
    return ck;
}

static void read_whole(const char *dir, const char *name, char **data, size_t *bytes)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *bytes = (size_t)ftell(f);
    rewind(f);
    *data = malloc(*bytes + 1);
    assert_int_equal(fread(*data, 1, *bytes, f), *bytes);
    fclose(f);
}

static bool same_file(const char *a, const char *b, const char *name)
{
    char *x, *y;
    size_t nx, ny;
    read_whole(a, name, &x, &nx);
    read_whole(b, name, &y, &ny);
    bool same = nx == ny && memcmp(x, y, nx) == 0;
    free(x);
    free(y);
    return same;
}

static void test_reproducible(void **state)
{
    (void)state;
    struct model_config c = ragged();
    struct synth_options opt = {.dtype = TENSOR_BF16, .shards = 1, .seed = 3, .threads = 1};
    c.vocab = 6001; /* more than one chunk of work, odd element counts */
    c.hidden = 201;
    char *one = make(c, opt);
    opt.threads = 4;
    char *four = make(c, opt);
    opt.seed = 4;
    char *other = make(c, opt);
    assert_true(same_file(one, four, "model.safetensors"));
    assert_true(same_file(one, four, "config.json"));
    assert_false(same_file(one, other, "model.safetensors"));

    /* The layout of files changes nothing about a tensor. */
    opt.seed = 3;
    opt.shards = 5;
    char *sharded = make(c, opt);
    struct checkpoint *a = open_valid(one), *b = open_valid(sharded);
    assert_int_equal(checkpoint_file_count(b), 5);
    assert_int_equal(checkpoint_tensor_count(a), checkpoint_tensor_count(b));
    for (int i = 0; i < checkpoint_tensor_count(a); i++) {
        const struct tensor_view *t = checkpoint_tensor_at(a, i);
        const struct tensor_view *u = checkpoint_find(b, t->name);
        assert_non_null(u);
        assert_int_equal(t->bytes, u->bytes);
        assert_memory_equal(t->data, u->data, t->bytes);
        assert_int_equal((uintptr_t)u->data % tensor_dtype_bytes(u->dtype), 0);
    }
    checkpoint_close(a);
    checkpoint_close(b);
    fixture_remove(one);
    fixture_remove(four);
    fixture_remove(other);
    fixture_remove(sharded);
}

static void moments(const float *x, size_t n, double *mean, double *deviation)
{
    double s = 0, q = 0;
    for (size_t i = 0; i < n; i++) s += x[i];
    *mean = s / (double)n;
    for (size_t i = 0; i < n; i++) q += (x[i] - *mean) * (x[i] - *mean);
    *deviation = sqrt(q / (double)n);
}

static void test_values(void **state)
{
    static const enum tensor_dtype types[] = {TENSOR_BF16, TENSOR_F16, TENSOR_F32, TENSOR_E4M3};
    static const struct {
        enum tensor_role role;
        int layer, expert;
        double mean, deviation, tolerance;
    } cases[] = {
        {ROLE_EXPERT_UP, 1, 7, 0, 0.07071, 0.006}, /* 1/sqrt(200) */
        {ROLE_Q_B, 0, -1, 0, 0.08165, 0.006},      /* 1/sqrt(150) */
        {ROLE_EMBED, -1, -1, 0, 0.07071, 0.002},
        {ROLE_FINAL_NORM, -1, -1, 1, 0.1, 0.03},
    };
    (void)state;
    float *x = malloc(300 * 200 * sizeof *x);
    for (int t = 0; t < 4; t++) {
        char *dir =
            make(ragged(), (struct synth_options){.dtype = types[t], .shards = 1, .seed = 11});
        struct checkpoint *ck = open_valid(dir);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct checkpoint_weight w;
            double mean, deviation;
            assert_int_equal(
                checkpoint_weight(ck, cases[i].role, cases[i].layer, cases[i].expert, &w), OK);
            size_t n = (size_t)(w.data.shape[0] * w.data.shape[1]);
            assert_int_equal(w.fp8, types[t] == TENSOR_E4M3 && i < 2);
            assert_int_equal(checkpoint_weight_rows_f32(&w, 0, w.data.shape[0], x), OK);
            moments(x, n, &mean, &deviation);
            /* The few FP8 blocks have scales of 0.5 to 1.5 times the deviation. */
            double slack = w.fp8 ? 0.5 * cases[i].deviation : cases[i].tolerance;
            if (fabs(mean - cases[i].mean) > cases[i].tolerance ||
                fabs(deviation - cases[i].deviation) > slack)
                fail_msg("%s as %s: mean %g, deviation %g, expected %g, %g", w.data.name,
                         tensor_dtype_name(w.data.dtype), mean, deviation, cases[i].mean,
                         cases[i].deviation);
        }
        checkpoint_close(ck);
        fixture_remove(dir);
    }
    free(x);
}

/* FP8 with ragged blocks, element by element: code times the scale of its own block. */
static void test_fp8_ragged(void **state)
{
    (void)state;
    for (int ue8m0 = 0; ue8m0 < 2; ue8m0++) {
        char *dir = make(ragged(),
                         (struct synth_options){.dtype = TENSOR_E4M3, .shards = 2, .ue8m0 = ue8m0});
        struct checkpoint *ck = open_valid(dir);
        struct checkpoint_weight w;
        assert_int_equal(checkpoint_config(ck)->quant.fp8, 1);
        assert_int_equal(checkpoint_config(ck)->quant.ue8m0, ue8m0);
        assert_int_equal(checkpoint_weight(ck, ROLE_DENSE_GATE, 0, -1, &w), OK);
        assert_int_equal(w.data.shape[0], 260);
        assert_int_equal(w.scale.shape[0], 3);
        assert_int_equal(w.scale.shape[1], 2);
        const uint8_t *code = w.data.data;
        float scale[6], *row = malloc(7 * 200 * sizeof *row);
        memcpy(scale, w.scale.data, sizeof scale);
        assert_int_equal(checkpoint_weight_rows_f32(&w, 253, 7, row), OK); /* across row 256 */
        for (int r = 0; r < 7; r++)
            for (int k = 0; k < 200; k++) {
                float want =
                    e4m3_to_f32(code[(253 + r) * 200 + k]) * scale[(253 + r) / 128 * 2 + k / 128];
                assert_float_equal(row[r * 200 + k], want, 0);
            }
        bool distinct = false;
        for (int i = 0; i < 6; i++) {
            int e;
            float m = frexpf(scale[i], &e);
            assert_true(scale[i] > 0);
            if (ue8m0) assert_float_equal(m, 0.5, 0);
            distinct |= scale[i] != scale[0];
        }
        assert_true(distinct); /* else a scale from a wrong block would not show */
        free(row);
        checkpoint_close(ck);
        fixture_remove(dir);
    }
}

/* Types a writer never makes, unaligned: a header of odd length. */
static void test_read_types(void **state)
{
    static const char h[] = "{\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]},"
                            "\"b\":{\"dtype\":\"F8_E8M0\",\"shape\":[2],\"data_offsets\":[4,6]},"
                            "\"c\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[6,8]},"
                            "\"d\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]},"
                            "\"e\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[12,12]}}";
    static const uint8_t data[] = {0x80, 0x3f, 0x00, 0xc0, 127, 130, 0x00, 0x3e, 0, 0, 0x20, 0x41};
    (void)state;
    size_t n = sizeof h - 1 + (sizeof h & 1); /* blanks are legal: make it odd */
    uint8_t *image = malloc(8 + n + sizeof data);
    memset(image, 0, 8);
    image[0] = (uint8_t)n;
    image[1] = (uint8_t)(n >> 8);
    memset(image + 8, ' ', n);
    memcpy(image + 8, h, sizeof h - 1);
    memcpy(image + 8 + n, data, sizeof data);
    struct safetensors st;
    float x[2];
    error_clear();
    if (safetensors_parse("m", image, 8 + n + sizeof data, &st) != OK) fail_msg("%s", error_text());
    assert_int_equal((uintptr_t)st.tensor[0].data & 1, 1);
    assert_int_equal(tensor_read_f32(&st.tensor[0], 0, 2, x), OK);
    assert_float_equal(x[0], 1, 0);
    assert_float_equal(x[1], -2, 0);
    assert_int_equal(tensor_read_f32(&st.tensor[1], 0, 2, x), OK);
    assert_float_equal(x[0], 1, 0);
    assert_float_equal(x[1], 8, 0);
    assert_int_equal(tensor_read_f32(&st.tensor[2], 0, 1, x), OK);
    assert_float_equal(x[0], 1.5, 0);
    assert_int_equal(tensor_read_f32(&st.tensor[3], 0, 1, x), OK);
    assert_float_equal(x[0], 10, 0);
    assert_int_equal(tensor_read_f32(&st.tensor[4], 0, 0, x), ERR_BUG);
    safetensors_close(&st);
    free(image);
}

static struct hash128 fingerprint(const char *dir)
{
    struct hash128 fp = {0, 0};
    struct checkpoint *ck = open_valid(dir);
    assert_int_equal(checkpoint_fingerprint(ck, &fp), OK);
    checkpoint_close(ck);
    return fp;
}

static bool differ(struct hash128 a, struct hash128 b)
{
    return a.lo != b.lo && a.hi != b.hi;
}

static void test_fingerprint(void **state)
{
    (void)state;
    struct synth_options opt = {.dtype = TENSOR_BF16, .shards = 2};
    struct model_config c = ragged();
    char *a = make(c, opt), *b = make(c, opt);
    struct hash128 fp = fingerprint(a), same = fingerprint(b);
    assert_true(fp.lo == same.lo && fp.hi == same.hi); /* whatever the directory */

    /* One bit of one weight, in the middle of a tensor. */
    struct checkpoint *ck = open_valid(b);
    struct checkpoint_weight w;
    assert_int_equal(checkpoint_weight(ck, ROLE_KV_B, 1, -1, &w), OK);
    char path[512];
    snprintf(path, sizeof path, "%s", w.data.file);
    /* Data starts after the header, with the file's first tensor. */
    uint64_t header;
    FILE *f = fopen(path, "r+b");
    assert_int_equal(fread(&header, 8, 1, f), 1);
    const struct tensor_view *first = &w.data;
    for (int i = 0; i < checkpoint_tensor_count(ck); i++) {
        const struct tensor_view *t = checkpoint_tensor_at(ck, i);
        if (strcmp(t->file, path) == 0 && t->data < first->data) first = t;
    }
    size_t base = 8 + header + (size_t)((const char *)w.data.data - (const char *)first->data);
    fseek(f, (long)(base + w.data.bytes / 2), SEEK_SET);
    int byte = fgetc(f);
    fseek(f, -1, SEEK_CUR);
    fputc(byte ^ 1, f);
    fclose(f);
    checkpoint_close(ck);
    assert_true(differ(fp, fingerprint(b)));
    fixture_remove(b);

    c.rope.theta = 10001; /* config.json only */
    b = make(c, opt);
    assert_true(differ(fp, fingerprint(b)));
    fixture_remove(b);
    c = ragged();
    opt.shards = 3; /* headers only */
    b = make(c, opt);
    assert_true(differ(fp, fingerprint(b)));
    fixture_remove(b);
    fixture_remove(a);
}

static void test_overwrite(void **state)
{
    (void)state;
    struct model_config c = ragged();
    struct synth_options opt = {.dtype = TENSOR_BF16, .shards = 3};
    size_t bytes = 0;
    char *dir = make(c, opt), path[512];
    opt.shards = 1;
    error_clear();
    assert_int_equal(synth_write(dir, &c, &opt, &bytes), ERR_INPUT);
    assert_non_null(strstr(error_text(), "config.json exists: choose another --out, or --force"));
    struct checkpoint *ck = open_valid(dir);
    assert_int_equal(checkpoint_file_count(ck), 3); /* untouched */
    checkpoint_close(ck);
    opt.force = true;
    assert_int_equal(synth_write(dir, &c, &opt, &bytes), OK);
    ck = open_valid(dir);
    assert_int_equal(checkpoint_file_count(ck), 1);
    struct model_sizes z;
    model_sizes_compute(&c, ck, &z);
    assert_int_equal(z.bytes_total, bytes);
    checkpoint_close(ck);
    snprintf(path, sizeof path, "%s/model-00001-of-00003.safetensors", dir);
    assert_int_equal(access(path, F_OK), -1); /* the old shards are gone */

    error_clear();
    opt.shards = 100000;
    assert_int_equal(synth_write(dir, &c, &opt, &bytes), ERR_USAGE);
    assert_non_null(strstr(error_text(), "100000 shards asked for, expected 1 to "));
    c.n_group = 7;
    error_clear();
    assert_int_equal(synth_write(dir, &c, &opt, &bytes), ERR_INPUT);
    assert_non_null(strstr(error_text(), "n_group is 7, expected a divisor"));
    fixture_remove(dir);
}

/* A tied model hands out its embedding as head. */
static void test_tied(void **state)
{
    (void)state;
    struct model_config c = ragged();
    c.tie_embeddings = true;
    char *dir = make(c, (struct synth_options){.dtype = TENSOR_BF16, .shards = 1});
    struct checkpoint *ck = open_valid(dir);
    struct checkpoint_weight head, embed;
    assert_null(checkpoint_find(ck, "lm_head.weight"));
    assert_int_equal(checkpoint_weight(ck, ROLE_HEAD, -1, -1, &head), OK);
    assert_int_equal(checkpoint_weight(ck, ROLE_EMBED, -1, -1, &embed), OK);
    assert_ptr_equal(head.data.data, embed.data.data);
    checkpoint_close(ck);
    fixture_remove(dir);
}

/* The announced sizes are what a written model takes. */
static void test_sizes(void **state)
{
    (void)state;
    for (int fp8 = 0; fp8 < 2; fp8++) {
        char *dir = make(ragged(), (struct synth_options){.dtype = fp8 ? TENSOR_E4M3 : TENSOR_BF16,
                                                          .shards = 1});
        struct checkpoint *ck = open_valid(dir);
        struct model_sizes announced, stored;
        model_sizes_compute(checkpoint_config(ck), NULL, &announced);
        model_sizes_compute(checkpoint_config(ck), ck, &stored);
        assert_memory_equal(&announced, &stored, sizeof stored);
        checkpoint_close(ck);
        fixture_remove(dir);
    }
}

static int check_all(const char *pattern)
{
    glob_t g;
    int checked = 0;
    if (glob(pattern, 0, NULL, &g) != 0) return 0;
    for (size_t i = 0; i < g.gl_pathc; i++) {
        char *dir = strdup(g.gl_pathv[i]);
        *strrchr(dir, '/') = '\0';
        if (checkpoint_has_weights(dir)) {
            struct model_sizes z;
            struct checkpoint *ck = open_valid(dir);
            model_sizes_compute(checkpoint_config(ck), ck, &z);
            assert_true(z.bytes_total > 0);
            printf("# %s: %d tensors, %.3f M parameters\n", dir, checkpoint_tensor_count(ck),
                   (double)z.params_total / 1e6);
            checkpoint_close(ck);
            checked++;
        }
        free(dir);
    }
    globfree(&g);
    return checked;
}

static void test_golden(void **state)
{
    (void)state;
    int checked = check_all("tests/golden/*/config.json");
    if (checked == 0) {
        printf("# skipped: no tests/golden/*/ below the working directory\n");
        skip();
    }
    check_all("inputs/models/*/config.json");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reproducible), cmocka_unit_test(test_values),
        cmocka_unit_test(test_fp8_ragged),   cmocka_unit_test(test_read_types),
        cmocka_unit_test(test_fingerprint),  cmocka_unit_test(test_overwrite),
        cmocka_unit_test(test_tied),         cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
