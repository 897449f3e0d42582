"""Many requests: the memory of rank 0 grows by at most 64 bytes for each, whatever the file's
length, and its own work for a request takes well under a millisecond.

scripts/million.py runs a million. Alone: python3 -m pytest -s tests/e2e/test_scale.py
"""
import importlib.util

import h5py
import numpy as np
import pytest

from conftest import BINARY, ROOT

FEW, MANY = 20_000, 60_000
BYTES_A_REQUEST = 64
SECONDS_A_REQUEST = 1e-3  # 30 us on an idle core; a busy machine is no failure


def load_script():
    spec = importlib.util.spec_from_file_location("million", ROOT / "scripts" / "million.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=[1, 2], ids=["1rank", "2ranks"])
def runs(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    script = load_script()
    return [script.run(folder, n, request.param, BINARY.parent, timeout=200) for n in (FEW, MANY)]


def test_memory(runs):
    few, many = runs
    growth = (many["peak_bytes"] - few["peak_bytes"]) / (MANY - FEW)
    print(f"# rank 0: {few['peak_bytes'] / 2**20:.1f} and {many['peak_bytes'] / 2**20:.1f} MiB, "
          f"{growth:.1f} bytes for each further request, {growth / BYTES_A_REQUEST * 100:.0f} % of "
          "the limit used")
    assert 0 < growth <= BYTES_A_REQUEST


def test_time(runs):
    for run in runs:
        print(f"# {run['requests']} requests: {run['requests'] / run['seconds']:.0f} a second")
        assert run["seconds"] <= 5 + run["requests"] * SECONDS_A_REQUEST


def test_all_are_answered(runs):
    for run in runs:
        assert run["responses"] == run["requests"]
        with h5py.File(run["results"]) as f:
            table = f["requests"][:]
            assert len(f["outputs/tokens"]) == run["requests"]
        assert set(table["status"]) == {b"ok"} and set(table["output_tokens"]) == {1}
        assert table["custom_id"][-1] == f"r{run['requests'] - 1}".encode()
        assert (table["prompt_tokens"] == 1 + np.arange(run["requests"]) % 3).all()
