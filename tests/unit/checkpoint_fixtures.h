/* checkpoint_fixtures.h - configurations as the model pages publish them (fields that the program
 * does not read are left out), and temporary directories, for the test_checkpoint_* tests.
 */
#ifndef TESTS_CHECKPOINT_FIXTURES_H
#define TESTS_CHECKPOINT_FIXTURES_H

#include <ftw.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const config_v3 =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"attention_bias\": false,"
    "\"attention_dropout\": 0.0, \"bos_token_id\": 0, \"eos_token_id\": 1, \"ep_size\": 1,"
    "\"first_k_dense_replace\": 3, \"hidden_act\": \"silu\", \"hidden_size\": 7168,"
    "\"initializer_range\": 0.02, \"intermediate_size\": 18432, \"kv_lora_rank\": 512,"
    "\"max_position_embeddings\": 163840, \"model_type\": \"deepseek_v3\","
    "\"moe_intermediate_size\": 2048, \"moe_layer_freq\": 1, \"n_group\": 8,"
    "\"n_routed_experts\": 256, \"n_shared_experts\": 1, \"norm_topk_prob\": true,"
    "\"num_attention_heads\": 128, \"num_experts_per_tok\": 8, \"num_hidden_layers\": 61,"
    "\"num_key_value_heads\": 128, \"num_nextn_predict_layers\": 1, \"q_lora_rank\": 1536,"
    "\"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, \"quantization_config\":"
    "{\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\", \"quant_method\": \"fp8\","
    "\"weight_block_size\": [128, 128]}, \"rms_norm_eps\": 1e-06, \"rope_scaling\":"
    "{\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 40, \"mscale\": 1.0,"
    "\"mscale_all_dim\": 1.0, \"original_max_position_embeddings\": 4096, \"type\": \"yarn\"},"
    "\"rope_theta\": 10000, \"routed_scaling_factor\": 2.5, \"scoring_func\": \"sigmoid\","
    "\"tie_word_embeddings\": false, \"topk_group\": 4, \"topk_method\": \"noaux_tc\","
    "\"torch_dtype\": \"bfloat16\", \"use_cache\": true, \"v_head_dim\": 128,"
    "\"vocab_size\": 129280}";

static const char *const config_v2 =
    "{\"architectures\": [\"DeepseekV2ForCausalLM\"], \"attention_bias\": false,"
    "\"bos_token_id\": 100000, \"eos_token_id\": 100001, \"first_k_dense_replace\": 1,"
    "\"hidden_act\": \"silu\", \"hidden_size\": 5120, \"intermediate_size\": 12288,"
    "\"kv_lora_rank\": 512, \"max_position_embeddings\": 163840,"
    "\"model_type\": \"deepseek_v2\", \"moe_intermediate_size\": 1536, \"moe_layer_freq\": 1,"
    "\"n_group\": 8, \"n_routed_experts\": 160, \"n_shared_experts\": 2,"
    "\"norm_topk_prob\": false, \"num_attention_heads\": 128, \"num_experts_per_tok\": 6,"
    "\"num_hidden_layers\": 60, \"num_key_value_heads\": 128, \"q_lora_rank\": 1536,"
    "\"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, \"rms_norm_eps\": 1e-06,"
    "\"rope_scaling\": {\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 40,"
    "\"mscale\": 1.0, \"mscale_all_dim\": 1.0, \"original_max_position_embeddings\": 4096,"
    "\"type\": \"yarn\"}, \"rope_theta\": 10000, \"routed_scaling_factor\": 16.0,"
    "\"scoring_func\": \"softmax\", \"tie_word_embeddings\": false, \"topk_group\": 3,"
    "\"topk_method\": \"group_limited_greedy\", \"torch_dtype\": \"bfloat16\","
    "\"v_head_dim\": 128, \"vocab_size\": 102400}";

static const char *const config_v2_lite =
    "{\"architectures\": [\"DeepseekV2ForCausalLM\"], \"attention_bias\": false,"
    "\"bos_token_id\": 100000, \"eos_token_id\": 100001, \"first_k_dense_replace\": 1,"
    "\"hidden_act\": \"silu\", \"hidden_size\": 2048, \"intermediate_size\": 10944,"
    "\"kv_lora_rank\": 512, \"max_position_embeddings\": 163840,"
    "\"model_type\": \"deepseek_v2\", \"moe_intermediate_size\": 1408, \"moe_layer_freq\": 1,"
    "\"n_group\": 1, \"n_routed_experts\": 64, \"n_shared_experts\": 2,"
    "\"norm_topk_prob\": false, \"num_attention_heads\": 16, \"num_experts_per_tok\": 6,"
    "\"num_hidden_layers\": 27, \"num_key_value_heads\": 16, \"q_lora_rank\": null,"
    "\"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, \"rms_norm_eps\": 1e-06,"
    "\"rope_scaling\": {\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 40,"
    "\"mscale\": 0.707, \"mscale_all_dim\": 0.707,"
    "\"original_max_position_embeddings\": 4096, \"type\": \"yarn\"}, \"rope_theta\": 10000,"
    "\"routed_scaling_factor\": 1.0, \"scoring_func\": \"softmax\","
    "\"tie_word_embeddings\": false, \"topk_group\": 1, \"topk_method\": \"greedy\","
    "\"torch_dtype\": \"bfloat16\", \"v_head_dim\": 128, \"vocab_size\": 102400}";

