/* rows_body.h - rmsnorm, rope and kv_write of struct kernels, written once over vf.
 *
 * Included by rows_<path>.c. Each row is one chain of operations that depends on nothing else.
 */
#include "attention/attend.h"
#include "attention/vec.h"

#include <omp.h>

/* Below this many numbers a call is not worth waking the threads. */
enum { ROWS_PARALLEL_MIN = 1 << 14 };

static void poll_first(struct lane *lane)
{
    if (omp_get_thread_num() == 0) lane_poll(lane);
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
    VF_FOR(i, n) {
        vf v = vf_mul(vf_load_n(x + i, n - i), f);
        vf_store_n(y + i, vf_mul(v, vf_load_n(w + i, n - i)), n - i);
    }
}

static void rmsnorm(struct lane *lane, int m, int n, const float *x, int ldx, const float *w,
                    float eps, float *y, int ldy)
{
#pragma omp parallel for num_threads(lane->threads) if (m > 1 && (int64_t)m * n > ROWS_PARALLEL_MIN)
    for (int i = 0; i < m; i++) {
        rmsnorm_row(n, x + (int64_t)i * ldx, w, eps, y + (int64_t)i * ldy);
        poll_first(lane);
    }
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

static void rope(struct lane *lane, int m, int heads, int dim, float *x, int ldx, int stride,
                 const int32_t *pos, const float *table, bool interleaved)
{
    int64_t work = (int64_t)m * heads * dim;
#pragma omp parallel for num_threads(lane->threads) if (m > 1 && work > ROWS_PARALLEL_MIN)
    for (int i = 0; i < m; i++) {
        const float *cs = table + (int64_t)pos[i] * dim;
        for (int h = 0; h < heads; h++)
            rope_vector(dim / 2, x + (int64_t)i * ldx + (int64_t)h * stride, cs, interleaved);
        poll_first(lane);
    }
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

static void kv_write(struct lane *lane, enum dtype kv_type, int m, int dim_latent, int dim_rope,
                     const float *latent, int ldl, const float *rope_part, int ldr,
                     const int32_t *pos, const int32_t *const *pages, int page_tokens,
                     void *cache)
{
    size_t row_bytes = (size_t)(dim_latent + dim_rope) * dtype_bytes(kv_type);
    int64_t work = (int64_t)m * (dim_latent + dim_rope);
#pragma omp parallel for num_threads(lane->threads) if (m > 1 && work > ROWS_PARALLEL_MIN)
    for (int i = 0; i < m; i++) {
        size_t page = (size_t)pages[i][pos[i] / page_tokens];
        size_t slot = page * (size_t)page_tokens + (size_t)(pos[i] % page_tokens);
        void *row = (char *)cache + slot * row_bytes;
        store_row(kv_type, dim_latent, latent + (int64_t)i * ldl, row, 0);
        store_row(kv_type, dim_rope, rope_part + (int64_t)i * ldr, row, dim_latent);
        poll_first(lane);
    }
}

#define ATTENTION_ROWS(path)                        \
    void attention_rows_##path(struct kernels *k) \
    {                                               \
        k->rmsnorm = rmsnorm;                       \
        k->rope = rope;                             \
        k->kv_write = kv_write;                     \
    }
