#!/usr/bin/env python3
"""Trains the demo model: a DeepSeek-V3 architecture of 22 M parameters on the King James text.

    python3 scripts/train_demo_model.py train  --state /opt/train --minutes 70
    python3 scripts/train_demo_model.py export --state /opt/train --out inputs/models/kjv-demo

`train` learns the tokenizer (byte-level BPE), then the model, for a wall-clock budget: learning
rate and expert-bias speed follow the share of the budget that is spent, so the schedule ends
properly on any machine. A checkpoint is written every few minutes; `train` started again goes on
from it with what is left of the budget. `export` writes the newest checkpoint as DeepSeek ships
its models (hub tensor names, FP8 blocks). Needs torch, transformers, tokenizers, safetensors and
Debian's bible-kjv; see inputs/models/kjv-demo/MODEL_CARD.md.
"""
import argparse
import math
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import (AttentionInterface, DeepseekV3Config,  # noqa: E402
                          DeepseekV3ForCausalLM)

import lib_kjv  # noqa: E402

BEGIN, END = "<|begin|>", "<|end|>"  # ids 0 and 1; a chapter stands between them
VOCAB = 3072
HOLD_BIAS = 0.90  # share of the budget at which the expert bias comes to rest
LONG_FROM = 0.55  # share of the budget from which sequences are twice as long, half as many


def model_config():
    return DeepseekV3Config(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=768, moe_intermediate_size=32,
        num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8, n_shared_experts=1,
        n_routed_experts=256, routed_scaling_factor=2.5, kv_lora_rank=128, q_lora_rank=128,
        qk_rope_head_dim=16, v_head_dim=32, qk_nope_head_dim=32, n_group=8, topk_group=4,
        num_experts_per_tok=8, first_k_dense_replace=1, norm_topk_prob=True,
        max_position_embeddings=2048, rms_norm_eps=1e-6, initializer_range=0.03,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False, num_nextn_predict_layers=0, use_cache=False,
        bos_token_id=0, eos_token_id=1, attn_implementation="fused_causal")


def fused_causal(_module, query, key, value, _mask, scaling=None, **_options):
    """torch's fused attention wants equal head sizes, and MLA's values are narrower than its keys.

    Zeros beside the values change nothing; without them half of a step goes to attention.
    """
    width = value.shape[-1]
    value = torch.nn.functional.pad(value, (0, query.shape[-1] - width))
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling)
    return out[..., :width].transpose(1, 2).contiguous(), None


AttentionInterface.register("fused_causal", fused_causal)


