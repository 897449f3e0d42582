/* rows_body.h - rmsnorm, rope and kv_write of struct kernels, written once over vf.
 *
 * Included by rows_<path>.c. Each row is one chain of operations that depends on nothing else.
 */
#include "attention/attend.h"
#include "attention/vec.h"

/* Rows of n numbers that are worth waking a thread. */
static int rows_grain(int64_t n)
{
    enum { NUMBERS_MIN = 1 << 13 };
    return n >= NUMBERS_MIN ? 1 : (int)(NUMBERS_MIN / (n + 1)) + 1;
}

static void rmsnorm_row(int n, const float *x, const float *w, float eps, float *y)
{
    vf s0 = vf_set1(0), s1 = vf_set1(0);
    for (int i = 0; i < n; i += 2 * VW) {
        vf a = vf_load_n(x + i, n - i);
        s0 = vf_fma(a, a, s0);
        if (i + VW >= n) break;
        vf b = vf_load_n(x + i + VW, n - i - VW);
        s1 = vf_fma(b, b, s1);
    }
    float mean = vf_sum(vf_add(s0, s1)) / (float)n;
    vf f = vf_set1(1.0f / sqrtf(mean + eps));
    VF_FOR(i, n)
    {
        vf v = vf_mul(vf_load_n(x + i, n - i), f);
        vf_store_n(y + i, vf_mul(v, vf_load_n(w + i, n - i)), n - i);
    }
}

struct rmsnorm_call {
    int n, ldx, ldy;
    float eps;
    const float *x, *w;
    float *y;
};

static void rmsnorm_rows(void *arg, int first, int end, struct lane *poll)
{
    const struct rmsnorm_call *c = arg;
    for (int i = first; i < end; i++) {
        rmsnorm_row(c->n, c->x + (int64_t)i * c->ldx, c->w, c->eps, c->y + (int64_t)i * c->ldy);
        lane_poll(poll);
    }
}

static void rmsnorm(struct lane *lane, int m, int n, const float *x, int ldx, const float *w,
                    float eps, float *y, int ldy)
{
    struct rmsnorm_call c = {n, ldx, ldy, eps, x, w, y};
    lane_rows(lane, m, rows_grain(n), rmsnorm_rows, &c);
}

/* One vector of 2 * half numbers; cs holds half pairs of cosine and sine. */
static void rope_vector(int half, float *x, const float *cs, bool interleaved)
{
    float a[ATTENTION_MAX_DIM_K / 2], b[ATTENTION_MAX_DIM_K / 2];
    for (int j = 0; j < half; j++) {
        a[j] = interleaved ? x[2 * j] : x[j];
        b[j] = interleaved ? x[2 * j + 1] : x[j + half];
    }
    for (int j = 0; j < half; j++) {
        float c = cs[2 * j], s = cs[2 * j + 1];
        x[j] = a[j] * c - b[j] * s;
        x[j + half] = b[j] * c + a[j] * s;
    }
}

struct rope_call {
    int heads, dim, ldx, stride;
    float *x;
    const int32_t *pos;
    const float *table;
    bool interleaved;
};

static void rope_rows(void *arg, int first, int end, struct lane *poll)
{
    const struct rope_call *c = arg;
    for (int i = first; i < end; i++) {
        const float *cs = c->table + (int64_t)c->pos[i] * c->dim;
        float *x = c->x + (int64_t)i * c->ldx;
        for (int h = 0; h < c->heads; h++)
            rope_vector(c->dim / 2, x + (int64_t)h * c->stride, cs, c->interleaved);
        lane_poll(poll);
    }
}

static void rope(struct lane *lane, int m, int heads, int dim, float *x, int ldx, int stride,
                 const int32_t *pos, const float *table, bool interleaved)
{
    struct rope_call c = {heads, dim, ldx, stride, x, pos, table, interleaved};
    lane_rows(lane, m, rows_grain((int64_t)heads * dim), rope_rows, &c);
}

static void store_row(enum dtype type, int n, const float *x, void *row, int at)
{
    if (type == DT_F32) {
        memcpy((float *)row + at, x, (size_t)n * sizeof *x);
        return;
    }
    uint16_t *out = (uint16_t *)row + at;
    VF_FOR(i, n) vf_store_bf16_n(out + i, vf_load_n(x + i, n - i), n - i);
}

struct kv_write_call {
    enum dtype type;
    int dim_latent, dim_rope, ldl, ldr, page_tokens;
    const float *latent, *rope;
    const int32_t *pos;
    const int32_t *const *pages;
    char *cache;
};

static void kv_write_rows(void *arg, int first, int end, struct lane *poll)
{
    const struct kv_write_call *c = arg;
    size_t row_bytes = (size_t)(c->dim_latent + c->dim_rope) * dtype_bytes(c->type);
    for (int i = first; i < end; i++) {
        size_t page = (size_t)c->pages[i][c->pos[i] / c->page_tokens];
        size_t slot = page * (size_t)c->page_tokens + (size_t)(c->pos[i] % c->page_tokens);
        void *row = c->cache + slot * row_bytes;
        store_row(c->type, c->dim_latent, c->latent + (int64_t)i * c->ldl, row, 0);
        store_row(c->type, c->dim_rope, c->rope + (int64_t)i * c->ldr, row, c->dim_latent);
        lane_poll(poll);
    }
}

static void kv_write(struct lane *lane, enum dtype kv_type, int m, int dim_latent, int dim_rope,
                     const float *latent, int ldl, const float *rope_part, int ldr,
                     const int32_t *pos, const int32_t *const *pages, int page_tokens, void *cache)
{
    struct kv_write_call c = {kv_type, dim_latent, dim_rope, ldl,   ldr,  page_tokens,
                              latent,  rope_part,  pos,      pages, cache};
    lane_rows(lane, m, rows_grain(dim_latent + dim_rope), kv_write_rows, &c);
}

#define ATTENTION_ROWS(path)                      \
    void attention_rows_##path(struct kernels *k) \
    {                                             \
        k->rmsnorm = rmsnorm;                     \
        k->rope = rope;                           \
        k->kv_write = kv_write;                   \
    }
