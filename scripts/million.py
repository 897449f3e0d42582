#!/usr/bin/env python3
"""A token file of very many tiny requests, answered by a tiny model: how much memory rank 0 needs
for each request, and how many requests a second the program's own work allows.

  scripts/million.py                        a million requests on one rank, into a temporary folder
  scripts/million.py --requests 60000 --ranks 2 --folder DIR --build build
  scripts/million.py --resume               the same, killed at about half and resumed

Rank 0 streams the requests and keeps 24 bytes for each (where its line and where its record are), a
little more while it looks for equal custom_ids at the start. The window of requests that are read
ahead to find those that begin alike has one size whatever the file's length. The figures printed
here show it: its peak resident memory beside that of the same job with 20,000 requests, by when
buffers and window are full.
Needs nothing but python3, mpirun and the built program.
"""
import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = ROOT / "tests" / "golden" / "v3-top1"
FEW = 20_000  # more than the window holds; the smaller job that it is compared with
RECORD_BYTES = 112  # of one of these requests in the journal, about


def write_tokens(path, count):
    """Prompts of one to three tokens, one token to generate."""
    with open(path, "w", encoding="utf-8") as out:
        for i in range(count):
            prompt = [8 + (i * 7 + k * 13) % 150 for k in range(1 + i % 3)]
            out.write('{"custom_id":"r%d","method":"POST","url":"/v1/completions","body":'
                      '{"prompt":%s,"max_tokens":1}}\n' % (i, json.dumps(prompt)))


def measured(path, command):
    """Runs one rank and writes its peak resident memory, KiB; ranks start this file with --rank."""
    pid = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    rank = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
    pathlib.Path(f"{path}.{rank}").write_text(str(usage.ru_maxrss), encoding="ascii")
    return os.waitstatus_to_exitcode(status) & 255


def kill_at_half(command, results, count):
    """Runs a job until its journal holds half of `count` records, roughly, and kills its ranks."""
    journal = results.with_suffix(".journal")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    half = count // 2 * RECORD_BYTES
    while process.poll() is None and sum(p.stat().st_size for p in journal.glob("*.seg")) < half:
        time.sleep(0.01)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:  # each a python3 that waits for its rank
        for rank in pathlib.Path(f"/proc/{child}/task/{child}/children").read_text().split():
            os.kill(int(rank), signal.SIGKILL)
    said = process.communicate()[1].decode()
    if process.returncode == 0:
        sys.exit("the job ended before it could be killed: take more requests")
    return said


def read_seconds(files):
    """A plain sequential read, MiB by MiB."""
    begin = time.process_time()
    for path in files:
        with open(path, "rb", buffering=0) as f:
            while f.read(1 << 20):
                pass
    return time.process_time() - begin


def resumed(all_):
    """What the resumed job said of its start."""
    journal = pathlib.Path(all_["results"]).with_suffix(".journal")
    files = sorted(journal.glob("*.seg"))
    first = files[0].stat().st_size
    done, wanted = re.search(r"attempt 2, (\d+) of (\d+) requests", all_["err"]).groups()
    scan = float(re.search(r"of journal read in ([\d.]+) s", all_["err"]).group(1))
    plain = min(read_seconds(files[:1]) for _ in range(3))
    start = float(re.search(r"\] files: ([\d.]+) s", all_["err"]).group(1))
    print(f"# killed and resumed: {done} of {wanted} had finished, journal {first / 2**20:.1f} MiB, "
          f"{first / int(done):.1f} bytes for each")
    print(f"# its records read and checked in {scan:.2f} s, {first / 1e6 / scan:.0f} MB/s; a plain "
          f"read takes {plain:.3f} s of CPU time, {first / 1e6 / plain:.0f} MB/s; with the token "
          f"file's index and the responses written again {start:.2f} s")


def run(folder, count, ranks, build, responses=True, timeout=None, resume=False):
    """Answers `count` requests; returns the figures as a dict."""
    tokens, peak = folder / f"{count}.jsonl", folder / f"{count}.peak"
    write_tokens(tokens, count)
    job = {
        "model": str(MODEL), "tokens": str(tokens), "results": str(folder / f"{count}.h5"),
        "mixed": {"ep": ranks, "chunk_tokens": 1024, "max_batch": 256}, "threads_per_rank": 1,
        # All of the pool is touched by few requests already, so that it is no part of the slope.
        "kv": {"pages_per_rank": 1024, "page_tokens": 1, "prefix_cache": "off"},
        # Requests pass through the window that orders them, with pages to tell them apart.
        "order": "prefix",
    }
    if responses:
        job["responses"] = str(folder / f"{count}.out.jsonl")
    path = folder / f"{count}.yaml"
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [str(ROOT / "scripts" / "mpirun.sh"), "-np", str(ranks), sys.executable, __file__,
               "--rank", str(peak), str(build / "moebatch"), "run", str(path), "--force"]
    if resume:
        kill_at_half(command, pathlib.Path(job["results"]), count)
        command[-1] = "--resume"
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT,
                          timeout=timeout)
    seconds = time.monotonic() - begin
    if done.returncode:
        sys.exit(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    lines = 0
    if responses:
        with open(job["responses"], encoding="utf-8") as answers:
            lines = sum(1 for _ in answers)
    return {"requests": count, "seconds": seconds, "responses": lines, "out": done.stdout, "err": done.stderr,
            "peak_bytes": 1024 * int(pathlib.Path(f"{peak}.0").read_text(encoding="ascii")),
            "results": job["results"]}


def main():
    if sys.argv[1:2] == ["--rank"]:
        return measured(sys.argv[2], sys.argv[3:])
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--requests", type=int, default=1_000_000)
    p.add_argument("--ranks", type=int, default=1)
    p.add_argument("--resume", action="store_true", help="kill the job at half and resume it")
    p.add_argument("--folder", type=pathlib.Path, help="default: a temporary one, removed after")
    p.add_argument("--build", type=pathlib.Path, default=ROOT / os.environ.get("BUILD", "build"))
    args = p.parse_args()
    if args.requests <= FEW:
        p.error(f"--requests: {args.requests} is not more than {FEW}")
    if not (args.build / "moebatch").exists():
        p.error(f"{args.build}/moebatch is missing: run make")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        few = run(folder, FEW, args.ranks, args.build)
        all_ = run(folder, args.requests, args.ranks, args.build, resume=args.resume)
        beyond = all_["peak_bytes"] - few["peak_bytes"]
        results = os.path.getsize(all_["results"])
        print(all_["out"])
        if args.resume:
            resumed(all_)
    print(f"# {args.requests} requests on {args.ranks} rank(s): {all_['seconds']:.1f} s, "
          f"{args.requests / all_['seconds']:.0f} requests/s, {all_['responses']} responses")
    print(f"# rank 0: {all_['peak_bytes'] / 2**20:.1f} MiB at most, {beyond / 2**20:.1f} MiB "
          f"more than with {FEW} requests, {beyond / (args.requests - FEW):.1f} bytes for each "
          "further one")
    print(f"# results file: {results / 2**20:.1f} MiB, {results / args.requests:.1f} bytes for "
          "each request")
    return 0 if all_["responses"] == args.requests else 1


if __name__ == "__main__":
    sys.exit(main())
