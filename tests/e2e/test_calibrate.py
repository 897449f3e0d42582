"""`moebatch calibrate` measures this host; `moebatch study JOB.yaml` predicts a run from its file."""
import json
import os
import subprocess

import h5py
import numpy as np
import pytest
from conftest import BINARY, ROOT

JOB = "inputs/jobs/single.yaml"
ALONE = ["--set", "mixed.ep=1", "--set", "threads_per_rank=1"]


def call(*args, code=0):
    done = subprocess.run([str(BINARY), *map(str, args)], cwd=ROOT, capture_output=True, text=True,
                          timeout=600, env=os.environ)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    path = tmp_path_factory.mktemp("host") / "host.yaml"
    out = call("calibrate", "--quick", "--output", path)
    assert "# written:" in out.stdout and "spread" in out.stdout
    return path


def study(host, *more, code=0):
    return call("study", JOB, "--hardware", host, *ALONE, *more, code=code)


def figures(path):
    with h5py.File(path) as f:
        assert f.attrs["kind"] == "study"
        assert "model: inputs/models/kjv-demo" in f.attrs["job_yaml"]
        assert np.isnan(f["published"]["published"][:]).all()  # nothing in it was measured
        return {r["figure"].decode(): float(r["predicted"]) for r in f["published"][:]}


def test_file_says_where_it_comes_from(host):
    text = host.read_text()
    for key in ("host:", "cpu:", "isa:", "date:", "cores:", "gemm_fp8:", "attention:", "ep:"):
        assert key in text


def test_study_predicts_a_job(host, tmp_path):
    h5 = tmp_path / "predicted.h5"
    out = study(host, "--output", h5)
    f = figures(h5)
    prompts = sum(len(json.loads(line)["body"]["prompt"])
                  for line in open(os.path.join(ROOT, "inputs/prompts/demo-small.jsonl")))
    assert f"  prefill  {prompts:10d}" in out.stdout  # these prompts share no page
    assert f["prefill_tokens_per_s"] > 0 and f["decode_tokens_per_s"] > 0
    # 24 requests at once, 2 answers of 16 tokens among them: 31 steps after the first token.
    assert f["decode_steps"] == 31 and f["prefill_steps"] == 1
    again = study(host, "--output", h5, code=3)
    assert "pass --force" in again.stderr
    study(host, "--output", h5, "--force")


def test_more_work_takes_longer(host, tmp_path):
    def total(*sets):
        h5 = tmp_path / "t.h5"
        more = [x for s in sets for x in ("--set", s)]
        study(host, *more, "--output", h5, "--force")
        return figures(h5)["total_s"]
    base = total()
    assert total("sampling.max_tokens=64", "mixed.max_batch=4") > base
    assert total("mixed.max_batch=1") > base


def test_unmeasured_ranks_are_refused(host):
    out = call("study", JOB, "--hardware", host, "--set", "mixed.ep=8", code=3)
    assert "mpirun -np 8 moebatch calibrate" in out.stderr


def test_missing_and_bad_files_are_refused(host, tmp_path):
    out = call("study", JOB, "--hardware", tmp_path / "none.yaml", code=3)
    assert "moebatch calibrate" in out.stderr
    bad = tmp_path / "bad.yaml"
    text = host.read_text()
    bad.write_text(text.replace("cores:", "kernels:"))
    assert "kernels" in study(bad, code=3).stderr
    lines = ["  one: \"fast\"" if x.startswith("  one:") else x for x in text.splitlines()]
    bad.write_text("\n".join(lines) + "\n")
    assert "found 'fast'" in study(bad, code=3).stderr
    bad.write_text("name: x\n")
    assert "run moebatch calibrate again" in study(bad, code=3).stderr


def test_usage(tmp_path):
    assert "--output" in call("calibrate", "--help").stdout
    assert "unexpected argument" in call("calibrate", "--fast", code=2).stderr
