"""The oracle: transformers in float32 over a checkpoint directory, and how sure its choices are.

Every golden value comes from transformers' own forward pass. What is computed here beside it is
only the distance to a different choice: a gap so small that float32's rounding could turn it
would make a golden value a coin toss.
"""
import math
import os
import tempfile

import torch
from transformers import AutoModelForCausalLM

import lib_checkpoint as ckpt


def layer_of(name):
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1


class Oracle:
    """`model` is transformers' class for the checkpoint, weights dequantised to float32."""

    def __init__(self, directory, experts="eager"):
        config = ckpt.read_json(os.path.join(directory, "config.json"))
        self.layers = config["num_hidden_layers"]
        config.pop("quantization_config", None)
        if config["model_type"] == "kimi_k2":
            config["model_type"] = "deepseek_v3"
        tensors = {name: value for name, value in ckpt.read_weights(directory).items()
                   if layer_of(name) < self.layers}
        with tempfile.TemporaryDirectory() as folder:
            ckpt.write_json(os.path.join(folder, "config.json"), config)
            ckpt.write_weights(folder, tensors)
            self.model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        # "grouped_mm" computes the same sums faster; "eager" is transformers' plain loop.
        self.model.config._experts_implementation = experts
        self.model.eval()
        self.check_loaded(report, tensors)
        self.gate_gap = None  # [tokens] of the last forward pass, the least over layers
        for layer in self.model.model.layers:
            if hasattr(layer.mlp, "gate"):
                layer.mlp.gate.register_forward_hook(self.note_gate)

    def check_loaded(self, report, tensors):
        """Every tensor arrived where it should: transformers only warns when one does not."""
        missing, extra = set(report["missing_keys"]), set(report["unexpected_keys"])
        if missing or extra:
            raise ValueError(f"transformers did not find {missing} and does not know {extra}")
        arrived = ckpt.hub_names(self.model.state_dict())
        for name, value in tensors.items():
            if not torch.equal(arrived[name], value):
                raise ValueError(f"{name} differs from the file after loading")

    def note_gate(self, gate, _inputs, output):
        gap = selection_gap(gate, output[0])
        self.gate_gap = gap if self.gate_gap is None else torch.minimum(self.gate_gap, gap)

    def forward(self, rows):
        """Logits [rows, tokens, vocab] and gate gaps [rows, tokens] of token id lists."""
        self.gate_gap = None
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor(rows), use_cache=False).logits
        gaps = self.gate_gap
        if gaps is None:
            gaps = torch.full((logits.shape[0] * logits.shape[1],), math.inf)
        return logits, gaps.view(logits.shape[:2])

    def greedy(self, prompt, count, stop=()):
        """Continues `prompt` without a cache: the plainest way, each step a full pass.

        Gives ids, logits [steps, vocab] that chose them, the least top-2 logit gap and the least
        gate gap over all tokens that were fed.
        """
        ids, chosen = list(prompt), []
        logit_gap = gate_gap = math.inf
        for _ in range(count):
            logits, gaps = self.forward([ids])
            best = logits[0, -1].topk(2).values
            logit_gap = min(logit_gap, (best[0] - best[1]).item())
            gate_gap = min(gate_gap, gaps.min().item())
            chosen.append(logits[0, -1])
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] in stop:
                break
        return ids[len(prompt):], torch.stack(chosen), logit_gap, gate_gap

    def prompt_logprobs(self, ids):
        """log p of each token after the first, given those before it."""
        logits, _ = self.forward([ids])
        table = logits[0, :-1].log_softmax(dim=-1)
        return table.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def gap_after(values, keep):
    """Per row: the keep-th largest less the next; infinite if all are kept."""
    if keep >= values.shape[-1]:
        return torch.full(values.shape[:-1], math.inf)
    top = values.topk(keep + 1, dim=-1).values
    return top[..., keep - 1] - top[..., keep]


def selection_gap(gate, logits):
    """How far each token's expert choice is from another one, groups included."""
    bias = getattr(gate, "e_score_correction_bias", None)
    if bias is not None:
        scores = logits.sigmoid() + bias
    else:
        scores = logits.softmax(dim=-1)
        if gate.topk_method == "greedy":
            return gap_after(scores, gate.top_k)
    grouped = scores.view(len(scores), gate.num_group, -1)
    rank = grouped.topk(2, dim=-1).values.sum(-1) if bias is not None else grouped.amax(-1)
    kept = rank.topk(gate.topk_group, dim=-1).indices
    inside = grouped.gather(1, kept[..., None].expand(-1, -1, grouped.shape[-1])).flatten(1)
    return torch.minimum(gap_after(rank, gate.topk_group), gap_after(inside, gate.top_k))
