/* model.h - the DeepSeek-V3 layer stack on one rank: buffers of a step and its stage functions.
 *
 * A step computes up to two micro-batches of rows (tokens). Its stages are called by the schedule
 * runner (schedule/) in whatever order the schedule says; between them a micro-batch's state
 * lives in struct microbatch. Stages and their parts:
 *   ATTN    = ATTN_0 + ATTN_1: norms, projections, rope, KV write, core attention, output
 *             projection, residual; then, in MoE layers, norm, gate and the DISPATCH payload
 *   MLP     the routed experts that live on this rank
 *   SHARED  the shared expert
 *   DENSE   the whole MLP of a dense layer
 *   finish  out = combined + shared, residual += out (first thing of the next consumer)
 * Prefill attends in the non-absorbed form, decode in the absorbed one (model.md).
 *
 * Who owns what: the model borrows checkpoint, weights regions, kernels, the lane and the KV pool;
 * it owns its activation buffers, sized once for max_rows and max_context.
 */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include "device/device.h"
#include "device/kernels.h"
#include "ep/ep.h"
#include "model/weights.h"

#include <stdbool.h>
#include <stdint.h>

enum { MODEL_MICROBATCHES = 2 };

/* Consecutive rows of one sequence in a prefill micro-batch. */
struct segment {
    int row0, n;          /* rows [row0, row0 + n) */
    int pos0;             /* absolute position of the first */
    const int32_t *pages; /* page table of the sequence, borrowed */
};

struct microbatch {
    int m;                       /* rows of this step */
    int32_t *tokens, *pos, *len; /* [max_rows]; len = pos + 1 */
    const int32_t **pages;       /* [max_rows] page table of each row's sequence */
    struct segment *segment;     /* [max_rows] prefill only */
    int segments;
    float *h;            /* [m, hidden] residual stream, FP32 */
    bool pending;        /* moe + shared are not yet added to h */
    struct amat payload; /* [m, hidden] MLP input in the payload type */
    float *mlp_in;       /* [m, hidden] the same in FP32 (dense layers, gate) */
    int32_t *ids;        /* [m, topk] */
    float *gate_weight;  /* [m, topk] */
    float *moe, *shared; /* [m, hidden] */
    float *q;            /* decode: [m, heads, kv_lora + rope] absorbed, between ATTN_0
                                   * and ATTN_1 */
    struct ep_recv recv; /* between DISPATCH and COMBINE */
    float *expert_out;   /* [recv.total, hidden] routed experts' rows, until COMBINE */
    int expert_out_rows; /* capacity; grows with the largest receive */
};

struct model_limits {
    int max_rows;         /* rows of one micro-batch */
    int max_context;      /* positions of the longest sequence */
    bool prefill, decode; /* which steps this rank runs */
};

struct model {
    const struct model_config *cfg;
    const struct kernels *k;
    struct weights *w;
    struct lane *lane;
    struct ep_group *ep;
    enum dtype kv_type, dispatch_type, combine_type;
    struct gate_params gate; /* bias set per layer */
    float softmax_scale;
    float *rope; /* [max_context][rope/2][2] */
    struct model_limits limits;
    int kv_row; /* elements of a cache row: kv_lora + rope */
    int page_tokens, pages;
    char *cache; /* KV pool [layers][pages][page_tokens][kv_row], borrowed */
    struct microbatch mb[MODEL_MICROBATCHES];
    /* scratch of one stage */
    float *s_norm; /* [rows, hidden] */
    char *s_act;   /* activations in GEMM type */
    float *s_act_scale;
    float *s_in;     /* [rows, q_in.n] */
    float *s_q;      /* [rows, heads * (nope + rope)] */
    float *s_attn;   /* [rows, heads * v] */
    float *s_latent; /* decode: [rows, heads * kv_lora] */
    /* prefill: one sequence's whole context; grows to the longest one seen */
    int ctx_rows;
    float *s_ctx;    /* [context, kv_lora] */
    char *s_ctx_act; /* the same in the type of kv_b's GEMM, with scales */
    float *s_ctx_scale;
    float *s_kv;            /* [context, heads * (nope + v)] */
    char *s_k, *s_v, *s_kr; /* keys, values, rope keys in kv_type */
    float *s_logits;        /* [logit_rows, vocab] */
    int logit_rows;
    void *s_ffn;          /* moe_ffn scratch */
    size_t s_ffn_bytes;   /* grows with the largest receive */
    int64_t expert_rows;  /* rows through the routed experts since the start */
    int64_t *expert_load; /* [layers][experts] rows routed by this rank's gate */
    double attn_work;     /* (query, key) pairs since the start */
};

