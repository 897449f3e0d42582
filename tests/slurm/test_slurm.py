"""The sbatch files of slurm/ on a real Slurm of three made-up nodes: jobs that are stopped at their
time limit, lose a node or are cancelled, and go on; the results are those of an undisturbed run.

`make check-slurm` runs them, `make check-slurm CASE=node` one; -s shows the logs of the jobs.
"""
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import h5py
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "e2e"), str(ROOT / "tests" / "slurm")]

from cluster import Cluster, why_not  # noqa: E402
from conftest import BINARY, Jobs, Run, line, moebatch, prompts_of  # noqa: E402

UNITS = {"prefill": {"ep": 2}, "decode": {"ep": 2}, "threads_per_rank": 1}
FEW, MANY = 300, 4000


@pytest.fixture(scope="module")
def cluster():
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="moebatch-slurm-") as folder:  # munged wants it open
        found = Cluster(folder)
        try:
            found.up()
            yield found
        finally:
            found.down()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results of `count` requests without Slurm, computed once for each count."""
    jobs, known = Jobs(tmp_path_factory.mktemp("undisturbed")), {}

    def run(count):
        if count not in known:
            known[count] = jobs.run(1, some_job(jobs, count, mixed={"ep": 1})).ok().fixed()
        return known[count]

    return run


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return Jobs(tmp_path_factory.mktemp("jobs"))


def some_job(jobs, count, **keys):
    lines = [line(f"r{i}", p, max_tokens=8 + i % 50, ignore_eos=True,
                  temperature=0.7 * (i % 3 == 0))
             for i, p in enumerate(prompts_of(count, [5, 40, 90], vocab=120))]
    return jobs.job(lines, journal_fsync_s=0.2, **keys)


class Submitted:
    """A job in the queue of the cluster."""

    def __init__(self, cluster, folder, script, *args, options=()):
        self.cluster = cluster
        command = ["sbatch", "--parsable", f"--output={folder}/log-%A.%a", *options, script, *args]
        done = subprocess.run([str(x) for x in command], cwd=ROOT, capture_output=True, text=True,
                              check=False, env=cluster.env | {
                                  "MOEBATCH": str(BINARY), "OMP_NUM_THREADS": "1",
                                  "MOEBATCH_MPIRUN_OPTIONS": "--oversubscribe --bind-to none",
                                  "MOEBATCH_SRUN_OPTIONS": "--cpu-bind=none"})
        assert done.returncode == 0, done.stderr
        self.id, self.folder = done.stdout.strip(), folder

    def facts(self):
        """scontrol's KEY=VALUE words; a list, one for each task of an array."""
        text = self.cluster.tool("scontrol", "-o", "show", "job", self.id)
        return [dict(w.split("=", 1) for w in row.split() if "=" in w)
                for row in text.splitlines() if row]

    def state(self):
        return " ".join(sorted({f["JobState"] for f in self.facts()}))

    def wait(self, *states, limit=60):
        ends = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"}
        with contextlib.suppress(TimeoutError):
            self.cluster.wait(lambda: self.state() in ends.union(states), limit, "no end")
        state = self.state()
        assert state in states, f"{state} after {limit} s, not {states}\n{self.log()}"

    def wait_for_answers(self, responses, count=20):
        path = pathlib.Path(responses)
        try:
            self.cluster.wait(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, 60,
                              "no answers")
        except TimeoutError as late:
            pytest.fail(f"{late}\n{self.log()}")

    def log(self):
        return "\n".join(p.read_text(encoding="utf-8", errors="replace")
                         for p in sorted(self.folder.glob(f"log-{self.id}.*")))

    def show(self):
        print(f"\n---- log of job {self.id}\n{self.log()}")


def submit(cluster, jobs, job, *args, options=("--nodes=2", "--ntasks-per-node=2")):
    path = pathlib.Path(job["results"]).with_suffix(".yaml")
    path.write_text(json.dumps(job, indent=1), encoding="utf-8")
    return Submitted(cluster, jobs.folder, "slurm/run.sbatch", path, *args, options=options)


def results_of(job):
    return Run(0, "", "", pathlib.Path(job["results"]), pathlib.Path(job["responses"]))


def attempts_of(job):
    with h5py.File(job["results"], "r") as f:
        table = f["attempts"][:]
        return [(x["outcome"].decode(), int(x["requests_finished"])) for x in table]