static const char *const config_kimi_k2 =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"attention_bias\": false,"
    "\"bos_token_id\": 163584, \"eos_token_id\": 163585, \"first_k_dense_replace\": 1,"
    "\"hidden_act\": \"silu\", \"hidden_size\": 7168, \"intermediate_size\": 18432,"
    "\"kv_lora_rank\": 512, \"max_position_embeddings\": 131072, \"model_type\": \"kimi_k2\","
    "\"moe_intermediate_size\": 2048, \"moe_layer_freq\": 1, \"n_group\": 1,"
    "\"n_routed_experts\": 384, \"n_shared_experts\": 1, \"norm_topk_prob\": true,"
    "\"num_attention_heads\": 64, \"num_experts_per_tok\": 8, \"num_hidden_layers\": 61,"
    "\"num_key_value_heads\": 64, \"num_nextn_predict_layers\": 0, \"q_lora_rank\": 1536,"
    "\"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, \"quantization_config\":"
    "{\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\", \"quant_method\": \"fp8\","
    "\"weight_block_size\": [128, 128]}, \"rms_norm_eps\": 1e-06, \"rope_scaling\":"
    "{\"beta_fast\": 1.0, \"beta_slow\": 1.0, \"factor\": 32.0, \"mscale\": 1.0,"
    "\"mscale_all_dim\": 1.0, \"original_max_position_embeddings\": 4096, \"type\": \"yarn\"},"
    "\"rope_theta\": 50000.0, \"routed_scaling_factor\": 2.827, \"scoring_func\": \"sigmoid\","
    "\"tie_word_embeddings\": false, \"topk_group\": 1, \"topk_method\": \"noaux_tc\","
    "\"torch_dtype\": \"bfloat16\", \"v_head_dim\": 128, \"vocab_size\": 163840}";

static const char *const config_moonlight =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"attention_bias\": false,"
    "\"bos_token_id\": 163584, \"eos_token_id\": 163585, \"first_k_dense_replace\": 1,"
    "\"hidden_act\": \"silu\", \"hidden_size\": 2048, \"intermediate_size\": 11264,"
    "\"kv_lora_rank\": 512, \"max_position_embeddings\": 8192,"
    "\"model_type\": \"deepseek_v3\", \"moe_intermediate_size\": 1408, \"moe_layer_freq\": 1,"
    "\"n_group\": 1, \"n_routed_experts\": 64, \"n_shared_experts\": 2,"
    "\"norm_topk_prob\": true, \"num_attention_heads\": 16, \"num_experts_per_tok\": 6,"
    "\"num_hidden_layers\": 27, \"num_key_value_heads\": 16, \"num_nextn_predict_layers\": 0,"
    "\"q_lora_rank\": null, \"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64,"
    "\"rms_norm_eps\": 1e-05, \"rope_scaling\": null, \"rope_theta\": 50000.0,"
    "\"routed_scaling_factor\": 2.446, \"scoring_func\": \"sigmoid\","
    "\"tie_word_embeddings\": false, \"topk_group\": 1, \"topk_method\": \"noaux_tc\","
    "\"torch_dtype\": \"bfloat16\", \"v_head_dim\": 128, \"vocab_size\": 163840}";

/* As transformers 5 saves a V3 model. */
static const char *const config_v3_saved =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"attention_bias\": false,"
    "\"attention_dropout\": 0.0, \"bos_token_id\": 0, \"dtype\": \"float32\","
    "\"eos_token_id\": [1, 7], \"first_k_dense_replace\": 1, \"head_dim\": 64,"
    "\"hidden_act\": \"silu\", \"hidden_size\": 256, \"initializer_range\": 0.02,"
    "\"intermediate_size\": 320, \"kv_lora_rank\": 64, \"max_position_embeddings\": 4096,"
    "\"model_type\": \"deepseek_v3\", \"moe_intermediate_size\": 96, \"n_group\": 4,"
    "\"n_routed_experts\": 16, \"n_shared_experts\": 1, \"norm_topk_prob\": true,"
    "\"num_attention_heads\": 4, \"num_experts_per_tok\": 4, \"num_hidden_layers\": 2,"
    "\"num_key_value_heads\": 4, \"num_nextn_predict_layers\": 1,"
    "\"output_router_logits\": false, \"pad_token_id\": null, \"pretraining_tp\": 1,"
    "\"q_lora_rank\": 48, \"qk_head_dim\": 192, \"qk_nope_head_dim\": 128,"
    "\"qk_rope_head_dim\": 64, \"rms_norm_eps\": 1e-06, \"rope_interleave\": true,"
    "\"rope_parameters\": {\"factor\": 8.0, \"mscale\": 1.0, \"mscale_all_dim\": 0.5,"
    "\"original_max_position_embeddings\": 512, \"rope_theta\": 20000.0,"
    "\"rope_type\": \"yarn\"}, \"routed_scaling_factor\": 2.5,"
    "\"tie_word_embeddings\": false, \"topk_group\": 2, \"transformers_version\": \"5.23.0\","
    "\"use_cache\": true, \"v_head_dim\": 128, \"vocab_size\": 500}";

static inline char *fixture_dir(void)
{
    char *dir = strdup("/tmp/moebatch-test-XXXXXX");
    if (!dir || !mkdtemp(dir)) abort();
    return dir;
}

static inline int fixture_unlink(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
    (void)sb, (void)type, (void)ftw;
    return remove(path);
}

/* Removes the directory and frees its name. */
static inline void fixture_remove(char *dir)
{
    nftw(dir, fixture_unlink, 8, FTW_DEPTH | FTW_PHYS);
    free(dir);
}

static inline void fixture_write(const char *dir, const char *name, const void *data, size_t bytes)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f) != 0) abort();
}

#endif
