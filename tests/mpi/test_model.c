/* links: core config checkpoint device gemm attention moe transport ep schedule balance kvcache model */
/* ranks: 1 */
/* test_model.c - the layer stack against transformers' float32 values (tests/golden): logits after
 * prefill and after decode, greedy tokens, on every instruction set of this host.
 *
 * make mpi-model; one case: make mpi-model CASE="yarn-1-1" (or: build/tests/mpi/model yarn-1-1).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/clock.h"
#include "model/forward.h"
#include "model/kernels_compose.h"
#include "model/sampling.h"

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE_TOKENS = 64, PAGES = 16, CHUNK = 1024, MAX_CASES = 64 };

static const char *only;

/* A whole single-rank model. */
struct fixture {
    struct checkpoint *ck;
    struct kernels k;
    struct lane lane;
    struct transport *transport;
    struct waiter waiter;
    struct weights w;
    struct placement place;
    struct replica_table *replica;
    struct ep_group *ep;
    struct model m;
    struct forward f;
    struct schedule prefill, decode;
    void *shared, *private_region, *cache;
    int32_t pages[PAGES];
    int32_t last_row;
    float *logits; /* [vocab] of the last head */
};

static void must(enum status st)
{
    if (st != OK) print_error("%s\n", error_text());
    assert_int_equal(st, OK);
}

static enum status keep_logits(void *arg, int mb)
{
    struct fixture *x = arg;
    struct microbatch *b = &x->m.mb[mb];
    if (b->m == 0) return OK;
    int32_t row = b->m - 1;
    const float *l = model_logits(&x->m, b, &row, 1);
    memcpy(x->logits, l, (size_t)x->m.cfg->vocab * sizeof *l);
    return OK;
}

static void make_experts(struct fixture *x)
{
    const struct model_config *c = checkpoint_config(x->ck);
    struct eplb_shape shape = {
        model_config_moe_layers(c), c->experts, c->n_group, c->experts, 1, 1};
    must(eplb_place(&shape, 0, &x->place));
    int32_t *slots = calloc((size_t)(c->layers * c->experts), sizeof *slots);
    x->replica = calloc((size_t)c->layers, sizeof *x->replica);
    for (int l = 0, moe = 0; l < c->layers; l++) {
        if (!model_config_layer_is_moe(c, l)) continue;
        memcpy(slots + l * c->experts, placement_slots(&x->place, moe),
               (size_t)c->experts * sizeof *slots);
        must(replica_table_build(&x->place, moe, 1, 0, &x->replica[moe]));
        moe++;
    }
    must(weights_pack_shared(&x->w, 0, 1, 1));
    must(weights_pack_experts(&x->w, slots, 1));
    free(slots);
}

