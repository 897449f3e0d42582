/* bench_timed.c - the wrappers: clock, real kernel, note. */
#include "cmd/bench_timed.h"
#include "core/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Kernels carry no context of their own: the one table that is being timed. */
static struct timed *active;

static struct timed_entry *entry_of(struct timed *t, const char *label)
{
    for (int i = 0; i < t->entries; i++)
        if (t->entry[i].stage == t->stage && strcmp(t->entry[i].label, label) == 0)
            return &t->entry[i];
    if (t->entries == TIMED_MAX) return &t->entry[TIMED_MAX - 1];
    struct timed_entry *e = &t->entry[t->entries++];
    *e = (struct timed_entry){.stage = t->stage};
    snprintf(e->label, sizeof e->label, "%s", label);
    return e;
}

struct cost {
    double flops, bytes;
    bool f32;
};

static void note(struct timed *t, const struct lane *lane, int64_t start_ns, struct cost cost,
                 const char *format, ...)
{
    if (lane != &t->lane) return; /* part of another kernel, on one of its threads */
    double seconds = (double)(clock_now_ns() - start_ns) * 1e-9;
    char label[TIMED_LABEL];
    va_list args;
    va_start(args, format);
    vsnprintf(label, sizeof label, format, args);
    va_end(args);
    struct timed_entry *e = entry_of(t, label);
    e->calls++;
    e->seconds += seconds;
    e->flops += cost.flops;
    e->bytes += cost.bytes;
    e->f32 = cost.f32;
}

static const char *type_label(enum dtype type)
{
    return type == DT_F32 ? "f32" : type == DT_BF16 ? "bf16" : "fp8";
}

/* One product of m rows: its operations, and weights + rows + results. */
static struct cost product(double m, const struct amat *a, const struct wmat *w)
{
    double n = w->n, k = w->k;
    return (struct cost){2 * m * n * k,
                         n * k * (double)dtype_bytes(w->type) +
                             m * (k * (double)dtype_bytes(a->type) + n * 4),
                         w->type == DT_F32};
}

static void wrap_gemm(struct lane *lane, int m, const struct amat *a, const struct wmat *w,
                      float *c, int ldc)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.gemm(lane, m, a, w, c, ldc);
    note(t, lane, start, product(m, a, w), "gemm %s %dx%d", type_label(w->type), w->n, w->k);
}

static void wrap_grouped(struct lane *lane, int groups, const int32_t *begin, const int32_t *rows,
                         const struct amat *a, const struct wmat *w, float *c, int ldc)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.gemm_grouped(lane, groups, begin, rows, a, w, c, ldc);
    struct cost sum = {0, 0, false};
    for (int g = 0; g < groups; g++) {
        if (rows[g] <= 0) continue; /* no row, no weights read */
        struct cost one = product(rows[g], a, &w[g]);
        sum = (struct cost){sum.flops + one.flops, sum.bytes + one.bytes, one.f32};
    }
    note(t, lane, start, sum, "grouped %s %d of %dx%d", type_label(w[0].type), groups, w[0].n,
         w[0].k);
}

static void wrap_batched(struct lane *lane, int batch, int m, const struct amat *a,
                         int64_t a_stride, const struct wmat *w, float *c, int ldc,
                         int64_t c_stride)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.gemm_batched(lane, batch, m, a, a_stride, w, c, ldc, c_stride);
    struct cost one = product(m, a, w);
    note(t, lane, start, (struct cost){batch * one.flops, batch * one.bytes, one.f32},
         "batched %s %d of %dx%d", type_label(w->type), batch, w->n, w->k);
}

static void wrap_convert(struct lane *lane, int m, const float *x, int ldx, struct amat *out,
                         bool ue8m0)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.act_convert(lane, m, x, ldx, out, ue8m0);
    double bytes = (double)m * out->k * (4 + (double)dtype_bytes(out->type));
    note(t, lane, start, (struct cost){0, bytes, true}, "act_convert to %s %d",
         type_label(out->type), out->k);
}

static void wrap_rmsnorm(struct lane *lane, int m, int n, const float *x, int ldx, const float *w,
                         float eps, float *y, int ldy)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.rmsnorm(lane, m, n, x, ldx, w, eps, y, ldy);
    note(t, lane, start, (struct cost){4.0 * m * n, 8.0 * m * n, true}, "rmsnorm %d", n);
}

