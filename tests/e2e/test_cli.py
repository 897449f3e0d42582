"""The command line: help, version, and a job's way through --dump-config and back.

Alone: python3 -m pytest tests/e2e/test_cli.py
"""
import pytest

from conftest import line, moebatch


@pytest.mark.parametrize("args, texts", [
    (["--help"], ["run", "bench", "model", "exit codes"]),
    (["run", "--help"], ["--set", "--dump-config", "decode.max_batch", "prefill.chunk_tokens"]),
    (["--version"], ["moebatch", "MPI", "HDF5"]),
])
def test_help(args, texts):
    code, out, err = moebatch(*args)
    assert code == 0, err
    for text in texts:
        assert text.lower() in out.lower(), text


@pytest.mark.parametrize("args", [[], ["nonsense"], ["run"]])
def test_usage(args):
    code, _, err = moebatch(*args)
    assert code == 2 and err


def test_dump_config_round_trip(jobs):
    job = jobs.job([line("a", [5])], mixed={"ep": 2})
    first = jobs.run(2, job, "--dump-config", "--set", "sampling.max_tokens=7").ok()
    assert "max_tokens: 7" in first.out
    again = jobs.run(2, first.out, "--dump-config").ok()
    assert again.out == first.out
    assert not first.h5.exists()


def test_later_set_wins(jobs):
    job = jobs.job([line("a", [5])])
    run = jobs.run(1, job, "--set", "sampling.seed=3", "--set", "sampling.seed=4", "--dump-config")
    assert "seed: 4" in run.ok().out


def test_set_reaches_the_job(jobs):
    job = jobs.job([line("a", [5, 6])])
    run = jobs.run(1, job, "--set", "sampling.max_tokens=3", "--set", "sampling.ignore_eos=true")
    assert run.ok().requests()["output_tokens"].tolist() == [3]
