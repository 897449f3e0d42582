"""Bad input: exit codes and messages of the job, reasons of single requests.

Alone: python3 -m pytest tests/e2e/test_inputs.py -k strict
"""
import json

import h5py
import numpy as np
import pytest

from conftest import line, prompts_of

GOOD = line("good", [5, 6, 7], max_tokens=2)


# ---- the job file and the command line ----

@pytest.mark.parametrize("text, message", [
    ("model: x\ntokns: y\nresults: z.h5\n", ["tokns", ":2:", "did you mean tokens"]),
    ("model: x\ntokens: y\n", ["results is missing"]),
    ("model: x\ntokens: y\nresults: z.h5\nmixed: {ep: many}\n", ["mixed.ep", "many", ":4:"]),
    ("model: x\ntokens: y\nresults: z.h5\nmixed: {ep: 0}\n", ["mixed.ep", "0"]),
    ("model: x\ntokens: y\nresults: z.h5\nnumerics: fp9\n", ["numerics", "fp9"]),
    ("model: [x\n", [":"]),
    ("model: x\ntokens: y\nresults: z.h5\nprefill: {ep: 1}\n", ["prefill", "decode"]),
])
def test_job_file(jobs, text, message):
    jobs.run(1, text).failed(3, *message)


def test_missing_job_file(jobs):
    del jobs
    from conftest import moebatch
    code, _, err = moebatch("run", "no/such.yaml", ranks=1)
    assert code == 3 and "no/such.yaml" in err


@pytest.mark.parametrize("args, message", [
    (["--set", "mixed.epp=1"], "did you mean mixed.ep"),
    (["--set", "mixed"], "key=value"),
    (["--nonsense"], "unknown option --nonsense"),
])
def test_command_line(jobs, args, message):
    jobs.run(1, jobs.job([GOOD]), *args).failed(2, message)


@pytest.mark.parametrize("keys, ranks, code, message", [
    ({"mixed": {"ep": 2}}, 1, 4, ["mpirun started 1", "-np 2"]),
    ({"prefill": {"ep": 1}, "decode": {"ep": 1}}, 3, 4, ["mpirun started 3"]),
    ({"mixed": {"ep": 3, "redundant_experts": 0}}, 3, 3, ["mixed.ep 3", "legal sizes"]),
    ({"model": "no/such/model"}, 1, 3, ["no/such/model"]),
    ({"tokens": "no/such.jsonl"}, 1, 3, ["no/such.jsonl"]),
    ({"results": "no/such/folder/r.h5"}, 1, 3, ["no/such/folder"]),
    ({"prices": "no/prices.yaml"}, 1, 3, ["no/prices.yaml"]),
    ({"experts": {"load": "no/load.h5"}}, 1, 3, ["no/load.h5"]),
    ({"kv": {"pages_per_rank": 1000000000}}, 1, 4, ["memory"]),
])
def test_refused_before_the_start(jobs, keys, ranks, code, message):
    job = {**jobs.job([GOOD]), **keys}
    run = jobs.run(ranks, job, timeout=60).failed(code, *message)
    assert not run.h5.exists()


def test_one_message_from_many_ranks(jobs):
    run = jobs.run(4, jobs.job([GOOD], model="no/such/model"), timeout=60)
    assert run.code == 3 and run.err.count("no/such/model") == 1


def test_existing_results(jobs):
    job = jobs.job([GOOD])
    before = jobs.run(1, job).ok().h5.read_bytes()
    refused = jobs.run(1, job).failed(3, "pass --force", job["results"])
    assert before == refused.h5.read_bytes()
    jobs.run(1, job, "--force").ok()


# ---- single requests ----

