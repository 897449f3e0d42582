"""The demo model: perplexity of the checkpoint's own FP8 within 1 % of FP32's, scored as a corpus
is (max_tokens 0, prompt_logprobs), and readable text from `run` to show_text.py.

Alone: python3 -m pytest -s tests/e2e/test_demo_model.py
"""
import json
import subprocess
import sys

import numpy as np
import pytest

from conftest import DEMO, GOLDEN, ROOT, line

pytestmark = pytest.mark.skipif(not (DEMO / "model.safetensors").exists(),
                                reason=f"{DEMO} has no weights")
PROMPTS = ROOT / "inputs" / "prompts" / "demo.jsonl"


def texts():
    path = GOLDEN / "kjv-demo.json"
    if path.exists():
        return [x["ids"] for x in json.loads(path.read_text())["perplexity"]["texts"]]
    with open(PROMPTS, encoding="utf-8") as lines:
        found = [json.loads(x)["body"]["prompt"] for x in lines]
    return sorted(found, key=len)[-16:]


@pytest.fixture(scope="module")
def perplexity(shared_jobs):
    found = {}
    lines = [line(f"t{i}", ids, max_tokens=0, prompt_logprobs=1)
             for i, ids in enumerate(texts())]
    for numerics in ("fp32", "bf16", "checkpoint"):
        job = shared_jobs.job(lines, model=str(DEMO), numerics=numerics)
        scores = shared_jobs.run(2, job).ok().values("outputs/prompt_logprobs")
        found[numerics] = float(np.exp(-np.nanmean(scores)))
    print("# perplexity", {k: round(v, 4) for k, v in found.items()})
    return found


@pytest.mark.parametrize("numerics", ["bf16", "checkpoint"])
def test_perplexity(perplexity, numerics):
    error = perplexity[numerics] / perplexity["fp32"] - 1
    print(f"# {numerics}: {error * 100:+.3f} % of FP32's perplexity, "
          f"{abs(error) / 0.01 * 100:.0f} % of the tolerance used")
    assert abs(error) <= 0.01


def test_perplexity_of_the_oracle(perplexity):
    path = GOLDEN / "kjv-demo.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    expected = json.loads(path.read_text())["perplexity"]["perplexity"]
    assert perplexity["fp32"] == pytest.approx(expected, rel=1e-4)


def test_readable_text(jobs):
    tokens = ROOT / "inputs" / "prompts" / "demo-small.jsonl"
    run = jobs.run(2, jobs.job(tokens, model=str(DEMO))).ok()
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "show_text.py"), "--model", str(DEMO), "--tokens",
         str(tokens), "--responses", str(run.responses), "--first", "2"],
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "small-00" in done.stdout
    words = {w.strip(".,;:").lower() for w in done.stdout.split()}
    assert {"the", "and", "of"} & words
