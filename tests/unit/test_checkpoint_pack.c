/* links: core checkpoint */
/* The packed index: a checkpoint made from it equals the opened one in every tensor, weight,
 * configuration field and the fingerprint; changed files and damaged copies are refused.
 * Rerun alone: make unit-checkpoint_pack
 */
#include "unit/checkpoint_fixtures.h"

#include <setjmp.h>

#include <cmocka.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/synth.h"
#include "core/clock.h"

#include <glob.h>
#include <sys/mman.h>

/* The blob as another process sees it: at its own address, read-only. */
static void *share(const void *blob, size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    memcpy(p, blob, bytes);
    assert_int_equal(mprotect(p, bytes, PROT_READ), 0);
    return p;
}

static struct checkpoint *opened(const char *dir)
{
    struct checkpoint *ck = NULL;
    error_clear();
    if (checkpoint_open(dir, &ck) != OK) fail_msg("%s", error_text());
    return ck;
}

static void *packed(const struct checkpoint *ck, size_t *bytes)
{
    void *blob = NULL;
    if (checkpoint_pack(ck, &blob, bytes) != OK) fail_msg("%s", error_text());
    void *shared = share(blob, *bytes);
    free(blob);
    return shared;
}

static void *packed_dir(const char *dir, size_t *bytes)
{
    struct checkpoint *ck = opened(dir);
    void *blob = packed(ck, bytes);
    checkpoint_close(ck);
    return blob;
}

/* Same text, shape and bytes, each in its own memory. */
static void expect_same_view(const struct tensor_view *a, const struct tensor_view *b)
{
    assert_ptr_not_equal(a->name, b->name);
    assert_string_equal(a->name, b->name);
    assert_string_equal(a->file, b->file);
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(a->rank, b->rank);
    assert_memory_equal(a->shape, b->shape, sizeof a->shape);
    assert_int_equal(a->bytes, b->bytes);
    if (a->bytes) assert_ptr_not_equal(a->data, b->data);
    assert_int_equal(memcmp(a->data, b->data, a->bytes), 0);
}

struct pair {
    struct checkpoint *a, *b;
    int weights, fp8;
};

static enum status compare_weight(void *ctx, const struct tensor_spec *s)
{
    struct pair *p = ctx;
    struct checkpoint_weight wa, wb;
    if (s->role == ROLE_HEAD && checkpoint_config(p->a)->tie_embeddings) return OK;
    TRY(checkpoint_weight(p->a, s->role, s->layer, s->expert, &wa));
    TRY(checkpoint_weight(p->b, s->role, s->layer, s->expert, &wb));
    assert_int_equal(wa.fp8, wb.fp8);
    expect_same_view(&wa.data, &wb.data);
    if (wa.fp8) expect_same_view(&wa.scale, &wb.scale);
    p->weights++;
    p->fp8 += wa.fp8;
    return OK;
}

static void compare(struct pair *p)
{
    struct hash128 fa, fb;
    assert_string_equal(checkpoint_dir(p->a), checkpoint_dir(p->b));
    assert_memory_equal(checkpoint_config(p->a), checkpoint_config(p->b),
                        sizeof(struct model_config));
    assert_int_equal(checkpoint_file_count(p->a), checkpoint_file_count(p->b));
    assert_int_equal(checkpoint_tensor_count(p->a), checkpoint_tensor_count(p->b));
    for (int i = 0; i < checkpoint_tensor_count(p->a); i++) {
        const struct tensor_view *t = checkpoint_tensor_at(p->a, i);
        expect_same_view(t, checkpoint_tensor_at(p->b, i));
        assert_ptr_equal(checkpoint_find(p->b, t->name), checkpoint_tensor_at(p->b, i));
    }
    assert_null(checkpoint_find(p->b, "model.no.such.weight"));
    if (tensor_specs_visit(checkpoint_config(p->b), compare_weight, p) != OK ||
        checkpoint_validate(p->b) != OK || checkpoint_fingerprint(p->a, &fa) != OK ||
        checkpoint_fingerprint(p->b, &fb) != OK)
        fail_msg("%s", error_text());
    assert_memory_equal(&fa, &fb, sizeof fa);
}

static void check_dir(const char *dir)
{
    size_t bytes = 0;
    double t0 = clock_now_s();
    struct pair p = {.a = opened(dir)};
    double t1 = clock_now_s();
    void *blob = packed(p.a, &bytes);
    double t2 = clock_now_s();
    if (checkpoint_unpack(blob, bytes, &p.b) != OK) fail_msg("%s", error_text());
    double t3 = clock_now_s();
    compare(&p);
    printf("# %s: %d tensors, %d weights (%d FP8) in %d files; %zu bytes; open %.2f ms, pack "
           "%.2f, unpack %.3f\n",
           dir, checkpoint_tensor_count(p.a), p.weights, p.fp8, checkpoint_file_count(p.a), bytes,
           (t1 - t0) * 1e3, (t2 - t1) * 1e3, (t3 - t2) * 1e3);
    /* A second rank on the same blob, after the first has gone. */
    checkpoint_close(p.b);
    if (checkpoint_unpack(blob, bytes, &p.b) != OK) fail_msg("%s", error_text());
    compare(&p);
    checkpoint_close(p.b);
    checkpoint_close(p.a);
    munmap(blob, bytes);
}

