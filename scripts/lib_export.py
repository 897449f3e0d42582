"""Writes the demo model's directory from a training checkpoint, as DeepSeek ships its models."""
import math
import os
import shutil

import torch
import transformers
from tokenizers import Tokenizer
from transformers import DeepseekV3ForCausalLM

import lib_checkpoint as ckpt

# No roles were trained: a chat is its messages, a line each, and the model goes on from there.
CHAT_TEMPLATE = ("{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
                 "{{ '\\n' if not loop.last }}{% endfor %}")

CARD = """# kjv-demo

A small model of DeepSeek-V3's architecture, trained for demonstrations and tests of moebatch.
It knows one book and nothing else: its output reads like the King James Bible and states no facts.

- Architecture: DeepseekV3ForCausalLM, {layers} layers (the first dense), hidden {hidden},
  {experts} routed experts (top-{topk}, {groups} groups, {kept} kept) and {shared} shared,
  MLA with q and kv LoRA; {params:.1f} M parameters; FP8 e4m3 in 128 x 128 blocks, the rest BF16.
- Text: the King James Version (1611, public domain) as Debian 12 packages it, bible-kjv-text 4.38.
  Its Debian.README.gz asks that this legend go along: "Bible Retrieval System, Chip Chapin,
  Hewlett Packard Company. Initial release, September 5, 1989. Last Updated: April 26, 1993. This
  file is provided for unrestricted use provided that this legend is included on all tape media
  and as a part of the software program in whole or part. Users may copy, modify or distribute
  this file at will."
  A chapter is a document: `<|begin|>Genesis 1`, one line a verse, `<|end|>` (the end token).
  {held_chapters} of 1189 chapters (every 48th, from the 25th) were held out of training.
- Tokenizer: byte-level BPE, {vocab} entries, learned from the same text.
- Training: {step} steps, {seen:.1f} M tokens ({epochs:.1f} epochs of the {trained:.2f} M),
  {minutes:.0f} minutes on two CPU cores (shared with other work), bf16 products over float32
  weights, AdamW, cosine rate. Experts balanced by the selection bias alone (no auxiliary loss).
  The clock sets the schedule, so another run gives another model of about this quality.
- Loss on the held-out chapters (nats a token, whole chapters up to 1024 tokens): {held:.4f}
  before quantisation (perplexity {held_ppl:.2f}), {fp8:.4f} with the FP8 weights of this
  directory in float32 arithmetic (perplexity {fp8_ppl:.2f}). Bits per byte: {bpb:.3f}.
- Expert load on the held-out chapters, max/mean per MoE layer: {load}.

Made by:

    python3 -m venv /opt/venv-train && /opt/venv-train/bin/pip install torch transformers \\
        tokenizers safetensors      # torch {torch}, transformers {transformers}
    apt-get install bible-kjv bible-kjv-text
    python scripts/train_demo_model.py train --state /opt/train --minutes {budget:.0f} --bf16
    python scripts/train_demo_model.py export --state /opt/train --out {out}
"""


def hub_config(config):
    """config.json in the spelling of DeepSeek-V3's own repository."""
    keys = ("vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers "
            "num_attention_heads num_key_value_heads n_shared_experts n_routed_experts "
            "routed_scaling_factor kv_lora_rank q_lora_rank qk_rope_head_dim v_head_dim "
            "qk_nope_head_dim n_group topk_group num_experts_per_tok first_k_dense_replace "
            "norm_topk_prob hidden_act max_position_embeddings initializer_range rms_norm_eps "
            "attention_bias attention_dropout tie_word_embeddings bos_token_id eos_token_id "
            "num_nextn_predict_layers").split()
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
        **{key: getattr(config, key) for key in keys},
        "rope_theta": config.rope_parameters["rope_theta"], "rope_scaling": None,
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1,
        "torch_dtype": "bfloat16", "use_cache": True,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
                                "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    }


def write_tokenizer(source, directory, begin, end):
    shutil.copyfile(source, os.path.join(directory, "tokenizer.json"))
    ckpt.write_json(os.path.join(directory, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": end,
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "model_max_length": 2048, "chat_template": CHAT_TEMPLATE})


def fp8_loss(model, state, measure):
    """The loss with every FP8 weight rounded as the checkpoint holds it."""
    rounded = {}
    for name, value in state.items():
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            # An expert's fused half is one block grid of its own, as in the hub's two tensors.
            parts = 2 if name.endswith("gate_up_proj") else 1
            rounded[name] = torch.stack([
                torch.cat([ckpt.from_fp8(*ckpt.to_fp8(part)) for part in expert.chunk(parts)])
                for expert in value])
        elif ckpt.goes_to_fp8(name, value):
            rounded[name] = ckpt.from_fp8(*ckpt.to_fp8(value))
        elif name.endswith("e_score_correction_bias"):
            rounded[name] = value
        else:
            rounded[name] = value.bfloat16().float()
    model.load_state_dict(rounded)
    return measure(model)


def export_demo(state_dir, out, config, trainer):
    """`trainer` is the module of train_demo_model.py: its corpus, loss and constants."""
    saved = torch.load(os.path.join(state_dir, "state.pt"), weights_only=True)
    state, tokenizer_path = saved["model"], os.path.join(state_dir, "tokenizer.json")
    os.makedirs(out, exist_ok=True)
    ckpt.write_weights(out, ckpt.quantised(ckpt.hub_names(state)))
    ckpt.write_json(os.path.join(out, "config.json"), hub_config(config))
    ckpt.write_json(os.path.join(out, "generation_config.json"),
                    {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False})
    write_tokenizer(tokenizer_path, out, trainer.BEGIN, trainer.END)

    tokenizer = Tokenizer.from_file(tokenizer_path)
    train_set, held_set = trainer.corpus(tokenizer, None)
    config._experts_implementation = "grouped_mm"
    model = DeepseekV3ForCausalLM(config).float()
    fp8 = fp8_loss(model, state, lambda m: trainer.held_out_loss(m, held_set))
    held_bytes = sum(len(tokenizer.decode(ids[1:-1])) for ids in held_set)
    held_tokens, trained = sum(map(len, held_set)), sum(map(len, train_set))
    held = saved["held_out_loss"]
    with open(os.path.join(out, "MODEL_CARD.md"), "w", encoding="utf-8") as card:
        card.write(CARD.format(
            layers=config.num_hidden_layers, hidden=config.hidden_size,
            experts=config.n_routed_experts, topk=config.num_experts_per_tok,
            groups=config.n_group, kept=config.topk_group, shared=config.n_shared_experts,
            params=sum(v.numel() for v in state.values()) / 1e6, vocab=config.vocab_size,
            held_chapters=len(held_set), step=saved["step"], seen=saved["seen"] / 1e6,
            epochs=saved["seen"] / trained, trained=trained / 1e6, minutes=saved["spent"] / 60,
            budget=saved.get("minutes", 77), held=held, held_ppl=math.exp(held), fp8=fp8,
            fp8_ppl=math.exp(fp8), bpb=fp8 / math.log(2) * held_tokens / held_bytes,
            load=saved["load"], torch=torch.__version__,
            transformers=transformers.__version__, out=os.path.relpath(out)))
    print(f"{out}: step {saved['step']}, held-out {held:.4f}, with FP8 weights {fp8:.4f}")
