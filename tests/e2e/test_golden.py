"""FP32 mode against Hugging Face transformers: greedy tokens identical, logprobs within tolerance.

The program reports logprobs, not logits. An error e in every logit moves a logprob by at most
2 e, so |logprob error| <= 2 x 1e-4 x max|logit| is what the logits' own limit of
1e-4 x max|logit| allows.
Alone: python3 -m pytest -s tests/e2e/test_golden.py -k v3-saved
"""
import json

import numpy as np
import pytest

from conftest import DEMO, GOLDEN, golden, golden_cases, line

LOGIT_TOLERANCE = 1e-4


def lines_of(values):
    """max_tokens of each prompt is the length of its golden continuation."""
    return [line(f"p{i}", p["ids"], max_tokens=len(p["tokens"]), temperature=0, logprobs=1,
                 prompt_logprobs=1 if p.get("prompt_logprobs") else None)
            for i, p in enumerate(values)]


def drop_nones(lines):
    for item in lines:
        item["body"] = {k: v for k, v in item["body"].items() if v is not None}
    return lines


def check(run, values, name):
    rows, outputs = run.requests(), run.outputs()
    logprobs, offsets = run.values("outputs/logprobs"), run.values("outputs/offsets")
    worst = 0.0
    for i, p in enumerate(values):
        assert rows["status"][i] == b"ok", rows["error"][i]
        assert outputs[i] == p["tokens"], f"{name}: prompt {i}"
        limit = 2 * LOGIT_TOLERANCE * np.abs(p["prefill_logits"]).max()
        got = logprobs[offsets[i]:offsets[i + 1]]
        worst = max(worst, np.abs(got - np.array(p["logprobs"])).max() / limit)
        if p.get("prompt_logprobs"):
            po = run.values("outputs/prompt_offsets")
            scored = run.values("outputs/prompt_logprobs")[po[i]:po[i + 1]]
            assert len(scored) == len(p["ids"]) and np.isnan(scored[0])
            expected = np.array(p["prompt_logprobs"][1:])
            worst = max(worst, np.abs(scored[1:] - expected).max() / limit)
    print(f"# golden {name}: {worst * 100:.2f} % of the tolerance used")
    assert worst <= 1


@pytest.mark.parametrize("case", golden_cases())
def test_fp32(jobs, case):
    values = golden(case)["prompts"]
    job = jobs.job(drop_nones(lines_of(values)), model=str(GOLDEN / case), numerics="fp32")
    check(jobs.run(1, job).ok(), values, case)


def test_fp32_split_over_ranks(jobs):
    """The same answers from one prefill and one decode unit of several ranks."""
    values = golden("v3")["prompts"]
    job = jobs.job(drop_nones(lines_of(values)), numerics="fp32", prefill={"ep": 2},
                   decode={"ep": 4})
    check(jobs.run(6, job).ok(), values, "v3, 2 + 4 ranks")


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512_bf16"])
def test_fp32_every_isa(jobs, isa):
    values = golden("fp8")["prompts"]
    job = jobs.job(drop_nones(lines_of(values)), model=str(GOLDEN / "fp8"), numerics="fp32",
                   isa=isa)
    run = jobs.run(1, job)
    if run.code == 4 and isa in run.err:
        pytest.skip(run.err.strip().splitlines()[-1])
    check(run.ok(), values, f"fp8, {isa}")


def test_demo_model(jobs):
    path = GOLDEN / "kjv-demo.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    values = json.loads(path.read_text(encoding="utf-8"))["prompts"]
    job = jobs.job(drop_nones(lines_of(values)), model=str(DEMO), numerics="fp32")
    check(jobs.run(2, job).ok(), values, "kjv-demo")
