"""Jobs that are stopped or killed and go on: the results are those of an undisturbed run, nothing that
had finished is computed again, and two jobs never write one results file.

Alone: python3 -m pytest -s tests/e2e/test_resume.py
"""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile

import pytest

from conftest import GOLDEN, Run, line, moebatch, prompts_of
from lib_journal import finished_in, read_journal
from test_faults import PLACES, Background, held, held_job


COUNT = 1500


def some_job(jobs, count=COUNT, **keys):
    lines = [line(f"r{i}", p, max_tokens=8 + i % 100, ignore_eos=True, logprobs=i % 2 == 0,
                  temperature=0.7 * (i % 3 == 0))
             for i, p in enumerate(prompts_of(count, [5, 40, 90], vocab=120))]
    return jobs.job(lines, journal_fsync_s=0.2, sampling={"logprobs": True}, **keys)


def responses_of(path):
    return sorted(path.read_text(encoding="utf-8").splitlines())


@pytest.fixture(scope="module")
def undisturbed(shared_jobs):
    job = some_job(shared_jobs, mixed={"ep": 1})
    return shared_jobs.run(1, job).ok()


def fresh(jobs, undisturbed, ranks, **keys):
    job = some_job(jobs, **keys)
    return job, lambda: check(jobs, job, undisturbed, ranks)


def check(jobs, job, undisturbed, ranks):
    """Resumes to the end and compares everything that must not depend on the interruptions."""
    run = jobs.run(ranks, job, "--resume").ok()
    assert run.fixed() == undisturbed.fixed()
    assert len(responses_of(run.responses)) == len(responses_of(undisturbed.responses))
    return run


@pytest.mark.parametrize("ranks, keys", [
    (1, {"mixed": {"ep": 1}}),
    (4, {"prefill": {"ep": 2}, "decode": {"ep": 2}}),
], ids=["one", "units"])
def test_stopped_by_usr1(jobs, undisturbed, ranks, keys):
    job, resume = fresh(jobs, undisturbed, ranks, **keys)
    run = Background(jobs, ranks, job)
    run.wait_for_answers(20)
    os.kill(run.process.pid, signal.SIGUSR1)  # mpirun passes it on
    seconds = run.end(10)
    assert run.code == 6 and "SIGUSR1" in run.err and "--resume" in run.err
    assert seconds < 5
    done = len(finished_in(read_journal(run.journal)[0]))
    assert 20 <= done < COUNT
    again = resume()
    attempts = again.values("attempts")
    assert [x.decode() for x in attempts["outcome"]] == ["interrupted", "complete"]
    # What had finished was not computed again.
    assert attempts["requests_finished"].tolist() == [done, COUNT - done]
    with again.open() as f:
        assert f["account"]["gpu_seconds"][0] == pytest.approx(attempts["gpu_s"].sum())


@pytest.fixture(scope="module")
def untouched(shared_jobs):
    return shared_jobs.run(4, held_job(shared_jobs)).ok().fixed()


@pytest.mark.parametrize("sig", [signal.SIGUSR1, signal.SIGTERM], ids=["USR1", "TERM"])
def test_stopped_in_every_phase(jobs, monkeypatch, untouched, sig):
    """In the last phase everything is computed: the job then ends as if nothing had happened, or,
    with the second that SIGTERM leaves it, as far as it gets."""
    runs = {}
    for place, rank in PLACES.items():
        job = held_job(jobs)
        runs[place] = job, held(jobs, monkeypatch, place, rank, job)[0]
    for _, run in runs.values():
        os.kill(run.process.pid, sig)
    for place, (job, run) in runs.items():
        seconds = run.end(20)
        print(f"# {sig.name} at {place}: exit {run.code} after {seconds:.2f} s")
        run.check_nothing_is_left()
        if sig == signal.SIGUSR1:
            assert run.code == (0 if place == "results" else 6), f"{place} {run.code}\n{run.err}"
            assert place == "results" or ("SIGUSR1" in run.err and "--resume" in run.err)
        elif place != "results":
            assert run.code != 0, place
        if run.code == 0:
            again = Run(0, "", "", run.h5, run.responses)
        elif run.journal.exists() or place == "load":  # before, it is a start like any other
            again = jobs.run(4, job, "--resume").ok()
        else:
            continue
        assert again.fixed() == untouched, place


def test_killed_again_and_again(jobs, undisturbed):
    dice = random.Random(5)
    job, resume = fresh(jobs, undisturbed, 2, prefill={"ep": 1}, decode={"ep": 1})
    args, before = [], 0
    for _ in range(4):
        run = Background(jobs, 2, job, *args)
        run.wait_for(lambda: len(run.ranks()) == 2)
        run.wait_for(lambda: run.journal.exists()
                     and len(finished_in(read_journal(run.journal)[0])) >= before + 20)
        victims = run.ranks()
        for rank in dice.choice([[0], [1], [0, 1]]):
            os.kill(victims[rank], signal.SIGKILL)
        run.end(10)
        assert run.code not in (0, 6)
        now = len(finished_in(read_journal(run.journal)[0]))
        assert before <= now < COUNT
        before, args = now, ["--resume"]
    resume()


