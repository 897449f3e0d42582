/* calibrate_rows.c - kernels over rows: norms, conversions, activation, gate, KV writes, copies,
 * sampling. Each gets a line over calls, rows and numbers from a few sizes. */
#include "cmd/calibrate.h"
#include "core/numfmt.h"
#include "core/rng.h"
#include "model/sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 1 << 21, PAGE = 64, ROPE_DIM = 64, TOPK = 8, SIZES_MAX = 10 };

struct size {
    int m, n;
};

/* One thread's buffers and what to do with them. */
struct rows_call {
    struct lane lane;
    const struct kernels *k;
    enum speed_rows op;
    int m, n;
    float *x, *y;
    float *weight;
    int32_t *pos, *ids, *pages;
    const int32_t **page_of;
    struct sampler *sampler;
    float *order; /* logits are sorted in place of x */
};

static void gather(const struct rows_call *r)
{
    const uint16_t *from = (const uint16_t *)(const void *)r->y;
    for (int i = 0; i < r->m; i++) {
        float *to = r->x + (size_t)i * (size_t)r->n;
        const uint16_t *row = from + (size_t)i * (size_t)r->n;
        for (int j = 0; j < r->n; j++) to[j] = bf16_to_f32(row[j]);
    }
}

static void convert(struct rows_call *r, enum dtype type)
{
    struct amat a = {type, r->n, r->y, r->n, r->weight, fp8_blocks(r->n)};
    r->k->act_convert(&r->lane, r->m, r->x, r->n, &a, false);
}

static void pick_gate(struct rows_call *r)
{
    struct gate_params p = {.kind = GATE_SIGMOID_NOAUX,
                            .experts = r->n,
                            .topk = r->n < 2 * TOPK ? r->n / 4 : TOPK,
                            .n_group = 1,
                            .topk_group = 1,
                            .norm_topk = true,
                            .scale = 1,
                            .bias = r->weight};
    if (r->n % 8 == 0 && r->n >= 64) p.n_group = 8, p.topk_group = 4;
    r->k->gate(&r->lane, r->m, r->x, r->n, &p, r->ids, r->y);
}

static void sample(struct rows_call *r)
{
    struct sampling_params p = {.temperature = r->op == SPEED_SORT ? 1 : 0, .top_p = 0.9f};
    volatile float sink = 0;
    for (int i = 0; i < r->m; i++) {
        const float *row = r->x + (size_t)i * (size_t)r->n;
        if (r->op == SPEED_LOGPROB)
            sink = sink + sampler_logprob(row, r->n, 1);
        else
            sink = sink + (float)sampler_next(r->sampler, row, &p, i);
    }
}

static void rows_run(void *arg)
{
    struct rows_call *r = arg;
    const struct kernels *k = r->k;
    struct lane *l = &r->lane;
    int m = r->m, n = r->n, heads = n / ROPE_DIM, latent = n - n / 9;
    switch (r->op) {
    case SPEED_RMSNORM: k->rmsnorm(l, m, n, r->x, n, r->weight, 1e-6f, r->y, n); return;
    case SPEED_CONVERT_BF16: convert(r, DT_BF16); return;
    case SPEED_CONVERT_FP8: convert(r, DT_E4M3); return;
    case SPEED_SILU: k->silu_mul(l, m, n, r->x, 2 * n, r->y, n); return;
    case SPEED_ADD: k->add(l, m, n, r->x, n, r->y, n); return;
    case SPEED_ROPE:
        k->rope(l, m, heads, ROPE_DIM, r->y, n, ROPE_DIM, r->pos, r->weight, true);
        return;
    case SPEED_GATE: pick_gate(r); return;
    case SPEED_KV_WRITE:
        k->kv_write(l, DT_BF16, m, latent, n - latent, r->x, n, r->x + latent, n, r->pos,
                    r->page_of, PAGE, r->y);
        return;
    case SPEED_GATHER:
    case SPEED_EMBED: gather(r); return;
    case SPEED_COPY:
        for (int i = 0; i < m; i++)
            memcpy(r->y + (size_t)i * (size_t)n, r->x + (size_t)i * (size_t)n,
                   sizeof(float) * (size_t)n);
        return;
    default: sample(r); return;
    }
}

static void rows_free(struct rows_call *r)
{
    free(r->x);
    free(r->y);
    free(r->weight);
    free(r->pos);
    free(r->ids);
    free(r->pages);
    free(r->page_of);
    sampler_free(r->sampler);
}