def test_printed_file(cluster, jobs, undisturbed):
    """What `moebatch slurm` prints for a job runs it, and the memory is what the job then needs."""
    job = some_job(jobs, FEW, **UNITS)
    path = jobs.folder / "printed.yaml"
    path.write_text(json.dumps(job), encoding="utf-8")
    code, out, err = moebatch("slurm", path, "--tasks-per-node", 3, "--set", "decode.max_batch=32")
    assert code == 0, err
    script = jobs.folder / "printed.sbatch"
    script.write_text(out, encoding="utf-8")
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks=4", "#SBATCH --ntasks-per-node=3",
            "#SBATCH --cpus-per-task=1"} <= set(out.splitlines())
    sent = Submitted(cluster, jobs.folder, script)
    sent.wait("COMPLETED")
    sent.show()
    assert results_of(job).fixed() == undisturbed(FEW)
    # The first node holds three ranks.
    printed = [float(x) for x in re.findall(r"([\d.]+) (?:experts|KV|activations|all-to-all)", out)]
    needed = re.search(r"([\d.]+) experts, KV ([\d.]+), activations ([\d.]+), all-to-all ([\d.]+)",
                       sent.log()).groups()
    print(f"GiB printed {printed}, needed {needed}")
    for mine, theirs in zip(printed, map(float, needed)):
        assert theirs <= mine + 0.011
        assert mine <= 1.5 * theirs + 0.1


def test_printed_file_and_small_nodes(jobs):
    path = jobs.folder / "small.yaml"
    path.write_text(json.dumps(some_job(jobs, 3, **UNITS)), encoding="utf-8")
    code, out, _ = moebatch("slurm", path, "--memory", "1.9", "--time", "00:30:00")
    assert code == 0 and "#SBATCH --mem=2G" in out and "#SBATCH --time=00:30:00" in out
    assert re.search(r"^set -- .* --set kv.pages_per_rank=\d+ ", out, re.MULTILINE)
    code, _, err = moebatch("slurm", path, "--memory", "0.5")
    assert code == 4 and "--memory is 0.5 GiB" in err
    code, _, err = moebatch("slurm", path, "--ranks", "7")
    assert code == 2 and "4 ranks" in err


@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_done(cluster, jobs, undisturbed, launcher, monkeypatch):
    monkeypatch.setitem(cluster.env, "MOEBATCH_LAUNCHER", launcher)
    job = some_job(jobs, FEW, **UNITS)
    sent = submit(cluster, jobs, job)
    sent.wait("COMPLETED")
    sent.show()
    assert "restart 0 (SLURM_RESTART_COUNT), 4 ranks on n[1-2]" in sent.log()
    assert results_of(job).fixed() == undisturbed(FEW)
    with h5py.File(job["results"], "r") as f:
        assert f["attempts"]["hosts"][0].decode() == "n1*2 n2*2"


@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_stopped_at_the_limit(cluster, jobs, undisturbed, launcher, monkeypatch):
    """The signal of the time limit, sent by hand: partial results, requeue, done."""
    monkeypatch.setitem(cluster.env, "MOEBATCH_LAUNCHER", launcher)
    job = some_job(jobs, MANY, **UNITS)
    sent = submit(cluster, jobs, job)
    sent.wait_for_answers(job["responses"])
    begin = time.monotonic()
    cluster.tool("scancel", "-b", "-s", "USR1", sent.id)
    sent.wait("PENDING", limit=20)
    seconds = time.monotonic() - begin
    with h5py.File(job["results"], "r") as f:  # partial, readable
        assert f.attrs["status"] == "partial"
        partial = int((f["requests"]["status"] == b"ok").sum())
        assert 20 <= partial < MANY
    sent.wait("COMPLETED", limit=120)
    sent.show()
    print(f"{launcher}: signal to requeue {seconds:.1f} s; attempts {attempts_of(job)}")
    assert "restart 1 (SLURM_RESTART_COUNT)" in sent.log() and "resumed: attempt 2" in sent.log()
    assert "failed" not in sent.log().replace("0 failed", "") and "cancelled" not in sent.log()
    assert attempts_of(job) == [("interrupted", partial), ("complete", MANY - partial)]
    assert results_of(job).fixed() == undisturbed(MANY)


