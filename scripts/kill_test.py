#!/usr/bin/env python3
"""Kills jobs with SIGKILL at random moments, resumes them until they are done, and checks that their
results are those of an undisturbed run, byte for byte, and that nothing finished was computed again.

  $(scripts/python.sh) scripts/kill_test.py --kills 200 --seed 1

One kill takes one rank, all ranks, or mpirun and all ranks. Moments: while the job starts, while it
reads the journal of the attempts before, while records are appended, some time into the run, while
the results file is written. Every attempt may have another layout. Figures: kills by moment and
victim, tokens lost for each kill beside the bound (what was in flight and what a fsync interval
computes), seconds that reading the journal took. Exit code 0: all jobs were right.
"""
import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid

import h5py
import numpy as np

from lib_journal import REQUEST, read_journal

ROOT = pathlib.Path(__file__).resolve().parents[1]
MOMENTS = ["start", "resume", "append", "run", "results"]
VICTIMS = ["one rank", "all ranks", "mpirun too"]
BATCH = 16         # requests that a rank decodes together
OUTPUT = 60        # the longest answer, tokens
FIXED = ["custom_id", "status", "error", "finish_reason", "prompt_tokens", "output_tokens",
         "output_offset"]
LAYOUTS = [
    (1, {"mixed": {"ep": 1, "max_batch": BATCH}}),
    (2, {"mixed": {"ep": 2, "max_batch": BATCH}}),
    (2, {"prefill": {"ep": 1}, "decode": {"ep": 1, "max_batch": BATCH}}),
    (2, {"mixed": {"units": 2, "ep": 1, "max_batch": BATCH}, "ranks_per_node": 1}),
]


def write_tokens(path, count):
    """Prompts of up to 90 tokens, some with a common beginning; greedy and sampled, with logprobs."""
    dice = np.random.default_rng(1)
    common = dice.integers(8, 120, 70).tolist()
    with open(path, "w", encoding="utf-8") as out:
        for i in range(count):
            prompt = dice.integers(8, 120, (5, 40, 90)[i % 3]).tolist()
            body = {"prompt": common + prompt[:9] if i % 4 == 3 else prompt,
                    "max_tokens": 4 + i * 7 % (OUTPUT - 3), "ignore_eos": True,
                    "logprobs": i % 2 == 0, "temperature": 0.7 * (i % 3 == 0)}
            out.write(json.dumps({"custom_id": f"r{i}", "method": "POST",
                                  "url": "/v1/completions", "body": body}) + "\n")


def fixed(path):
    """All bytes that must not depend on layout or interruptions."""
    with h5py.File(path, "r") as f:
        table = f["requests"][:]
        assert f.attrs["status"] == "complete"
        return ({f"outputs/{k}": v[:].tobytes() for k, v in f["outputs"].items()} |
                {k: table[k].tobytes() for k in FIXED})


class Attempt:
    """One start of a job, in the background."""

    def __init__(self, job, ranks, keys, build, resume):
        self.job, self.mark = job, uuid.uuid4().hex
        self.err_path = job.folder / "stderr"
        path = job.folder / "job.yaml"
        path.write_text(json.dumps(job.keys | keys), encoding="utf-8")
        command = [str(ROOT / "scripts/mpirun.sh"), "-np", str(ranks), str(build / "moebatch"),
                   "run", str(path), *(["--resume"] if resume else [])]
        with open(self.err_path, "wb") as err:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=err,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
                     "MOEBATCH_KILL_TEST": self.mark})

    def log(self):
        return self.err_path.read_text(encoding="utf-8", errors="replace")

    def pids(self):
        """Ranks: children of mpirun, in the order it started them."""
        with contextlib.suppress(OSError):
            text = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children"
                                ).read_text(encoding="ascii")
            return [int(x) for x in text.split()]
        return []

    def left(self):
        found, mark = [], f"MOEBATCH_KILL_TEST={self.mark}".encode()
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def until(self, ready, limit=60):
        """Polls as fast as it can; False when the job ended before."""
        end = time.monotonic() + limit
        while not ready():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > end:
                raise TimeoutError(f"the job does not get on\n{self.log()}")
            time.sleep(0.0005)
        return True

    def kill(self, victim, dice):
        pids = self.pids()
        if victim == "one rank" and pids:
            pids = [dice.choice(pids)]
        elif victim == "mpirun too" or not pids:
            pids = [self.process.pid, *pids]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self, limit=300):
        """mpirun's exit code, None when it did not end; nothing of the job is left."""
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None
        finally:
            for pid in self.left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            while self.left():
                time.sleep(0.005)
        return self.process.returncode


