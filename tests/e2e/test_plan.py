"""`moebatch plan`: its figures beside what a run of the same job then holds, its refusals beside
run's, and its predictions where a hardware file makes them.

What must agree: experts' weights, KV pages and the all-to-all exactly; activations, which grow with
the load, within GROWTH; resident private memory is at most 1.1 of the plan, and at least FLOOR of
it when the job fills its buffers. test_topology.py compares the 176 ranks of the production topology.
Alone: python3 -m pytest -s tests/e2e/test_plan.py
"""
import json
import pathlib
import re

import numpy as np
import pytest

from conftest import DEMO, ROOT, line, moebatch, prompts_of
from plan_table import GROWTH, activations, compare, plan

FLOOR = 0.5  # share of the planned bytes that a job with full batches has touched

LAYOUTS = {
    "mixed1": (1, {"mixed": {"ep": 1, "chunk_tokens": 64, "max_batch": 8}}),
    "2+4": (6, {"prefill": {"ep": 2, "chunk_tokens": 64}, "decode": {"ep": 4, "max_batch": 8}}),
    "4+4 on virtual nodes": (8, {"prefill": {"ep": 4, "chunk_tokens": 64},
                                 "decode": {"ep": 4, "max_batch": 8}, "ranks_per_node": 2}),
}


def demo_job(jobs, count=24, **keys):
    """Prompts that fill chunks, answers that fill batches."""
    prompts = prompts_of(count, [200, 90, 150, 260], vocab=3000)
    lines = [line(f"r{i}", p, max_tokens=12, ignore_eos=True) for i, p in enumerate(prompts)]
    return jobs.job(lines, model=str(DEMO), threads_per_rank=1, **keys)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_is_what_a_run_holds(jobs, layout):
    ranks, keys = LAYOUTS[layout]
    job = demo_job(jobs, kv={"pages_per_rank": 60}, **keys)
    code, out, err = plan(jobs, job)
    assert code == 0, err
    ran = jobs.run(ranks, job).ok()
    table = ran.values("ranks")
    assert len(table) == ranks
    for role, mine in compare(out, table).items():
        rows = table[table["role"] == role.encode()]
        held, resident = rows["activation_bytes"], rows["resident_bytes"]
        act, whole = activations(mine), mine["a rank"]
        print(f"# {layout} {role}: MiB planned {whole / 2**20:.1f}, resident "
              f"{resident.min() / 2**20:.1f} to {resident.max() / 2**20:.1f}; activations "
              f"{act / 2**20:.2f}, held {held.min() / 2**20:.2f} to {held.max() / 2**20:.2f}")
        assert (held >= (1 - GROWTH) * act).all()
        assert (resident >= FLOOR * whole).all()
    # The start counts the same, but has not read the prompts and so leaves room for long ones.
    host = float(re.search(r"# memory of the host +([\d.]+) MiB", out)[1]) / 1024
    logged = re.search(r"memory on .*weights ([\d.]+) GiB shared \+ ([\d.]+) experts, KV ([\d.]+), "
                       r"activations ([\d.]+), all-to-all ([\d.]+), program ([\d.]+)", ran.err)
    need = sum(map(float, logged.groups()))
    print(f"# host: planned {host:.2f} GiB, the start of the run counts {need:.2f}")
    assert host - 0.04 <= need <= 1.5 * host + 0.04


def test_capacity_and_tokens(jobs):
    job = demo_job(jobs, count=20, mixed={"ep": 1, "max_batch": 4}, kv={"pages_per_rank": 6})
    code, out, _ = plan(jobs, job)
    assert code == 0
    prompts = [len(json.loads(x)["body"]["prompt"])
               for x in pathlib.Path(job["tokens"]).read_text(encoding="utf-8").splitlines()]
    assert re.search(rf"prompts +{sum(prompts)} tokens, mean .*, longest {max(prompts)}\n", out)
    assert "answers             240 tokens at most, mean 12.0" in out
    assert re.search(r"mixed +6 +384 +384 +2 +4\n", out)  # three pages a request
    # What plan says would fail, fails.
    job["kv"]["pages_per_rank"] = 3
    code, out, _ = plan(jobs, job)
    told = int(re.search(r"(\d+) requests? would fail: longer than the 192 tokens", out)[1])
    table = jobs.run(1, job).ok().requests()
    assert told == (table["status"] == b"failed").sum() > 0


def test_repeated_prefixes_are_counted(jobs):
    prompt = np.random.default_rng(3).integers(8, 3000, 200).tolist()
    lines = [line(f"r{i}", prompt + [9 + i], max_tokens=2) for i in range(5)]
    job = jobs.job(lines, model=str(DEMO), mixed={"ep": 1})
    assert re.search(r"of these +768 tokens repeat", plan(jobs, job)[1])  # 4 x 3 full pages
    job["kv"] = {"prefix_cache": "off"}
    assert "tokens repeat" not in plan(jobs, job)[1]


