/* ukernel.h - private to gemm/: the micro-kernel of one instruction set, the packed layout, and
 * the one driver that blocks, groups and spreads work over threads for all of them.
 *
 * Packed layout: the stack of sources is cut into panels of `nr` columns (rows of the source;
 * each source starts a new panel, its last one padded with zeros), a panel into blocks of 128
 * along k (the last one as deep as k needs, rounded up to 4). A block is a matrix of 4-byte
 * units [depth * bytes / 4][nr]: unit (u, j) holds the 1 (F32), 2 (BF16) or 4 (E4M3)
 * consecutive k of column j that begin at k = u * 4 / bytes; avx512_bf16 additionally permutes
 * the bytes of E4M3 units within 16 columns (its transpose does that). Blocks of a panel are
 * contiguous, then panels; E4M3 matrices end with their scales [panel][block], 64-byte aligned.
 */
#ifndef GEMM_UKERNEL_H
#define GEMM_UKERNEL_H

#include "gemm/gemm.h"

enum { GEMM_KC = FP8_BLOCK, GEMM_KALIGN = 4, GEMM_NR_MAX = 64 };

/* One step of the innermost product: c[rows, nr] += a[rows, depth] * b[depth, nr]. */
struct gemm_tile {
    const void *a;        /* [rows][GEMM_KC] of the compute type */
    const void *b;        /* a block: F32 or BF16 units, or E4M3 units where fused */
    float *c;             /* [rows][nr] */
    const float *a_scale; /* [rows]; used only when scaled */
    float w_scale;
    int depth;   /* multiple of GEMM_KALIGN */
    bool first;  /* c counts as zero */
    bool scaled; /* sum the block from zero, then c += sum * a_scale * w_scale */
    bool stream; /* b is read once, from memory: prefetch ahead */
};

/* Calls fn(rows, ...) with rows (1 to 6) as a constant, so that its loops unroll. */
#define GEMM_EACH_HEIGHT(rows, fn, ...) \
    switch (rows) {                     \
    case 1: fn(1, __VA_ARGS__); break;  \
    case 2: fn(2, __VA_ARGS__); break;  \
    case 3: fn(3, __VA_ARGS__); break;  \
    case 4: fn(4, __VA_ARGS__); break;  \
    case 5: fn(5, __VA_ARGS__); break;  \
    default: fn(6, __VA_ARGS__); break; \
    }

struct ukernel {
    int nr;           /* columns of a panel, a multiple of 16 that divides 128 */
    int mr;           /* most rows of a tile */
    enum dtype wide;  /* what BF16 and E4M3 operands are multiplied as: DT_BF16 or DT_F32 */
    int fused_rows;   /* up to so many rows tile() reads E4M3 blocks itself; 0: never */
    int fused_mr;     /* most rows of such a tile (the tables take registers) */
    double poll_work; /* multiply-adds of about 50 us of one thread */

    /* 16 rows of 16 units, `stride` bytes apart, to dst[u * ldd + row] (ldd in units). */
    void (*transpose16)(enum dtype type, const void *src, size_t stride, uint32_t *dst, size_t ldd);
    /* A BF16 or E4M3 block to the compute type, [depth][nr] in that type's units. */
    void (*widen_block)(enum dtype from, const void *block, int depth, void *wide);
    /* n consecutive activations to the compute type (from != compute type). */
    void (*widen_row)(enum dtype from, const void *src, int n, void *dst);
    /* rows <= mr; type is b's. */
    void (*tile)(enum dtype type, int rows, const struct gemm_tile *);
    /* A thread has done a piece of work: releases what tile() set up. NULL: nothing. */
    void (*leave)(void);
    /* One row of activations. */
    void (*row_bf16)(int n, const float *x, uint16_t *out);
    void (*row_e4m3)(int n, const float *x, bool ue8m0, uint8_t *q, float *scale);
};

extern const struct ukernel ukernel_portable, ukernel_avx2, ukernel_avx512, ukernel_avx512bf16,
    ukernel_amx;

/* ---- layout (pack.c) ---- */

static inline int gemm_depth(int k, int block)
{
    int rest = k - block * GEMM_KC;
    if (rest >= GEMM_KC) return GEMM_KC;
    return (rest + GEMM_KALIGN - 1) / GEMM_KALIGN * GEMM_KALIGN;
}

/* Where a matrix's panels are. */
struct gemm_layout {
    int panels, panels0; /* all; those of the first source */
    int blocks;          /* along k */
    size_t block_bytes;  /* of a full block */
    size_t panel_bytes;
    size_t scales; /* offset of the scales; 0 if none */
    size_t bytes;
};
struct gemm_layout gemm_layout(const struct ukernel *uk, enum dtype type, const int *source_n,
                               int sources, int k);

/* First output column and number of columns of a panel. */
static inline int gemm_panel_columns(const struct ukernel *uk, const struct gemm_layout *l,
                                     const struct wmat *w, int panel, int *first)
{
    int second = panel >= l->panels0;
    int j = (panel - (second ? l->panels0 : 0)) * uk->nr;
    *first = j + (second ? w->source_n[0] : 0);
    int left = w->source_n[second] - j;
    return left < uk->nr ? left : uk->nr;
}

enum status gemm_pack_stack(const struct ukernel *uk, enum dtype type, const struct weight_src *src,
                            int sources, void *dst, struct wmat *out);

/* ---- driver (driver.c) ---- */

/* A call of any entry: product g multiplies rows of a by w[g]. */
struct gemm_call {
    const struct ukernel *uk;
    int groups;
    int m;                /* rows of each product when `rows` is NULL */
    const int32_t *begin; /* [groups] first row in a and c, or NULL (0) */
    const int32_t *rows;  /* [groups] or NULL */
    const struct amat *a;
    int64_t a_stride;     /* elements between products' activations */
    const struct wmat *w; /* [groups] */
    float *c;
    int ldc;
    int64_t c_stride;
};
void gemm_drive(struct lane *lane, const struct gemm_call *call);

void act_drive(const struct ukernel *uk, struct lane *lane, int m, const float *x, int ldx,
               struct amat *out, bool ue8m0);

#endif