/* Types that follow from numerics and the weights (design.md §4). */
enum dtype model_kv_type(enum numerics n);
enum dtype model_dispatch_type(enum numerics n, bool experts_fp8);
enum dtype model_combine_type(enum numerics n);

/* Bytes of one page in all layers. */
size_t model_page_bytes(const struct model_config *cfg, enum dtype kv_type, int page_tokens);
/* Bytes of activation buffers. */
struct model_memory {
    size_t start;   /* buffers of a step: model_create */
    size_t context; /* the longest prompt's context, grown to by prefill */
    size_t routed;  /* rows of the routed experts and their scratch, grown to by the first steps */
};
/* What a model with these limits takes, and grows to when prompts have up to `longest` tokens
 * (0: MODEL_PLAN_CONTEXT of them) and a dispatch delivers recv_rows rows. */
enum { MODEL_PLAN_CONTEXT = 8192 };
struct model_memory model_memory(const struct model_config *cfg, enum numerics n,
                                 const struct model_limits *limits, int microbatches, int longest,
                                 int recv_rows);
/* What this model holds now. */
struct model_memory model_memory_held(const struct model *m);

/* Allocates the buffers; ep may be set later (m->ep) and is not needed without MoE layers. */
enum status model_create(struct weights *w, struct lane *lane, const struct model_limits *limits,
                         int page_tokens, int pages, void *cache, struct model *m);
void model_free(struct model *m);

/* The KV cache of a layer. */
static inline char *model_cache_layer(const struct model *m, int layer)
{
    return m->cache + (size_t)layer * (size_t)m->pages * (size_t)m->page_tokens *
                          (size_t)m->kv_row * dtype_bytes(m->kv_type);
}

/* ---- stages (compute lane); b = micro-batch ---- */
void model_embed(struct model *m, struct microbatch *b);
enum status model_attn_prefill(struct model *m, struct microbatch *b, int layer);
void model_attn_decode_0(struct model *m, struct microbatch *b, int layer);
void model_attn_decode_1(struct model *m, struct microbatch *b, int layer);
void model_dense(struct model *m, struct microbatch *b, int layer);
void model_shared(struct model *m, struct microbatch *b, int layer);
/* Routed experts over b->recv's rows into b->expert_out. */
enum status model_experts(struct model *m, struct microbatch *b, int layer);
/* h += moe + shared if they are still outstanding. */
void model_finish_layer(struct model *m, struct microbatch *b);
/* Final norm and logits of n rows of b (row numbers in `rows`), FP32 [n, vocab]; n at most
 * m->logit_rows. */
const float *model_logits(struct model *m, struct microbatch *b, const int32_t *rows, int n);

/* ---- shared by the stage files ---- */
/* y = x * w^T with x FP32 rows converted to what the matrix multiplies with. */
void model_linear(struct model *m, int rows, const float *x, int ldx, const struct wmat *w,
                  float *y, int ldy);
/* Type of activations for a matrix. */
enum dtype model_act_type(const struct model *m, const struct wmat *w);
/* Converts rows into s_act as `type`. */
struct amat model_convert(struct model *m, int rows, int k, const float *x, int ldx,
                          enum dtype type);
/* Makes room for a context of `positions` positions. */
enum status model_fit_context(struct model *m, int positions);
/* After attention: norm, gate and payload of an MoE layer, or the norm of a dense one. */
void model_gate(struct model *m, struct microbatch *b, int layer);
/* The projections before core attention, the same in both forms: q in m->s_q, KV written. */
void model_project(struct model *m, struct microbatch *b, int layer);
/* h += s_attn * o^T. */
void model_project_out(struct model *m, struct microbatch *b, int layer);

#endif
