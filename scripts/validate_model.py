#!/usr/bin/env python3
"""Predicted against measured: calibrates this host, predicts and runs jobs that calibration has not
seen, and compares prefill and decode tokens/s.

    scripts/validate_model.py [--quick] [--rounds N] [--out outputs/validate] [--jobs NAME,...]

Each round calibrates (alone, then with mpirun for 2 ranks), then runs every job once, so that both
see the same state of the machine; a figure is the median over the rounds, its spread (largest -
smallest) / median. Jobs whose ranks x threads exceed the cores are listed apart and not judged.
Writes OUT.csv, OUT.json and the scatter plot OUT.png (needs matplotlib). Wants an idle machine:
prints the load average, and every figure's spread tells. Exit code 1 when the goal is missed.
"""
import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.environ.get("BUILD", os.path.join(ROOT, "build"))
PROGRAM = os.path.join(BUILD, "moebatch")
GOAL_MEDIAN, GOAL_WORST = 0.10, 0.25

MODELS = {
    "demo": None,
    "bf16": "--like deepseek-v3 --layers 6 --first-dense 1 --vocab 4096 --hidden 512 --heads 8 "
            "--q-lora 256 --kv-lora 128 --dim-nope 64 --dim-v 64 --dim-rope 32 --intermediate 1024 "
            "--moe-intermediate 256 --experts 32 --shared-experts 1 --topk 4 --n-group 4 "
            "--topk-group 2 --max-positions 2048 --seed 3",
    "fp8": "--like deepseek-v3 --dtype fp8 --layers 5 --first-dense 1 --vocab 8192 --hidden 1024 "
           "--heads 16 --q-lora 384 --kv-lora 256 --dim-nope 64 --dim-v 64 --dim-rope 32 "
           "--intermediate 2048 --moe-intermediate 256 --experts 64 --shared-experts 1 --topk 6 "
           "--n-group 8 --topk-group 4 --max-positions 2048 --seed 5",
    "lite": "--like deepseek-v2-lite --layers 8 --first-dense 1 --vocab 2048 --hidden 768 "
            "--heads 6 --q-lora 0 --kv-lora 192 --dim-nope 64 --dim-v 64 --dim-rope 32 "
            "--intermediate 1536 --moe-intermediate 384 --experts 16 --shared-experts 2 --topk 2 "
            "--max-positions 2048 --seed 7",
}
VOCAB = {"demo": 3072, "bf16": 4096, "fp8": 8192, "lite": 2048}


def job(name, model, units, threads, requests, prompt, output, vary=0, **keys):
    """units: (ranks of a mixed unit,) or (prefill ranks, decode ranks)."""
    return {"name": name, "model": model, "units": units, "threads": threads,
            "requests": requests, "prompt": prompt, "output": output, "vary": vary, "keys": keys}


JOBS = [
    job("demo-1", "demo", (1,), 2, 4, 64, 120, max_batch=1, chunk_tokens=256),
    job("demo-32", "demo", (1,), 2, 64, 48, 60, vary=60, max_batch=32, chunk_tokens=512),
    job("demo-ep2", "demo", (2,), 1, 64, 100, 50, vary=80, max_batch=16, chunk_tokens=256),
    job("demo-split", "demo", (1, 1), 1, 64, 120, 40, vary=40, max_batch=16, chunk_tokens=512),
    job("bf16-8", "bf16", (1,), 2, 24, 200, 50, vary=100, max_batch=8, chunk_tokens=512),
    job("bf16-64", "bf16", (1,), 2, 96, 60, 40, vary=30, max_batch=64, chunk_tokens=1024,
        microbatches=1),
    job("bf16-ep2", "bf16", (2,), 1, 48, 150, 40, vary=50, max_batch=16, chunk_tokens=512,
        overlap="false"),
    job("bf16-ep2-o", "bf16", (2,), 1, 32, 100, 40, max_batch=4, chunk_tokens=256),
    job("fp8-1", "fp8", (1,), 2, 2, 300, 60, max_batch=1, chunk_tokens=512),
    job("fp8-16", "fp8", (1,), 2, 32, 400, 30, vary=200, max_batch=16, chunk_tokens=1024),
    job("fp8-ep2", "fp8", (2,), 1, 32, 200, 30, vary=50, max_batch=16, chunk_tokens=512),
    job("lite-4", "lite", (1,), 1, 12, 250, 40, vary=100, max_batch=4, chunk_tokens=256,
        microbatches=1),
    job("lite-split", "lite", (1, 1), 1, 48, 120, 30, vary=60, max_batch=32, chunk_tokens=512),
    job("lite-ep2", "lite", (2,), 1, 96, 80, 30, vary=30, max_batch=64, chunk_tokens=512,
        microbatches=1),
    job("bf16-ep4", "bf16", (4,), 1, 32, 100, 20, max_batch=8, chunk_tokens=256),
]


def ranks(j):
    return sum(j["units"])


