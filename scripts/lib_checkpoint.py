"""Checkpoints in the hub's form: per-expert tensor names, FP8 blocks, shards with an index.

Works on plain dicts of torch tensors; knows nothing of training or of golden values.
"""
import json
import os

import torch
from safetensors.torch import load_file, save_file

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
BLOCK = 128
# What DeepSeek leaves out of FP8 beside the (one-dimensional) norms.
PLAIN = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")


def hub_names(state):
    """transformers 5 fuses a layer's experts into two tensors; the hub has three per expert."""
    tensors = {}
    for name, value in state.items():
        if name.endswith(".experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            for expert, fused in enumerate(value):
                gate, up = fused.chunk(2, dim=0)
                tensors[f"{stem}{expert}.gate_proj.weight"] = gate.contiguous().clone()
                tensors[f"{stem}{expert}.up_proj.weight"] = up.contiguous().clone()
        elif name.endswith(".experts.down_proj"):
            stem = name.removesuffix("down_proj")
            for expert, down in enumerate(value):
                tensors[f"{stem}{expert}.down_proj.weight"] = down.contiguous().clone()
        else:
            tensors[name] = value.contiguous().clone()
    return tensors


def spread_scales(scales, shape):
    """One scale for each element: [ceil(N/128), ceil(K/128)] -> [N, K]."""
    rows, columns = shape
    wide = scales.float().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return wide[:rows, :columns]


def block_amax(weight):
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.abs(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    return blocks.amax(dim=(1, 3))


def to_fp8(weight, power_of_two=False):
    """(FP8 [N, K], F32 scales per 128 x 128 block); ragged last blocks; weight ~ fp8 * scale."""
    weight = weight.float()
    amax = block_amax(weight)
    scales = torch.where(amax > 0, amax / FP8_MAX, torch.ones_like(amax))
    if power_of_two:
        scales = torch.exp2(torch.ceil(torch.log2(scales)))
    scaled = weight / spread_scales(scales, weight.shape)
    return scaled.clamp(-FP8_MAX, FP8_MAX).to(FP8), scales


def from_fp8(weight, scales):
    if scales.dtype == torch.uint8:
        scales = scales.view(torch.float8_e8m0fnu)
    return weight.float() * spread_scales(scales, weight.shape)


def goes_to_fp8(name, value):
    return value.ndim == 2 and not name.endswith(PLAIN)


def quantised(tensors, dtype=torch.bfloat16, scale_format="f32"):
    """The tensors as an FP8 checkpoint holds them: linears FP8, the bias F32, the rest `dtype`.

    scale_format: "f32", "ue8m0" (powers of two kept in F32) or "e8m0" (kept in F8_E8M0).
    """
    result = {}
    for name, value in tensors.items():
        if goes_to_fp8(name, value):
            weight, scales = to_fp8(value, power_of_two=scale_format != "f32")
            if scale_format == "e8m0":
                scales = scales.to(torch.float8_e8m0fnu)
            result[name], result[name + "_scale_inv"] = weight, scales
        elif name.endswith("e_score_correction_bias"):
            result[name] = value.float()
        else:
            result[name] = value.to(dtype)
    return result


def save_shard(tensors, path):
    save_file(tensors, path, {"format": "pt"})
    os.chmod(path, 0o644)  # safetensors makes it readable by its owner alone


def write_weights(directory, tensors, shards=1):
    """model.safetensors, or `shards` files of about equal tensor counts and their index."""
    os.makedirs(directory, exist_ok=True)
    names = list(tensors)
    if shards == 1:
        save_shard(tensors, os.path.join(directory, "model.safetensors"))
        return
    where = {}
    for shard in range(shards):
        mine = names[len(names) * shard // shards:len(names) * (shard + 1) // shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_shard({n: tensors[n] for n in mine}, os.path.join(directory, file))
        where.update(dict.fromkeys(mine, file))
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(os.path.join(directory, "model.safetensors.index.json"),
               {"metadata": {"total_size": size}, "weight_map": where})


def read_weights(directory):
    """All tensors of a checkpoint directory as F32, FP8 dequantised."""
    index = os.path.join(directory, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if os.path.exists(index):
        files = sorted(set(read_json(index)["weight_map"].values()))
    raw = {}
    for file in files:
        raw.update(load_file(os.path.join(directory, file)))
    return {name: from_fp8(value, raw[name + "_scale_inv"])
            if name + "_scale_inv" in raw else value.float()
            for name, value in raw.items() if not name.endswith("_scale_inv")}


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
