"""One answer, whatever the topology and whatever happens on the way: more shapes than
test_bitwise.py, each compared byte by byte with one rank: several units of both kinds, virtual
nodes, redundant experts placed by hand, by default and by an earlier run's load, chunks and batches
from tiny to ample, pages so few that requests move to host memory, reference numerics, threads; and
the production topology, 32 prefill and 144 decode ranks.

Alone: python3 -m pytest tests/e2e/test_topology.py -k swap
Without the 176 ranks: -m 'not production'
"""
import json

import numpy as np
import pytest

from conftest import DEMO, GOLDEN, ROOT, line, prompts_of
from plan_table import compare, plan

EXPERTS, EOS = 16, 1  # of tests/golden/v3

SPLIT4 = {"prefill": {"ep": 4}, "decode": {"ep": 4}}
# name: (ranks, keys of the job)
LAYOUTS = {
    "prefill4-decode4": (8, SPLIT4),
    "2xprefill2-2xdecode2": (8, {"prefill": {"units": 2, "ep": 2},
                                 "decode": {"units": 2, "ep": 2}}),
    "mixed-2xep4-nodes2": (8, {"mixed": {"units": 2, "ep": 4}, "ranks_per_node": 2}),
    "split-nodes1": (4, {"prefill": {"ep": 2}, "decode": {"ep": 2}, "ranks_per_node": 1}),
    "split-nodes4": (8, {**SPLIT4, "ranks_per_node": 4}),
    "redundant-auto": (4, {"mixed": {"ep": 4, "redundant_experts": "auto"}}),
    "redundant-many": (4, {"prefill": {"ep": 2, "redundant_experts": 4},
                           "decode": {"ep": 2, "redundant_experts": 8}}),
    "chunk16": (2, {"mixed": {"ep": 2, "chunk_tokens": 16}}),
    "chunk1024-batch16": (2, {"mixed": {"ep": 2, "chunk_tokens": 1024, "max_batch": 16}}),
    "batch2-one-microbatch": (4, {"prefill": {"ep": 2, "microbatches": 1},
                                  "decode": {"ep": 2, "max_batch": 2, "microbatches": 1}}),
    "rounds-nodes2": (4, {"mixed": {"ep": 4}, "ep": {"recv_rows_factor": 0.3},
                          "ranks_per_node": 2}),
    "threads2": (2, {"mixed": {"ep": 2}, "threads_per_rank": 2}),
    "no-cache-split": (4, {"prefill": {"units": 2, "ep": 1}, "decode": {"ep": 2},
                           "kv": {"prefix_cache": "off"}}),
}


def lines_of(vocab):
    """Long and short prompts, shared beginnings; greedy, sampled, stopped, scored."""
    lines = []
    for i, prompt in enumerate(prompts_of(18, [2, 65, 128, 31, 200, 64], vocab=vocab, seed=9)):
        body = {"max_tokens": 3 + 5 * (i % 5), "logprobs": 1}
        if i % 3 == 0:
            body |= {"temperature": 1.2, "seed": i, "top_k": 20}
        if i % 4 == 2:
            body |= {"ignore_eos": True}
        if i % 5 == 1:
            body |= {"stop_token_ids": list(range(8, vocab, 8)), "temperature": 1.0}
        if i % 6 == 4:
            body |= {"prompt_logprobs": 1}
        lines.append(line(f"r{i}", prompt, **body))
    lines.append(line("scored", prompts_of(1, [70], vocab=vocab)[0], max_tokens=0,
                      prompt_logprobs=1))
    return lines


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == value, f"{name} differs"


# model and numerics: FP8 payloads, and FP32 ones (no other test compares fp32 over many layouts)
@pytest.fixture(scope="module", params=[("fp8", "checkpoint"), ("v3", "fp32")],
                ids=["fp8", "v3-fp32"])
def reference(request, shared_jobs):
    model, numerics = request.param
    keys = {"model": str(GOLDEN / model), "numerics": numerics, "sampling": {"seed": 11}}
    run = shared_jobs.run(1, shared_jobs.job(lines_of(120), mixed={"ep": 1}, **keys)).ok()
    rows = run.requests()
    assert set(rows["status"]) == {b"ok"} and {b"stop", b"length"} == set(rows["finish_reason"])
    return keys, run.fixed()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bytes(jobs, reference, layout):
    keys, expected = reference
    ranks, own = LAYOUTS[layout]
    same(jobs.run(ranks, jobs.job(lines_of(120), **keys, **own)).ok().fixed(), expected)


