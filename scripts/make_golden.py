#!/usr/bin/env python3
"""Makes the golden files of tests/golden with transformers in float32 as the oracle.

    python scripts/make_golden.py [--case NAME]...      tiny random checkpoints, model and values
    python scripts/make_golden.py --demo DIR            values of the demo model (kjv-demo.json)
    python scripts/make_golden.py --list

A tiny case is a checkpoint of random weights that covers some rules of the model family, with
prompts drawn so that no choice is close: every token's expert selection and every greedy token is
at least 1e-3 away from another one. Needs torch, transformers and safetensors;
tests/golden/README.md describes the files.
"""
import argparse
import json
import math
import os
import random
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import torch  # noqa: E402
import transformers  # noqa: E402

import lib_checkpoint as ckpt  # noqa: E402
from lib_golden_cases import CASES  # noqa: E402
from lib_oracle import Oracle  # noqa: E402

GAP = 1e-3
PROMPTS = ((5, 24), (23, 16), (70, 12), (150, 8))  # (prompt tokens, continuation)
# (prompt tokens, continuation, draws at each of the prompt's last places)
DEMO_CASES = ((9, 12, (30, 12, 6)), (20, 12, (30, 12, 6)), (33, 10, (40, 12)), (64, 8, (40, 12)),
              (65, 8, (40, 12)), (100, 8, (40, 12)), (129, 8, (40, 12)), (193, 8, (40, 12)))
SCORED = 2  # the prompt whose own tokens are scored too
GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "golden")


# ---- checkpoints of random weights

def random_tensors(model, rng):
    """Weights large enough that logits and gate scores differ clearly between tokens."""
    hidden = model.config.hidden_size
    softmax_gate = model.config.model_type == "deepseek_v2"
    tensors = {}
    for name, value in sorted(model.state_dict().items()):
        noise = torch.randn(value.shape, generator=rng)
        if name.endswith("norm.weight"):
            tensors[name] = 1 + 0.2 * noise
        elif name.endswith("e_score_correction_bias"):
            tensors[name] = 0.15 * noise
        elif name.endswith("mlp.gate.weight"):
            tensors[name] = noise * (1.2 if softmax_gate else 1.5) / hidden ** 0.5
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            tied = model.config.tie_word_embeddings
            wide = name.startswith("model.embed") and not tied
            tensors[name] = noise * (1.0 if wide else 3.0 / hidden ** 0.5)
        else:
            tensors[name] = noise * 1.3 / value.shape[-1] ** 0.5
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return tensors


def oracle_config(config):
    """The case's config.json as a transformers configuration object."""
    plain = dict(config)
    kind = plain.pop("model_type")
    # What transformers 5 does not know it would keep and write, and its own files lack these.
    for key in ("quantization_config", "scoring_func", "moe_layer_freq", "torch_dtype"):
        plain.pop(key, None)
    if kind != "deepseek_v2":
        plain.pop("topk_method")
    made = {"deepseek_v2": transformers.DeepseekV2Config}.get(kind, transformers.DeepseekV3Config)
    return made(**json.loads(json.dumps(plain)))


def write_model(case, directory):
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    config = oracle_config(case.config)
    model = transformers.AutoModelForCausalLM.from_config(config)
    rng = torch.Generator().manual_seed(case.seed)
    model.load_state_dict(random_tensors(model, rng))
    if case.spelling == "transformers":
        model.to(case.dtype).save_pretrained(directory, max_shard_size=case.shard_bytes)
    else:
        tensors = ckpt.hub_names(model.state_dict())
        if config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        tensors.update(unused_layer(config, rng))
        if case.scale_format:
            tensors = ckpt.quantised(tensors, case.dtype, case.scale_format)
        else:
            tensors = {name: value if "correction_bias" in name else value.to(case.dtype)
                       for name, value in tensors.items()}
        ckpt.write_weights(directory, tensors, case.shards)
        ckpt.write_json(os.path.join(directory, "config.json"), case.config)
    ckpt.write_json(os.path.join(directory, "generation_config.json"), {"eos_token_id": case.eos})
    for file in os.listdir(directory):
        os.chmod(os.path.join(directory, file), 0o644)


def unused_layer(config, rng):
    """Some tensors of the multi-token-prediction layer, which a reader must pass over."""
    if not getattr(config, "num_nextn_predict_layers", 0):
        return {}
    stem, hidden = f"model.layers.{config.num_hidden_layers}.", config.hidden_size
    return {stem + "enorm.weight": torch.randn(hidden, generator=rng),
            stem + "eh_proj.weight": torch.randn(8, 2 * hidden, generator=rng)}


# ---- prompts that leave no choice close