def call(args, np=1):
    if np > 1:
        args = [os.path.join(ROOT, "scripts/mpirun.sh"), "-np", str(np)] + args
    env = dict(os.environ, OMPI_MCA_rmaps_base_oversubscribe="1")
    p = subprocess.run(args, cwd=ROOT, env=env, capture_output=True, text=True)
    if p.returncode != 0:
        sys.exit(f"failed ({p.returncode}): {' '.join(args)}\n{p.stdout[-2000:]}{p.stderr[-2000:]}")
    return p.stdout


def make_models(folder, wanted):
    paths = {"demo": "inputs/models/kjv-demo"}
    for name in wanted - {"demo"}:
        paths[name] = os.path.join(folder, name)
        call([PROGRAM, "model", "make", "--out", paths[name]] + MODELS[name].split())
    return paths


def write_tokens(path, j):
    """Prompts that share no page, lengths spread evenly over [prompt, prompt + vary)."""
    with open(path, "w") as f:
        for i in range(j["requests"]):
            n = j["prompt"] + (i * 37 % j["vary"] if j["vary"] else 0)
            tokens = [2 + (i * 7919 + t * 31 + t * t * i) % (VOCAB[j["model"]] - 2)
                      for t in range(n)]
            f.write(json.dumps({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions",
                                "body": {"max_tokens": j["output"], "prompt": tokens}}) + "\n")


def write_job(folder, j, model):
    base = os.path.join(folder, j["name"])
    write_tokens(base + ".jsonl", j)
    k = dict(j["keys"])
    both = {x: k[x] for x in ("microbatches", "overlap") if x in k}
    chunk, batch = {"chunk_tokens": k["chunk_tokens"]}, {"max_batch": k["max_batch"]}
    if len(j["units"]) == 1:
        roles = {"mixed": {"units": 1, "ep": j["units"][0], **chunk, **batch, **both}}
    else:
        roles = {"prefill": {"units": 1, "ep": j["units"][0], **chunk, **both},
                 "decode": {"units": 1, "ep": j["units"][1], **batch, **both}}
    with open(base + ".yaml", "w") as f:
        f.write(f"model: {model}\ntokens: {base}.jsonl\nresults: {base}.h5\n"
                f"threads_per_rank: {j['threads']}\n")
        for role, keys in roles.items():
            f.write(f"{role}: {{{', '.join(f'{a}: {b}' for a, b in keys.items())}}}\n")
        f.write("kv: {prefix_cache: \"off\"}\nsampling: {ignore_eos: true, temperature: 0}\n")
    return base


def measured(h5py, path):
    with h5py.File(path) as f:
        t = f["throughput"][0]
        return {"prefill": float(t["prefill_tokens_per_s"]),
                "decode": float(t["decode_tokens_per_s"])}


def predicted(h5py, path):
    with h5py.File(path) as f:
        rows = {r["figure"].decode(): float(r["predicted"]) for r in f["published"][:]}
    return {"prefill": rows["prefill_tokens_per_s"], "decode": rows["decode_tokens_per_s"]}


def calibrate(hardware, quick, sizes):
    more = ["--quick"] if quick else []
    text = call([PROGRAM, "calibrate", "--fresh", "--output", hardware] + more)
    for n in sorted(sizes - {1}):
        text += call([PROGRAM, "calibrate", "--output", hardware] + more, n)
    return text


def spread(values):
    return (max(values) - min(values)) / statistics.median(values)


def summarise(jobs, samples, cores):
    rows = []
    for j in jobs:
        for phase in ("prefill", "decode"):
            s = samples[j["name"]]
            m = [x[phase] for x in s["measured"] if x[phase] == x[phase]]
            p = [x[phase] for x in s["predicted"] if x[phase] == x[phase]]
            if not m or not p:
                continue
            mm, pm = statistics.median(m), statistics.median(p)
            rows.append({"job": j["name"], "phase": phase, "ranks": ranks(j),
                         "threads": j["threads"], "layout": "+".join(map(str, j["units"])),
                         "batch": j["keys"]["max_batch"], "measured": mm, "predicted": pm,
                         "error": pm / mm - 1, "measured_spread": spread(m),
                         "predicted_spread": spread(p),
                         "oversubscribed": ranks(j) * j["threads"] > cores})
    return rows


def print_rows(rows):
    print(f"# {'job':<12} {'phase':<8} {'layout':>6} {'thr':>3} {'batch':>5} {'measured':>10} "
          f"{'spread':>7} {'predicted':>10} {'spread':>7} {'error':>7}")
    for r in rows:
        print(f"  {r['job']:<12} {r['phase']:<8} {r['layout']:>6} {r['threads']:>3} "
              f"{r['batch']:>5} {r['measured']:>10.1f} {r['measured_spread']:>6.1%} "
              f"{r['predicted']:>10.1f} {r['predicted_spread']:>6.1%} {r['error']:>+7.1%}")


def verdict(rows):
    errors = [abs(r["error"]) for r in rows if not r["oversubscribed"]]
    median, worst = statistics.median(errors), max(errors)
    names = {r["job"] for r in rows if not r["oversubscribed"]}
    print(f"# {len(names)} jobs, {len(errors)} figures: median error {median:.1%} (goal "
          f"{GOAL_MEDIAN:.0%}), worst {worst:.1%} (goal {GOAL_WORST:.0%})")
    return median, worst


