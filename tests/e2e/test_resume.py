"""Jobs that are stopped or killed and go on: the results are those of an undisturbed run, nothing that
had finished is computed again, and two jobs never write one results file.

Alone: python3 -m pytest -s tests/e2e/test_resume.py
"""
import os
import random
import signal

import pytest

from conftest import line, prompts_of
from lib_journal import finished_in, read_journal
from test_faults import Background


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


def test_resume_refuses_another_job(jobs, undisturbed):
    del undisturbed
    job = some_job(jobs, count=40, mixed={"ep": 1})
    jobs.run(1, job).ok()
    jobs.run(1, {**job, "numerics": "fp32"}, "--resume").failed(3, "journal")


def test_resume_without_journal_starts(jobs):
    job = some_job(jobs, count=10, mixed={"ep": 1})
    jobs.run(1, job, "--resume").ok()