BAD_LINES = {
    "not-json": ('{"custom_id": "x", ', "JSON"),
    "not-an-object": ("[1, 2]", "object"),
    "empty-prompt": (line("x", []), "empty"),
    "no-prompt": ({"custom_id": "x", "body": {}}, "prompt"),
    "text-prompt": (line("x", "In the beginning"), "scripts/tokenize.py"),
    "token-too-large": (line("x", [1, 160]), "160"),
    "token-negative": (line("x", [1, -1]), "-1"),
    "token-not-integer": (line("x", [1, 1.5]), "prompt"),
    "two-prompts": (line("x", [[1], [2]]), "prompt"),
    "too-long": (line("x", [5] * 513), "512"),
    "max-tokens": (line("x", [5], max_tokens=-1), "max_tokens"),
    "temperature": (line("x", [5], temperature=-2), "temperature"),
    "top-p": (line("x", [5], top_p=1.5), "top_p"),
    "n": (line("x", [5], n=2), "n"),
    "echo": (line("x", [5], echo=True), "echo"),
    "stop": (line("x", [5], stop=["a"]), "stop"),
    "chat": ({"custom_id": "x", "url": "/v1/chat/completions",
              "body": {"messages": [{"role": "user", "content": "a"}]}}, "scripts/tokenize.py"),
    "long-id": (line("i" * 300, [5]), "256"),
    "no-id": ({"body": {"prompt": [5]}}, "custom_id"),
}


@pytest.fixture(scope="module")
def mixed_run(shared_jobs):
    lines = [GOOD, *(bad for bad, _ in BAD_LINES.values()), line("good", [8]),
             line("last", [5, 6, 7], max_tokens=2)]
    return shared_jobs.run(2, shared_jobs.job(lines)).ok()


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_line_fails_alone(mixed_run, name):
    row = mixed_run.requests()[1 + list(BAD_LINES).index(name)]
    assert row["status"] == b"failed" and row["finish_reason"] == b"error"
    assert BAD_LINES[name][1] in row["error"].decode(), row["error"]
    assert row["output_tokens"] == 0


def test_the_others_are_answered(mixed_run):
    rows, outputs = mixed_run.requests(), mixed_run.outputs()
    assert rows["status"][0] == rows["status"][-1] == b"ok"
    assert outputs[0] == outputs[-1] and len(outputs[0]) == 2
    assert "VALID" in mixed_run.out


def test_duplicate_custom_id(mixed_run):
    row = mixed_run.requests()[-2]
    assert row["custom_id"] == b"good" and row["status"] == b"failed"
    assert "custom_id" in row["error"].decode()


def test_failed_responses(mixed_run):
    answers = [json.loads(x) for x in mixed_run.responses.read_text().splitlines()]
    assert len(answers) == len(BAD_LINES) + 3
    for answer in answers:
        assert (answer["response"] is None) != (answer["error"] is None)
        if answer["error"]:
            assert answer["error"]["message"]


def test_strict(jobs):
    run = jobs.run(2, jobs.job([GOOD, line("bad", [])]), "--strict", timeout=60)
    assert run.code == 3 and "empty" in run.err and "bad" in run.err


def test_empty_token_file(jobs):
    run = jobs.run(1, jobs.job([]), timeout=60)
    assert run.code in (0, 3)
    if run.code == 0:
        assert len(run.requests()) == 0


# ---- the same requests in the other file format ----

def test_hdf5_token_file(jobs):
    prompts = prompts_of(12, [3, 30, 70], vocab=120)
    lines = [line(f"h{i}", p, max_tokens=3 + i, temperature=0.5 * (i % 2), seed=100 + i,
                  ignore_eos=True) for i, p in enumerate(prompts)]
    from_lines = jobs.run(1, jobs.job(lines)).ok()
    path = jobs.folder / "tokens.h5"
    with h5py.File(path, "w") as f:
        f["tokens"] = np.concatenate([np.asarray(p, "<i4") for p in prompts])
        f["offsets"] = np.cumsum([0] + [len(p) for p in prompts], dtype="<i8")
        f["custom_id"] = np.array([f"h{i}" for i in range(12)], dtype="S")
        f["max_tokens"] = np.arange(3, 15, dtype="<i4")
        f["temperature"] = np.array([0.5 * (i % 2) for i in range(12)], "<f4")
        f["seed"] = np.arange(100, 112, dtype="<i8")
        f["ignore_eos"] = np.ones(12, "i1")
    from_hdf5 = jobs.run(1, jobs.job(str(path))).ok()
    assert from_hdf5.fixed() == from_lines.fixed()