def write_files(out, rows, info):
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with open(out + ".csv", "w", newline="") as f:
        w = csv.DictWriter(f, list(rows[0]))
        w.writeheader()
        w.writerows(rows)
    with open(out + ".json", "w") as f:
        json.dump({**info, "rows": rows}, f, indent=1)
    print(f"# written: {out}.csv {out}.json")


def draw(out, rows, info):
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        print("# no scatter plot: matplotlib is missing (apt-get install python3-matplotlib)")
        return
    fig, ax = plt.subplots(figsize=(6.5, 6))
    values = [r[k] for r in rows for k in ("measured", "predicted")]
    lo, hi = min(values) / 1.5, max(values) * 1.5
    ax.fill_between([lo, hi], [lo * .75, hi * .75], [lo * 1.25, hi * 1.25], color="#eeeeee",
                    label="within 25 %")
    ax.fill_between([lo, hi], [lo * .9, hi * .9], [lo * 1.1, hi * 1.1], color="#d8e4ee",
                    label="within 10 %")
    ax.plot([lo, hi], [lo, hi], color="#888888", linewidth=0.8)
    for phase, marker, colour in (("prefill", "o", "#c05020"), ("decode", "s", "#2060a0")):
        for over in (False, True):
            pick = [r for r in rows if r["phase"] == phase and r["oversubscribed"] == over]
            if pick:
                ax.scatter([r["measured"] for r in pick], [r["predicted"] for r in pick],
                           marker=marker, s=28, edgecolors=colour,
                           facecolors="none" if over else colour,
                           label=phase + (", more threads than cores" if over else ""))
    ax.set(xscale="log", yscale="log", xlim=(lo, hi), ylim=(lo, hi), xlabel="measured tokens/s",
           ylabel="predicted tokens/s",
           title=f"median error {info['median_error']:.1%}, worst {info['worst_error']:.1%}")
    ax.legend(loc="upper left", fontsize=8)
    fig.tight_layout()
    fig.savefig(out + ".png", dpi=120)
    print(f"# drawn: {out}.png")


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--quick", action="store_true", help="two rounds, quick calibration")
    ap.add_argument("--rounds", type=int, help="default 5, quick 2")
    ap.add_argument("--out", default=os.path.join(ROOT, "outputs/validate"))
    ap.add_argument("--jobs", help="only these, by name")
    ap.add_argument("--keep", action="store_true", help="keep models, jobs and results")
    a = ap.parse_args()
    try:
        import h5py
    except ImportError:
        sys.exit("python3-h5py is missing: scripts/bootstrap.sh installs it")
    names = a.jobs.split(",") if a.jobs else [j["name"] for j in JOBS]
    jobs = [j for j in JOBS if j["name"] in names]
    if not jobs:
        sys.exit(f"--jobs: none of {', '.join(j['name'] for j in JOBS)}")
    cores = len(os.sched_getaffinity(0))
    rounds = a.rounds or (2 if a.quick else 5)
    folder = tempfile.mkdtemp(prefix="moebatch-validate-")
    begin = time.time()
    samples = {j["name"]: {"measured": [], "predicted": []} for j in jobs}
    try:
        models = make_models(folder, {j["model"] for j in jobs})
        bases = {j["name"]: write_job(folder, j, models[j["model"]]) for j in jobs}
        hardware = os.path.join(folder, "host.yaml")
        sizes = {max(j["units"]) for j in jobs}
        for r in range(rounds):
            print(f"# round {r + 1} of {rounds}, {time.time() - begin:.0f} s, load average "
                  f"{os.getloadavg()[0]:.1f}", flush=True)
            calibrate(hardware, a.quick, sizes)
            for j in jobs:
                base = bases[j["name"]]
                call([PROGRAM, "study", base + ".yaml", "--hardware", hardware, "--output",
                      base + ".study.h5", "--force"])
                call([PROGRAM, "run", base + ".yaml", "--force"], ranks(j))
                samples[j["name"]]["predicted"].append(predicted(h5py, base + ".study.h5"))
                samples[j["name"]]["measured"].append(measured(h5py, base + ".h5"))
    finally:
        if not a.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"# kept: {folder}")
    rows = summarise(jobs, samples, cores)
    print_rows([r for r in rows if not r["oversubscribed"]])
    over = [r for r in rows if r["oversubscribed"]]
    if over:
        print("# more threads than cores, not judged:")
        print_rows(over)
    judged = [r for r in rows if not r["oversubscribed"]]
    if not judged:
        sys.exit("# no job fits this host's cores")
    median, worst = verdict(rows)
    info = {"median_error": median, "worst_error": worst, "rounds": rounds, "cores": cores,
            "seconds": time.time() - begin, "samples": samples}
    write_files(a.out, rows, info)
    draw(a.out, rows, info)
    print(f"# {info['seconds']:.0f} s")
    return 0 if median <= GOAL_MEDIAN and worst <= GOAL_WORST else 1


if __name__ == "__main__":
    sys.exit(main())
