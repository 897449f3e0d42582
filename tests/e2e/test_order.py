"""Requests that begin alike: computed once, sent together, with the same answers; what that saves.

Alone: python3 -m pytest -s tests/e2e/test_order.py -k shuffled
"""
import importlib.util
import json

import numpy as np
import pytest

from conftest import BINARY, ROOT, line

PAGE = 64


def groups_of(groups, members, shared, seed=3):
    """Requests of several groups in turn; each group shares `shared` tokens. Their prompts, and
    how many of their tokens an unlimited cache must compute."""
    rng = np.random.default_rng(seed)
    heads = [rng.integers(8, 150, shared).tolist() for _ in range(groups)]
    prompts = [heads[i % groups] + rng.integers(8, 150, 5 + i % 9).tolist()
               for i in range(groups * members)]
    cached = shared // PAGE * PAGE * groups * (members - 1)
    return prompts, sum(map(len, prompts)) - cached


def lines_of(prompts, **body):
    return [line(f"r{i}", p, **{"max_tokens": 3, **body}) for i, p in enumerate(prompts)]


def computed(run):
    """Prompt tokens computed; with those found in the cache they are all prompt tokens."""
    tokens, rows = int(run.values("throughput")["prefill_tokens"][0]), run.requests()
    assert tokens + rows["cached_tokens"].sum() == rows["prompt_tokens"].sum()
    return tokens


@pytest.mark.parametrize("ranks, keys", [
    (1, {}),
    (1, {"mixed": {"ep": 1, "chunk_tokens": 100}}),
    (1, {"mixed": {"ep": 1, "microbatches": 1, "overlap": False}}),
    (2, {"prefill": {"ep": 1}, "decode": {"ep": 1}}),
], ids=["one-step", "chunks", "one-microbatch", "split"])
def test_shared_in_one_step(jobs, ranks, keys):
    """All arrive together: the first computes the prefix, the others stand on it in the same step,
    wherever the two micro-batches are cut."""
    prompts, least = groups_of(1, 9, shared=200)
    lines = lines_of(prompts, logprobs=1)
    expected = jobs.run(1, jobs.job(lines, kv={"prefix_cache": "off"})).ok()
    assert computed(expected) == sum(map(len, prompts))
    run = jobs.run(ranks, jobs.job(lines, **keys)).ok()
    assert computed(run) == least
    assert run.fixed() == expected.fixed()


def test_shuffled(shared_jobs):
    """Twelve groups in turn and a cache for fewer: by prefix each prefix is computed once, by file
    again and again; the summary and the file say what was saved; the answers are the same bytes."""
    prompts, least = groups_of(12, 8, shared=150)
    lines = lines_of(prompts, logprobs=1)
    keys = {"mixed": {"ep": 1, "max_batch": 4, "chunk_tokens": 256}, "kv": {"pages_per_rank": 16}}
    by_file, by_prefix = [shared_jobs.run(1, shared_jobs.job(lines, order=order, **keys)).ok()
                          for order in ("file", "prefix")]
    print(f"# {sum(map(len, prompts))} prompt tokens: {computed(by_file)} computed in file order, "
          f"{computed(by_prefix)} by prefix, {least} at least")
    assert computed(by_prefix) == least < computed(by_file)
    assert by_prefix.fixed() == by_file.fixed()
    with by_file.open() as f:
        assert f.attrs["order"] == "file"
    with by_prefix.open() as f:
        assert f.attrs["order"] == "prefix"
        saved = (int(f.attrs["modelled_hit_tokens_as_sent"])
                 - int(f.attrs["modelled_hit_tokens_in_file_order"]))
    assert saved == computed(by_file) - computed(by_prefix)
    assert f"{saved} prompt tokens less to compute" in by_prefix.out
    assert "order by prefix" not in by_file.out


