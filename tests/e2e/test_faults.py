"""Trouble: a rank that is killed, starts that cannot succeed, files that break while the job
runs, full disks. Each ends soon, with a documented exit code and one message, and leaves nothing
behind but what had been finished.

Alone: python3 -m pytest -s tests/e2e/test_faults.py -k killed
"""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import uuid

import h5py
import pytest

from conftest import BINARY, GOLDEN, MPIRUN, ROOT, line, prompts_of, write_tokens
from lib_journal import HEADER, finished_in, read_journal

GONE_S = 5     # all ranks have left so soon after an error
KILLED_S = 10  # mpirun has noticed a killed rank, ended the others and itself
GOOD = line("good", [5, 6, 7], max_tokens=2)


# ---- processes, and what they leave ----

def processes_with(mark):
    """pid: environment of every process that was started with this mark."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if f"MOEBATCH_TEST={mark}".encode() in variables:
                found[int(entry.name)] = dict(v.split(b"=", 1) for v in variables if b"=" in v)
    return found


class Background:
    """A job that runs while the test looks at it, or breaks it."""

    def __init__(self, jobs, ranks, job, *args, launcher=(str(MPIRUN),)):
        self.mark = uuid.uuid4().hex
        self.responses, self.h5 = pathlib.Path(job["responses"]), pathlib.Path(job["results"])
        self.journal = self.h5.with_suffix(".journal")
        path = jobs.folder / f"{self.mark}.yaml"
        path.write_text(json.dumps(job), encoding="utf-8")
        self.begin = time.monotonic()
        self.process = subprocess.Popen(
            [*launcher, "-np", str(ranks), str(BINARY), "run", str(path), *args], cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
                 "MOEBATCH_TEST": self.mark})
        self.code, self.out, self.err, self.spaces = None, "", "", set()

    def ranks(self):
        """{rank: pid}; also notes the job's names in /dev/shm."""
        found = {}
        for pid, variables in processes_with(self.mark).items():
            comm = ""
            with contextlib.suppress(OSError):  # it may just end
                comm = pathlib.Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip()
            if comm == "moebatch" and b"OMPI_COMM_WORLD_RANK" in variables:
                found[int(variables[b"OMPI_COMM_WORLD_RANK"])] = pid
                self.spaces.add(f"{int(variables[b'PMIX_NAMESPACE']):x}")
                self.spaces.add(f"moebatch-{pid}")
        return found

    def wait_for(self, ready, limit=60):
        while not ready():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() - self.begin < limit, "the job does not get on"
            time.sleep(0.02)

    def wait_for_answers(self, count=3):
        self.wait_for(lambda: self.responses.exists()
                      and self.responses.read_text(encoding="utf-8").count("\n") >= count)

    def end(self, limit):
        """Waits for mpirun; returns the seconds that it took from now."""
        begin = time.monotonic()
        try:
            self.out, self.err = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            for pid in processes_with(self.mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.out, self.err = self.process.communicate()
            pytest.fail(f"still there after {limit} s\n{self.out}\n{self.err}")
        self.code = self.process.returncode
        return time.monotonic() - begin

    def check_nothing_is_left(self):
        for _ in range(50):
            left = processes_with(self.mark)
            if not left:
                break
            time.sleep(0.02)
        assert not left
        names = [n for n in os.listdir("/dev/shm") if any(s in n for s in self.spaces)]
        assert not names


# ---- a rank is killed ----

def long_job(jobs, longest=450, **keys):
    """Some answers at once, others for as long as the test takes."""
    lines = [line(f"s{i}", [9 + i], max_tokens=2, ignore_eos=True) for i in range(20)]
    lines += [line(f"l{i}", p, max_tokens=longest, ignore_eos=True)
              for i, p in enumerate(prompts_of(4000, [9, 30], vocab=120))]
    return jobs.job(lines, journal_fsync_s=0.2, **keys)


SPLIT = {"prefill": {"ep": 2}, "decode": {"ep": 2}}


@pytest.mark.parametrize("victim, keys, partial", [
    (0, {"mixed": {"ep": 4}}, True),
    (2, {"mixed": {"ep": 4}}, False),
    (3, SPLIT, False),
    (1, {**SPLIT, "ranks_per_node": 1}, False),
], ids=["rank0", "mixed", "decode", "prefill-over-mpi"])
def test_killed_rank(jobs, victim, keys, partial):
    job = long_job(jobs, **keys)
    run = Background(jobs, 4, job)
    run.wait_for_answers()
    if partial:  # written some seconds into the run, and again and again
        run.wait_for(run.h5.exists)
        check_partial(run.h5)
    run.wait_for(lambda: run.journal.exists() and finished_in(read_journal(run.journal)[0]))
    ranks = run.ranks()
    assert sorted(ranks) == [0, 1, 2, 3]
    os.kill(ranks[victim], signal.SIGKILL)
    seconds = run.end(KILLED_S)
    print(f"# rank {victim} killed: all gone after {seconds:.2f} s, exit {run.code}")
    assert run.code == 128 + signal.SIGKILL
    for text in (f"rank {victim}", socket.gethostname(), "signal 9"):
        assert text in run.err, run.err
    run.check_nothing_is_left()
    records, torn = read_journal(run.journal)
    assert records[0].kind == HEADER and finished_in(records)
    print(f"# journal: {len(records)} records, {len(finished_in(records))} requests, "
          f"{torn} bytes torn off")
    if partial:
        check_partial(run.h5)
    # What it had finished is not thrown away unasked.
    jobs.run(4, job, timeout=60).failed(3, "--force")


# ---- a rank in a chosen place ----

# Where MOEBATCH_TEST_HOLD can hold a rank (engine/watch.h), and a rank of SPLIT that comes there.
PLACES = {"start": 2, "load": 1, "prefill": 1, "transfer": 1, "decode": 3, "results": 2}


def held_job(jobs, **keys):
    lines = [line(f"h{i}", p, max_tokens=4 + i % 9, ignore_eos=True)
             for i, p in enumerate(prompts_of(60, [9, 30, 70], vocab=120))]
    return jobs.job(lines, journal_fsync_s=0.2, **{**SPLIT, **keys})


def held(jobs, monkeypatch, place, rank, job=None, **keys):
    """A job whose rank stands still at `place`, and that rank's process."""
    monkeypatch.setenv("MOEBATCH_TEST_HOLD", f"{place}:{rank}")
    run = Background(jobs, 4, job or held_job(jobs, **keys))
    monkeypatch.delenv("MOEBATCH_TEST_HOLD")
    run.seen = ""
    while f"stops at {place}\n" not in run.seen:
        text = run.process.stderr.readline()
        assert text, f"ended before {place}\n{run.seen}"
        run.seen += text
    return run, int(run.seen.rsplit(" stops at ", 1)[0].rsplit(" ", 1)[1])


def test_killed_in_every_phase(jobs, monkeypatch):
    """All jobs at once: mpirun takes seconds to end each."""
    runs = [(place, rank, *held(jobs, monkeypatch, place, rank)) for place, rank in PLACES.items()]
    for _, _, _, pid in runs:
        os.kill(pid, signal.SIGKILL)
    for place, rank, run, _ in runs:
        seconds = run.end(KILLED_S)
        print(f"# rank {rank} killed at {place}: all gone after {seconds:.2f} s, exit {run.code}")
        assert run.code == 128 + signal.SIGKILL, place
        for text in (f"rank {rank}", socket.gethostname(), "signal 9"):
            assert text in run.err, run.err
        run.check_nothing_is_left()


# ---- a rank that stands still ----

def watched(run):
    """Exit code 5 and one verdict, which is returned."""
    seconds = run.end(60)
    verdicts = [x for x in run.err.splitlines() if "watchdog: no progress" in x]
    print(f"# all gone after {seconds:.2f} s: {verdicts}")
    assert run.code == 5 and len(verdicts) == 1, f"exit {run.code}\n{run.err}"
    run.check_nothing_is_left()
    return verdicts[0]


# name: (where it stands still, rank, whether it is stopped or only does not come back, job keys,
#        what the verdict says)
STANDSTILLS = {
    "load, stopped": ("load", 1, True, {}, [
        "rank 1 on {host} (prefill0, start: weights), its process is stopped"]),
    "load, hangs": ("load", 1, False, {}, [
        "3 ranks wait for rank 1 on {host} (prefill0, start: weights), it computes"]),
    "prefill, stopped": ("prefill", 1, True, {}, [
        "rank 1 on {host} (prefill0, prefill step 0", "its process is stopped",
        "Waiting: rank 0 on {host} (prefill0, prefill step 0, layer 1, DISPATCH)",
        "for its dispatch counts", "--resume"]),
    "transfer, hangs": ("transfer", 1, False, {}, [
        "rank 1 on {host} (prefill0, prefill step ", ", layer 0, ATTN)", "does not answer"]),
    "decode, hangs": ("decode", 3, False, {}, [
        "1 rank waits for rank 3 on {host} (decode0, decode step 0", "does not answer",
        "Waiting: rank 2 on {host} (decode0, decode step 0, layer 1, DISPATCH) for its dispatch "
        "rows"]),
    "results, stopped": ("results", 2, True, {}, [
        "rank 2 on {host} (decode0, results), its process is stopped",
        "Waiting: rank 0 on {host} (prefill0, results) for its closing figures"]),
    # The others' threads say so and end the job.
    "rank 0, stopped": ("prefill", 0, True, {}, [
        "rank 0 said nothing", "rank 0 on {host}", "its process is stopped",
        "Waiting: rank 1 on {host} (prefill0, prefill step 0, layer 1, DISPATCH)"]),
    # Ranks that share no memory with the stopped one, nor with each other.
    "over MPI, stopped": ("decode", 3, True, {"ranks_per_node": 1}, [
        "rank 3 on {host} (decode0", "its process is stopped"]),
}


def test_watchdog_names_the_rank(jobs, monkeypatch):
    """All jobs at once: most of the time they wait."""
    runs = []
    for name, (place, rank, stop, keys, texts) in STANDSTILLS.items():
        run, pid = held(jobs, monkeypatch, place, rank, watchdog_s=2, **keys)
        if stop:
            os.kill(pid, signal.SIGSTOP)
        runs.append((name, run, time.monotonic(), texts))
    for name, run, since, texts in runs:
        verdict = watched(run)
        print(f"# {name}: at most {time.monotonic() - since:.1f} s")
        for text in texts:
            assert text.format(host=socket.gethostname()) in verdict, f"{name}: {verdict}"


def test_a_rank_that_never_starts(jobs):
    """MPI_Init waits for all ranks: one of them is another program that never calls it."""
    job = held_job(jobs, mixed={"ep": 2})
    path = jobs.folder / "missing.yaml"
    path.write_text(json.dumps(job), encoding="utf-8")
    done = subprocess.run([str(MPIRUN), "-np", "1", str(BINARY), "run", str(path), ":", "-np", "1",
                           "sleep", "30"], capture_output=True, text=True, check=False, timeout=25,
                          env={**os.environ, "MOEBATCH_START_LIMIT_S": "2"})
    assert done.returncode == 5, done.stderr
    for text in (f"rank 0 on {socket.gethostname()}: watchdog: MPI_Init has not returned after 2 s",
                 "some of the 2 ranks"):
        assert text in done.stderr, done.stderr


def test_watchdog_is_patient(jobs):
    """A rank that stops again and again, never for long, is slow and not lost."""
    lines = [line(f"p{i}", [9 + i], max_tokens=20, ignore_eos=True) for i in range(400)]
    run = Background(jobs, 4, jobs.job(lines, watchdog_s=2, mixed={"ep": 4, "max_batch": 8}))
    run.wait_for_answers()
    victim = run.ranks()[2]
    for _ in range(10):
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGSTOP)
            time.sleep(0.3)
            os.kill(victim, signal.SIGCONT)
            time.sleep(0.05)
    run.end(60)
    assert run.code == 0 and "watchdog" not in run.err, run.err