# ---- what the layout does is visible ----

def placement_of(run, unit):
    """{layer: experts of the slots in order}"""
    table = run.values("experts/placement")
    table = table[table["unit"] == unit]
    return {layer: table[table["layer"] == layer]["expert"].tolist()
            for layer in np.unique(table["layer"])}


@pytest.mark.parametrize("redundant", [0, "auto", 8])
def test_redundant_experts_are_placed(jobs, redundant):
    keys = {"mixed": {"ep": 4, "redundant_experts": redundant}}
    lines = lines_of(120)[:4]
    run = jobs.run(4, jobs.job(lines, **keys)).ok()
    slots = EXPERTS + (4 if redundant == "auto" else redundant)
    for layer in placement_of(run, b"mixed0").values():
        assert len(layer) == slots and set(layer) == set(range(EXPERTS))


def test_load_of_an_earlier_run_moves_experts(jobs):
    """Busy experts get the replicas, in each layer its own; the answers stay."""
    lines = lines_of(120)
    keys = {"mixed": {"ep": 4, "redundant_experts": 4}}
    first = jobs.run(4, jobs.job(lines, **keys)).ok()
    again = jobs.run(4, jobs.job(lines, experts={"load": str(first.h5)}, **keys)).ok()
    same(again.fixed(), first.fixed())
    even, busy = placement_of(first, b"mixed0"), placement_of(again, b"mixed0")
    layers = list(busy)
    assert layers == list(even) and len(layers) == 2
    assert even[layers[0]] == even[layers[1]], "without a load all layers are alike"
    assert busy[layers[0]] != busy[layers[1]] and busy != even
    load = first.values("experts/load")
    for layer in layers:
        rows = load[load["layer"] == layer]
        rows = rows["rows"][np.argsort(rows["expert"])]
        copies = np.bincount(busy[layer], minlength=EXPERTS)
        assert copies[rows.argmax()] > 1, "the busiest expert has a replica"
        # Rows of a replica: what EPLB levels. The most loaded one is not the busiest whole expert.
        assert (rows / copies).max() < rows.max()


def test_nodes_are_in_the_results(jobs):
    run = jobs.run(8, jobs.job(lines_of(120)[:4], mixed={"ep": 8}, ranks_per_node=4)).ok()
    assert run.values("ranks")["node"].tolist() == [0] * 4 + [1] * 4
    with run.open() as f:
        assert f["attempts"]["nodes"][0] == 2 and "mpi" in f.attrs["transport"]


# ---- too few pages ----

def long_answers():
    """Short answers first, so that little is expected of the others, which then run long."""
    short = [line(f"s{i}", [9 + i], max_tokens=2, ignore_eos=True) for i in range(16)]
    prompts = prompts_of(10, [40, 70, 100], vocab=120, seed=4)
    return short + [line(f"l{i}", p, max_tokens=150, ignore_eos=True, logprobs=1,
                         temperature=0.7 if i % 2 else 0) for i, p in enumerate(prompts)]


@pytest.fixture(scope="module")
def ample(shared_jobs):
    run = shared_jobs.run(1, shared_jobs.job(long_answers(), kv={"pages_per_rank": 200})).ok()
    assert run.values("ranks")["moved_out"].sum() == 0
    return run.fixed()


@pytest.mark.parametrize("ranks, pages, keys", [
    (1, 9, {"mixed": {"ep": 1}}),
    (2, 6, {"mixed": {"ep": 2}}),
    (2, 6, {"mixed": {"ep": 2, "chunk_tokens": 32}, "kv": {"prefix_cache": "off"}}),
    (3, 6, {"prefill": {"ep": 1}, "decode": {"ep": 2, "max_batch": 16}}),
], ids=["one", "ep2", "ep2-chunks", "split"])
def test_swap_to_host_memory(jobs, ample, ranks, pages, keys):
    """Requests that outgrow the pages move out and come back, never computed again."""
    keys = {**keys, "kv": {**keys.get("kv", {}), "pages_per_rank": pages}}
    run = jobs.run(ranks, jobs.job(long_answers(), **keys)).ok()
    same(run.fixed(), ample)
    table = run.values("ranks")
    print(f"# moved out {table['moved_out'].tolist()}, peak pages "
          f"{table['kv_pages_peak'].tolist()} of {pages}")
    assert table["moved_out"].sum() > 0 and (table["kv_pages_peak"] <= pages).all()
    rows = run.requests()
    computed = (rows["prompt_tokens"] - rows["cached_tokens"]).sum()
    assert table["prefill_tokens"].sum() == computed
    assert table["decode_tokens"].sum() == (rows["output_tokens"] - 1).sum()