def clear_prompt(oracle, length, vocabulary, rng, start=()):
    """Random ids, each redrawn until the gates are sure about it."""
    ids = list(start)
    while len(ids) < length:
        for _ in range(40):
            draws = rng.sample(range(3, vocabulary), 12)
            _, gaps = oracle.forward([ids + [draw] for draw in draws])
            sure = [draw for draw, gap in zip(draws, gaps[:, -1]) if gap > 1.1 * GAP]
            if sure:
                break
        else:
            raise ValueError(f"no sure token at position {len(ids)}: change the case's seed")
        ids.append(sure[0])
    return ids


def clear_case(oracle, length, count, vocabulary, eos, rng):
    """A prompt and its greedy continuation, all gaps above GAP, no end token inside."""
    ids = clear_prompt(oracle, length, vocabulary, rng)
    for _ in range(120):
        tokens, logits, logit_gap, gate_gap = oracle.greedy(ids, count)
        if min(logit_gap, gate_gap) > GAP and not set(tokens) & set(eos):
            return ids, tokens, logits, logit_gap, gate_gap
        ids = clear_prompt(oracle, length, vocabulary, rng, ids[:max(0, length - 3)])
    raise ValueError(f"no clear continuation of {length} tokens: change the case's seed")


# ---- golden files

def short(values, digits=9):
    return [float(f"{value:.{digits}g}") for value in values.tolist()]


def entry(oracle, result, digits=9, scored=False, last=True):
    ids, tokens, logits, logit_gap, gate_gap = result
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    made = {"ids": ids, "tokens": tokens, "logprobs": short(chosen),
            "min_logit_gap": logit_gap, "min_gate_gap": gate_gap,
            "prefill_logits": short(logits[0], digits)}
    if last:
        made["last_logits"] = short(logits[-1], digits)
    if scored:
        made["prompt_logprobs"] = [None] + short(oracle.prompt_logprobs(ids))
    return made


def origin(command):
    return {"transformers": transformers.__version__, "torch": torch.__version__,
            "dtype": "float32", "attention": "eager", "command": command}


def write_golden(path, values):
    """JSON with one line a field, so that a person can read it and a diff stays small."""
    def lines(value, indent):
        if isinstance(value, dict):
            inner = ",\n".join(f"{indent} {json.dumps(k)}: {lines(v, indent + ' ')}"
                               for k, v in value.items())
            return "{\n" + inner + "\n" + indent + "}"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[" + ", ".join(lines(v, indent) for v in value) + "]"
        return json.dumps(value)
    with open(path, "w", encoding="utf-8") as file:
        file.write(lines(values, "") + "\n")


def make_case(name, case):
    directory = os.path.join(GOLDEN, name)
    write_model(case, directory)
    oracle = Oracle(directory)
    rng = random.Random(case.seed)
    eos = case.eos if isinstance(case.eos, list) else [case.eos]
    entries = []
    for number, (length, count) in enumerate(PROMPTS):
        result = clear_case(oracle, length, count, case.config["vocab_size"], eos, rng)
        entries.append(entry(oracle, result, scored=number == SCORED))
    gaps = {key: min(e[key] for e in entries) for key in ("min_logit_gap", "min_gate_gap")}
    write_golden(os.path.join(directory, "golden.json"), {
        "case": name, "covers": case.covers,
        "oracle": origin(f"python scripts/make_golden.py --case {name}"),
        **gaps, "prompts": entries})
    size = sum(os.path.getsize(os.path.join(directory, f)) for f in os.listdir(directory))
    print(f"{name}: {size / 1024:.0f} KiB, logit gap {gaps['min_logit_gap']:.2e}, "
          f"gate gap {gaps['min_gate_gap']:.2e}", flush=True)


# ---- the demo model

def sure_rows(oracle, rows):
    """Those of `rows` (one length) whose last token leaves the gates sure, with their logits."""
    kept = []
    for first in range(0, len(rows), 64):
        part = rows[first:first + 64]
        logits, gaps = oracle.forward(part)
        kept += [(ids, logits[i, -1]) for i, ids in enumerate(part) if gaps[i, -1] > 1.1 * GAP]
    return kept


def likely(logits, count, eos, generator):
    """`count` ids that the model may well write next, drawn without replacement."""
    probabilities = logits.softmax(-1)
    probabilities[eos] = 0
    return torch.multinomial(probabilities, count, generator=generator).tolist()


def written_prompt(oracle, length, openings, eos, generator):
    """Text of the model itself: at each place the first drawn token that leaves the gates sure."""
    kept = sure_rows(oracle, [[opening] for opening in openings])
    ids, logits = kept[int(torch.randint(len(kept), (1,), generator=generator))]
    while len(ids) < length:
        kept = sure_rows(oracle, [ids + [t] for t in likely(logits, 12, eos, generator)])
        if not kept:  # another way round
            return written_prompt(oracle, length, openings, eos, generator)
        ids, logits = kept[0]
    return ids