def check_partial(path):
    with h5py.File(path) as f:
        assert f.attrs["status"] == "partial"
        rows, offsets = f["requests"][:], f["outputs/offsets"][:]
        assert len(rows) == 4020 and offsets[-1] == len(f["outputs/tokens"])
        done = rows[rows["status"] == b"ok"]
        assert 0 < len(done) < len(rows) and (done["output_tokens"] > 0).all()
        assert (rows[rows["status"] == b"pending"]["output_tokens"] == 0).all()
        assert f["attempts"]["outcome"][0] == b"running"


# ---- starts that cannot succeed ----

def broken_model(jobs, break_it):
    folder = jobs.folder / "model"
    shutil.copytree(GOLDEN / "v3", folder)
    break_it(folder)
    return {"model": str(folder)}


def truncated(folder):
    shard = folder / "model.safetensors"
    os.truncate(shard, shard.stat().st_size - 1000)


def without_tensor(folder):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["num_hidden_layers"] += 1
    path.write_text(json.dumps(values))


def config_is_no_json(folder):
    (folder / "config.json").write_text("{")


def text_file(jobs, name, text):
    path = jobs.folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


# name: (keys of the job from jobs, exit code, texts of the message)
STARTS = {
    "no-model": (lambda jobs: {"model": "no/such/model"}, 3, ["no/such/model"]),
    "rank-count": (lambda jobs: {"mixed": {"ep": 2}}, 4, ["mpirun started 4", "-np 2"]),
    "results-in-a-file": (lambda jobs: {"results": text_file(jobs, "file", "") + "/r.h5"}, 3,
                          ["results", "file"]),
    "results-in-proc": (lambda jobs: {"results": "/proc/r.h5"}, 3, ["cannot create /proc/r"]),
    "results-exist": (lambda jobs: {"results": text_file(jobs, "old.h5", "x")}, 3,
                      ["old.h5", "--force"]),
    "pages": (lambda jobs: {"kv": {"pages_per_rank": 1 << 30}}, 4, ["GiB", "kv.pages_per_rank"]),
    "no-tokens": (lambda jobs: {"tokens": "no/such.jsonl"}, 3, ["no/such.jsonl"]),
    "tokens-are-a-folder": (lambda jobs: {"tokens": str(jobs.folder)}, 3, [""]),
    "tokens-no-hdf5": (lambda jobs: {"tokens": text_file(jobs, "t.h5", "text")}, 3, ["t.h5"]),
    "responses": (lambda jobs: {"responses": "no/such/folder/r.jsonl"}, 3,
                  ["responses", "no/such/folder"]),
    "trace": (lambda jobs: {"trace": "no/such/folder/t.json"}, 3, ["no/such/folder/t.json"]),
    "price-missing": (lambda jobs: {"prices": text_file(jobs, "p.yaml", "usd_per_gpu_hour: 2\n")},
                      3, ["p.yaml", "usd_per_million"]),
    "price-no-number": (lambda jobs: {"prices": text_file(jobs, "p.yaml",
                                                          "usd_per_gpu_hour: cheap\n")},
                        3, ["p.yaml:1", "cheap"]),
    "load-no-hdf5": (lambda jobs: {"experts": {"load": text_file(jobs, "l.h5", "text")}}, 3,
                     ["l.h5"]),
    "truncated-shard": (lambda jobs: broken_model(jobs, truncated), 3, ["model.safetensors"]),
    "missing-tensor": (lambda jobs: broken_model(jobs, without_tensor), 3, ["model.layers.3"]),
    "config": (lambda jobs: broken_model(jobs, config_is_no_json), 3, ["config.json"]),
    "isa": (lambda jobs: {"isa": "amx"}, 4, ["amx"]),
}