def test_slurm_sends_the_signal(cluster, jobs, undisturbed):
    """A limit of one minute, the signal due after two seconds: nobody but Slurm stops the job. It
    looks at limits every 30 s, so the ranks are halted until it has."""
    job = some_job(jobs, MANY, **UNITS)
    sent = submit(cluster, jobs, job, options=(
        "--nodes=2", "--ntasks-per-node=2", "--time=1", "--signal=B:USR1@58"))
    told = "limit: the ranks are told to stop"
    answers = pathlib.Path(job["responses"])
    cluster.wait(lambda: told in sent.log() or (answers.exists() and answers.stat().st_size), 60,
                 "neither answers nor the signal")
    halted = [] if told in sent.log() else cluster.ranks(sent.id)
    for pid in halted:
        os.kill(pid, signal.SIGSTOP)
    cluster.wait(lambda: told in sent.log(), 70, "no signal")
    for pid in halted:
        os.kill(pid, signal.SIGCONT)
    cluster.wait(lambda: int(sent.facts()[0]["Restarts"]) == 1, 20, "no requeue")
    cluster.tool("scontrol", "update", f"JobId={sent.id}", "TimeLimit=10", check=False)
    sent.wait("COMPLETED", limit=120)
    sent.show()
    assert "restart 1 (SLURM_RESTART_COUNT)" in sent.log()
    assert results_of(job).fixed() == undisturbed(MANY)


def test_node_dies(cluster, jobs, undisturbed):
    job = some_job(jobs, MANY, **UNITS)
    sent = submit(cluster, jobs, job)
    sent.wait_for_answers(job["responses"])
    nodes = sent.facts()[0]["NodeList"]
    assert nodes == "n[1-2]"
    begin = time.monotonic()
    assert cluster.node_dies("n2") >= 3  # orted and two ranks
    try:
        cluster.wait(lambda: int(sent.facts()[0]["Restarts"]) >= 1, 60, "no restart")
        seconds = time.monotonic() - begin
        sent.wait("COMPLETED", limit=240)
    finally:
        cluster.node_up("n2")
    sent.show()
    print(f"node's end to requeue {seconds:.1f} s; attempts {attempts_of(job)}")
    assert attempts_of(job)[-1][0] == "complete"
    assert sum(n for _, n in attempts_of(job)) == MANY  # nothing finished was computed again
    assert results_of(job).fixed() == undisturbed(MANY)
    cluster.wait(lambda: "n2" in cluster.tool("sinfo", "-h", "-N", "-t", "idle", "-o", "%N"), 60,
                 "n2 does not come back")


def test_sweep(cluster, jobs, undisturbed):
    job = some_job(jobs, FEW, **UNITS)
    path = jobs.folder / "sweep.yaml"
    path.write_text(json.dumps(job), encoding="utf-8")
    batches = [4, 16, 64]
    settings = jobs.folder / "settings"
    settings.write_text("# batch sizes\n\n" + "".join(
        f"--set decode.max_batch={b} --set results={jobs.folder}/batch{b}.h5 "
        f"--set responses={jobs.folder}/batch{b}.jsonl\n" for b in batches), encoding="utf-8")
    sent = Submitted(cluster, jobs.folder, "slurm/sweep.sbatch", path, settings, options=(
        "--array=0-3", "--nodes=1", "--ntasks-per-node=4"))
    sent.wait("COMPLETED FAILED", limit=90)  # task 3 has no line
    sent.show()
    assert sorted(f["ArrayTaskId"] for f in sent.facts() if f["JobState"] == "FAILED") == ["3"]
    assert "has no line for it" in sent.log()
    for b in batches:
        done = {**job, "results": f"{jobs.folder}/batch{b}.h5"}
        assert results_of(done).fixed() == undisturbed(FEW)


@pytest.mark.parametrize("how", ["scancel", "USR2"])
def test_cancelled(cluster, jobs, undisturbed, how):
    job = some_job(jobs, MANY, **UNITS)
    sent = submit(cluster, jobs, job)
    sent.wait_for_answers(job["responses"])
    begin = time.monotonic()
    if how == "scancel":
        cluster.tool("scancel", sent.id)
        sent.wait("CANCELLED", limit=20)
    else:
        cluster.tool("scancel", "-b", "-s", "USR2", sent.id)
        sent.wait("FAILED", limit=20)
        assert sent.facts()[0]["ExitCode"] == "6:0"
    cluster.wait(lambda: not cluster.ranks(sent.id), 15, "ranks are left")
    seconds = time.monotonic() - begin
    time.sleep(1)
    assert sent.state() in ("CANCELLED", "FAILED")  # not back in the queue
    assert not pathlib.Path(job["results"] + ".lock").exists()
    again = submit(cluster, jobs, job, "--resume")
    again.wait("COMPLETED", limit=120)
    sent.show()
    print(f"{how}: all ranks gone after {seconds:.1f} s; attempts {attempts_of(job)}")
    outcomes = attempts_of(job)
    assert len(outcomes) == 2 and 20 <= outcomes[0][1] < MANY
    assert sum(n for _, n in outcomes) == MANY
    assert results_of(job).fixed() == undisturbed(MANY)


def test_nothing_is_left(cluster):
    """Last: no rank outlived its job."""
    assert not cluster.ranks()