static void wrap_rope(struct lane *lane, int m, int heads, int dim, float *x, int ldx, int stride,
                      const int32_t *pos, const float *table, bool interleaved)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.rope(lane, m, heads, dim, x, ldx, stride, pos, table, interleaved);
    double numbers = (double)m * heads * dim;
    note(t, lane, start, (struct cost){3 * numbers, 8 * numbers, true}, "rope %d x %d", heads, dim);
}

static void wrap_kv_write(struct lane *lane, enum dtype kv_type, int m, int dim_latent,
                          int dim_rope, const float *latent, int ldl, const float *rope, int ldr,
                          const int32_t *pos, const int32_t *const *pages, int page_tokens,
                          void *cache)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.kv_write(lane, kv_type, m, dim_latent, dim_rope, latent, ldl, rope, ldr, pos, pages,
                     page_tokens, cache);
    double numbers = (double)m * (dim_latent + dim_rope);
    note(t, lane, start, (struct cost){0, numbers * (4 + (double)dtype_bytes(kv_type)), true},
         "kv_write");
}

static void wrap_prefill(struct lane *lane, const struct mla_prefill_args *a)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.mla_prefill(lane, a);
    double pairs = ((double)a->m * a->pos0 + 0.5 * a->m * (a->m + 1.0)) * a->heads;
    double unit = (double)dtype_bytes(a->kv_type), context = a->pos0 + a->m, h = a->heads;
    double bytes = context * (h * (a->dim_nope + a->dim_v) + a->dim_rope) * unit +
                   4.0 * a->m * h * (a->dim_nope + a->dim_rope + a->dim_v);
    note(t, lane, start,
         (struct cost){2 * pairs * (a->dim_nope + a->dim_rope + a->dim_v), bytes,
                       a->kv_type == DT_F32},
         "mla_prefill %d heads", a->heads);
}

static void wrap_decode(struct lane *lane, const struct mla_decode_args *a)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.mla_decode(lane, a);
    double keys = 0, row = a->dim_latent + a->dim_rope;
    for (int i = 0; i < a->m; i++) keys += a->len[i];
    double bytes = keys * row * (double)dtype_bytes(a->kv_type) +
                   4.0 * a->m * a->heads * (row + a->dim_latent);
    note(t, lane, start,
         (struct cost){2 * keys * a->heads * (row + a->dim_latent), bytes, a->kv_type == DT_F32},
         "mla_decode %d heads", a->heads);
}

static void wrap_gate(struct lane *lane, int m, const float *logits, int ldl,
                      const struct gate_params *p, int32_t *ids, float *weights)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.gate(lane, m, logits, ldl, p, ids, weights);
    note(t, lane, start, (struct cost){0, 4.0 * m * p->experts, true}, "gate %d experts",
         p->experts);
}

static void wrap_silu(struct lane *lane, int m, int n, const float *x, int ldx, float *out, int ldo)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.silu_mul(lane, m, n, x, ldx, out, ldo);
    note(t, lane, start, (struct cost){0, 12.0 * m * n, true}, "silu_mul %d", n);
}

static void wrap_add(struct lane *lane, int m, int n, const float *x, int ldx, float *y, int ldy)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.add(lane, m, n, x, ldx, y, ldy);
    note(t, lane, start, (struct cost){(double)m * n, 12.0 * m * n, true}, "add %d", n);
}

static void wrap_combine(struct lane *lane, enum dtype type, int m, int n, int topk,
                         const void *rows, const int32_t *ids, const float *weights, int experts,
                         int n_group, float *out, int ldo)
{
    struct timed *t = active;
    int64_t start = clock_now_ns();
    t->real.combine(lane, type, m, n, topk, rows, ids, weights, experts, n_group, out, ldo);
    double bytes = (double)m * n * (topk * (double)dtype_bytes(type) + 4);
    note(t, lane, start, (struct cost){2.0 * m * n * topk, bytes, true}, "combine %d of %d", topk,
         n);
}

void timed_wrap(struct timed *t, const struct kernels *real, struct kernels *out)
{
    active = t;
    t->real = *real;
    *out = *real;
    out->gemm = wrap_gemm;
    out->gemm_grouped = wrap_grouped;
    out->gemm_batched = wrap_batched;
    out->act_convert = wrap_convert;
    out->rmsnorm = wrap_rmsnorm;
    out->rope = wrap_rope;
    out->kv_write = wrap_kv_write;
    out->mla_prefill = wrap_prefill;
    out->mla_decode = wrap_decode;
    out->gate = wrap_gate;
    out->silu_mul = wrap_silu;
    out->add = wrap_add;
    out->combine = wrap_combine;
    timed_clear(t);
}

void timed_clear(struct timed *t)
{
    t->entries = 0;
}