@pytest.fixture(scope="module")
def start_seconds(shared_jobs):
    """What four ranks need to start and to end without an error, on this machine now."""
    begin = time.monotonic()
    shared_jobs.run(4, shared_jobs.job([GOOD])).ok()
    return time.monotonic() - begin


@pytest.mark.parametrize("name", STARTS)
def test_refused_start(jobs, start_seconds, name):
    keys, code, texts = STARTS[name]
    job = {**jobs.job([GOOD]), **keys(jobs)}
    existed = os.path.exists(job["results"])
    run = Background(jobs, 4, job)
    seconds = run.end(60)
    print(f"# {name}: gone after {seconds:.2f} s (a job without error: {start_seconds:.2f} s)")
    assert run.code == code, f"exit {run.code}\n{run.err}"
    for text in texts:
        assert text in run.err, f"{text!r} is not in\n{run.err}"
    assert run.err.count("moebatch: ") == 1, run.err
    assert seconds <= GONE_S + 2 * start_seconds
    run.check_nothing_is_left()
    assert os.path.exists(job["results"]) == existed


def test_memory_limit_of_the_process(jobs):
    """The host has enough, but a rank may not have it: numbers and a remedy."""
    limit = ("bash", "-c", 'ulimit -v 2000000; exec "$@"', "limit", str(MPIRUN))
    job = jobs.job([GOOD], kv={"pages_per_rank": 160000}, mixed={"ep": 2})
    run = Background(jobs, 2, job, launcher=limit)
    run.end(60)
    assert run.code == 4 and run.err.count("moebatch: ") == 1, f"exit {run.code}\n{run.err}"
    for text in ("GiB for 160000 KV pages", "ulimit -v", "lower kv.pages_per_rank"):
        assert text in run.err, run.err
    run.check_nothing_is_left()