static char *make_dir(enum tensor_dtype dtype, int shards)
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
    struct synth_options opt = {.dtype = dtype, .shards = shards, .threads = 1};
    size_t bytes = 0;
    char *dir = fixture_dir();
    error_clear();
    if (synth_write(dir, &c, &opt, &bytes) != OK) fail_msg("%s", error_text());
    return dir;
}

static void test_made(void **state)
{
    (void)state;
    static const struct {
        enum tensor_dtype dtype;
        int shards;
    } cases[] = {
        {TENSOR_BF16, 1},
        {TENSOR_E4M3, 1},
        {TENSOR_E4M3, 5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *dir = make_dir(cases[i].dtype, cases[i].shards);
        check_dir(dir);
        fixture_remove(dir);
    }
}

static int check_all(const char *pattern)
{
    glob_t g;
    int n = 0;
    if (glob(pattern, 0, NULL, &g) != 0) return 0;
    for (size_t i = 0; i < g.gl_pathc; i++) {
        *strrchr(g.gl_pathv[i], '/') = '\0';
        if (!checkpoint_has_weights(g.gl_pathv[i])) continue;
        check_dir(g.gl_pathv[i]);
        n++;
    }
    globfree(&g);
    return n;
}

static void test_published(void **state)
{
    (void)state;
    int n = check_all("tests/golden/*/config.json") + check_all("inputs/models/*/config.json");
    if (n == 0) {
        printf("# skipped: no weights in tests/golden or inputs/models here\n");
        skip();
    }
}

static void expect_refused(const void *blob, size_t bytes, enum status want, const char *message)
{
    struct checkpoint *ck = NULL;
    error_clear();
    enum status st = checkpoint_unpack(blob, bytes, &ck);
    if (st != want || ck || !strstr(error_text(), message))
        fail_msg("status %d, message: %s\nexpected: %d, %s", (int)st, error_text(), (int)want,
                 message);
}

static void test_changed_files(void **state)
{
    (void)state;
    char path[512], *dir = make_dir(TENSOR_BF16, 3);
    size_t bytes = 0;
    struct stat sb;
    void *blob = packed_dir(dir, &bytes);
    snprintf(path, sizeof path, "%s/model-00002-of-00003.safetensors", dir);
    assert_int_equal(stat(path, &sb), 0);
    assert_int_equal(truncate(path, sb.st_size + 1), 0);
    expect_refused(blob, bytes, ERR_INPUT, "model-00002-of-00003.safetensors: ");
    snprintf(path + 300, 200,
             "%lld bytes, expected the %lld that another rank found: the file "
             "changed",
             (long long)sb.st_size + 1, (long long)sb.st_size);
    expect_refused(blob, bytes, ERR_INPUT, path + 300);
    assert_int_equal(truncate(path, 3), 0);
    expect_refused(blob, bytes, ERR_INPUT, "00003.safetensors: 3 bytes, expected at least 8");
    assert_int_equal(unlink(path), 0);
    expect_refused(blob, bytes, ERR_INPUT, "00003.safetensors: cannot open: No such file");
    munmap(blob, bytes);
    fixture_remove(dir);
}

/* Whatever byte is wrong: refused, or every view still lies in a file and the lookup ends. */
static void test_damaged(void **state)
{
    (void)state;
    char *dir = make_dir(TENSOR_E4M3, 2);
    size_t bytes = 0, accepted = 0, tried = 0;
    void *blob = packed_dir(dir, &bytes);
    uint8_t *copy = malloc(bytes);
    memcpy(copy, blob, bytes);
    for (size_t n = 0; n < bytes; n += 1 + n / 16)
        expect_refused(copy, n, ERR_BUG, "the shared list of tensors is damaged");
    expect_refused((const uint8_t *)blob + 4, bytes - 4, ERR_BUG, "not on an 8-byte boundary");
    copy[0] ^= 1;
    expect_refused(copy, bytes, ERR_BUG, "no such list begins here");
    copy[0] ^= 1;
    copy[8] ^= 1;
    expect_refused(copy, bytes, ERR_BUG, "another version of the program wrote it");
    copy[8] ^= 1;
    for (size_t i = 0; i < bytes; i++) {
        struct checkpoint *ck = NULL;
        copy[i] ^= (uint8_t)(1u << (i % 8));
        error_clear();
        tried++;
        if (checkpoint_unpack(copy, bytes, &ck) == OK) {
            volatile uint8_t sum = 0; /* what is read is not used: reading must not fault */
            accepted++;
            for (int t = 0; t < checkpoint_tensor_count(ck); t++) {
                const struct tensor_view *v = checkpoint_tensor_at(ck, t);
                if (v->bytes) sum = sum ^ ((const uint8_t *)v->data)[v->bytes - 1];
                (void)checkpoint_find(ck, v->name);
            }
            assert_null(checkpoint_find(ck, "no.such"));
            (void)sum;
            checkpoint_close(ck);
        } else {
            assert_true(*error_text() && !ck);
        }
        copy[i] ^= (uint8_t)(1u << (i % 8));
    }
    printf("# %zu single wrong bits, %zu of them harmless (names, slots, offsets in the file)\n",
           tried, accepted);
    assert_true(accepted < tried);
    free(copy);
    munmap(blob, bytes);
    fixture_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_made),
        cmocka_unit_test(test_published),
        cmocka_unit_test(test_changed_files),
        cmocka_unit_test(test_damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
