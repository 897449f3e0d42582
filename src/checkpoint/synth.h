/* synth.h - random-weight checkpoints of any shape, for tests, benches and sizing.
 *
 * The value of an element depends only on (seed, tensor name, element index): the files are the
 * same bytes for any number of threads. Weights are close to normal with deviation 1/sqrt(k),
 * norms near 1, the gate's bias small. FP8 weights get a different scale in every 128 x 128 block,
 * so that a scale read from the wrong place shows.
 */
#ifndef CHECKPOINT_SYNTH_H
#define CHECKPOINT_SYNTH_H

#include "checkpoint/model_config.h"
#include "checkpoint/safetensors.h"
#include "core/status.h"

struct synth_options {
    enum tensor_dtype dtype; /* TENSOR_BF16, F16, F32, or E4M3: linears FP8, the rest BF16 */
    bool ue8m0;              /* E4M3: power-of-two scales */
    int shards;
    uint64_t seed;
    bool force;  /* replace a checkpoint that is already there */
    int threads; /* 0: as OpenMP decides */
};

/* The shapes of a published model: "deepseek-v3", "deepseek-v2", "deepseek-v2-lite", "kimi-k2",
 * "moonlight". Unknown names are ERR_USAGE. */
enum status synth_preset(const char *like, struct model_config *cfg);

/* Writes config.json, generation_config.json and the weights; *bytes is the data written. cfg's
 * dtype and quant are set from the options. */
enum status synth_write(const char *dir, const struct model_config *cfg,
                        const struct synth_options *opt, size_t *bytes);

#endif