@pytest.mark.parametrize("key, value", [("responses", "no/such/folder/r.jsonl"),
                                        ("tokens", "no/such.jsonl"),
                                        ("trace", "no/such/folder/t.json")])
def test_a_refused_start_leaves_no_journal(jobs, key, value):
    """Once the mistake is mended the same job starts, without --force."""
    job = jobs.job([GOOD])
    jobs.run(2, {**job, key: value}, timeout=60).failed(3, key, value)
    jobs.run(2, job).ok()


# ---- trouble on the way ----

def test_strict_keeps_what_was_finished(jobs):
    """The first failed request ends the job; the answers before it are in the results."""
    lines = [line(f"r{i}", [5 + i % 90, 7], max_tokens=2) for i in range(300)]
    lines += [line("wrong", [5, 100000]), *(line(f"z{i}", [5], max_tokens=2) for i in range(300))]
    job = jobs.job(lines, mixed={"ep": 2, "max_batch": 8})
    run = Background(jobs, 2, job, "--strict")
    run.end(60)
    assert run.code == 3 and run.err.count("moebatch: ") == 1, run.err
    for text in ("--strict", "request 300", '"wrong"', "100000"):
        assert text in run.err, run.err
    run.check_nothing_is_left()
    with h5py.File(run.h5) as f:
        rows = f["requests"][:]
        assert f.attrs["status"] == "partial"
        assert f["attempts"]["outcome"][0] == b"interrupted"
    assert rows["status"][300] == b"failed" and b"100000" in rows["error"][300]
    done = rows["status"] == b"ok"
    assert 200 < done.sum() <= 300 and not done[301:].any()
    assert (rows["output_tokens"][done] > 0).all()
    answers = [json.loads(x) for x in run.responses.read_text().splitlines()]
    assert len(answers) == done.sum() + 1
    assert len(finished_in(read_journal(run.journal)[0])) == done.sum() + 1