static void fixture_open(struct fixture *x, const char *dir, enum isa isa, enum numerics num)
{
    memset(x, 0, sizeof *x);
    must(checkpoint_open(dir, &x->ck));
    must(checkpoint_validate(x->ck));
    const struct model_config *c = checkpoint_config(x->ck);
    must(kernels_compose(isa, &x->k));
    struct device *dev = device_cpu();
    lane_init(&x->lane, dev, 2);
    must(transport_create(MPI_COMM_SELF, 0, &x->transport));
    x->waiter.transport = x->transport;
    must(weights_plan(x->ck, &x->k, num, c->experts, &x->w));
    x->shared = dev->alloc(dev, x->w.shared_bytes);
    x->private_region = dev->alloc(dev, x->w.private_bytes);
    weights_attach(&x->w, x->shared, x->private_region);
    make_experts(x);
    struct ep_params p = {.ep_size = 1,
                          .experts = c->experts,
                          .slots = c->experts,
                          .topk = c->topk,
                          .hidden = c->hidden,
                          .n_group = c->n_group,
                          .max_tokens = 8,
                          .chunk_tokens = CHUNK,
                          .recv_rows_factor = 2,
                          .dispatch_type = model_dispatch_type(num, x->w.experts_fp8),
                          .combine_type = model_combine_type(num)};
    struct ep_placement ep_place = {c->experts, x->place.shape.layers, x->place.slot_expert};
    must(ep_create(&p, &ep_place, &x->waiter, &x->k, &x->lane, &x->ep));
    size_t page = model_page_bytes(c, model_kv_type(num), PAGE_TOKENS);
    x->cache = dev->alloc(dev, page * PAGES);
    struct model_limits limits = {CHUNK, c->max_positions, true, true};
    must(model_create(&x->w, &x->lane, &limits, PAGE_TOKENS, PAGES, x->cache, &x->m));
    x->m.ep = x->ep;
    bool moe[64];
    for (int l = 0; l < c->layers; l++) moe[l] = model_config_layer_is_moe(c, l);
    must(schedule_build(c->layers, moe, 2, true, false, &x->prefill));
    must(schedule_build(c->layers, moe, 2, true, true, &x->decode));
    forward_init(&x->f, &x->m, x->replica, 0, 0);
    x->f.head = keep_logits;
    x->f.hook_arg = x;
    x->logits = calloc((size_t)c->vocab, sizeof *x->logits);
    for (int i = 0; i < PAGES; i++) x->pages[i] = (i * 7 + 3) % PAGES; /* any order */
}

static void fixture_close(struct fixture *x)
{
    struct device *dev = x->lane.dev;
    forward_free(&x->f);
    schedule_free(&x->prefill);
    schedule_free(&x->decode);
    ep_destroy(x->ep);
    model_free(&x->m);
    lane_free(&x->lane);
    for (int l = 0; l < checkpoint_config(x->ck)->layers; l++) replica_table_free(&x->replica[l]);
    free(x->replica);
    placement_free(&x->place);
    weights_free(&x->w);
    dev->free(dev, x->shared);
    dev->free(dev, x->private_region);
    dev->free(dev, x->cache);
    free(x->logits);
    transport_destroy(x->transport);
    checkpoint_close(x->ck);
}

/* One prefill step of tokens [pos0, pos0 + n), cut at `cut` into two micro-batches. */
static void prefill(struct fixture *x, const int32_t *tokens, int pos0, int n, int cut)
{
    for (int k = 0; k < 2; k++) {
        struct microbatch *b = &x->m.mb[k];
        int from = k ? cut : 0, to = k ? n : cut;
        b->m = to - from;
        b->segments = b->m > 0;
        b->segment[0] = (struct segment){0, b->m, pos0 + from, x->pages};
        for (int i = 0; i < b->m; i++) {
            b->tokens[i] = tokens[pos0 + from + i];
            b->pos[i] = pos0 + from + i;
            b->len[i] = b->pos[i] + 1;
            b->pages[i] = x->pages;
        }
    }
    must(forward_step(&x->f, &x->prefill, false));
}

static void decode(struct fixture *x, int32_t token, int pos)
{
    struct microbatch *b = &x->m.mb[0];
    b->m = 1;
    b->segments = 0;
    b->tokens[0] = token;
    b->pos[0] = pos;
    b->len[0] = pos + 1;
    b->pages[0] = x->pages;
    x->m.mb[1].m = x->m.mb[1].segments = 0;
    must(forward_step(&x->f, &x->decode, true));
}

/* Largest |error| over largest |expected|. */
static double logit_error(const float *got, const json_t *want)
{
    double err = 0, top = 0;
    for (size_t i = 0; i < json_array_size(want); i++) {
        double w = json_number_value(json_array_get(want, i));
        if (fabs(w) > top) top = fabs(w);
        double e = fabs((double)got[i] - w);
        if (!(e <= err)) err = e;
    }
    return err / top;
}

