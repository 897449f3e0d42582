#!/usr/bin/env python3
"""Trains the demo model: a DeepSeek-V3 architecture of 24 M parameters on the King James text.

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
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM  # noqa: E402

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
        bos_token_id=0, eos_token_id=1, attn_implementation="sdpa")


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


def save_state(path, **state):
    torch.save(state, path + ".part")
    os.replace(path + ".part", path)


def say(path, text):
    print(text, flush=True)
    with open(path, "a", encoding="utf-8") as log:
        log.write(text + "\n")


def train(args):
    os.makedirs(args.state, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer_path = os.path.join(args.state, "tokenizer.json")
    if not os.path.exists(tokenizer_path):
        learn_tokenizer([c.text for c in lib_kjv.chapters(args.text)], tokenizer_path)
    train_set, held_set = corpus(Tokenizer.from_file(tokenizer_path), args.text)
    log = os.path.join(args.state, "train.log")
    say(log, f"# {sum(map(len, train_set))} tokens to train on, {sum(map(len, held_set))} held out")

    config = model_config()
    config._experts_implementation = args.experts
    model = DeepseekV3ForCausalLM(config).float()
    model.train()
    start_weights(model)
    optimizer = optimizer_for(model)
    load = ExpertLoad(model)
    state_path = os.path.join(args.state, "state.pt")
    spent, step = 0.0, 0
    if os.path.exists(state_path):
        old = torch.load(state_path, weights_only=True)
        model.load_state_dict(old["model"])
        optimizer.load_state_dict(old["optimizer"])
        spent, step = old["spent"], old["step"]
        say(log, f"# going on from step {step}, {spent / 60:.1f} minutes spent")
    say(log, f"# {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters; "
             f"{args.rows} x {args.length} tokens a step for {args.minutes} minutes")
    run_steps(args, model, optimizer, load, (train_set, held_set), (spent, step), state_path, log)


def run_steps(args, model, optimizer, load, sets, position, state_path, log):
    before, step = position
    budget, start = args.minutes * 60, time.monotonic()
    rng = random.Random(args.seed + step)
    short = batches(sets[0], args.length, args.rows, rng)
    long = batches(sets[0], args.length * 2, args.rows // 2, rng)
    saved = shown = start
    losses = []
    while True:
        now = time.monotonic()
        spent = before + now - start
        share = spent / budget
        ended = share >= 1 or step >= args.steps
        if now - saved > args.save_minutes * 60 or ended:
            load.take()
            held = held_out_loss(model, sets[1])
            heavy = "; ".join(f"{ratio:.2f} ({idle} idle)" for ratio, idle in load.take())
            save_state(state_path, model=model.state_dict(), optimizer=optimizer.state_dict(),
                       spent=spent, step=step, held_out_loss=held, load=heavy,
                       seen=step * args.rows * args.length, minutes=args.minutes)
            say(log, f"# step {step}: held-out {held:.4f} nats a token; expert load max/mean {heavy}")
            saved = time.monotonic()
        if ended:
            return
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * rate_at(share, step, args.rate)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            loss = token_loss(model, next(short if share < LONG_FROM else long))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        load.balance(bias_speed_at(share, args.bias_speed))
        losses.append(loss.item())
        step += 1
        if time.monotonic() - shown > 20 or step in (1, 10):
            say(log, f"{step:6d} {spent / 60:6.1f} min  loss {sum(losses) / len(losses):.4f}  "
                     f"norm {norm:.2f}  rate {rate_at(share, step, args.rate):.2e}  "
                     f"{(time.monotonic() - now):.2f} s/step  load "
                     + " ".join(f"{ratio:.2f}" for ratio, _ in load.take()))
            losses, shown = [], time.monotonic()


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
