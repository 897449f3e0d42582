"""One answer, whatever the layout: /outputs and the fixed columns of /requests are byte-identical
over ranks, EP sizes, batch and chunk sizes, micro-batches, redundant experts, split or mixed
units, prefix cache on or off.

Alone: python3 -m pytest tests/e2e/test_bitwise.py -k ep8
"""
import pytest

from conftest import GOLDEN, line, prompts_of

# name: (ranks, keys of the job)
LAYOUTS = {
    "ep2": (2, {"mixed": {"ep": 2}}),
    "ep4": (4, {"mixed": {"ep": 4}}),
    "ep8": (8, {"mixed": {"ep": 8}}),
    "two-units": (4, {"mixed": {"units": 2, "ep": 2}}),
    "split": (3, {"prefill": {"ep": 1}, "decode": {"ep": 2}}),
    "split-units": (8, {"prefill": {"units": 2, "ep": 2}, "decode": {"units": 1, "ep": 4}}),
    "one-microbatch": (2, {"mixed": {"ep": 2, "microbatches": 1, "overlap": False}}),
    "no-overlap": (2, {"mixed": {"ep": 2, "overlap": False}}),
    "batch1": (2, {"mixed": {"ep": 2, "max_batch": 1}}),
    "chunk48": (2, {"mixed": {"ep": 2, "chunk_tokens": 48}}),
    "no-redundant": (4, {"mixed": {"ep": 4, "redundant_experts": 0}}),
    "redundant": (4, {"mixed": {"ep": 4, "redundant_experts": 8}}),
    "no-cache": (2, {"mixed": {"ep": 2}, "kv": {"prefix_cache": "off"}}),
    "few-pages": (2, {"mixed": {"ep": 2}, "kv": {"pages_per_rank": 8}}),
    "rounds": (4, {"mixed": {"ep": 4}, "ep": {"recv_rows_factor": 0.3}}),
    "virtual-nodes": (8, {"mixed": {"ep": 8}, "ranks_per_node": 2}),
    "two-nodes": (8, {"mixed": {"ep": 8}, "ranks_per_node": 4}),
    "two-nodes-rounds": (8, {"mixed": {"ep": 8}, "ranks_per_node": 4,
                             "ep": {"recv_rows_factor": 0.9}}),
}


def token_lines():
    lines = []
    for i, prompt in enumerate(prompts_of(16, [3, 40, 90, 20, 64, 150], vocab=120)):
        body = {"max_tokens": 4 + i % 9, "logprobs": 1}
        if i % 3 == 1:
            body |= {"temperature": 0.8, "top_p": 0.9, "seed": 5 + i}
        if i % 5 == 2:
            body |= {"prompt_logprobs": 1}
        lines.append(line(f"r{i}", prompt, **body))
    lines.append(line("bad", [1, 2, 100000]))
    return lines


def keys(model):
    return {"model": str(GOLDEN / model), "isa": "auto"}


@pytest.fixture(scope="module", params=["v3", "fp8"])
def reference(request, shared_jobs):
    """The answers of one rank, for a BF16 and an FP8 checkpoint."""
    job = shared_jobs.job(token_lines(), **keys(request.param))
    run = shared_jobs.run(1, job).ok()
    rows = run.requests()
    assert (rows["status"] == b"ok").sum() == 16 and rows["status"][-1] == b"failed"
    return request.param, run.fixed()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bytes(jobs, reference, layout):
    model, expected = reference
    ranks, layout_keys = LAYOUTS[layout]
    run = jobs.run(ranks, jobs.job(token_lines(), **keys(model), **layout_keys)).ok()
    found = run.fixed()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == value, f"{layout}: {name} differs"
