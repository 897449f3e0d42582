/* gemm_portable.c - the micro-kernel in plain C: what every other one is checked against where
 * bits must not matter, and what runs where no vector set is known. */
#include "core/numfmt.h"
#include "gemm/act.h"
#include "gemm/entries.h"

enum { NR = 16, MR = 2 };

static void transpose16(enum dtype type, const void *src, size_t stride, uint32_t *dst, size_t ldd)
{
    (void)type;
    for (int r = 0; r < 16; r++) {
        uint32_t row[16];
        memcpy(row, (const char *)src + (size_t)r * stride, sizeof row);
        for (int u = 0; u < 16; u++) dst[(size_t)u * ldd + (size_t)r] = row[u];
    }
}

static void widen_block(enum dtype from, const void *block, int depth, void *wide)
{
    float *out = wide;
    const uint16_t *h = block; /* units (k / 2, j) of two k */
    const uint8_t *q = block;  /* units (k / 4, j) of four k */
    for (int k = 0; k < depth; k++)
        for (int j = 0; j < NR; j++)
            out[k * NR + j] = from == DT_BF16 ? bf16_to_f32(h[(k / 2 * NR + j) * 2 + k % 2])
                                              : e4m3_to_f32(q[(k / 4 * NR + j) * 4 + k % 4]);
}

static void widen_row(enum dtype from, const void *src, int n, void *dst)
{
    float *out = dst;
    const uint16_t *h = src;
    const uint8_t *q = src;
    for (int i = 0; i < n; i++) out[i] = from == DT_BF16 ? bf16_to_f32(h[i]) : e4m3_to_f32(q[i]);
}

static void tile(enum dtype type, int rows, const struct gemm_tile *t)
{
    (void)type; /* blocks are always widened to FP32 first */
    const float *a = t->a, *b = t->b;
    for (int r = 0; r < rows; r++) {
        float *c = t->c + r * NR, sum[NR];
        bool from_zero = t->first || t->scaled;
        for (int j = 0; j < NR; j++) sum[j] = from_zero ? 0 : c[j];
        for (int k = 0; k < t->depth; k++)
            for (int j = 0; j < NR; j++) sum[j] += a[r * GEMM_KC + k] * b[k * NR + j];
        float scale = t->scaled ? t->a_scale[r] * t->w_scale : 1;
        for (int j = 0; j < NR; j++)
            c[j] = !t->scaled ? sum[j] : (t->first ? 0 : c[j]) + sum[j] * scale;
    }
}

const struct ukernel ukernel_portable = {
    .nr = NR,
    .mr = MR,
    .wide = DT_F32,
    .fused_rows = 0,
    .poll_work = 5e4,
    .transpose16 = transpose16,
    .widen_block = widen_block,
    .widen_row = widen_row,
    .tile = tile,
    .row_bf16 = act_row_bf16,
    .row_e4m3 = act_row_e4m3,
};

GEMM_ENTRIES(portable)