@pytest.mark.parametrize("ranks, keys", [
    (2, {"mixed": {"ep": 2, "max_batch": 4, "chunk_tokens": 256}}),
    (4, {"prefill": {"units": 2, "ep": 1, "chunk_tokens": 256}, "decode": {"ep": 2}}),
    (4, {"prefill": {"ep": 2, "chunk_tokens": 256}, "decode": {"ep": 2, "max_batch": 4}}),
], ids=["mixed", "two-units", "split"])
def test_ranks_share_the_groups(jobs, ranks, keys):
    """Each rank works on groups of its own, so a prefix is computed about once, and the work stays
    spread over the ranks of a unit, which step together (of two units the faster one does more)."""
    prompts, least = groups_of(12, 8, shared=150)
    job = jobs.job(lines_of(prompts), order="prefix", kv={"pages_per_rank": 24}, **keys)
    run = jobs.run(ranks, job).ok()
    tokens = run.values("ranks")["prefill_tokens"]
    tokens = tokens[tokens > 0]
    total = sum(map(len, prompts))
    print(f"# {computed(run)} of {total} computed, {least} at least; by rank {tokens.tolist()}")
    assert least <= computed(run) < least + 0.3 * (total - least)
    assert "units" in keys.get("prefill", {}) or tokens.max() < 0.75 * tokens.sum()


def test_one_group_is_shared_out(jobs):
    """A group that all ranks could work on does not stay on the one that has its prefix."""
    prompts, _ = groups_of(1, 80, shared=70)
    prompts = [p + list(range(8, 60)) for p in prompts]
    job = jobs.job(lines_of(prompts), prefill={"ep": 2, "chunk_tokens": 128}, decode={"ep": 2})
    run = jobs.run(4, job).ok()
    tokens = run.values("ranks")["prefill_tokens"][:2]
    print(f"# by rank {tokens.tolist()}")
    assert tokens.min() > 0.3 * tokens.sum()


def test_narrow_window_and_bad_lines(jobs):
    """A window of one is file order; lines that cannot run pass through it like others."""
    prompts, _ = groups_of(3, 4, shared=70)
    lines = lines_of(prompts) + ["not json", line("long", [9] * 100000), line("odd", [9, 10**6])]
    lines = lines[-3:] + lines[:-3]
    expected = jobs.run(1, jobs.job(lines, order="file")).ok()
    for window in (1, 2, 5):
        run = jobs.run(1, jobs.job(lines, order="prefix", order_window=window)).ok()
        assert run.fixed() == expected.fixed()
    assert (run.requests()["status"] == b"failed").sum() == 3


# ---- conversations ----

@pytest.fixture(scope="module")
def multi_turn():
    path = ROOT / "scripts" / "multi_turn.py"
    spec = importlib.util.spec_from_file_location("multi_turn", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def turns(multi_turn):
    """{conversation: [body of each turn]}"""
    found = {}
    for text in multi_turn.TOKENS.read_text(encoding="utf-8").splitlines():
        request = json.loads(text)
        found.setdefault(request["custom_id"][:-2], []).append(request["body"])
    return found


def test_turns_go_on(multi_turn):
    """A turn begins with the turn before and an answer of the length that was asked for; all
    conversations begin with the same pages."""
    chats = turns(multi_turn)
    assert len(chats) == 16
    opening = chats["chat-00"][0]["prompt"][:2 * PAGE]
    for bodies in chats.values():
        assert len(bodies) == 6 and bodies[0]["prompt"][:len(opening)] == opening
        for before, after in zip(bodies, bodies[1:]):
            n = len(before["prompt"])
            assert after["prompt"][:n] == before["prompt"]
            assert len(after["prompt"]) > n + before["max_tokens"]


def test_three_accounts(multi_turn, tmp_path):
    """The saving on some conversations: less computed by file than without a cache, least by
    prefix; a second job finds on disk what the first one left."""
    small = tmp_path / "turns.jsonl"
    with small.open("w", encoding="utf-8") as out:
        for text in multi_turn.TOKENS.read_text(encoding="utf-8").splitlines():
            request = json.loads(text)
            if request["custom_id"] < "chat-06" and request["custom_id"][-1] in "012":
                request["body"]["max_tokens"] = 3
                out.write(json.dumps(request) + "\n")
    rows, same = multi_turn.run_all(tmp_path, BINARY.parent, 1, 12, small)
    assert same
    by_job = {row["job"]: row for row in rows}
    for row in rows:
        print(f"# {row['job']}: {row['computed']} prompt tokens computed, {row['found']} found")
        assert row["computed"] + row["found"] == rows[0]["computed"]
    off, by_file, by_prefix = rows[:3]
    assert off["found"] == 0
    assert by_prefix["computed"] < by_file["computed"] < off["computed"]
    assert off["revenue $"] > by_file["revenue $"] > by_prefix["revenue $"]  # the hit price
    if multi_turn.has_disk(BINARY.parent):
        first, second = by_job["disk, first job"], by_job["disk, second job"]
        assert second["computed"] < first["computed"] <= by_file["computed"]