static enum status rows_make(const struct calibration *c, struct rows_call *r)
{
    enum { ROWS = MOST / 16 };
    *r = (struct rows_call){.k = &c->k};
    cal_lane(&r->lane, 1);
    r->x = cal_numbers(2 * MOST);
    r->y = cal_numbers(2 * MOST);
    r->weight = cal_numbers(MOST / 4);
    r->pos = calloc(ROWS, sizeof *r->pos);
    r->ids = calloc(ROWS, sizeof *r->ids);
    r->pages = calloc(ROWS / PAGE + 1, sizeof *r->pages);
    r->page_of = calloc(ROWS, sizeof *r->page_of);
    if (!r->x || !r->y || !r->weight || !r->pos || !r->ids || !r->pages || !r->page_of)
        return error_set(ERR_RESOURCE, "calibrate: out of memory");
    for (int i = 0; i < ROWS / PAGE + 1; i++) r->pages[i] = i;
    for (int i = 0; i < ROWS; i++) {
        r->pos[i] = i % 2048;
        r->page_of[i] = r->pages;
    }
    return OK;
}

static int sizes_of(enum speed_rows op, struct size *out)
{
    static const struct size wide[] = {{1, 128},  {1, 1024}, {1, 4096},   {8, 128},    {8, 1024},
                                       {64, 128}, {64, 512}, {256, 1024}, {1024, 1024}};
    static const struct size narrow[] = {{1, 128},   {16, 128},  {128, 128}, {1, 512},   {16, 512},
                                         {64, 1024}, {512, 512}, {8192, 32}, {1024, 256}};
    static const struct size gates[] = {{1, 16},  {1, 64},   {1, 256},  {16, 16},
                                        {16, 64}, {16, 256}, {128, 64}, {256, 256}};
    static const struct size vocab[] = {{1, 3072}, {1, 32768}, {8, 3072}, {1, 100000}};
    static const struct size copies[] = {{1, 16},   {64, 16},   {512, 16}, {1, 256},
                                         {64, 256}, {512, 256}, {8, 4096}, {512, 2048}};
    const struct size *from = wide;
    size_t n = sizeof wide;
    if (op == SPEED_GATE) from = gates, n = sizeof gates;
    if (op == SPEED_COPY) from = copies, n = sizeof copies;
    if (op == SPEED_CONVERT_BF16 || op == SPEED_ROPE || op == SPEED_KV_WRITE)
        from = narrow, n = sizeof narrow;
    if (op >= SPEED_GREEDY) from = vocab, n = sizeof vocab;
    memcpy(out, from, n);
    return (int)(n / sizeof *out);
}

static enum status measure(struct calibration *c, struct rows_call *r, struct cal_call *call,
                           enum speed_rows op)
{
    struct size size[SIZES_MAX];
    double x[SIZES_MAX][SPEED_COEFS], y[SIZES_MAX];
    int n = sizes_of(op, size), threads = cal_threads(c, SPEED_ALL), kept = 0;
    for (int i = 0; i < n; i++) {
        if (op == SPEED_ROPE && size[i].n < ROPE_DIM) continue;
        for (int t = 0; t < threads; t++) {
            r[t].op = op;
            r[t].m = size[i].m;
            r[t].n = size[i].n;
            sampler_free(r[t].sampler);
            r[t].sampler = sampler_create(size[i].n);
            if (!r[t].sampler) return error_set(ERR_RESOURCE, "calibrate: out of memory");
        }
        double wide = size[i].n;
        if (op == SPEED_SORT) wide *= log2(wide);
        host_rows_features(size[i].m, wide, x[kept]);
        if (op >= SPEED_GREEDY) x[kept][3] = 0; /* row by row: never far away */
        y[kept++] = cal_time(c, call, threads);
    }
    host_fit(kept, 4, (const double(*)[SPEED_COEFS])x, y, NULL, c->speed.rows[op]);
    return OK;
}

enum status cal_rows(struct calibration *c)
{
    int threads = cal_threads(c, SPEED_ALL), made = 0;
    struct rows_call *r = calloc((size_t)threads, sizeof *r);
    struct cal_call call = {.fn = rows_run};
    if (!r) return error_set(ERR_RESOURCE, "calibrate: out of memory");
    enum status st = OK;
    for (; made < threads && st == OK; made++) {
        st = rows_make(c, &r[made]);
        call.arg[made] = &r[made];
    }
    for (int op = 0; op < SPEED_ROW_OPS && st == OK; op++)
        st = measure(c, r, &call, (enum speed_rows)op);
    for (int t = 0; t < made; t++) rows_free(&r[t]);
    free(r);
    return st;
}
