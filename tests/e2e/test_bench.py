"""`moebatch bench`: every line parses, no figure is zero, bad options are refused. What the figures
are is nobody's business here: machines are noisy and not alike.

Alone: python3 -m pytest tests/e2e/test_bench.py
"""
import subprocess

import pytest

from conftest import BINARY, GOLDEN, MPIRUN, moebatch


def rows(out, words):
    """Lines that carry results, each cut into its label of `words` words and its numbers."""
    found = {}
    for text in out.splitlines():
        if text.startswith("#") or not text.strip():
            continue
        parts = text.split()
        found[" ".join(parts[:words])] = parts[words:]
    return found


def test_machine():
    code, out, err = moebatch("bench", "machine", "--threads", "2")
    assert code == 0, err
    lines = [x for x in out.splitlines() if not x.startswith("#")]
    assert any("DRAM read" in x for x in lines) and any("f32 portable C" in x for x in lines)
    for text in lines:
        one, both = map(float, text.split()[-2:])
        assert one > 0 and both > 0, text
    for text in out.splitlines():
        if "not on this host" in text:
            assert "lacks" in text


def test_gemm():
    code, out, err = moebatch("bench", "gemm", "--quick", "--m", "1,5", "--shape", "96x200",
                              "--groups", "2")
    assert code == 0, err
    found = rows(out, 8)
    dense = [k for k in found if k.startswith("gemm")]
    assert len(dense) == 4, out  # two types, two numbers of rows
    assert all(float(found[k][0]) > 0 and float(found[k][1]) > 0 for k in dense)
    assert sum(x.startswith("grouped") for x in out.splitlines()) == 4


@pytest.mark.parametrize("args", [[], ["nonsense"], ["gemm", "--shape", "4"],
                                  ["machine", "--threads", "0"], ["machine", "more"]])
def test_usage(args):
    done = subprocess.run([BINARY, "bench", *args], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr


def test_layer():
    done = subprocess.run([MPIRUN, "-np", "1", BINARY, "bench", "layer", GOLDEN / "fp8", "--batch",
                           "1,3", "--prompt", "20", "--steps", "1"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for stage in ("ATTN ", "ATTN_1 ", "MLP ", "SHARED ", "COMBINE "):
        assert any(x.startswith(stage) for x in done.stdout.splitlines()), stage
    assert done.stdout.count("  mla_decode") == 2 and done.stdout.count("  mla_prefill") == 1
