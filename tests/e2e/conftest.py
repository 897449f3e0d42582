"""Helpers of the end-to-end tests: write a token file and a job, run moebatch, read the results.

A test drives the program as a user does: scripts/mpirun.sh -np N build/moebatch run JOB.yaml.
BUILD=dir picks another build folder.
"""
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import h5py
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
DEMO = ROOT / "inputs" / "models" / "kjv-demo"
BINARY = pathlib.Path(os.environ.get("BUILD", "build"))
BINARY = (BINARY if BINARY.is_absolute() else ROOT / BINARY) / "moebatch"
MPIRUN = ROOT / "scripts" / "mpirun.sh"
sys.path.append(str(ROOT / "scripts"))

# Columns of /requests that depend on the model and the token file alone.
FIXED_COLUMNS = ["custom_id", "status", "error", "finish_reason", "prompt_tokens",
                 "output_tokens", "output_offset"]


@dataclasses.dataclass
class Run:
    code: int
    out: str
    err: str
    h5: pathlib.Path
    responses: pathlib.Path

    def ok(self):
        assert self.code == 0, f"exit {self.code}\n{self.out}\n{self.err}"
        return self

    def failed(self, code, *texts):
        """Ended with this exit code, and its message says all of `texts`."""
        assert self.code == code, f"exit {self.code}, expected {code}\n{self.out}\n{self.err}"
        for text in texts:
            assert text in self.err, f"{text!r} is not in\n{self.err}"
        return self

    def open(self):
        return h5py.File(self.h5, "r")

    def requests(self):
        with self.open() as f:
            return f["requests"][:]

    def outputs(self):
        """Token lists in the order of the token file."""
        with self.open() as f:
            tokens, offsets = f["outputs/tokens"][:], f["outputs/offsets"][:]
        return [tokens[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:])]

    def values(self, name):
        with self.open() as f:
            return f[name][:]

    def fixed(self):
        """All bytes that must not depend on layout: {name: bytes}."""
        with self.open() as f:
            found = {f"outputs/{k}": v[:].tobytes() for k, v in f["outputs"].items()}
            table = f["requests"][:]
            return found | {k: table[k].tobytes() for k in FIXED_COLUMNS}


def line(custom_id, prompt, **body):
    """One request of a token file."""
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions",
            "body": {"prompt": prompt, **body}}


def write_tokens(path, lines):
    """Lines are dicts, or strings written as they are (malformed on purpose)."""
    text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    path.write_text(text, encoding="utf-8")
    return path


def golden_cases():
    return sorted(p.parent.name for p in GOLDEN.glob("*/golden.json"))


def golden(case):
    return json.loads((GOLDEN / case / "golden.json").read_text(encoding="utf-8"))


def moebatch(*args, ranks=None, timeout=120, cwd=ROOT, env=None):
    """Runs the program; ranks=None without mpirun. Returns (exit code, stdout, stderr)."""
    command = [str(BINARY), *map(str, args)]
    if ranks:
        command = [str(MPIRUN), "-np", str(ranks), *command]
    # OpenMP threads of many ranks on few cores only fight; a test that wants them says so.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
                   **(env or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd,
                          timeout=timeout, env=environment)
    return done.returncode, done.stdout, done.stderr


def pytest_configure(config):
    config.addinivalue_line("markers", "production: 176 ranks; takes up to a minute on two cores")


@pytest.fixture(scope="session", autouse=True)
def built():
    if not BINARY.exists():
        pytest.exit(f"{BINARY} is missing: run make", returncode=2)


class Jobs:
    """Runs jobs in one temporary folder, each under its own name."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    def job(self, tokens, **keys):
        """A job as a dict, with paths filled in. tokens: lines of a token file, or a path."""
        self.count += 1
        name = f"job{self.count}"
        if isinstance(tokens, list):
            tokens = write_tokens(self.folder / f"{name}.jsonl", tokens)
        return {"model": str(GOLDEN / "v3"), "tokens": str(tokens),
                "results": str(self.folder / f"{name}.h5"),
                "responses": str(self.folder / f"{name}.out.jsonl"), **keys}

    def run(self, ranks, job, *args, timeout=120):
        """job: a dict (JSON is YAML), or the text of a job file."""
        self.count += 1
        path = self.folder / f"run{self.count}.yaml"
        path.write_text(job if isinstance(job, str) else json.dumps(job, indent=1),
                        encoding="utf-8")
        code, out, err = moebatch("run", path, *args, ranks=ranks, timeout=timeout)
        keys = job if isinstance(job, dict) else {}
        return Run(code, out, err, pathlib.Path(keys.get("results") or "none"),
                   pathlib.Path(keys.get("responses") or "none"))


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path)


@pytest.fixture(scope="module")
def shared_jobs(tmp_path_factory):
    return Jobs(tmp_path_factory.mktemp("jobs"))


def prompts_of(count, lengths, vocab=150, seed=1):
    """Prompts of valid ids, some of them sharing a long prefix."""
    random = np.random.default_rng(seed)
    shared = random.integers(8, vocab, 140).tolist()
    found = []
    for i in range(count):
        n = lengths[i % len(lengths)]
        own = random.integers(8, vocab, n).tolist()
        found.append(shared + own[:7] if i % 4 == 3 else own)
    return found
