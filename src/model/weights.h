/* weights.h - a rank's weights in the kernels' packed order.
 *
 * Replicated tensors (attention, dense and shared MLPs, norms, gate, head) are packed once per
 * node into memory that all its ranks map; the rank's own experts are packed into private
 * memory. The life of a struct weights:
 *   weights_plan    what there is to pack and how many bytes (no allocation of weights)
 *   weights_attach  the caller hands over the two regions; every wmat gets its pointer
 *   weights_pack_shared   this rank's share of the node's items (then the node synchronises)
 *   weights_pack_experts  the experts of the rank's slots
 * The caller owns both regions and the checkpoint; weights_free releases only the lists.
 * Embeddings are read from the mapped checkpoint itself.
 */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include "checkpoint/checkpoint.h"
#include "core/status.h"
#include "device/kernels.h"

/* design.md §4: what the weights are multiplied with. */
enum numerics { NUM_CHECKPOINT, NUM_BF16, NUM_FP32 };

struct layer_weights {
    bool moe;
    float *attn_norm, *mlp_norm;  /* [hidden] */
    float *q_a_norm;              /* [q_lora] or NULL */
    float *kv_a_norm;             /* [kv_lora] */
    struct wmat q_in;             /* q_a|kv_a (or q|kv_a) [.., hidden] */
    struct wmat q_b;              /* [heads * (nope + rope), q_lora]; n = 0 without q_lora */
    struct wmat kv_b;             /* [heads * (nope + v), kv_lora], prefill */
    struct wmat *w_uk;            /* [heads]: [kv_lora, nope], decode */
    struct wmat *w_uv;            /* [heads]: [v, kv_lora], decode */
    struct wmat o;                /* [hidden, heads * v] */
    struct wmat gate;             /* FP32 [experts, hidden] */
    float *gate_bias;             /* [experts] or NULL */
    struct wmat mlp_up, mlp_down; /* gate|up, down of the dense or shared MLP; n = 0: none */
    struct wmat *expert_up, *expert_down; /* [local slots], private */
};

struct weight_item; /* one thing to pack; weights.c */

struct weights {
    const struct checkpoint *ck;
    const struct model_config *cfg;
    const struct kernels *k;
    enum numerics numerics;
    int local_slots;
    struct layer_weights *layer; /* [layers] */
    float *final_norm;
    struct wmat head; /* [vocab, hidden] */
    struct checkpoint_weight embed;
    bool experts_fp8;         /* every expert matrix is e4m3 */
    struct weight_item *item; /* [items], shared region */
    int items;
    size_t shared_bytes, private_bytes;
    size_t part_bytes[PART_COUNT]; /* of both, by what they are; embeddings are not packed: 0 */
    size_t absorbed_bytes;         /* of PART_ATTENTION: kv_b once more, by heads, for decode */
    uint64_t bytes_read;           /* checkpoint bytes this rank has packed */
    /* Asked by one thread now and then while packing: a failure ends it; or NULL. */
    enum status (*check)(void);
};

enum status weights_plan(const struct checkpoint *ck, const struct kernels *k,
                         enum numerics numerics, int local_slots, struct weights *w);
void weights_attach(struct weights *w, void *shared, void *private_region);
/* worker of workers packs its share, on `threads` OpenMP threads. */
enum status weights_pack_shared(struct weights *w, int worker, int workers, int threads);
/* slot_expert: [layers][local_slots], expert of each of this rank's slots (rows of dense layers
 * are ignored). */
enum status weights_pack_experts(struct weights *w, const int32_t *slot_expert, int threads);
void weights_free(struct weights *w);

/* Rows of the embedding as FP32. */
void weights_embed(const struct weights *w, int m, const int32_t *tokens, float *out);

#endif