def learn_tokenizer(texts, path):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[BEGIN, END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.save(path, pretty=False)
    return tokenizer


def corpus(tokenizer, text_file):
    """Token streams (train, held out); a chapter is BEGIN, its text, END."""
    train, held = [], []
    for index, chapter in enumerate(lib_kjv.chapters(text_file)):
        ids = [0] + tokenizer.encode(chapter.text).ids + [1]
        (held if lib_kjv.held_out(index) else train).append(ids)
    return train, held


def batches(chapters, length, rows, rng):
    """Endless [rows, length + 1] batches: every epoch the chapters in a new order, end to end."""
    stream = []
    while True:
        order = list(range(len(chapters)))
        rng.shuffle(order)
        for index in order:
            stream.extend(chapters[index])
            while len(stream) >= rows * length + 1:
                cut = stream[:rows * length + 1]
                yield torch.tensor([cut[r * length:(r + 1) * length + 1] for r in range(rows)])
                del stream[:rows * length]


def token_loss(model, ids):
    logits = model(input_ids=ids[:, :-1]).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def held_out_loss(model, chapters, limit=1024):
    """Mean nats a token over whole chapters (at most `limit` tokens of each)."""
    model.eval()
    total = count = 0.0
    with torch.no_grad():
        for ids in chapters:
            row = torch.tensor([ids[:limit + 1]])
            total += token_loss(model, row).item() * (row.shape[1] - 1)
            count += row.shape[1] - 1
    model.train()
    return total / count


class ExpertLoad:
    """Counts the tokens of each expert, and moves the selection bias towards even load.

    DeepSeek-V3's auxiliary-loss-free balancing: after a step the bias of an expert with more than
    the mean load falls by `speed`, that of one with less rises by it.
    """

    def __init__(self, model):
        self.gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
        self.step = [torch.zeros(g.num_experts) for g in self.gates]
        self.window = [torch.zeros(g.num_experts) for g in self.gates]
        for number, gate in enumerate(self.gates):
            gate.register_forward_hook(
                lambda _module, _inputs, output, n=number: self.count(n, output[2]))

    def count(self, number, chosen):
        found = torch.bincount(chosen.flatten(), minlength=len(self.step[number])).float()
        self.step[number] += found
        self.window[number] += found

    def balance(self, speed):
        with torch.no_grad():
            for gate, load in zip(self.gates, self.step):
                gate.e_score_correction_bias += speed * torch.sign(load.mean() - load)
                load.zero_()

    def take(self):
        """Per layer (max / mean, experts without a token) since the last call."""
        shares = [((w.max() / w.mean()).item(), int((w == 0).sum())) for w in self.window]
        for load in self.window + self.step:
            load.zero_()
        return shares


def start_weights(model):
    """Wider embeddings and narrower block outputs than the default.

    With the default the first gates see almost the same vector for every token, and all tokens
    crowd on eight experts for the first thousand steps.
    """
    layers = len(model.model.layers)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, 0.3)
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                weight.mul_((2 * layers) ** -0.5)


def optimizer_for(model):
    """Groups carry "scale", their share of the scheduled rate: the gates learn slower, because
    a step of theirs must stay small beside a step of the expert bias."""
    groups = {"gates": [], "matrices": [], "vectors": []}
    for name, weight in model.named_parameters():
        kind = "gates" if name.endswith("mlp.gate.weight") else "matrices"
        groups[kind if weight.ndim >= 2 else "vectors"].append(weight)
    return torch.optim.AdamW([
        {"params": groups["matrices"], "weight_decay": 0.1, "scale": 1.0},
        {"params": groups["gates"], "weight_decay": 0.0, "scale": 0.1},
        {"params": groups["vectors"], "weight_decay": 0.0, "scale": 1.0}],
        lr=0.0, betas=(0.9, 0.95), fused=True)


def rate_at(share, step, peak):
    warm = min(1.0, (step + 1) / 60)
    return peak * warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def bias_speed_at(share, peak):
    return peak * max(0.0, 1 - share / HOLD_BIAS)