@pytest.mark.parametrize("ranks", [1, 4])
def test_token_file_shrinks(jobs, ranks):
    job = long_job(jobs, 40, mixed={"ep": ranks, "max_batch": 8})
    run = Background(jobs, ranks, job)
    run.wait_for_answers()
    os.truncate(job["tokens"], 2000)
    run.end(120)
    assert run.code == 3 and "became shorter" in run.err and job["tokens"] in run.err, run.err
    assert run.err.count("moebatch: ") == 1, run.err
    run.check_nothing_is_left()
    assert finished_in(read_journal(run.journal)[0])


# ---- full disks ----

@pytest.fixture(name="small_disk")
def small_disk_of_kib(tmp_path):
    """small_disk(KiB) is a folder on a file system of that size."""
    mounted = []

    def make(kib):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a small tmpfs: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def many(jobs, **keys):
    lines = [line(f"request-with-a-name-{i}", [5 + i % 90], max_tokens=3, ignore_eos=True)
             for i in range(8000)]
    return jobs.job(lines, model=str(GOLDEN / "v3-top1"), journal_fsync_s=0.2,
                    mixed={"ep": 2, "max_batch": 128}, **keys)


def full(run, *texts):
    run.end(120)
    print(f"# exit {run.code}: {run.err.strip()[-200:]}")
    assert run.code == 4, f"exit {run.code}\n{run.err}"
    for text in ("No space left", *texts):
        assert text in run.err, run.err
    assert run.err.count("moebatch: ") == 1 and "HDF5-DIAG" not in run.err, run.err
    run.check_nothing_is_left()


def test_disk_of_the_journal_is_full(jobs, small_disk):
    folder = small_disk(256)
    run = Background(jobs, 2, many(jobs, results=str(folder / "r.h5")))
    full(run, "journal", str(folder))
    done = finished_in(read_journal(run.journal)[0])
    print(f"# {len(done)} requests are in the journal")
    assert len(done) > 500


def test_disk_of_the_responses_is_full(jobs, small_disk):
    folder = small_disk(256)
    job = {**many(jobs), "responses": str(folder / "r.jsonl")}
    run = Background(jobs, 2, job)
    full(run, "responses")
    with h5py.File(run.h5) as f:
        assert f.attrs["status"] == "partial" and (f["requests"]["status"] == b"ok").sum() > 500
    assert len(finished_in(read_journal(run.journal)[0])) > 500


def test_last_bytes_of_the_responses(jobs, small_disk):
    """What fits in stdio's buffer reaches the disk, or not, only at the end."""
    folder = small_disk(4)
    (folder / "filler").write_bytes(b"x" * 4096)
    job = {**jobs.job([GOOD]), "responses": str(folder / "r.jsonl")}
    full(Background(jobs, 1, job), "responses")


def test_disk_of_the_results_is_full(jobs, small_disk):
    """The journal still fits, the results file does not: the journal keeps all answers."""
    folder = small_disk(40)
    lines = [line(f"r{i}", [5 + i], max_tokens=4) for i in range(20)]
    run = Background(jobs, 2, {**jobs.job(lines), "results": str(folder / "r.h5")})
    full(run, str(folder / "r.h5"))
    assert finished_in(read_journal(run.journal)[0]) == set(range(20))
    assert sorted(p.name for p in folder.iterdir()) == ["r.journal"]
