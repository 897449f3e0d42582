/* kernels.h - the table of compute kernels: one per instruction set, and one per accelerator.
 *
 * Declared over plain pointers. gemm/, attention/ and moe/ each fill their part for an ISA with
 * <part>_kernels_fill(struct kernels *, enum isa); the engine composes the table once at start
 * (kernels_compose, engine/) and everybody calls through it. A CUDA plug-in fills the same
 * struct with functions that enqueue on lane->impl.
 *
 * Numbers (design.md §4): activations between kernels are FP32 rows; they are converted to the
 * GEMM's input type by act_convert. Every output row depends only on its own input row, in a
 * fixed order of operations: never on m, on the tile, the group, or the thread count. NaN and
 * infinities propagate as IEEE arithmetic does; e4m3 denormals are exact.
 *
 * All row strides (ld*) are in elements. m, rows may be 0. Nothing is allocated per call beyond
 * a per-thread scratch that the part owns.
 */
#ifndef DEVICE_KERNELS_H
#define DEVICE_KERNELS_H

/* Number of the bits that all kernels together compute: raised by whoever changes any of them, so
 * that KV pages of before are not taken for pages of now (kv.disk). */
#define KERNELS_BITS 1

#include "core/cpu.h"
#include "core/status.h"
#include "device/device.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Storage types of matrices, payloads and the KV cache. */
enum dtype { DT_F32, DT_BF16, DT_E4M3 };
static inline size_t dtype_bytes(enum dtype t)
{
    return t == DT_F32 ? 4 : t == DT_BF16 ? 2 : 1;
}

/* FP8 blocks: weights 128 x 128, activations 1 x 128, ragged edges allowed. */
enum { FP8_BLOCK = 128 };
static inline int fp8_blocks(int k)
{
    return (k + FP8_BLOCK - 1) / FP8_BLOCK;
}

/* A weight matrix [n, k] in row-major checkpoint form, input of packing.
 * type DT_E4M3 carries scale[ceil(n/128), ceil(k/128)] (row stride lds). */
struct weight_src {
    enum dtype type;
    int n, k;
    const void *data; /* [n, ldk] */
    int ldk;
    const float *scale; /* FP8 only */
    int lds;
};

/* A packed weight matrix in the order the ISA's kernel wants; `data` borrowed (node-shared or
 * rank-private memory of wmat_bytes bytes, 64-byte aligned). Several sources stacked along n
 * (gate|up, q_a|kv_a) keep each tensor's own 128-row scale grid: the packing stores scales per
 * panel of rows and starts each source on a new panel. y rows of the sources are contiguous in
 * the output: n = sum of the sources' n. */
struct wmat {
    enum dtype type;
    int n, k;
    int sources;     /* how many were stacked, at most 2 */
    int source_n[2]; /* their n */
    const void *data;
};

/* Activations as a GEMM reads them: rows of k elements of `type`; E4M3 with
 * scale[row, ceil(k/128)] (row stride lds). Legal pairs (activation x weight):
 * F32 x F32, BF16 x BF16, BF16 x E4M3 (numerics bf16), E4M3 x E4M3. */
struct amat {
    enum dtype type;
    int k;
    const void *data; /* [rows, ld] */
    int ld;
    const float *scale;
    int lds;
};

/* Which experts a token goes to; see model.md "Gate". */
enum gate_kind { GATE_SIGMOID_NOAUX, GATE_SOFTMAX_GREEDY, GATE_SOFTMAX_GROUP };
struct gate_params {
    enum gate_kind kind;
    int experts, topk, n_group, topk_group;
    bool norm_topk;
    float scale;       /* routed_scaling_factor */
    const float *bias; /* [experts], sigmoid only */
};

/* Prefill attention of one sequence's chunk (non-absorbed, causal). T = kv_type (F32 or BF16).
 * Query i (row i of q) has absolute position pos0 + i and sees keys 0 .. pos0 + i.
 * Keys are visited in blocks of 64 absolute positions, ascending, with one running softmax per
 * (query, head): the result of a query does not depend on m or pos0's split into chunks. */
struct mla_prefill_args {
    enum dtype kv_type;
    int heads, dim_nope, dim_rope, dim_v;
    float softmax_scale;
    int m, pos0;    /* queries; context length is pos0 + m */
    const float *q; /* [m, heads, dim_nope + dim_rope], roped */
    int ldq;
    const void *k_nope; /* T [pos0 + m, heads, dim_nope], row stride ldk */
    const void *v;      /* T [pos0 + m, heads, dim_v], row stride ldv */
    int ldk, ldv;
    const void *k_rope; /* T [pos0 + m, dim_rope], row stride ldr, roped, shared by heads */
    int ldr;
    float *out; /* [m, heads, dim_v] */
    int ldo;
};

/* Decode attention over a paged cache (absorbed form): one query token per row.
 * A cache row is [dim_latent | dim_rope] of T; the cache of a layer is
 * cache[page][page_tokens][dim_latent + dim_rope]. Row i sees its first len[i] cache rows, found
 * through pages[i][0 .. ceil(len/page_tokens)). KV is split at fixed absolute positions and the
 * parts merged ascending, so bits depend neither on the batch nor on page ids. */
struct mla_decode_args {
    enum dtype kv_type;
    int heads, dim_latent, dim_rope, page_tokens;
    float softmax_scale;
    int m;
    const float *q; /* [m, heads, dim_latent + dim_rope] */
    int ldq;
    const void *cache;
    const int32_t *const *pages; /* [m] page tables */
    const int32_t *len;          /* [m] */
    float *out;                  /* [m, heads, dim_latent] */
    int ldo;
};

