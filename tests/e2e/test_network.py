"""Hosts with a network between them: a link that is cut ends the job with the lost ranks' names,
a slow link and a slow rank are told apart. On network namespaces (netns.py).

Alone: python3 -m pytest -s tests/e2e/test_network.py
"""
import os
import signal
import time

import h5py
import pytest

from conftest import line, prompts_of
from netns import Hosts
from lib_journal import finished_in, read_journal
from test_faults import Background, long_job


@pytest.fixture(name="hosts", scope="module")
def three_hosts():
    with Hosts(3, "100mbit") as hosts:
        yield hosts


def steady(jobs, count=400, **keys):
    lines = [line(f"s{i}", p, max_tokens=40, ignore_eos=True)
             for i, p in enumerate(prompts_of(count, [9, 30, 70], vocab=120))]
    return jobs.job(lines, **keys)


def summary(run):
    assert run.code == 0, run.err
    slow = [x for x in run.out.splitlines() if x.startswith("# slowest")]
    print("\n".join(slow) or "# nobody is slow")
    return slow


def test_slow_link(jobs, hosts):
    """One of three hosts has half the rate: its link is named, and no rank."""
    hosts.rate(2, "50mbit")
    try:
        run = Background(jobs, 3, steady(jobs, mixed={"ep": 3}), launcher=hosts.mpirun(1))
        run.end(100)
    finally:
        hosts.rate(2, "100mbit")
    slow = [x for x in summary(run) if "link" in x]
    assert len(slow) == 1 and f"the link of node 2, {hosts.names[2]} (mixed0), is slow" in slow[0]
    with h5py.File(run.h5) as f:
        links = f["links"][:]
        assert sorted(zip(links["src"], links["dst"])) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0),
                                                           (2, 1)]
        assert (links["latencies"] > 0).all() and (links["last"] <= links["waits"]).all()
        touched = (links["src"] == 2) | (links["dst"] == 2)
        ms = links["latency_mean_ms"]
        print(f"# ms a message: {ms[touched].mean():.2f} with host 2, {ms[~touched].mean():.2f}")
        waited = links["late_s"].sum() + links["transfer_s"].sum()
        assert 0 < waited <= f["ranks"]["exposed_comm_s"].sum() * 1.001


def test_slow_rank(jobs):
    """A rank that is stopped half of the time: it is named, and no link."""
    run = Background(jobs, 4, steady(jobs, 2500, mixed={"ep": 4, "max_batch": 16}))
    run.wait_for_answers(1)
    victim = run.ranks()[2]
    while run.process.poll() is None:
        try:
            os.kill(victim, signal.SIGSTOP)
            time.sleep(0.02)
            os.kill(victim, signal.SIGCONT)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    run.end(60)
    slow = summary(run)
    assert len(slow) == 1 and "rank 2 on" in slow[0] and "computes slowly" in slow[0]


def test_cut_link(jobs, hosts):
    """Last, since it leaves a host without network."""
    job = long_job(jobs, watchdog_s=2, prefill={"ep": 1}, decode={"ep": 2})
    run = Background(jobs, 3, job, launcher=hosts.mpirun(1))
    run.wait_for_answers()
    run.wait_for(lambda: run.journal.exists() and finished_in(read_journal(run.journal)[0]))
    hosts.cut(2)
    seconds = run.end(60)
    verdicts = [x for x in run.err.splitlines() if "watchdog: no progress" in x]
    print(f"# link cut: mpirun gone after {seconds:.2f} s, exit {run.code}: {verdicts}")
    # The ranks say 5; mpirun says 205 once it has lost a host. The sbatch files requeue on both.
    assert run.code in (5, 205) and verdicts, run.err
    for text in (f"rank 2 on {hosts.names[2]} (decode0", "it does not answer", "Waiting: rank 1",
                 "for its"):
        assert text in verdicts[0], verdicts[0]
    run.check_nothing_is_left()
    assert finished_in(read_journal(run.journal)[0])