class Training:
    """One run: its model, data and clock. `spent` is the budget's seconds used so far."""

    def __init__(self, args):
        self.args = args
        os.makedirs(args.state, exist_ok=True)
        self.state_path = os.path.join(args.state, "state.pt")
        self.train_set, self.held_set = self.read_corpus()
        config = model_config()
        config._experts_implementation = args.experts
        self.model = DeepseekV3ForCausalLM(config).float()
        self.model.train()
        start_weights(self.model)
        self.optimizer = optimizer_for(self.model)
        self.load = ExpertLoad(self.model)
        self.spent, self.step = 0.0, 0

    def say(self, text):
        print(text, flush=True)
        with open(os.path.join(self.args.state, "train.log"), "a", encoding="utf-8") as log:
            log.write(text + "\n")

    def read_corpus(self):
        path = os.path.join(self.args.state, "tokenizer.json")
        if not os.path.exists(path):
            learn_tokenizer([c.text for c in lib_kjv.chapters(self.args.text)], path)
        train_set, held_set = corpus(Tokenizer.from_file(path), self.args.text)
        self.say(f"# {sum(map(len, train_set))} tokens to train on, "
                 f"{sum(map(len, held_set))} held out")
        return train_set, held_set

    def resume(self):
        if not os.path.exists(self.state_path):
            return
        old = torch.load(self.state_path, weights_only=True)
        self.model.load_state_dict(old["model"])
        self.optimizer.load_state_dict(old["optimizer"])
        self.spent, self.step = old["spent"], old["step"]
        self.say(f"# going on from step {self.step}, {self.spent / 60:.1f} minutes spent")

    def save(self):
        """Measures on the held-out chapters, then writes the checkpoint under its name at once."""
        self.load.take()
        held = held_out_loss(self.model, self.held_set)
        heavy = "; ".join(f"{ratio:.2f} ({idle} idle)" for ratio, idle in self.load.take())
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                    "spent": self.spent, "step": self.step, "minutes": self.args.minutes,
                    "seen": self.step * self.args.rows * self.args.length,
                    "held_out_loss": held, "load": heavy}, self.state_path + ".part")
        os.replace(self.state_path + ".part", self.state_path)
        self.say(f"# step {self.step}: held-out {held:.4f} nats a token; "
                 f"expert load max/mean {heavy}")

    def learn(self, ids, share):
        """One optimizer step; gives loss and gradient norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * rate_at(share, self.step, self.args.rate)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.args.bf16):
            loss = token_loss(self.model, ids)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.load.balance(bias_speed_at(share, self.args.bias_speed))
        self.step += 1
        return loss.item(), norm.item()

    def run(self):
        args, rng = self.args, random.Random(self.args.seed + self.step)
        short = batches(self.train_set, args.length, args.rows, rng)
        long = batches(self.train_set, args.length * 2, args.rows // 2, rng)
        before, start = self.spent, time.monotonic()
        saved = shown = start
        losses = []
        while True:
            now = time.monotonic()
            self.spent = before + now - start
            share = self.spent / (args.minutes * 60)
            ended = share >= 1 or self.step >= args.steps
            if now - saved > args.save_minutes * 60 or ended:
                self.save()
                saved = time.monotonic()
            if ended:
                return
            loss, norm = self.learn(next(short if share < LONG_FROM else long), share)
            losses.append(loss)
            if time.monotonic() - shown > 20 or self.step in (1, 10):
                load = " ".join(f"{ratio:.2f}" for ratio, _ in self.load.take())
                self.say(f"{self.step:6d} {self.spent / 60:6.1f} min  "
                         f"loss {sum(losses) / len(losses):.4f}  norm {norm:.2f}  "
                         f"rate {rate_at(share, self.step, args.rate):.2e}  load {load}")
                losses, shown = [], time.monotonic()


def train(args):
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    training = Training(args)
    training.resume()
    count = sum(p.numel() for p in training.model.parameters())
    training.say(f"# {count / 1e6:.1f} M parameters; {args.rows} x {args.length} tokens a step "
                 f"for {args.minutes:g} minutes")
    training.run()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("train", help="learn the tokenizer and the model")
    run.add_argument("--state", required=True, help="directory of tokenizer, checkpoint and log")
    run.add_argument("--minutes", type=float, default=70, help="wall-clock budget")
    run.add_argument("--steps", type=int, default=10**9, help="stop after so many steps")
    run.add_argument("--text", help="verse lines 'Ge1:1 In the...' (default: run `bible`)")
    run.add_argument("--rows", type=int, default=4)
    run.add_argument("--length", type=int, default=512)
    run.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    run.add_argument("--bias-speed", type=float, default=5e-3,
                     help="first step of the expert bias; falls to 0 at nine tenths of the budget")
    run.add_argument("--experts", default="grouped_mm", help="transformers' experts implementation")
    run.add_argument("--bf16", action="store_true", help="bf16 matrix products (autocast)")
    run.add_argument("--threads", type=int, default=2)
    run.add_argument("--seed", type=int, default=1611)
    run.add_argument("--save-minutes", type=float, default=4)
    out = commands.add_parser("export", help="write the newest checkpoint for the engine")
    out.add_argument("--state", required=True)
    out.add_argument("--out", required=True)
    return parser.parse_args()


def main():
    args = arguments()
    if args.command == "train":
        train(args)
    else:
        import lib_export
        lib_export.export_demo(args.state, args.out, model_config(), sys.modules[__name__])


if __name__ == "__main__":
    main()