@pytest.mark.parametrize("keys, args, code, texts", [
    ({"mixed": {"ep": 1}, "kv": {"pages_per_rank": 100000}}, ["--memory", "2"], 4,
     ["1 rank on one host need", "2.00 GiB are free", "kv.pages_per_rank 100000", "more hosts"]),
    ({"prefill": {"ep": 2}, "decode": {"ep": 5, "redundant_experts": 32}}, [], 3,
     ["decode.ep 5", "288 slots do not divide by 5", "legal sizes are 2 3 4 6"]),
    ({"prefill": {"ep": 2}, "decode": {"ep": 4}}, ["--ranks", "5"], 4,
     ["= 6 ranks", "mpirun -np 6"]),
    ({"mixed": {"ep": 1}, "model": "nowhere"}, [], 3, ["nowhere"]),
    ({"mixed": {"ep": 1}, "tokens": "nowhere.jsonl"}, [], 3, ["nowhere.jsonl"]),
    ({"mixed": {"ep": 1}}, ["--hardware", "h801"], 3, ["unknown hardware h801", "h800"]),
    ({"mixed": {"ep": 1}}, ["--memory", "none"], 2, ["--memory is none"]),
    ({"mixed": {"ep": 1}}, ["--memory"], 2, ["--memory needs a value"]),
])
def test_refusals(jobs, keys, args, code, texts):
    found, _, err = plan(jobs, demo_job(jobs, count=2) | keys, *args)
    assert found == code, err
    for text in texts:
        assert text in err, err


def test_auto_pages_shrink_to_what_the_host_has(jobs):
    job = demo_job(jobs, count=2, mixed={"ep": 1})
    pages = [int(re.search(r"\n  mixed +(\d+) ", plan(jobs, job, "--memory", m)[1].split(
        "# KV capacity")[1])[1]) for m in ("16", "0.5", "0.3")]
    assert pages[0] > pages[1] > pages[2] > 1
    code, out, err = plan(jobs, job, "--memory", "0.01")
    assert code == 4 and "DOES NOT FIT" in out and "GiB are free" in err


def test_prediction_for_gpus(jobs):
    job = demo_job(jobs, prefill={"ep": 8}, decode={"ep": 16})
    code, out, err = plan(jobs, job, "--hardware", "h800")
    assert code == 0, err
    assert "predicted, not measured; hardware" in out and "level calibrated" in out
    time = float(re.search(r"time +([\d.]+) s for the file", out)[1])
    gpu_seconds = float(re.search(r"= ([\d.]+) GPU-seconds", out)[1])
    assert time > 0 and abs(gpu_seconds - 24 * time) <= 0.06 + 24 * 0.005
    # More requests of the same kind take longer and cost more.
    more = plan(jobs, demo_job(jobs, count=4000, prefill={"ep": 8}, decode={"ep": 16}),
                "--hardware", "h800")[1]
    assert float(re.search(r"time +([\d.]+) s for the file", more)[1]) > time
    # A size that the model of the GPUs cannot take is no error of the job.
    code, out, _ = plan(jobs, demo_job(jobs, prefill={"ep": 9, "redundant_experts": 32},
                                       decode={"ep": 16}), "--hardware", "h800")
    assert code == 0 and "# no prediction: ep is 9, but a node of H800 has 8 GPUs" in out


@pytest.fixture(scope="module")
def this_machine(tmp_path_factory):
    path = tmp_path_factory.mktemp("hardware") / "this-machine.yaml"
    code, out, err = moebatch("calibrate", "--quick", "--output", path)
    assert code == 0, out + err
    return path


def test_prediction_for_this_machine(jobs, this_machine):
    """The engine's own model answers; `study` of the job says the same."""
    job = demo_job(jobs, mixed={"ep": 1, "chunk_tokens": 64}, kv={"prefix_cache": "off"})
    code, out, err = plan(jobs, job, "--hardware", this_machine)
    assert code == 0 and "(cluster/engine_time)" in out, err
    rates = {k: float(re.search(rf"  {k} +([\d.]+) tokens/s", out)[1])
             for k in ("prefill", "decode")}
    code, study, err = moebatch("study", jobs.folder / "plan.yaml", "--hardware", this_machine)
    assert code == 0, err
    for k, rate in rates.items():
        other = float(re.search(rf"  {k} +\d+ +\d+ +[\d.]+ +([\d.]+)", study)[1])
        print(f"# {k}: plan {rate}, study {other} tokens/s")
        assert rate > 0 and abs(rate / other - 1) < 0.02
    # Ranks that were not measured are named, and are no error of the job.
    job = demo_job(jobs, mixed={"ep": 2})
    code, out, _ = plan(jobs, job, "--hardware", this_machine)
    assert code == 0 and re.search("# no prediction: .*no all-to-all of 2 ranks.*calibrate", out)


def test_shipped_jobs():
    for name in ("demo", "single", "units"):
        code, out, err = moebatch("plan", ROOT / "inputs" / "jobs" / f"{name}.yaml")
        assert code == 0 and "fits" in out, err
