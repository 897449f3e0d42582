"""The disk tier of the KV cache: whatever is in the folder, cold, warm, partly gone, damaged, written
by a killed job or by two at once, tokens and logprobs are those of a job without it.

Alone: python3 -m pytest tests/e2e/test_kv_disk.py
"""
import os
import random
import shutil
import signal

import pytest

from conftest import line, write_tokens
from test_faults import Background

PAGE = 8
BLOCK = 4096


def some_lines(count=60, seed=1, longest=50):
    """Prompts of which most begin like others, and some with logprobs of the prompt."""
    dice = random.Random(seed)
    shared = [dice.randrange(8, 120) for _ in range(64)]
    own = [[dice.randrange(8, 120) for _ in range(dice.randrange(1, longest))]
           for _ in range(count)]
    return [line(f"r{i}", shared[:32 * (i % 3)] + p, max_tokens=6, ignore_eos=True,
                 **({"prompt_logprobs": 1} if i % 20 == 7 else {})) for i, p in enumerate(own)]


@pytest.fixture(scope="module")
def tokens(shared_jobs):
    return write_tokens(shared_jobs.folder / "kv-disk.jsonl", some_lines())


def job_with(jobs, tokens, folder, layout=None, **disk):
    kv = {"page_tokens": PAGE}
    if folder:
        kv["disk"] = {"dir": str(folder), "bytes": 1e8, **disk}
    return jobs.job(tokens, kv=kv, sampling={"logprobs": True}, **(layout or {"mixed": {"ep": 1}}))


@pytest.fixture(scope="module")
def without(shared_jobs, tokens):
    return shared_jobs.run(1, job_with(shared_jobs, tokens, None)).ok()


@pytest.fixture(scope="module")
def filled(shared_jobs, tokens):
    """A folder as one job leaves it, and its run; tests take copies."""
    folder = shared_jobs.folder / "filled"
    return folder, shared_jobs.run(1, job_with(shared_jobs, tokens, folder)).ok()


def figures(run):
    """Sums over the ranks of the disk tier's columns."""
    ranks = run.values("ranks")
    return {k[5:]: int(ranks[k].sum()) for k in ranks.dtype.names if k.startswith("disk_")}


def segments(folder, suffix=".seg"):
    return sorted(p for p in folder.iterdir() if p.name.endswith(suffix))