# ---- sampling ----

def test_seed_of_the_job_decides_what_the_requests_leave_open(jobs):
    prompts = prompts_of(6, [5, 20], vocab=120)
    lines = [line(f"r{i}", p, max_tokens=12, ignore_eos=True) for i, p in enumerate(prompts)]
    lines[0]["body"]["seed"] = 5
    found = {}
    for name, ranks, seed in [("a", 1, 1), ("b", 4, 1), ("c", 1, 2)]:
        job = jobs.job(lines, mixed={"ep": ranks}, sampling={"temperature": 1.0, "seed": seed})
        found[name] = jobs.run(ranks, job).ok().outputs()
    assert found["a"] == found["b"] != found["c"]
    assert found["a"][0] == found["c"][0], "a request's own seed wins"
    assert all(x != y for x, y in zip(found["a"][1:], found["c"][1:]))


def test_ignore_eos_and_stop_tokens(jobs):
    stops = list(range(8, 120, 8))
    lines = [line(f"{name}{i}", p, max_tokens=200, temperature=2.0, seed=i, **body)
             for i, p in enumerate(prompts_of(4, [5], vocab=120))
             for name, body in [("stop", {"stop_token_ids": stops}),
                                ("on", {"ignore_eos": True})]]
    run = jobs.run(2, jobs.job(lines, mixed={"ep": 2})).ok()
    for row, tokens in zip(run.requests(), run.outputs()):
        if row["custom_id"].startswith(b"stop"):
            assert row["finish_reason"] == b"stop" and tokens[-1] in [EOS, *stops]
            assert not set(tokens[:-1]) & {EOS, *stops}
        else:
            assert row["finish_reason"] == b"length" and len(tokens) == 200


# ---- production ----

def production_lines():
    """The demo's prompts, then those that Hugging Face answered."""
    demo = ROOT / "inputs" / "prompts" / "demo-small.jsonl"
    lines = [json.loads(x) for x in demo.read_text(encoding="utf-8").splitlines()]
    values = json.loads((GOLDEN / "kjv-demo.json").read_text(encoding="utf-8"))["prompts"]
    lines += [line(f"golden-{i}", p["ids"], max_tokens=len(p["tokens"]), temperature=0)
              for i, p in enumerate(values)]
    return lines, [p["tokens"] for p in values]


@pytest.mark.production
@pytest.mark.skipif(not (DEMO / "model.safetensors").exists()
                    or not (GOLDEN / "kjv-demo.json").exists(),
                    reason="no demo model, or no golden file of it")
def test_production_topology(jobs):
    """EP32 prefill, EP144 decode, 32 redundant experts each: 176 ranks answer as one rank does, and
    as Hugging Face does."""
    lines, golden = production_lines()
    keys = {"model": str(DEMO), "numerics": "fp32", "threads_per_rank": 1,
            "ep": {"max_tokens_per_rank": 8}}
    one = jobs.run(1, jobs.job(lines, mixed={"max_batch": 8}, **keys)).ok()
    job = jobs.job(lines, **keys,
                   prefill={"ep": 32, "redundant_experts": 32, "chunk_tokens": 512},
                   decode={"ep": 144, "redundant_experts": 32, "max_batch": 8})
    run = jobs.run(176, job, timeout=400).ok()
    same(run.fixed(), one.fixed())
    assert run.outputs()[-len(golden):] == golden
    ranks = run.values("ranks")
    compare(plan(jobs, job)[1], ranks, same_pages=False)
    assert len(ranks) == 176 and (ranks["role"] == b"decode").sum() == 144
    for unit, size in ((b"prefill0", 32), (b"decode0", 144)):
        table = run.values("experts/placement")
        table = table[table["unit"] == unit]
        assert np.ptp(table["rank"]) == size - 1 and set(table["expert"]) == set(range(256))
