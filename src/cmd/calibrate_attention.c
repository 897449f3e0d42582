/* calibrate_attention.c - prefill and decode attention at several sizes and context lengths, each
 * fitted to host_cost.h's features. */
#include "cmd/calibrate.h"
#include "core/numfmt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 64, HEADS_MAX = 32, KEYS_MAX = 2048, QUERIES_MAX = 512, BATCH_MAX = 8 };

struct attention {
    struct lane lane;
    const struct kernels *k;
    bool decode;
    struct mla_prefill_args prefill;
    struct mla_decode_args args;
    float *q, *out;
    uint16_t *keys, *values;
    int32_t *pages, *len;
    const int32_t **tables;
};

static void attention_run(void *arg)
{
    struct attention *a = arg;
    if (a->decode)
        a->k->mla_decode(&a->lane, &a->args);
    else
        a->k->mla_prefill(&a->lane, &a->prefill);
}

static void attention_free(struct attention *a)
{
    free(a->q);
    free(a->out);
    free(a->keys);
    free(a->values);
    free(a->pages);
    free(a->len);
    free(a->tables);
}

static uint16_t *halves(size_t n)
{
    float *x = cal_numbers(n);
    uint16_t *h = malloc(n * sizeof *h);
    for (size_t i = 0; x && h && i < n; i++) h[i] = bf16_from_f32(x[i]);
    free(x);
    return h;
}

static enum status attention_make(const struct calibration *c, struct attention *a)
{
    enum { NUMBERS = 1 << 23 };
    *a = (struct attention){.k = &c->k};
    cal_lane(&a->lane, 1);
    a->q = cal_numbers(NUMBERS / 4);
    a->out = cal_numbers(NUMBERS / 4);
    a->keys = halves(NUMBERS + (1 << 20));
    a->values = halves(NUMBERS);
    a->pages = calloc((size_t)BATCH_MAX * KEYS_MAX / PAGE, sizeof *a->pages);
    a->len = calloc(BATCH_MAX, sizeof *a->len);
    a->tables = calloc(BATCH_MAX, sizeof *a->tables);
    if (!a->q || !a->out || !a->keys || !a->values || !a->pages || !a->len || !a->tables)
        return error_set(ERR_RESOURCE, "calibrate: out of memory");
    for (int i = 0; i < BATCH_MAX * KEYS_MAX / PAGE; i++) a->pages[i] = i;
    for (int i = 0; i < BATCH_MAX; i++) a->tables[i] = a->pages + (ptrdiff_t)i * (KEYS_MAX / PAGE);
    return OK;
}

struct case_size {
    int heads, nope, rope, v, latent; /* decode uses the last and rope */
    int m, keys;                      /* queries and keys before them; requests and their keys */
};

static const struct case_size prefills[] = {
    {4, 32, 16, 32, 0, 16, 0},    {8, 32, 16, 32, 0, 64, 0},    {8, 32, 16, 32, 0, 64, 256},
    {8, 32, 16, 32, 0, 200, 0},   {4, 128, 64, 128, 0, 16, 0},  {4, 128, 64, 128, 0, 64, 64},
    {8, 128, 64, 128, 0, 256, 0}, {4, 64, 32, 64, 0, 128, 512}, {4, 64, 32, 128, 0, 500, 0},
    {8, 128, 64, 64, 0, 32, 32},  {4, 16, 16, 16, 0, 8, 0},
};
static const struct case_size decodes[] = {
    {4, 0, 16, 0, 64, 1, 16},     {8, 0, 16, 0, 128, 1, 64},   {8, 0, 16, 0, 128, 4, 300},
    {8, 0, 16, 0, 128, 1, 1200},  {16, 0, 64, 0, 512, 1, 32},  {16, 0, 64, 0, 512, 2, 200},
    {16, 0, 64, 0, 512, 1, 1500}, {32, 0, 64, 0, 512, 1, 400}, {4, 0, 32, 0, 256, 8, 40},
    {32, 0, 32, 0, 256, 4, 700},  {4, 0, 64, 0, 512, 4, 100},
};

static void set_prefill(struct attention *a, const struct case_size *s)
{
    a->decode = false;
    a->prefill = (struct mla_prefill_args){.kv_type = DT_BF16,
                                           .heads = s->heads,
                                           .dim_nope = s->nope,
                                           .dim_rope = s->rope,
                                           .dim_v = s->v,
                                           .softmax_scale = 0.1f,
                                           .m = s->m,
                                           .pos0 = s->keys,
                                           .q = a->q,
                                           .ldq = s->heads * (s->nope + s->rope),
                                           .k_nope = a->keys,
                                           .v = a->values,
                                           .ldk = s->heads * s->nope,
                                           .ldv = s->heads * s->v,
                                           .k_rope = a->keys + (1 << 23),
                                           .ldr = s->rope,
                                           .out = a->out,
                                           .ldo = s->heads * s->v};
}

static void set_decode(struct attention *a, const struct case_size *s)
{
    a->decode = true;
    for (int i = 0; i < s->m; i++) a->len[i] = s->keys;
    a->args = (struct mla_decode_args){.kv_type = DT_BF16,
                                       .heads = s->heads,
                                       .dim_latent = s->latent,
                                       .dim_rope = s->rope,
                                       .page_tokens = PAGE,
                                       .softmax_scale = 0.1f,
                                       .m = s->m,
                                       .q = a->q,
                                       .ldq = s->heads * (s->latent + s->rope),
                                       .cache = a->keys,
                                       .pages = a->tables,
                                       .len = a->len,
                                       .out = a->out,
                                       .ldo = s->heads * s->latent};
}

static void fit(struct calibration *c, struct attention *a, const struct cal_call *call,
                const struct case_size *sizes, int n, bool decode, double coef[SPEED_COEFS])
{
    enum { CASES = 16 };
    double x[CASES][SPEED_COEFS], y[CASES];
    int threads = cal_threads(c, SPEED_ALL);
    for (int i = 0; i < n; i++) {
        const struct case_size *s = &sizes[i];
        struct host_heads h = {s->heads, s->nope, s->rope, s->v, s->latent};
        for (int t = 0; t < threads; t++) (decode ? set_decode : set_prefill)(&a[t], s);
        if (decode)
            host_decode_features(&h, s->m, (double)s->m * s->keys, s->m * ceil(s->keys / 512.0),
                                 x[i]);
        else
            host_prefill_features(&h, s->m, s->keys, x[i]);
        y[i] = cal_time(c, call, threads);
    }
    host_fit(n, SPEED_COEFS, (const double(*)[SPEED_COEFS])x, y, NULL, coef);
}

enum status cal_attention(struct calibration *c)
{
    int threads = cal_threads(c, SPEED_ALL), made = 0;
    struct attention *a = calloc((size_t)threads, sizeof *a);
    struct cal_call call = {.fn = attention_run};
    if (!a) return error_set(ERR_RESOURCE, "calibrate: out of memory");
    enum status st = OK;
    for (; made < threads && st == OK; made++) {
        st = attention_make(c, &a[made]);
        call.arg[made] = &a[made];
    }
    if (st == OK) {
        fit(c, a, &call, prefills, sizeof prefills / sizeof *prefills, false,
            c->speed.prefill_attention);
        fit(c, a, &call, decodes, sizeof decodes / sizeof *decodes, true,
            c->speed.decode_attention);
    }
    for (int t = 0; t < made; t++) attention_free(&a[t]);
    free(a);
    return st;
}