def test_cold_then_warm(jobs, tokens, without, filled, tmp_path):
    cold = filled[1]
    shutil.copytree(filled[0], tmp_path / "kv")
    warm = jobs.run(1, job_with(jobs, tokens, tmp_path / "kv")).ok()
    assert cold.fixed() == warm.fixed() == without.fixed()
    assert figures(cold)["hit_pages"] == 0 < figures(cold)["written_pages"]
    hit = figures(warm)
    assert hit["hit_pages"] > 0 == hit["written_pages"] == hit["bad_pages"]
    assert hit["read_bytes"] >= hit["hit_pages"] * BLOCK
    assert f"{figures(cold)['written_pages']} pages of this model found" in warm.err
    assert not segments(tmp_path / "kv", ".open") and not segments(tmp_path / "kv", ".lease")
    rows = warm.requests()
    assert rows["cached_tokens_disk"].sum() > 0
    assert (rows["cached_tokens"] ==
            rows["cached_tokens_memory"] + rows["cached_tokens_disk"]).all()
    # Every prompt's full pages but the one with its last token came from somewhere.
    scored = [i % 20 == 7 for i in range(len(rows))]
    expected = [0 if s else (n - 1) // PAGE * PAGE for n, s in zip(rows["prompt_tokens"], scored)]
    assert rows["cached_tokens"].tolist() == expected
    with warm.open() as f:
        assert f["account"][0]["hit_tokens"] == rows["cached_tokens"].sum()


@pytest.mark.parametrize("ranks, layout", [
    (4, {"prefill": {"ep": 2}, "decode": {"ep": 2}}),
    (2, {"mixed": {"ep": 2}}),
], ids=["split", "mixed"])
def test_other_layouts_share_it(jobs, tokens, without, tmp_path, ranks, layout):
    small = {k: {**v, "chunk_tokens": 48} for k, v in layout.items() if k != "decode"}
    cold = jobs.run(ranks, job_with(jobs, tokens, tmp_path / "kv", {**layout, **small})).ok()
    assert cold.fixed() == without.fixed() and segments(tmp_path / "kv")
    warm = jobs.run(1, job_with(jobs, tokens, tmp_path / "kv")).ok()
    assert warm.fixed() == without.fixed()
    assert figures(warm)["hit_pages"] > 0
    again = jobs.run(ranks, job_with(jobs, tokens, tmp_path / "kv", layout)).ok()
    assert again.fixed() == without.fixed() and figures(again)["hit_pages"] > 0


def test_damaged_pages_are_misses(jobs, tokens, without, filled, tmp_path):
    folder, cold = shutil.copytree(filled[0], tmp_path / "kv"), filled[1]
    (segment,) = segments(folder)
    data = bytearray(segment.read_bytes())
    pages = figures(cold)["written_pages"]
    damaged = range(0, pages, 3)
    for slot in damaged:  # one bit of each, somewhere in head, tokens or page
        data[BLOCK + slot * BLOCK + 17 * (slot + 1) % 900] ^= 1 << slot % 8
    segment.write_bytes(data)
    warm = jobs.run(1, job_with(jobs, tokens, folder)).ok()
    assert warm.fixed() == without.fixed()
    found = figures(warm)
    assert found["bad_pages"] > 0 and found["hit_pages"] > 0
    assert found["miss_pages"] >= found["bad_pages"]
    assert found["written_pages"] > 0  # they are computed and written again
    healed = jobs.run(1, job_with(jobs, tokens, folder)).ok()
    assert healed.fixed() == without.fixed()
    assert figures(healed)["hit_pages"] > found["hit_pages"]


@pytest.mark.parametrize("keep", [100, BLOCK + 5, 20 * BLOCK + 9])
def test_truncated_segment(jobs, tokens, without, filled, tmp_path, keep):
    folder = shutil.copytree(filled[0], tmp_path / "kv")
    (segment,) = segments(folder)
    os.truncate(segment, keep)
    warm = jobs.run(1, job_with(jobs, tokens, folder)).ok()
    assert warm.fixed() == without.fixed()
    assert figures(warm)["hit_pages"] == 0 or keep > 10 * BLOCK


def test_bound(jobs, tokens, without, tmp_path):
    folder = tmp_path / "kv"
    for seed in (None, 2, 3, None):
        lines = tokens if seed is None else some_lines(seed=seed)
        run = jobs.run(1, job_with(jobs, lines, folder, bytes=1e6)).ok()
        assert sum(p.stat().st_size for p in folder.iterdir()) <= 1e6
        if seed is None:
            assert run.fixed() == without.fixed()


def test_write_modes(jobs, tokens, without, tmp_path):
    none = jobs.run(1, job_with(jobs, tokens, tmp_path / "none", write="none")).ok()
    assert none.fixed() == without.fixed() and not segments(tmp_path / "none")
    # Only what came again: prompts one after another, so that later ones find the shared pages.
    one_by_one = {"mixed": {"ep": 1, "chunk_tokens": 64}}
    some = jobs.run(1, job_with(jobs, tokens, tmp_path / "some", one_by_one, write="reused")).ok()
    every = jobs.run(1, job_with(jobs, tokens, tmp_path / "every", one_by_one)).ok()
    assert some.fixed() == without.fixed()
    assert 0 < figures(some)["written_pages"] < figures(every)["written_pages"]


def test_two_models_share_a_folder(jobs, tokens, without, filled, tmp_path):
    folder = shutil.copytree(filled[0], tmp_path / "kv")
    other = job_with(jobs, tokens, folder) | {"numerics": "fp32"}
    plain = job_with(jobs, tokens, None) | {"numerics": "fp32"}
    expected = jobs.run(1, plain).ok().fixed()
    cold = jobs.run(1, other).ok()
    assert cold.fixed() == expected and figures(cold)["hit_pages"] == 0
    warm = jobs.run(1, job_with(jobs, tokens, folder) | {"numerics": "fp32"}).ok()
    assert warm.fixed() == expected and figures(warm)["hit_pages"] > 0
    assert jobs.run(1, job_with(jobs, tokens, folder)).ok().fixed() == without.fixed()


def test_killed_while_writing(jobs, without, tokens, tmp_path):
    folder = tmp_path / "kv"
    lines = some_lines(count=3000, seed=4)
    job = job_with(jobs, lines, folder)
    expected = jobs.run(1, job_with(jobs, lines, None)).ok().fixed()
    run = Background(jobs, 1, job)
    run.wait_for(lambda: folder.exists() and segments(folder, ".open")
                 and segments(folder, ".open")[0].stat().st_size > 20 * BLOCK)
    for pid in run.ranks().values():
        os.kill(pid, signal.SIGKILL)
    run.end(20)
    assert segments(folder, ".open")
    warm = jobs.run(1, job_with(jobs, lines, folder)).ok()
    assert warm.fixed() == expected
    # The pages that the killed job had written are found and used; nothing of it is left over.
    assert figures(warm)["hit_pages"] > 0
    assert not segments(folder, ".open") and len(segments(folder)) >= 2


def test_stopped_and_resumed(jobs, tmp_path):
    folder = tmp_path / "kv"
    lines = some_lines(count=2000, seed=5)
    expected = jobs.run(1, job_with(jobs, lines, None)).ok().fixed()
    job = job_with(jobs, lines, folder)
    run = Background(jobs, 1, job)
    run.wait_for_answers(50)
    os.kill(run.process.pid, signal.SIGUSR1)
    run.end(15)
    assert run.code == 6, run.err
    again = jobs.run(1, job, "--resume").ok()
    assert again.fixed() == expected
    assert not segments(folder, ".open")


def test_two_jobs_at_once(jobs, tokens, without, tmp_path):
    folder = tmp_path / "kv"
    first = [job_with(jobs, tokens, folder, layout) for layout in
             ({"mixed": {"ep": 1}}, {"prefill": {"ep": 1}, "decode": {"ep": 1}})]
    runs = [Background(jobs, 1 + i, job) for i, job in enumerate(first)]
    for run in runs:
        run.end(60)
        assert run.code == 0, run.err
    last = jobs.run(1, job_with(jobs, tokens, folder)).ok()
    assert last.fixed() == without.fixed() and figures(last)["hit_pages"] > 0
    for job in first:
        last.h5 = type(last.h5)(job["results"])
        assert last.fixed() == without.fixed()


def test_keys(jobs, tokens, tmp_path):
    job = job_with(jobs, tokens, tmp_path / "kv", write="reused")
    first = jobs.run(1, job, "--dump-config").ok().out
    assert f"  disk:\n    dir: {tmp_path / 'kv'}\n    bytes: " in first
    assert "    write: reused\n" in first
    assert jobs.run(1, first, "--dump-config").ok().out == first
    changed = jobs.run(1, first, "--dump-config", "--set", "kv.disk.write=all").ok().out
    assert changed == first.replace("write: reused", "write: all")


def test_small_pool(jobs, tokens, without, tmp_path):
    """Few pages: fetches wait for room, and what waits gives way."""
    for _ in range(2):
        job = job_with(jobs, tokens, tmp_path / "kv")
        job["kv"]["pages_per_rank"] = 40
        assert jobs.run(1, job).ok().fixed() == without.fixed()


def test_mistakes_are_named(jobs, tokens, tmp_path):
    job = job_with(jobs, tokens, tmp_path / "kv")
    job["kv"]["prefix_cache"] = "off"
    jobs.run(1, job).failed(3, "kv.disk.dir", "kv.prefix_cache is off")
    (tmp_path / "file").write_text("", encoding="ascii")
    jobs.run(1, job_with(jobs, tokens, tmp_path / "file")).failed(3, "kv.disk.dir", "file")
    job = job_with(jobs, tokens, tmp_path / "kv", write="some")
    jobs.run(1, job).failed(3, "kv.disk.write", "one of all, reused, none")