struct kernels {
    enum isa isa;
    const char *name;

    /* ---- gemm/ ---- */
    /* Bytes of a packed matrix; packs `sources` stacked matrices of one k and type into dst
     * (ranks of a node share out whole matrices). F32 destination accepts any source type
     * (FP8 is dequantised exactly: value x scale in FP32); BF16 accepts BF16, F32 (rounded). */
    size_t (*gemm_packed_bytes)(enum dtype type, const int *source_n, int sources, int k);
    enum status (*gemm_pack)(enum dtype type, const struct weight_src *src, int sources, void *dst,
                             struct wmat *out);
    /* c[m, n] = a[m, k] * w[n, k]^T, FP32 out. */
    void (*gemm)(struct lane *, int m, const struct amat *a, const struct wmat *w, float *c,
                 int ldc);
    /* groups of rows with one matrix each: rows [begin[g], begin[g] + rows[g]) of a and c. Serves
     * grouped-contiguous (begin ascending, dense) and grouped-masked (begin = g * capacity). */
    void (*gemm_grouped)(struct lane *, int groups, const int32_t *begin, const int32_t *rows,
                         const struct amat *a, const struct wmat *w /* [groups] */, float *c,
                         int ldc);
    /* Batched small products: for each b: c_b = a_b * w_b^T with a_b = a.data + b * a_stride
     * elements, c_b = c + b * c_stride (per-head absorbed projections). With E4M3 rows a_stride is
     * a multiple of 128: a product's first channel is the first of a scale's. */
    void (*gemm_batched)(struct lane *, int batch, int m, const struct amat *a, int64_t a_stride,
                         const struct wmat *w /* [batch] */, float *c, int ldc, int64_t c_stride);
    /* FP32 rows -> BF16, or e4m3 + 1x128 scales (max(amax, 1e-4) / 448; ue8m0: rounded up to a
     * power of two), or copied (F32). out->data, out->scale are written (const is cast away by
     * the callee; the caller owns them). */
    void (*act_convert)(struct lane *, int m, const float *x, int ldx, struct amat *out,
                        bool ue8m0);

    /* ---- attention/ ---- */
    /* y = x / sqrt(mean(x^2) + eps) * w. In place allowed. */
    void (*rmsnorm)(struct lane *, int m, int n, const float *x, int ldx, const float *w, float eps,
                    float *y, int ldy);
    /* Rotates `heads` vectors of `dim` per row: vector h of row i at x + i*ldx + h*stride.
     * table: [max positions][dim/2][2] = cos, sin (already times the yarn factor).
     * interleaved: pairs (x0,x1),(x2,x3).. and the output keeps HF's order: first the dim/2
     * first components, then the dim/2 second ones; else pairs (x_j, x_{j+dim/2}). Scores are the
     * same for either order as long as q and k agree. */
    void (*rope)(struct lane *, int m, int heads, int dim, float *x, int ldx, int stride,
                 const int32_t *pos, const float *table, bool interleaved);
    /* Cache rows: latent [m, dim_latent] and rope part [m, dim_rope] -> T at
     * cache[page][slot][...] for absolute positions pos[i] of page table pages. */
    void (*kv_write)(struct lane *, enum dtype kv_type, int m, int dim_latent, int dim_rope,
                     const float *latent, int ldl, const float *rope, int ldr, const int32_t *pos,
                     const int32_t *const *pages, int page_tokens, void *cache);
    void (*mla_prefill)(struct lane *, const struct mla_prefill_args *);
    void (*mla_decode)(struct lane *, const struct mla_decode_args *);

    /* ---- moe/ ---- */
    /* logits [m, experts] FP32 -> ids [m, topk], weights [m, topk]; model.md "Gate" exactly;
     * ids in order of descending selection score (ties: lower id). */
    void (*gate)(struct lane *, int m, const float *logits, int ldl, const struct gate_params *,
                 int32_t *ids, float *weights);
    /* out[m, n] = silu(gate) * up, x = [m, gate n | up n]. */
    void (*silu_mul)(struct lane *, int m, int n, const float *x, int ldx, float *out, int ldo);
    /* y[m, n] += x[m, n]. */
    void (*add)(struct lane *, int m, int n, const float *x, int ldx, float *y, int ldy);
    /* The COMBINE tree (design.md §4): out[i] = sum over groups ascending of
     * (n_group > 1 ? round_T : id)(sum in top-k order of weights[i,t] * row[i,t] in FP32).
     * rows: T [m, topk, n] row stride n, group of an expert = id / (experts / n_group).
     * With n_group 1: the single group's sum is NOT rounded. */
    void (*combine)(struct lane *, enum dtype type, int m, int n, int topk, const void *rows,
                    const int32_t *ids, const float *weights, int experts, int n_group, float *out,
                    int ldo);
};

/* Each part fills its function pointers for an ISA and returns OK, or ERR_RESOURCE with a message
 * when the host lacks it. ISA_AVX512 and ISA_AMX may fall back to the best lower path they have;
 * the part says so in its header. */
enum status gemm_kernels_fill(struct kernels *k, enum isa isa);
enum status attention_kernels_fill(struct kernels *k, enum isa isa);
enum status moe_kernels_fill(struct kernels *k, enum isa isa);

#endif
