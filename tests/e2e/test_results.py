"""The results file as outside programs read it: datasets, columns, units, provenance, sums.

Alone: python3 -m pytest tests/e2e/test_results.py -k account
"""
import json
import re

import numpy as np
import pytest

from conftest import golden, line, moebatch, prompts_of

COLUMNS = {
    "requests": ["custom_id", "status", "error", "finish_reason", "prompt_tokens",
                 "cached_tokens", "cached_tokens_memory", "cached_tokens_disk",
                 "output_tokens", "output_offset", "prefill_rank",
                 "decode_rank", "t_arrival", "t_prefill_start", "t_first_token", "t_finish"],
    "attempts": ["attempt", "start_utc", "end_utc", "ranks", "hosts", "isa", "gpu_s"],
    "ranks": ["rank", "host", "node", "unit", "role", "local", "compute_s", "exposed_comm_s",
              "idle_s", "prefill_tokens", "decode_tokens", "kv_pages_peak", "expert_rows"],
    "links": ["attempt", "unit", "src", "dst", "waits", "last", "late_s", "late_error_s",
              "transfer_s", "latencies", "latency_mean_ms", "latency_max_ms"],
    "steps/prefill": ["unit", "step", "t_start", "duration", "tokens", "requests"],
    "steps/decode": ["unit", "step", "t_start", "duration", "tokens", "requests"],
    "experts/load": ["layer", "expert", "rows"],
    "experts/placement": ["unit", "layer", "slot", "expert", "rank"],
    "throughput": ["prefill_tokens_per_s", "decode_tokens_per_s", "decode_tokens_per_s_node",
                   "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s"],
    "account": ["gpu_seconds", "cost_usd", "revenue_usd", "profit_usd", "margin_on_cost",
                "gross_margin"],
}
ATTRIBUTES = ["schema_version", "program_version", "git_revision", "argv", "job_yaml", "hosts",
              "isa", "transport", "libraries", "start_utc", "end_utc", "status"]
EXPERTS, TOP_K, MOE_LAYERS = 16, 6, 2  # tests/golden/v3


def lines():
    found = [line(f"r{i}", p, max_tokens=5)
             for i, p in enumerate(prompts_of(10, [3, 30, 80, 12]))]
    found.append(line("\u00fcber-\u00e9", [9, 8, 7], max_tokens=3, logprobs=1))
    found.append(line("score", [9, 8, 7, 6], max_tokens=0, prompt_logprobs=1))
    found.append(line("failing", []))
    return found


@pytest.fixture(scope="module")
def run(shared_jobs):
    job = shared_jobs.job(lines(), prefill={"ep": 2}, decode={"ep": 2},
                          sampling={"ignore_eos": True})
    return shared_jobs.run(4, job).ok()


def test_tables(run):
    with run.open() as f:
        for name, columns in COLUMNS.items():
            table = f[name]
            assert table.ndim == 1 and table.dtype.names, name
            assert table.chunks and table.compression == "gzip" and table.shuffle, name
            assert set(columns) <= set(table.dtype.names), name
            units = json.loads(table.attrs["units"])
            assert set(units) == set(table.dtype.names), name
            assert all(units.values()), name
            rows = table[:]  # what pandas.DataFrame takes
            assert len(rows) > 0, name
            for column in table.dtype.names:
                assert rows[column].dtype.kind in "Sif", (name, column)
        for name, array in f["outputs"].items():
            assert array.ndim == 1 and array.attrs["units"], name


def test_types(run):
    with run.open() as f:
        assert f["outputs/tokens"].dtype == np.int32
        assert f["outputs/offsets"].dtype == np.int64
        assert f["outputs/logprobs"].dtype == np.float32
        assert f["outputs/prompt_logprobs"].dtype == np.float32
        assert f["requests"].dtype["output_offset"] == np.int64
        longest = max(len(x["custom_id"].encode()) for x in lines())
        assert f["requests"].dtype["custom_id"] == np.dtype(f"S{longest}")


