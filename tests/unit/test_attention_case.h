/* test_attention_case.h - random attention problems in exactly sized heap blocks (so that the
 * address sanitizer sees any read beyond them), their FP64 answers, and the paths to try.
 */
#ifndef TEST_ATTENTION_CASE_H
#define TEST_ATTENTION_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "attention/attend.h"
#include "core/numfmt.h"
#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Fills k for isa; false, with the missing instruction printed, if the host lacks it. */
static inline bool path_ready(enum isa isa, struct kernels *k)
{
    const char *why = 0;
    memset(k, 0, sizeof *k);
    if (!isa_supported(isa, &why)) {
        printf("# %s skipped: this host lacks %s\n", isa_name(isa), why);
        return false;
    }
    assert_int_equal(attention_kernels_fill(k, isa), OK);
    return true;
}

static inline float *random_floats(size_t n, uint64_t key, float scale)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = scale * (float)rng_normal(key, i);
    return x;
}

/* The numbers as a cache of `type` holds them; *widened (may be NULL) gets them as FP32. */
static inline void *typed_copy(enum dtype type, const float *x, size_t n, float **widened)
{
    char *out = malloc(n * dtype_bytes(type));
    float *wide = widened ? malloc(n * sizeof *wide) : 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t h = bf16_from_f32(x[i]);
        if (type == DT_F32) memcpy(out + 4 * i, &x[i], 4);
        else memcpy(out + 2 * i, &h, 2);
        if (wide) wide[i] = type == DT_F32 ? x[i] : bf16_to_f32(h);
    }
    if (widened) *widened = wide;
    return out;
}

static inline void *heap_copy(const void *x, size_t bytes)
{
    return memcpy(malloc(bytes ? bytes : 1), x, bytes);
}

/* One sequence: queries at all positions, keys and values of all heads. */
struct sequence {
    enum dtype type;
    int heads, nope, rope, v, total;
    float scale;
    float *q;
    void *k, *val, *kr;
    float *k_wide, *v_wide, *r_wide;
};

static inline struct sequence sequence_make(enum dtype type, int heads, int nope, int rope, int v,
                                            int total)
{
    struct sequence s = {.type = type, .heads = heads, .nope = nope, .rope = rope, .v = v,
                         .total = total, .scale = 1.3f / sqrtf((float)(nope + rope))};
    size_t n = (size_t)total, h = (size_t)heads;
    s.q = random_floats(n * h * (size_t)(nope + rope), 1, 1.5f);
    float *k = random_floats(n * h * (size_t)nope, 2, 1);
    float *val = random_floats(n * h * (size_t)v, 3, 1);
    float *kr = random_floats(n * (size_t)rope, 4, 1);
    s.k = typed_copy(type, k, n * h * (size_t)nope, &s.k_wide);
    s.val = typed_copy(type, val, n * h * (size_t)v, &s.v_wide);
    s.kr = typed_copy(type, kr, n * (size_t)rope, &s.r_wide);
    free(k);
    free(val);
    free(kr);
    return s;
}