def test_two_jobs_on_one_results_file(jobs):
    job = some_job(jobs, count=6000, mixed={"ep": 1})
    run = Background(jobs, 1, job)
    run.wait_for_answers(5)
    jobs.run(1, job, "--resume").failed(4, "another job", "process")
    os.kill(run.process.pid, signal.SIGUSR1)
    run.end(10)
    assert run.code == 6


@pytest.fixture
def finished(jobs):
    """A job that is done, to be resumed with changes."""
    job = some_job(jobs, count=40, mixed={"ep": 1}, isa="avx2")
    jobs.run(1, job).ok()
    return job


@pytest.mark.parametrize("change, texts", [
    ({"numerics": "fp32"}, ["numerics was checkpoint, is fp32"]),
    ({"sampling": {"logprobs": True, "temperature": 0.5, "seed": 3}},
     ["sampling.temperature was 0, is 0.5; sampling.seed was 0, is 3"]),
    ({"isa": "portable"}, ["isa was avx2, is portable"]),
    ({"model": str(GOLDEN / "v3-top1")}, ["model: ", "v3-top1 is not what ", "v3 was"]),
], ids=["numerics", "sampling", "isa", "model"])
def test_resume_refuses_another_job(jobs, finished, change, texts):
    jobs.run(1, {**finished, **change}, "--resume").failed(
        3, "was written by another job", "--force", *texts)


def test_resume_refuses_a_changed_token_file(jobs, finished):
    """Also one of the same length and name."""
    path = pathlib.Path(finished["tokens"])
    text = path.read_text(encoding="utf-8")
    at = text.index('"prompt": [') + len('"prompt": [')
    path.write_text(text[:at] + ("9" if text[at] != "9" else "8") + text[at + 1:], encoding="utf-8")
    jobs.run(1, finished, "--resume").failed(3, "tokens: ", "has changed since")
    path.write_text(text + json.dumps(line("more", [5])) + "\n", encoding="utf-8")
    jobs.run(1, finished, "--resume").failed(3, "has changed since", "requests were 40, are 41")


def test_what_may_change(jobs, finished):
    """Layout and paths; `auto` takes the isa of the journal, so that bits stay the same."""
    job = {**finished, "isa": "auto", "prefill": {"ep": 1}, "decode": {"ep": 1, "max_batch": 9},
           "responses": str(jobs.folder / "other.jsonl")}
    del job["mixed"]
    run = jobs.run(2, job, "--resume").ok()
    assert "mixed was given, is not given" in run.err and "isa avx2" in run.err
    with run.open() as f:
        assert [x.decode() for x in f["attempts"]["isa"]] == ["avx2", "avx2"]
    assert len(responses_of(run.responses)) == 40


def test_lock_of_a_job_that_stands_still(jobs):
    """It is taken over when its heartbeat is a minute old; the halted job ends by itself when it
    wakes, and leaves the results alone."""
    job = some_job(jobs, count=40000, mixed={"ep": 1})
    run = Background(jobs, 1, job)
    run.wait_for_answers(5)
    lock = pathlib.Path(job["results"] + ".lock")
    pid = run.ranks()[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        jobs.run(1, job, "--resume").failed(4, "another job", f"process {pid}")
        os.utime(lock, (lock.stat().st_mtime - 61,) * 2)
        other = Background(jobs, 1, job, "--resume")
        other.wait_for_answers(20)
    finally:
        os.kill(pid, signal.SIGCONT)
    run.end(30)
    assert run.code == 4 and "has taken over" in run.err, run.err
    assert lock.exists()
    os.kill(other.process.pid, signal.SIGUSR1)
    other.end(20)
    assert other.code == 6 and not lock.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_read_only_folder(jobs, finished):
    folder = jobs.folder
    made = subprocess.run(["mount", "--bind", folder, folder], check=False, capture_output=True)
    if made.returncode:
        pytest.skip("this container does not allow mounts")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder, folder], check=True)
        elsewhere = pathlib.Path(tempfile.mkdtemp())
        path = elsewhere / "job.yaml"
        path.write_text(json.dumps(finished), encoding="utf-8")
        code, _, err = moebatch("run", path, "--resume", ranks=1)
        shutil.rmtree(elsewhere)
    finally:
        subprocess.run(["umount", folder], check=True)
    assert code == 3 and "cannot write" in err and "Read-only file system" in err, err
    jobs.run(1, finished, "--resume").ok()


def test_resume_without_journal_starts(jobs):
    job = some_job(jobs, count=10, mixed={"ep": 1})
    jobs.run(1, job, "--resume").ok()
