/* synth_preset.c - the published models' configurations, as their config.json files give them. */
#include "checkpoint/synth.h"

#include <string.h>

#define YARN(theta_, factor_, fast, slow, m)                                                    \
    {.theta = theta_, .interleave = true, .yarn = true, .factor = factor_, .original_max = 4096, \
     .beta_fast = fast, .beta_slow = slow, .has_mscale = true, .has_mscale_all_dim = true,       \
     .mscale = m, .mscale_all_dim = m, .truncate = true}

static const struct {
    const char *like;
    struct model_config cfg;
} presets[] = {
    {"deepseek-v3",
     {.model_type = "deepseek_v3", .vocab = 129280, .hidden = 7168, .layers = 61,
      .max_positions = 163840, .heads = 128, .q_lora = 1536, .kv_lora = 512, .dim_nope = 128,
      .dim_rope = 64, .dim_v = 128, .intermediate = 18432, .moe_intermediate = 2048,
      .experts = 256, .shared_experts = 1, .topk = 8, .n_group = 8, .topk_group = 4,
      .gate = MODEL_GATE_SIGMOID_NOAUX, .norm_topk = true, .routed_scale = 2.5, .first_dense = 3,
      .moe_layer_freq = 1, .rms_eps = 1e-6, .rope = YARN(10000, 40, 32, 1, 1.0), .eos = {1},
      .eos_count = 1, .bos = 0}},
    {"deepseek-v2",
     {.model_type = "deepseek_v2", .vocab = 102400, .hidden = 5120, .layers = 60,
      .max_positions = 163840, .heads = 128, .q_lora = 1536, .kv_lora = 512, .dim_nope = 128,
      .dim_rope = 64, .dim_v = 128, .intermediate = 12288, .moe_intermediate = 1536,
      .experts = 160, .shared_experts = 2, .topk = 6, .n_group = 8, .topk_group = 3,
      .gate = MODEL_GATE_SOFTMAX_GROUP, .routed_scale = 16, .first_dense = 1, .moe_layer_freq = 1,
      .rms_eps = 1e-6, .rope = YARN(10000, 40, 32, 1, 1.0), .eos = {100001}, .eos_count = 1,
      .bos = 100000}},
    {"deepseek-v2-lite",
     {.model_type = "deepseek_v2", .vocab = 102400, .hidden = 2048, .layers = 27,
      .max_positions = 163840, .heads = 16, .kv_lora = 512, .dim_nope = 128, .dim_rope = 64,
      .dim_v = 128, .intermediate = 10944, .moe_intermediate = 1408, .experts = 64,
      .shared_experts = 2, .topk = 6, .n_group = 1, .topk_group = 1,
      .gate = MODEL_GATE_SOFTMAX_GREEDY, .routed_scale = 1, .first_dense = 1, .moe_layer_freq = 1,
      .rms_eps = 1e-6, .rope = YARN(10000, 40, 32, 1, 0.707), .eos = {100001}, .eos_count = 1,
      .bos = 100000}},
    {"kimi-k2",
     {.model_type = "kimi_k2", .vocab = 163840, .hidden = 7168, .layers = 61,
      .max_positions = 131072, .heads = 64, .q_lora = 1536, .kv_lora = 512, .dim_nope = 128,
      .dim_rope = 64, .dim_v = 128, .intermediate = 18432, .moe_intermediate = 2048,
      .experts = 384, .shared_experts = 1, .topk = 8, .n_group = 1, .topk_group = 1,
      .gate = MODEL_GATE_SIGMOID_NOAUX, .norm_topk = true, .routed_scale = 2.827, .first_dense = 1,
      .moe_layer_freq = 1, .rms_eps = 1e-6, .rope = YARN(50000, 32, 1, 1, 1.0), .eos = {163586},
      .eos_count = 1, .bos = 163584}},
    {"moonlight",
     {.model_type = "deepseek_v3", .vocab = 163840, .hidden = 2048, .layers = 27,
      .max_positions = 8192, .heads = 16, .kv_lora = 512, .dim_nope = 128, .dim_rope = 64,
      .dim_v = 128, .intermediate = 11264, .moe_intermediate = 1408, .experts = 64,
      .shared_experts = 2, .topk = 6, .n_group = 1, .topk_group = 1,
      .gate = MODEL_GATE_SIGMOID_NOAUX, .norm_topk = true, .routed_scale = 2.446, .first_dense = 1,
      .moe_layer_freq = 1, .rms_eps = 1e-5,
      .rope = {.theta = 50000, .interleave = true, .truncate = true}, .eos = {163585},
      .eos_count = 1, .bos = 163584}},
};

enum status synth_preset(const char *like, struct model_config *cfg)
{
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++)
        if (strcmp(like, presets[i].like) == 0) {
            *cfg = presets[i].cfg;
            return OK;
        }
    return error_set(ERR_USAGE, "--like is \"%s\", expected deepseek-v3, deepseek-v2, "
                     "deepseek-v2-lite, kimi-k2 or moonlight", like);
}