class Job:
    """One token file that is worked on until all its results are there."""

    def __init__(self, folder, tokens, fsync_s, model):
        folder.mkdir()
        self.folder, self.h5 = folder, folder / "r.h5"
        self.journal, self.responses = folder / "r.journal", folder / "r.jsonl"
        self.keys = {"model": str(model), "tokens": str(tokens), "results": str(self.h5),
                     "responses": str(self.responses), "threads_per_rank": 1,
                     "journal_fsync_s": fsync_s, "sampling": {"logprobs": True}}

    def segments(self):
        return sorted(self.journal.glob("*.seg"))

    def bytes(self):
        return sum(p.stat().st_size for p in self.segments())

    def records(self):
        return {r.index: r.segment for r in read_journal(self.journal, check=False)[0]
                if r.kind == REQUEST}

    def answered(self):
        """custom_ids of whole lines that a reader of the responses has seen."""
        if not self.responses.exists():
            return set()
        lines = self.responses.read_text(encoding="utf-8").split("\n")[:-1]
        return {int(json.loads(x)["custom_id"][1:]) for x in lines}


class Test:
    def __init__(self, args, folder):
        self.args, self.folder, self.dice = args, folder, random.Random(args.seed)
        self.kills, self.victims = collections.Counter(), collections.Counter()
        self.lost, self.computed, self.scans, self.jobs = [], 0, [], 0
        self.start_s, self.bad, self.again, self.hung = 1.0, [], 0, 0
        self.tokens = folder / "tokens.jsonl"
        write_tokens(self.tokens, args.requests)

    def undisturbed(self):
        job = Job(self.folder / "undisturbed", self.tokens, 5, self.args.model)
        begin = time.monotonic()
        attempt = Attempt(job, *LAYOUTS[0], self.args.build, False)
        attempt.until(lambda: "] files:" in attempt.log())
        self.start_s = time.monotonic() - begin
        if attempt.end(300) != 0:
            sys.exit(f"the undisturbed run fails\n{attempt.log()}")
        return fixed(job.h5)

    def wait_for(self, attempt, moment, before):
        """Until the moment has come; False when the job ended before."""
        job, dice = attempt.job, self.dice
        if moment == "start":
            begin, after = time.monotonic(), dice.uniform(0, self.start_s)
            return attempt.until(lambda: time.monotonic() - begin > after)
        if moment == "resume":
            lock = pathlib.Path(f"{job.h5}.lock")
            after = dice.uniform(0, 0.03)
            return attempt.until(lambda: lock.exists()) and (time.sleep(after) or True)
        if moment == "results":
            temporary = pathlib.Path(f"{job.h5}.tmp")
            temporary.unlink(missing_ok=True)
            return attempt.until(lambda: temporary.exists())
        if not attempt.until(lambda: len(job.segments()) > before):
            return False
        if moment == "append":  # the instant that bytes arrive in the file
            size, more = job.bytes(), dice.randint(200, 20000)
            return attempt.until(lambda: job.bytes() >= size + more)
        begin, after = time.monotonic(), dice.uniform(0, 1)
        return attempt.until(lambda: time.monotonic() - begin > after)

    def check_journal(self, job, earlier, seen):
        """What had a record keeps it, where it was; what a reader had seen has one."""
        now = job.records()
        if any(now.get(i) != s for i, s in earlier.items()):
            self.bad.append(f"{job.folder}: a finished request has lost its record")
        if not seen <= now.keys():
            self.bad.append(f"{job.folder}: answers {sorted(seen - now.keys())} were given out "
                            "and are not in the journal")
        return now

    def one_attempt(self, job, moment, resume):
        """True: it was killed, False: it ended by itself, rightly."""
        before = len(job.segments())
        ranks, keys = self.dice.choice(LAYOUTS)
        victim = self.dice.choice(VICTIMS)
        attempt = Attempt(job, ranks, keys, self.args.build, resume)
        came = moment and self.wait_for(attempt, moment, before)
        if came:
            attempt.kill(victim, self.dice)
        code = attempt.end(30 if came else 300)
        if code is None:
            # mpirun that loses a rank while it connects to it may wait for ever (openmpi 4.1.4): its
            # ranks are still in MPI_Init and cannot know.
            self.hung += 1
            if not came or "] job and model" in attempt.log():
                self.bad.append(f"{job.folder}: does not end\n{attempt.log()[-1500:]}")
        found = re.search(r"\] files: ([\d.]+) s", attempt.log())
        if found and resume:
            self.scans.append(float(found.group(1)))
        if came and code != 0:
            self.kills[moment] += 1
            self.victims[victim] += 1
            return True
        if code != 0:
            self.bad.append(f"{job.folder}: exit {code}\n{attempt.log()[-1500:]}")
        return False

    def one_job(self, expected):
        """A dozen kills or so, then to the end."""
        self.jobs += 1
        job = Job(self.folder / f"job{self.jobs}", self.tokens, self.dice.choice([0, 0.2, 5]),
                  self.args.model)
        records, left = {}, self.dice.randint(8, 16)
        resume = False
        while not self.bad:
            enough = left <= 0 or sum(self.kills.values()) >= self.args.kills
            moment = None if enough else self.dice.choice(MOMENTS[:4])
            if not enough and (left <= 2 or len(records) == self.args.requests):
                moment = "results"  # the last kills of a job, which is let go on until then
            killed = self.one_attempt(job, moment, resume)
            records = self.check_journal(job, records, job.answered())
            left -= 1
            resume = True
            if not killed:
                break
        if not self.bad:
            self.check_end(job, expected)

    def check_end(self, job, expected):
        if fixed(job.h5) != expected:
            self.bad.append(f"{job.folder}: other results than those of an undisturbed run")
        found, _ = read_journal(job.journal, check=False)
        counts = collections.Counter(r.index for r in found if r.kind == REQUEST)
        self.again += sum(n - 1 for n in counts.values())
        if sorted(counts) != list(range(self.args.requests)) or set(counts.values()) != {1}:
            self.bad.append(f"{job.folder}: not every request has one record")
        if job.answered() != set(range(self.args.requests)):
            self.bad.append(f"{job.folder}: the responses are not complete")
        with h5py.File(job.h5, "r") as f:
            attempts = f["attempts"][:]
        for x in attempts:
            tokens = int(x["prefill_tokens"] + x["decode_tokens"])
            lost = int(x["prefill_tokens_lost"] + x["decode_tokens_lost"])
            self.computed += tokens
            if x["outcome"] != b"complete":
                rate = tokens / max(float(x["wall_s"]), 0.1)
                self.lost.append((lost, rate * job.keys["journal_fsync_s"]))

    def report(self):
        kills = sum(self.kills.values())
        lost = [x for x, _ in self.lost] or [0]
        # In flight: what a rank decodes and a quarter more, and prompts queued for it.
        flight = 2 * (BATCH * 5 // 4 + 1) * (160 + OUTPUT)
        over = sum(x > flight + y for x, y in self.lost)
        print(f"# {kills} kills survived by {self.jobs} jobs of {self.args.requests} requests, "
              f"seed {self.args.seed}")
        print("# " + ", ".join(f"{m} {self.kills[m]}" for m in MOMENTS))
        print("# " + ", ".join(f"{v} {self.victims[v]}" for v in VICTIMS))
        print(f"# finished requests computed again: {self.again}")
        if self.hung:
            print(f"# mpirun did not end {self.hung} times after a rank was killed before MPI_Init was "
                  "over")
        print(f"# tokens lost for a kill: mean {np.mean(lost):.0f}, median {np.median(lost):.0f}, "
              f"most {max(lost)}; in flight at most {flight}, more than that and a fsync interval: "
              f"{over}; {sum(lost)} of {self.computed} computed in all")
        if self.scans:
            print(f"# reading the journal on resume: median {np.median(self.scans):.2f} s, most "
                  f"{max(self.scans):.2f} s ({len(self.scans)} times)")
        for text in self.bad:
            print(f"# WRONG: {text}")
        print("# RIGHT: all results are those of an undisturbed run" if not self.bad else
              f"# WRONG; everything is kept in {self.folder}")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--kills", type=int, default=200)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--requests", type=int, default=1500, help="of one job")
    p.add_argument("--model", type=pathlib.Path, default=ROOT / "tests" / "golden" / "v3")
    p.add_argument("--build", type=pathlib.Path, default=ROOT / os.environ.get("BUILD", "build"))
    args = p.parse_args()
    if not (args.build / "moebatch").exists():
        p.error(f"{args.build}/moebatch is missing: run make")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="moebatch-kill-"))
    test = Test(args, folder)
    expected = test.undisturbed()
    while sum(test.kills.values()) < args.kills and not test.bad:
        test.one_job(expected)
    test.report()
    if not test.bad:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
    return 1 if test.bad else 0


if __name__ == "__main__":
    sys.exit(main())
