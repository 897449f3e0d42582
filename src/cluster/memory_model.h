/* memory_model.h - what one GPU of a unit holds, by component, and how much is left for KV pages.
 *
 * Arithmetic only; the same for every role. Bytes.
 */
#ifndef CLUSTER_MEMORY_MODEL_H
#define CLUSTER_MEMORY_MODEL_H

#include "checkpoint/model_config.h"
#include "checkpoint/sizes.h"
#include "cluster/hardware.h"

#include <stdbool.h>

struct memory_setup {
    bool decode, mtp;
    int ep, slots_per_gpu, micro_batches;
    int max_batch;                   /* decode: requests of a GPU */
    int chunk_tokens;                /* prefill: tokens of a GPU and step */
    const struct model_sizes *sizes; /* of the model, borrowed; NULL: worked out here, slowly */
};

struct unit_memory {
    double replicated;   /* attention, shared experts, dense layers, gate, norms, embed, head */
    double routed;       /* expert slots */
    double absorbed;     /* decode: W_UK and W_UV in BF16; MTP module */
    double comm;         /* all-to-all buffers */
    double activation;   /* workspace of the largest step */
    double reserve;      /* runtime: hardware file's reserve */
    double capacity;     /* of the GPU */
    double kv;           /* what is left for KV pages */
    double kv_per_token; /* bytes of one token over all layers, MTP's included */
};

void memory_model(const struct hardware *hw, const struct model_config *m,
                  const struct memory_setup *setup, struct unit_memory *out);

#endif