static int32_t argmax(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

struct outcome {
    double prefill_error, decode_error;
    int tokens, wrong;
};

static void run_prompt(struct fixture *x, const json_t *p, struct outcome *o)
{
    const json_t *ids = json_object_get(p, "ids"), *want = json_object_get(p, "tokens");
    int n = (int)json_array_size(ids), out = (int)json_array_size(want);
    int32_t tokens[512];
    for (int i = 0; i < n; i++)
        tokens[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
    /* Two chunks and two micro-batches that cut anywhere. */
    int first = n / 3;
    if (first) prefill(x, tokens, 0, first, first / 2);
    prefill(x, tokens, first, n - first, (n - first) * 2 / 3);
    double e = logit_error(x->logits, json_object_get(p, "prefill_logits"));
    if (!(e <= o->prefill_error)) o->prefill_error = e;
    for (int i = 0; i < out; i++) {
        int32_t expect = (int32_t)json_integer_value(json_array_get(want, (size_t)i));
        o->tokens++;
        if (argmax(x->logits, x->m.cfg->vocab) != expect) o->wrong++;
        if (i + 1 < out) decode(x, expect, n + i);
    }
    const json_t *last = json_object_get(p, "last_logits");
    if (!last) return;
    e = logit_error(x->logits, last);
    if (!(e <= o->decode_error)) o->decode_error = e;
}

static struct outcome run_case(const char *dir, const json_t *golden, enum isa isa,
                               enum numerics num)
{
    static const char *const names[] = {"checkpoint", "bf16", "fp32"};
    struct fixture x;
    struct outcome o = {0, 0, 0, 0};
    fixture_open(&x, dir, isa, num);
    const json_t *prompts = json_object_get(golden, "prompts");
    for (size_t i = 0; i < json_array_size(prompts); i++)
        run_prompt(&x, json_array_get(prompts, i), &o);
    fixture_close(&x);
    printf("# %-20s %-11s %-10s prefill %.2e  decode %.2e  tokens %d/%d equal\n",
           strrchr(dir, '/') + 1, isa_name(isa), names[num], o.prefill_error, o.decode_error,
           o.tokens - o.wrong, o.tokens);
    return o;
}

static int list_cases(char names[MAX_CASES][64])
{
    DIR *d = opendir("tests/golden");
    int n = 0;
    if (!d) return 0;
    for (struct dirent *e = readdir(d); e && n < MAX_CASES; e = readdir(d)) {
        char path[512];
        snprintf(path, sizeof path, "tests/golden/%.63s/golden.json", e->d_name);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        fclose(f);
        if (!only || strcmp(only, e->d_name) == 0) snprintf(names[n++], 64, "%.63s", e->d_name);
    }
    closedir(d);
    return n;
}

static void test_golden(void **state)
{
    /* FP32 mode: the limit that a right implementation must keep. BF16: measured at most 0.036.
     * FP8 activations on random weights turn single expert choices: measured at most 0.55. */
    static const double limit[] = {0.7, 0.06, 1e-4};
    char names[MAX_CASES][64];
    int n = list_cases(names);
    (void)state;
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        char dir[256], path[300];
        snprintf(dir, sizeof dir, "tests/golden/%.63s", names[i]);
        snprintf(path, sizeof path, "%.200s/golden.json", dir);
        json_t *golden = json_load_file(path, 0, 0);
        assert_non_null(golden);
        for (int isa = 0; isa < ISA_COUNT; isa++) {
            const char *why = "";
            if (!isa_supported((enum isa)isa, &why)) {
                printf("# %s skipped: no %s here\n", isa_name((enum isa)isa), why);
                continue;
            }
            for (int num = 0; num < 3; num++) {
                struct outcome o = run_case(dir, golden, (enum isa)isa, (enum numerics)num);
                assert_true(o.prefill_error <= limit[num]);
                assert_true(o.decode_error <= limit[num]);
                assert_true(o.wrong <= (num == NUM_FP32 ? 0 : o.tokens / 5));
            }
        }
        json_decref(golden);
    }
}

int main(int argc, char **argv)
{
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    if (argc > 1) only = argv[1];
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden)};
    int failed = cmocka_run_group_tests(tests, 0, 0);
    MPI_Finalize();
    return failed;
}
