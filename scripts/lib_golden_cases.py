"""The tiny checkpoints of tests/golden: config.json of each, and which rules it covers."""
from dataclasses import dataclass

import torch


@dataclass
class Case:
    covers: str
    config: dict            # config.json in the hub's spelling
    dtype: torch.dtype = torch.bfloat16
    spelling: str = "hub"   # or "transformers": written by its save_pretrained
    scale_format: str = ""  # of an FP8 checkpoint: "f32", "ue8m0" or "e8m0"
    shards: int = 1         # for the hub's spelling
    shard_bytes: str = "1GB"  # for transformers' spelling
    eos: object = 1         # generation_config's eos_token_id, an id or a list
    seed: int = 1


def v3(**changes):
    """A DeepSeek-V3 configuration in the hub's spelling, some 100 k parameters."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
        "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96,
        "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "n_shared_experts": 1, "n_routed_experts": 16,
        "routed_scaling_factor": 2.5, "kv_lora_rank": 32, "q_lora_rank": 32,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_group": 4,
        "topk_group": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "norm_topk_prob": True, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "hidden_act": "silu", "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "rope_theta": 10000, "rope_scaling": None,
        "attention_bias": False, "tie_word_embeddings": False, "num_nextn_predict_layers": 0,
        "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16", **changes}


def v2(**changes):
    config = v3(architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2",
                scoring_func="softmax", norm_topk_prob=False, n_shared_experts=2)
    del config["num_nextn_predict_layers"]
    return {**config, **changes}


def yarn(factor, original, **changes):
    return {"type": "yarn", "factor": factor, "original_max_position_embeddings": original,
            "beta_fast": 32, "beta_slow": 1, **changes}


def fp8(**changes):
    """Rows and columns beyond one 128-block and not full in the second."""
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                    "activation_scheme": "dynamic"}
    if "scale_fmt" in changes:
        quantization["scale_fmt"] = changes.pop("scale_fmt")
    return v3(**{"hidden_size": 160, "intermediate_size": 136, "moe_intermediate_size": 40,
                 "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
                 "num_experts_per_tok": 3, "vocab_size": 128,
                 "quantization_config": quantization, **changes})


CASES = {
    "v3": Case(
        "V3 gate: sigmoid, bias, 2 of 4 groups, top-6; two MoE layers; BF16; hub spelling; "
        "tensors of a prediction layer to pass over; several end tokens",
        v3(num_hidden_layers=3, moe_intermediate_size=8, num_nextn_predict_layers=1),
        eos=[1, 2], seed=11),
    "v3-saved": Case(
        "V3 as transformers 5 saves it: its config.json, BF16 bias, shards with an index; "
        "top-8 of 3 of 4 groups; 2 shared experts",
        v3(num_experts_per_tok=8, topk_group=3, n_shared_experts=2),
        spelling="transformers", shard_bytes="100KB", seed=12),
    "v3-top1": Case(
        "top-1 with norm_topk_prob (the weight is the scale, whatever the score); F16; "
        "no dense layer; 4 shards", v3(num_experts_per_tok=1, first_k_dense_replace=0,
                                       n_routed_experts=8, torch_dtype="float16"),
        dtype=torch.float16, shards=4, seed=13),
    "v2-lite": Case(
        "V2 greedy gate: softmax, no groups, not normalised, top-6, 2 shared; q_lora null; "
        "yarn with mscale = mscale_all_dim = 0.707; hub spelling",
        v2(q_lora_rank=None, topk_method="greedy", n_group=1, topk_group=1,
           routed_scaling_factor=1.0, max_position_embeddings=2560,
           rope_scaling=yarn(40, 64, mscale=0.707, mscale_all_dim=0.707)), seed=14),
    "v2-group": Case(
        "V2 group_limited_greedy: group score is its maximum, scale 16, q_lora; F32; "
        "no dense layer", v2(topk_method="group_limited_greedy", routed_scaling_factor=16.0,
                             n_routed_experts=12, num_experts_per_tok=3, vocab_size=128,
                             first_k_dense_replace=0, moe_intermediate_size=8,
                             torch_dtype="float32"), dtype=torch.float32, seed=15),
    "v2-group-saved": Case(
        "V2 group_limited_greedy as transformers 5 saves it",
        v2(topk_method="group_limited_greedy", routed_scaling_factor=16.0,
           num_experts_per_tok=4), spelling="transformers", seed=16),
    "moonlight": Case(
        "n_group 1, q_lora null, rms_norm_eps 1e-5 (inner norms stay at 1e-6), rope_theta "
        "50000, top-6, 2 shared, scale 2.446",
        v3(q_lora_rank=None, n_group=1, topk_group=1, rms_norm_eps=1e-5, rope_theta=50000.0,
           n_shared_experts=2, routed_scaling_factor=2.446), seed=17),
    "kimi-k2": Case(
        "model_type kimi_k2: n_group 1, top-8, scale 2.827, rope_theta 50000, yarn with "
        "beta_fast = beta_slow = 1 and mscale 1/1",
        v3(model_type="kimi_k2", n_group=1, topk_group=1, num_experts_per_tok=8,
           routed_scaling_factor=2.827, rope_theta=50000.0, max_position_embeddings=2048,
           rope_scaling=yarn(32, 64, beta_fast=1, beta_slow=1, mscale=1.0,
                             mscale_all_dim=1.0)), eos=2, seed=18),
    "yarn-1-1": Case(
        "yarn factor 40, mscale 1, mscale_all_dim 1: cos/sin times 1, softmax scale times "
        "1.874", v3(max_position_embeddings=2560,
                    rope_scaling=yarn(40, 64, mscale=1.0, mscale_all_dim=1.0)), seed=19),
    "yarn-1-half": Case(
        "yarn factor 40, mscale 1, mscale_all_dim 0.5: cos/sin times 1.156, softmax scale "
        "times 1.403; transformers' spelling; F16",
        v3(max_position_embeddings=2560, torch_dtype="float16",
           rope_scaling=yarn(40, 64, mscale=1.0, mscale_all_dim=0.5)),
        dtype=torch.float16, spelling="transformers", seed=20),
    "yarn-alldim-0": Case(
        "yarn factor 40, mscale 1, mscale_all_dim 0: cos/sin times 1.369, softmax scale "
        "unchanged; tied embeddings; beta_fast/slow absent; truncate false",
        v3(max_position_embeddings=2560, tie_word_embeddings=True,
           rope_scaling={"rope_type": "yarn", "factor": 40, "mscale": 1.0,
                         "mscale_all_dim": 0, "original_max_position_embeddings": 64,
                         "truncate": False}), seed=21),
    "yarn-factor-given": Case(
        "yarn with attention_factor given (it wins over mscale)",
        v3(max_position_embeddings=512,
           rope_scaling=yarn(8, 64, mscale=1.0, mscale_all_dim=1.0, attention_factor=1.25)),
        seed=22),
    "rope-halves": Case(
        "rope_interleave false: pairs (x0, x4), (x1, x5), ...; tied embeddings",
        v3(rope_interleave=False, tie_word_embeddings=True), seed=23),
    "fp8": Case(
        "FP8 with ragged blocks (160, 136 and 40 rows or columns); F32 scales",
        fp8(), scale_format="f32", seed=24),
    "fp8-ue8m0": Case(
        "FP8, scale_fmt ue8m0: scales are powers of two kept in F32; 2 shards",
        fp8(scale_fmt="ue8m0", hidden_size=144, kv_lora_rank=48, q_lora_rank=None),
        scale_format="ue8m0", shards=2, seed=25),
    "fp8-e8m0": Case(
        "FP8, scales kept as F8_E8M0", fp8(scale_fmt="ue8m0", hidden_size=144,
                                           intermediate_size=200, num_hidden_layers=2),
        scale_format="e8m0", seed=26),
}