def sure_continuation(oracle, prompts, count, eos):
    """The first of `prompts` whose greedy continuation of `count` tokens leaves no choice close."""
    rows = [(ids, oracle.forward([ids])[0][0, -1]) for ids in prompts]
    for _ in range(count):
        best = [(ids, logits.topk(2)) for ids, logits in rows]
        rows = sure_rows(oracle, [ids + [int(top.indices[0])] for ids, top in best
                                  if top.values[0] - top.values[1] > GAP
                                  and int(top.indices[0]) != eos])
    return rows[0][0] if rows else None


def demo_case(oracle, length, count, branches, openings, eos, generator):
    """A prompt of `length` tokens with its continuation, every gap above GAP.

    A token leaves all gates sure with probability 0.6, so a continuation of 8 does in one case of
    60: its last tokens are branched (`branches` draws at each place) until enough prompts are there.
    """
    while True:
        ids = written_prompt(oracle, length - len(branches), openings, eos, generator)
        rows = sure_rows(oracle, [ids])
        for draws in branches:
            rows = sure_rows(oracle, [ids + [t] for ids, logits in rows
                                      for t in likely(logits, draws, eos, generator)])
        whole = sure_continuation(oracle, [ids for ids, _ in rows], count, eos)
        if whole is None:
            continue
        result = (whole[:length], *oracle.greedy(whole[:length], count))
        if min(result[3:]) > GAP and result[1] == whole[length:]:
            return result


def make_demo(directory, prompts_file):
    """DEMO_CASES: texts that the model writes where it is sure, none of its choices below GAP.

    With 256 experts and three gates a token of natural text is close to another choice in 4 of 10
    cases (the start token is), so prompts of more than a few tokens have to be written for it.
    """
    oracle = Oracle(directory, experts="grouped_mm")
    eos = ckpt.read_json(os.path.join(directory, "generation_config.json"))["eos_token_id"]
    with open(prompts_file, encoding="utf-8") as lines:
        openings = sorted({json.loads(line)["body"]["prompt"][1] for line in lines})
    generator = torch.Generator().manual_seed(11)
    entries = []
    for length, count, branches in DEMO_CASES:
        result = demo_case(oracle, length, count, branches, openings, eos, generator)
        entries.append(entry(oracle, result, digits=7, last=False))
        print(f"{length} tokens: gate gap {result[4]:.2e}, logit gap {result[3]:.2e}", flush=True)
    for made in entries:
        made["finish_reason"] = "length"
    scored = score_demo(oracle, prompts_file)
    write_golden(os.path.join(GOLDEN, "kjv-demo.json"), {
        "case": "kjv-demo", "model": "inputs/models/kjv-demo",
        "covers": "the demo model: FP8 weights dequantised to float32",
        "oracle": origin("python scripts/make_golden.py --demo inputs/models/kjv-demo"),
        "min_logit_gap": min(e["min_logit_gap"] for e in entries),
        "min_gate_gap": min(e["min_gate_gap"] for e in entries),
        "prompts": entries, "perplexity": scored})
    print(f"kjv-demo: {len(entries)} prompts; gate gap "
          f"{min(e['min_gate_gap'] for e in entries):.2e}; "
          f"perplexity {scored['perplexity']:.4f}")


def score_demo(oracle, prompts_file):
    """Mean loss and perplexity of the four longest held-out texts of the prompt file."""
    with open(prompts_file, encoding="utf-8") as lines:
        prompts = [json.loads(line) for line in lines]
    prompts = [p for p in prompts if p["custom_id"].startswith("held-")]
    prompts.sort(key=lambda p: -len(p["body"]["prompt"]))
    texts = []
    for line in prompts[:4]:
        ids = line["body"]["prompt"]
        values = oracle.prompt_logprobs(ids)
        texts.append({"custom_id": line["custom_id"], "ids": ids,
                      "mean_nll": -values.mean().item(), "prompt_logprobs": [None] + short(values)})
    count = sum(len(t["ids"]) - 1 for t in texts)
    nll = sum(t["mean_nll"] * (len(t["ids"]) - 1) for t in texts) / count
    return {"mean_nll": nll, "perplexity": math.exp(nll), "tokens": count, "texts": texts}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="only these cases")
    parser.add_argument("--list", action="store_true", help="name the cases and what they cover")
    parser.add_argument("--demo", metavar="DIR", help="the demo model's directory")
    parser.add_argument("--prompts", default="inputs/prompts/demo.jsonl")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.list:
        for name, case in CASES.items():
            print(f"{name:24s} {case.covers}")
    elif args.demo:
        make_demo(args.demo, args.prompts)
    else:
        for name in args.case or CASES:
            make_case(name, CASES[name])


if __name__ == "__main__":
    main()
