#!/usr/bin/env python3
"""What the prefix cache and the order of sending save on conversations: one token file, answered
with the cache off, in memory (by file and by prefix), and on disk by two jobs after each other.

  scripts/multi_turn.py                        inputs/prompts/multi-turn.jsonl, demo model, 2 ranks
  scripts/multi_turn.py --ranks 4 --pages 64 --folder DIR --build build

Prints a line for each job: prompt tokens computed and found, time, time to the first token, and the
account (a rank is billed as one GPU). Tokens found earn the hit price, so revenue falls where cost
falls. Ends with 0 when all jobs gave the same answers. Needs python3 with h5py, mpirun and the built
program; the disk's jobs are left out where the program has no key kv.disk.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import h5py

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOKENS = ROOT / "inputs" / "prompts" / "multi-turn.jsonl"
MODEL = ROOT / "inputs" / "models" / "kjv-demo"
COLUMNS = [("job", "s"), ("computed", "d"), ("found", "d"), ("hit %", ".1f"), ("seconds", ".2f"),
           ("TTFT s", ".3f"), ("cost $", ".3e"), ("revenue $", ".3e"), ("profit $", ".3e")]


def has_disk(build):
    keys = subprocess.run([str(build / "moebatch"), "run", "--help"], capture_output=True,
                          text=True, check=True).stdout
    return "kv.disk.dir" in keys


def cases(folder, build, pages):
    """Name and keys of each job, in the order in which they run."""
    def kv(**keys):
        return {"pages_per_rank": pages, **keys}
    found = [("cache off", {"kv": kv(prefix_cache="off")}),
             ("memory, file order", {"kv": kv(), "order": "file"}),
             ("memory, by prefix", {"kv": kv(), "order": "prefix"})]
    if has_disk(build):
        disk = kv(disk={"dir": str(folder / "kv"), "bytes": 1_000_000_000, "write": "all"})
        found += [("disk, first job", {"kv": disk}), ("disk, second job", {"kv": disk})]
    return found


def answers(path):
    with h5py.File(path) as f:
        return f["outputs/tokens"][:].tobytes(), f["outputs/offsets"][:].tobytes()


def figures(name, path):
    with h5py.File(path) as f:
        requests, t, account = f["requests"][:], f["throughput"][0], f["account"][0]
        seconds = f["attempts"]["wall_s"].sum()
    prompt, found = int(requests["prompt_tokens"].sum()), int(requests["cached_tokens"].sum())
    return {"job": name, "computed": int(t["prefill_tokens"]), "found": found,
            "hit %": 100 * found / prompt, "seconds": float(seconds),
            "TTFT s": float(t["ttft_mean_s"]), "cost $": float(account["cost_usd"]),
            "revenue $": float(account["revenue_usd"]), "profit $": float(account["profit_usd"])}


def run(folder, build, name, keys, ranks, tokens):
    """One job; returns its results file."""
    stem = folder / name.replace(", ", "-").replace(" ", "-")
    results = f"{stem}.h5"
    job = {"model": str(MODEL), "tokens": str(tokens), "results": results, "threads_per_rank": 1,
           "mixed": {"ep": ranks, "chunk_tokens": 512, "max_batch": 4}, **keys}
    path = pathlib.Path(f"{stem}.yaml")
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [str(ROOT / "scripts" / "mpirun.sh"), "-np", str(ranks), str(build / "moebatch"),
               "run", str(path), "--force"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{name}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return results


def run_all(folder, build, ranks, pages, tokens=TOKENS):
    """Figures of all jobs, and whether their answers are the same bytes."""
    rows, first, same = [], None, True
    for name, keys in cases(folder, build, pages):
        results = run(folder, build, name, keys, ranks, tokens)
        rows.append(figures(name, results))
        first = first or answers(results)
        same = same and answers(results) == first
    return rows, same


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--ranks", type=int, default=2)
    p.add_argument("--pages", type=int, default=48, help="KV pages of a rank (64 tokens each)")
    p.add_argument("--folder", type=pathlib.Path, help="default: a temporary one, removed after")
    p.add_argument("--build", type=pathlib.Path, default=ROOT / os.environ.get("BUILD", "build"))
    args = p.parse_args()
    if not (args.build / "moebatch").exists():
        p.error(f"{args.build}/moebatch is missing: run make")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or pathlib.Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        rows, same = run_all(folder, args.build, args.ranks, args.pages)
    print("# " + " ".join(f"{name:>10}" if i else f"{name:18}"
                          for i, (name, _) in enumerate(COLUMNS)))
    for row in rows:
        print("  " + " ".join(f"{row[name]:>10{form}}" if i else f"{row[name]:18}"
                              for i, (name, form) in enumerate(COLUMNS)))
    if not has_disk(args.build):
        print("# no key kv.disk in this build: the disk's two jobs were left out")
    print(f"# answers of all jobs: {'the same bytes' if same else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