def test_provenance(run):
    with run.open() as f:
        for name in ATTRIBUTES:
            assert name in f.attrs, name
            assert str(f.attrs[name]), name
        assert f.attrs["schema_version"] == 1
        assert f.attrs["status"] == "complete"
        assert "run" in f.attrs["argv"]
        assert "model:" in f.attrs["job_yaml"]
        for name in ("start_utc", "end_utc"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", f.attrs[name])
        assert f.attrs["start_utc"] <= f.attrs["end_utc"]


def test_job_of_the_file_runs_again(run, jobs):
    """The resolved job kept in the file is a job file with the same answers."""
    with run.open() as f:
        text = f.attrs["job_yaml"]
    results = jobs.folder / "again.h5"
    again = jobs.run(4, text, "--set", f"results={results}", "--set", "responses=null").ok()
    again.h5 = results
    assert again.fixed() == run.fixed()


def test_requests(run):
    rows, expected = run.requests(), lines()
    assert [x.decode() for x in rows["custom_id"]] == [x["custom_id"] for x in expected]
    assert rows["prompt_tokens"][:-1].tolist() == [len(x["body"]["prompt"]) for x in expected[:-1]]
    good = rows[:-1]
    assert set(good["status"]) == {b"ok"} and set(good["finish_reason"]) == {b"length"}
    assert rows["output_tokens"].tolist() == [5] * 10 + [3, 0, 0]
    assert (rows["output_offset"] == np.cumsum(rows["output_tokens"])
            - rows["output_tokens"]).all()
    answered = rows[:11]
    assert (answered["t_arrival"] <= answered["t_prefill_start"]).all()
    assert (answered["t_prefill_start"] <= answered["t_first_token"]).all()
    assert (answered["t_first_token"] <= answered["t_finish"]).all()
    assert set(answered["prefill_rank"]) <= {0, 1} and set(answered["decode_rank"]) <= {2, 3}
    assert (answered["cached_tokens"] < answered["prompt_tokens"]).all()


def test_outputs(run):
    offsets, logprobs = run.values("outputs/offsets"), run.values("outputs/logprobs")
    rows = run.requests()
    assert offsets.tolist() == [0, *np.cumsum(rows["output_tokens"])]
    assert len(logprobs) == len(run.values("outputs/tokens")) == offsets[-1]
    assert np.isnan(logprobs[:50]).all()          # not asked for
    assert (logprobs[50:53] <= 0).all()           # asked for
    prompt, at = run.values("outputs/prompt_logprobs"), run.values("outputs/prompt_offsets")
    assert np.diff(at).tolist() == [0] * 11 + [4, 0]
    assert np.isnan(prompt[0]) and (prompt[1:] <= 0).all()


def test_no_logprobs_unless_asked(jobs):
    run = jobs.run(1, jobs.job([line("a", [5, 6], max_tokens=2)])).ok()
    with run.open() as f:
        assert sorted(f["outputs"]) == ["offsets", "tokens"]


def test_responses(run):
    answers = {x["custom_id"]: x for x in map(json.loads, run.responses.read_text().splitlines())}
    rows, outputs = run.requests(), run.outputs()
    assert len(answers) == len(rows)
    for row, tokens in zip(rows, outputs):
        answer = answers[row["custom_id"].decode()]
        if row["status"] == b"failed":
            assert answer["response"] is None
            assert answer["error"]["message"] == row["error"].decode()
            continue
        body = answer["response"]["body"]
        assert answer["error"] is None and answer["response"]["status_code"] == 200
        assert body["choices"][0]["token_ids"] == tokens
        assert body["choices"][0]["finish_reason"] == row["finish_reason"].decode()
        assert body["usage"]["prompt_tokens"] == row["prompt_tokens"]
        assert body["usage"]["completion_tokens"] == row["output_tokens"]


def test_account(run):
    with run.open() as f:
        account, attempts = f["account"][0], f["attempts"][:]
    rows = run.requests()
    ok = rows[rows["status"] == b"ok"]
    assert account["gpu_seconds"] == pytest.approx(attempts["gpu_s"].sum())
    assert attempts["gpu_s"][0] == pytest.approx(attempts["ranks"][0] * attempts["wall_s"][0])
    assert account["hit_tokens"] == ok["cached_tokens"].sum()
    assert account["miss_tokens"] == (ok["prompt_tokens"] - ok["cached_tokens"]).sum()
    assert account["output_tokens"] == ok["output_tokens"].sum()
    revenue = (account["hit_tokens"] * 0.14 + account["miss_tokens"] * 0.55
               + account["output_tokens"] * 2.19) / 1e6
    assert account["revenue_usd"] == pytest.approx(revenue)
    assert account["cost_usd"] == pytest.approx(account["gpu_seconds"] / 3600 * 2.0)
    assert account["profit_usd"] == pytest.approx(revenue - account["cost_usd"])
    assert account["margin_on_cost"] == pytest.approx(account["profit_usd"] / account["cost_usd"])


def test_work_adds_up(run):
    """Tokens of the steps, of the ranks and of the requests are the same tokens."""
    rows = run.requests()
    ok = rows[rows["status"] == b"ok"]
    computed = (ok["prompt_tokens"] - ok["cached_tokens"]).sum()
    decoded = np.maximum(ok["output_tokens"] - 1, 0).sum()  # prefill makes the first
    with run.open() as f:
        ranks, load = f["ranks"][:], f["experts/load"][:]
        prefill, decode = f["steps/prefill"][:], f["steps/decode"][:]
        throughput, attempt = f["throughput"][0], f["attempts"][0]
    assert attempt["prefill_tokens"] == computed and attempt["decode_tokens"] == decoded
    assert attempt["prefill_tokens_lost"] == attempt["decode_tokens_lost"] == 0
    assert prefill["tokens"].sum() == computed == ranks["prefill_tokens"].sum()
    assert decode["tokens"].sum() == decoded == ranks["decode_tokens"].sum()
    assert throughput["prefill_tokens"] == computed and throughput["decode_tokens"] == decoded
    assert load["rows"].sum() == (computed + decoded) * TOP_K * MOE_LAYERS
    assert len(load) == EXPERTS * MOE_LAYERS
    assert ranks["expert_rows"].sum() == load["rows"].sum()


def test_ranks_and_placement(run):
    with run.open() as f:
        ranks, placement = f["ranks"][:], f["experts/placement"][:]
    assert ranks["rank"].tolist() == [0, 1, 2, 3]
    assert ranks["role"].tolist() == [b"prefill"] * 2 + [b"decode"] * 2
    assert ranks["unit"].tolist() == [b"prefill0"] * 2 + [b"decode0"] * 2
    assert ranks["local"].tolist() == [0, 1, 0, 1]
    assert (ranks["kv_pages_peak"] <= ranks["kv_pages"]).all()
    for unit in (b"prefill0", b"decode0"):
        for layer in set(placement["layer"]):
            here = placement[(placement["unit"] == unit) & (placement["layer"] == layer)]
            assert set(here["expert"]) == set(range(EXPERTS))
            pairs = list(zip(here["rank"], here["expert"]))
            assert len(pairs) == len(set(pairs))  # no expert twice on a rank


def test_table_on_stdout(run):
    for text in ("prefill", "decode", "tokens/s/node", "TTFT", "TPOT", "cost", "profit", "margin"):
        assert text in run.out
    assert run.out.strip().splitlines()[-1].startswith("VALID: ")


def test_load_of_an_earlier_run(run, jobs):
    """experts.load takes a results file: other placement, same answers."""
    job = jobs.job(lines(), prefill={"ep": 2}, decode={"ep": 2}, sampling={"ignore_eos": True},
                   experts={"load": str(run.h5)})
    assert jobs.run(4, job).ok().fixed() == run.fixed()


def test_stop_token_is_kept(jobs):
    values = golden("v3")["prompts"][0]
    stop = values["tokens"][3]
    job = jobs.job([line("a", values["ids"], max_tokens=20, temperature=0,
                         stop_token_ids=[stop])], numerics="fp32")
    run = jobs.run(1, job).ok()
    expected = values["tokens"][:values["tokens"].index(stop) + 1]
    assert run.outputs() == [expected]
    assert run.requests()["finish_reason"][0] == b"stop"


def test_version_names_the_libraries():
    code, out, _ = moebatch("--version")
    assert code == 0 and "hdf5" in out