static inline void sequence_free(struct sequence *s)
{
    void *all[] = {s->q, s->k, s->val, s->kr, s->k_wide, s->v_wide, s->r_wide};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* Runs queries [pos0, pos0 + m) seeing nothing beyond them; out is [total, heads, v]. */
static inline void sequence_chunk(const struct sequence *s, const struct kernels *k, int threads,
                                  int pos0, int m, float *out)
{
    struct lane lane __attribute__((cleanup(lane_free)));
    lane_init(&lane, 0, threads);
    size_t unit = dtype_bytes(s->type), ctx = (size_t)(pos0 + m);
    int dq = s->heads * (s->nope + s->rope);
    struct mla_prefill_args a = {
        .kv_type = s->type, .heads = s->heads, .dim_nope = s->nope, .dim_rope = s->rope,
        .dim_v = s->v, .softmax_scale = s->scale, .m = m, .pos0 = pos0,
        .q = heap_copy(s->q + (size_t)pos0 * (size_t)dq, (size_t)m * (size_t)dq * sizeof(float)),
        .ldq = dq,
        .k_nope = heap_copy(s->k, ctx * (size_t)(s->heads * s->nope) * unit),
        .v = heap_copy(s->val, ctx * (size_t)(s->heads * s->v) * unit),
        .ldk = s->heads * s->nope, .ldv = s->heads * s->v,
        .k_rope = heap_copy(s->kr, ctx * (size_t)s->rope * unit), .ldr = s->rope,
        .out = malloc((size_t)m * (size_t)(s->heads * s->v) * sizeof(float)),
        .ldo = s->heads * s->v,
    };
    k->mla_prefill(&lane, &a);
    memcpy(out + (size_t)pos0 * (size_t)a.ldo, a.out, (size_t)m * (size_t)a.ldo * sizeof *out);
    free((void *)a.q);
    free((void *)a.k_nope);
    free((void *)a.v);
    free((void *)a.k_rope);
    free(a.out);
}

/* The whole sequence in chunks of `chunk` queries. */
static inline float *sequence_run(const struct sequence *s, const struct kernels *k, int threads,
                                  int chunk)
{
    float *out = malloc((size_t)(s->total * s->heads * s->v) * sizeof *out);
    for (int pos = 0; pos < s->total; pos += chunk)
        sequence_chunk(s, k, threads, pos, s->total - pos < chunk ? s->total - pos : chunk, out);
    return out;
}

/* The largest |out - exact| / sum of p |v| of attention over n keys; key(j), value(j) through
 * the arrays: score[j] is filled by the caller, value row j at v + j * ldv. */
static inline double attention_error(int n, double *score, const float *v, int ldv, int dim_v,
                                     const float *out)
{
    double top = -INFINITY, sum = 0, worst = 0;
    for (int j = 0; j < n; j++) top = score[j] > top ? score[j] : top;
    for (int j = 0; j < n; j++) sum += score[j] = exp(score[j] - top);
    for (int d = 0; d < dim_v; d++) {
        double exact = 0, size = 0;
        for (int j = 0; j < n; j++) {
            exact += score[j] / sum * v[(size_t)j * (size_t)ldv + (size_t)d];
            size += score[j] / sum * fabs(v[(size_t)j * (size_t)ldv + (size_t)d]);
        }
        double e = fabs(out[d] - exact) / size;
        if (!(e <= worst)) worst = e;
    }
    return worst;
}

/* What the kernel's own rules make of a query number. */
static inline double as_query(enum dtype type, float x)
{
    return type == DT_F32 ? x : bf16_to_f32(bf16_from_f32(x));
}

static inline double sequence_error(const struct sequence *s, const float *out)
{
    int dk = s->nope + s->rope;
    double worst = 0, *score = malloc((size_t)s->total * sizeof *score);
    for (int i = 0; i < s->total; i++)
        for (int h = 0; h < s->heads; h++) {
            const float *q = s->q + (i * s->heads + h) * dk;
            for (int j = 0; j <= i; j++) {
                const float *k = s->k_wide + (j * s->heads + h) * s->nope;
                const float *r = s->r_wide + j * s->rope;
                double sum = 0;
                for (int d = 0; d < s->nope; d++) sum += as_query(s->type, q[d]) * k[d];
                for (int d = 0; d < s->rope; d++)
                    sum += as_query(s->type, q[s->nope + d]) * r[d];
                score[j] = sum * s->scale;
            }
            double e = attention_error(i + 1, score, s->v_wide + h * s->v, s->heads * s->v, s->v,
                                       out + (i * s->heads + h) * s->v);
            if (!(e <= worst)) worst = e;
        }
    free(score);
    return worst;
}

/* A batch of decode queries over a paged cache. */
struct batch {
    enum dtype type;
    int m, heads, latent, rope, page_tokens;
    float scale;
    float *q;        /* [m, heads, latent + rope] */
    int32_t *len;    /* [m] */
    float **rows;    /* [m] -> [len, latent + rope], as FP32 */
    void **typed;    /* [m] -> the same as the cache's type */
};

static inline struct batch batch_make(enum dtype type, int m, const int *len, int heads,
                                      int latent, int rope)
{
    struct batch b = {.type = type, .m = m, .heads = heads, .latent = latent, .rope = rope,
                      .scale = 1.2f / sqrtf((float)(latent + rope))};
    int dk = latent + rope;
    b.q = random_floats((size_t)m * (size_t)(heads * dk), 11, 1.5f);
    b.len = malloc((size_t)m * sizeof *b.len);
    b.rows = malloc((size_t)m * sizeof *b.rows);
    b.typed = malloc((size_t)m * sizeof *b.typed);
    for (int i = 0; i < m; i++) {
        b.len[i] = len[i];
        float *x = random_floats((size_t)(len[i] * dk), (uint64_t)(20 + i), 1);
        b.typed[i] = typed_copy(type, x, (size_t)(len[i] * dk), &b.rows[i]);
        free(x);
    }
    return b;
}

static inline void batch_free(struct batch *b)
{
    for (int i = 0; i < b->m; i++) {
        free(b->rows[i]);
        free(b->typed[i]);
    }
    free(b->rows);
    free(b->typed);
    free(b->len);
    free(b->q);
}

/* Requests [first, first + count) with the cache cut in pages dealt out in an order that `seed`
 * shuffles; the last page is not allocated beyond its last row. out: [count, heads, latent]. */
static inline float *batch_run(const struct batch *b, const struct kernels *k, int threads,
                               int first, int count, int page_tokens, uint64_t seed)
{
    struct lane lane __attribute__((cleanup(lane_free)));
    lane_init(&lane, 0, threads);
    int dk = b->latent + b->rope, pages = 0;
    for (int i = first; i < first + count; i++)
        pages += (b->len[i] + page_tokens - 1) / page_tokens;
    int *order = malloc((size_t)(pages + 1) * sizeof *order);
    for (int p = 0; p < pages; p++) order[p] = p;
    for (int p = pages - 1; p > 0; p--) {
        int other = (int)(rng_u64(seed, (uint64_t)p) % (uint64_t)(p + 1)), t = order[p];
        order[p] = order[other];
        order[other] = t;
    }
    size_t row_bytes = (size_t)dk * dtype_bytes(b->type), rows = 0;
    size_t page_bytes = (size_t)page_tokens * row_bytes;
    char *full = calloc((size_t)pages + 1, page_bytes);
    int32_t **tables = malloc((size_t)count * sizeof *tables);
    for (int i = 0, next = 0; i < count; i++) {
        int len = b->len[first + i], n = (len + page_tokens - 1) / page_tokens;
        tables[i] = malloc((size_t)(n + !n) * sizeof **tables);
        for (int p = 0; p < n; p++) {
            int left = len - p * page_tokens, used = left < page_tokens ? left : page_tokens;
            size_t page = (size_t)order[next++];
            tables[i][p] = (int32_t)page;
            memcpy(full + page * page_bytes,
                   (char *)b->typed[first + i] + (size_t)(p * page_tokens) * row_bytes,
                   (size_t)used * row_bytes);
            size_t end = page * (size_t)page_tokens + (size_t)used;
            if (end > rows) rows = end;
        }
    }
    struct mla_decode_args a = {
        .kv_type = b->type, .heads = b->heads, .dim_latent = b->latent, .dim_rope = b->rope,
        .page_tokens = page_tokens, .softmax_scale = b->scale, .m = count,
        .q = heap_copy(b->q + (size_t)first * (size_t)(b->heads * dk),
                       (size_t)count * (size_t)(b->heads * dk) * sizeof(float)),
        .ldq = b->heads * dk, .cache = heap_copy(full, rows * row_bytes),
        .pages = (const int32_t *const *)tables, .len = b->len + first,
        .out = malloc((size_t)(count * b->heads * b->latent) * sizeof(float)),
        .ldo = b->heads * b->latent,
    };
    k->mla_decode(&lane, &a);
    for (int i = 0; i < count; i++) free(tables[i]);
    free(tables);
    free(full);
    free(order);
    free((void *)a.q);
    free((void *)a.cache);
    return a.out;
}

static inline double batch_error(const struct batch *b, const float *out)
{
    int dk = b->latent + b->rope;
    double worst = 0;
    for (int i = 0; i < b->m; i++) {
        double *score = malloc((size_t)(b->len[i] + 1) * sizeof *score);
        for (int h = 0; h < b->heads && b->len[i] > 0; h++) {
            const float *q = b->q + (i * b->heads + h) * dk;
            for (int j = 0; j < b->len[i]; j++) {
                double sum = 0;
                for (int d = 0; d < dk; d++)
                    sum += as_query(b->type, q[d]) * b->rows[i][j * dk + d];
                score[j] = sum * b->scale;
            }
            double e = attention_error(b->len[i], score, b->rows[i], dk, b->latent,
                                       out + (i * b->heads + h) * b->latent);
            if (!(e <= worst)) worst = e;
        }
        free(score);
    }
    return worst;
}

#endif
