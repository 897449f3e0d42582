"""`moebatch study`: small days, ranks that agree, sweeps that resume, errors that name the numbers."""
import os
import re
import subprocess
import time

import h5py
import numpy as np
import pytest
from conftest import BINARY, MPIRUN, ROOT

DAY = "inputs/studies/deepseek_day.yaml"
# An hour of a small cluster: 3 prefill and 3 decode units, 0.9 M requests.
SMALL = ["published=null", "workload.hours=1", "workload.requests=9e5", "workload.warmup_s=300",
         "prefill.units=3", "decode.units=3", "nodes.mode=fixed"]


def study(path, *sets, ranks=1, code=0, flags=()):
    args = [str(path), *flags]
    for s in sets:
        args += ["--set", s]
    head = [str(MPIRUN), "-np", str(ranks)] if ranks > 1 else []
    done = subprocess.run([*head, str(BINARY), "study", *args], cwd=ROOT, capture_output=True,
                          text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def test_any_number_of_ranks_gives_the_same_bytes(tmp_path):
    def tables(ranks):
        h5 = tmp_path / f"r{ranks}.h5"
        study(DAY, *SMALL, f"results={h5}", ranks=ranks)
        with h5py.File(h5) as f:
            assert f.attrs["kind"] == "study" and f.attrs["schema_version"] == 1
            return {n: f[n][:].tobytes() for n in ("minutes", "account/hourly", "account/units",
                                                   "account/total")}
    one = tables(1)
    assert tables(2) == one
    assert tables(3) == one


def test_books_close(tmp_path):
    h5 = tmp_path / "day.h5"
    study(DAY, *SMALL, f"results={h5}")
    with h5py.File(h5) as f:
        minute, hour, total = f["minutes"][:], f["account/hourly"][:], f["account/total"][0]
        units = f["account/units"][:]
        for name in f["minutes"].dtype.names:
            assert name in f["minutes"].attrs["units"]
    assert len(minute) == 60 and len(hour) == 1
    for name in ("requests", "hit_tokens", "miss_tokens", "finished"):
        assert minute[name].sum() == hour[name].sum()
    assert minute["cost_usd"].sum() == pytest.approx(total["cost_usd"])
    # 3 units of 4 nodes and 3 of 18, 8 GPUs each, $2 an hour
    assert total["cost_usd"] == pytest.approx(66 * 8 * 2.0)
    assert abs(minute["requests"].sum() / 9e5 - 1) < 0.01
    decode = units["tokens"][np.char.startswith(units["unit"], b"decode")].sum()
    assert abs(decode + hour["finished"][0] - hour["output_tokens"][0]) < 0.01 * decode
    # A busy cluster is in a steady state: what arrives finishes
    assert abs(hour["finished"][0] / hour["requests"][0] - 1) < 0.05


@pytest.mark.parametrize("forecast", ["reactive", "holt_winters", "lstm"])
def test_autoscaled_uses_fewer_nodes(tmp_path, forecast):
    h5 = tmp_path / "auto.h5"
    out = study(DAY, *[s for s in SMALL if not s.startswith("nodes")], "nodes.mode=auto",
                "autoscale.min_prefill=1", "autoscale.min_decode=1",
                f"autoscale.forecast={forecast}", f"results={h5}").stdout
    assert "enough: " in out and "with all 66 nodes" in out
    with h5py.File(h5) as f:
        hour = f["account/hourly"][0]
    assert hour["prefill_nodes"] + hour["decode_nodes"] < 66
    assert hour["lent_nodes"] == pytest.approx(66 - hour["prefill_nodes"] - hour["decode_nodes"])
    assert abs(hour["finished"] / hour["requests"] - 1) < 0.05


def test_experts_drift_and_are_placed_anew(tmp_path):
    """Drifting loads with EPLB every 10 minutes: columns per minute, the same on two ranks."""
    tables = []
    for ranks in (1, 2):
        h5 = tmp_path / f"e{ranks}.h5"
        out = study(DAY, *SMALL, "workload.hours=0.5", "workload.requests=3e5",
                    "experts.sigma=0.3", f"results={h5}", ranks=ranks).stdout
        assert "3 re-plans" in out
        with h5py.File(h5) as f:
            tables.append(f["minutes"][:])
    m = tables[0]
    assert m.tobytes() == tables[1].tobytes()
    assert (m["decode_imbalance"] > 1).all()
    assert m["decode_imbalance"].mean() < m["decode_imbalance_unplanned"].mean()


def test_requests_dealt_to_ranks(tmp_path):
    h5 = tmp_path / "r.h5"
    out = study(DAY, *SMALL, "workload.hours=0.1", "workload.requests=3e4", "workload.warmup_s=60",
                "detail=ranks", f"results={h5}").stdout
    assert "requests dealt to ranks" in out


def test_trace(tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" +
                     "".join(f"{i * 0.25},{100 + i},{10 + i % 7}\n" for i in range(400)))
    h5 = tmp_path / "t.h5"
    study(DAY, *SMALL, "workload.curve=null", f"workload.trace={trace}", f"results={h5}")
    with h5py.File(h5) as f:
        hour = f["account/hourly"][0]
    assert hour["requests"] == 400 and hour["finished"] == 400
    assert hour["miss_tokens"] == sum(100 + i for i in range(400))
    assert hour["output_tokens"] == sum(10 + i % 7 for i in range(400))


SWEEP = """
model: inputs/shapes/deepseek-v3
results: {results}
targets: {{prompt: 3576.47, output: 988.235, hit_ratio: 0.5625, kv_per_output: 4989}}
sweep:
  decode.ep: [72, 144]
  decode.max_batch: [32, 64]   # requests a GPU
  decode.mtp: [false, true]
"""


def test_sweep_over_ranks_and_resume(tmp_path):
    rows = []
    for ranks in (1, 2):
        h5, path = tmp_path / f"s{ranks}.h5", tmp_path / f"s{ranks}.yaml"
        path.write_text(SWEEP.format(results=h5))
        out = study(path, ranks=ranks).stdout
        assert "8 points, 0 taken over" in out
        with h5py.File(h5) as f:
            rows.append(f["sweep"][:])
        assert not list(tmp_path.glob(f"s{ranks}.h5.points.*"))
    assert rows[0].tobytes() == rows[1].tobytes()
    assert rows[0]["best"].sum() <= 1 and rows[0]["pareto"].sum() >= 1
    assert rows[0]["feasible"].all()


def test_killed_sweep_resumes(tmp_path):
    h5, path = tmp_path / "s.h5", tmp_path / "s.yaml"
    path.write_text(SWEEP.format(results=h5))
    # The results cannot be written, so the finished points stay as after a kill.
    h5.mkdir()
    study(path, code=4, flags=["--force"])
    points = tmp_path / "s.h5.points.0"
    size = points.stat().st_size
    points.write_bytes(points.read_bytes()[:size - size // 8 - 5])  # torn in the last but one
    h5.rmdir()
    assert "8 points, 6 taken over" in study(path).stdout


def expert_load(path, experts=256, layers=4, hot=8.0):
    """A results file's /experts/load: expert 0 of each layer is `hot` times as busy."""
    rows = np.zeros(layers * experts, dtype=[("layer", "<i4"), ("expert", "<i4"), ("rows", "<i8")])
    rows["layer"], rows["expert"] = np.divmod(np.arange(layers * experts), experts)
    rows["rows"] = np.where(rows["expert"] == 0, int(1000 * hot), 1000)
    rows["rows"][rows["layer"] == 0] = 0  # a dense layer
    with h5py.File(path, "w") as f:
        f["experts/load"] = rows


def unit_table(*sets, code=0):
    args = [x for s in sets for x in ("--set", s)]
    done = subprocess.run([str(BINARY), "study", "--unit", "--level", "tables", *args], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done


def imbalance(out):
    return [float(x) for x in re.findall(r"imbalance ([0-9.]+)", out)]


def test_measured_expert_load_is_placed_by_eplb(tmp_path):
    h5 = tmp_path / "run.h5"
    expert_load(h5)
    prefill, decode = imbalance(unit_table(f"load={h5}").stdout)
    # Replicas of the busy expert take its load: far from 8 x, and no rank is below the mean
    assert 1 < prefill < 1.2 and 1 < decode < 1.7
    # Without spare slots it stays whole: 8 of 288/32 ranks' 9 slots ...
    bare = imbalance(unit_table(f"load={h5}", "prefill.redundant_experts=0",
                                "decode.redundant_experts=0", "decode.ep=128",
                                "decode.max_batch=64").stdout)
    total = 255 + 8.0
    assert bare[0] == pytest.approx(15 / (total / 32), rel=1e-3)
    assert bare[1] == pytest.approx(9 / (total / 128), rel=1e-3)
    # A figure that is given wins; the same key in a sweep
    assert imbalance(unit_table(f"load={h5}", "imbalance=1.5").stdout) == [1.5, 1.5]
    path = tmp_path / "s.yaml"
    path.write_text(SWEEP.format(results=tmp_path / "s.h5"))
    study(path, f"experts.load={h5}")
    with h5py.File(tmp_path / "s.h5") as f:
        loaded = f["sweep"]["tpot_s"][:]
    study(path, flags=["--force"])
    with h5py.File(tmp_path / "s.h5") as f:
        assert (f["sweep"]["tpot_s"][:] < loaded).all()


@pytest.mark.parametrize("experts,text", [(64, "64 experts"), (0, "/experts/load")])
def test_expert_load_of_another_model(tmp_path, experts, text):
    h5 = tmp_path / "run.h5"
    if experts:
        expert_load(h5, experts=257)
        text = "another model"
    else:
        h5py.File(h5, "w").close()
    assert text in unit_table(f"load={h5}", code=3).stderr


def test_published_nodes_and_provenance(tmp_path):
    h5 = tmp_path / "auto.h5"
    study(DAY, "workload.hours=1", "workload.requests=9e5", "workload.warmup_s=300",
          "workload.start_hour=12", "prefill.units=3", "decode.units=3", "nodes.mode=auto",
          "autoscale.min_prefill=1", f"results={h5}")
    with h5py.File(h5) as f:
        assert f["account/hourly"]["published_nodes"][0] == 278
        assert (f["minutes"]["published_nodes"][:] == 278).all()
        attrs = dict(f.attrs)
    for key in ("program_version", "git_revision", "argv", "hosts", "libraries", "start_utc",
                "end_utc", "study_yaml", "status", "schema_version"):
        assert key in attrs
    text = lambda k: attrs[k].decode() if isinstance(attrs[k], bytes) else str(attrs[k])
    assert text("program_version").startswith("moebatch ") and "HDF5" in text("libraries")
    assert text("hosts").endswith("*1")


def test_unit_study_file(tmp_path):
    h5 = tmp_path / "unit.h5"
    args = ["study", "--unit", "inputs/studies/unit_h800.yaml", "--set", f"results={h5}"]
    out = subprocess.run([str(BINARY), *args], cwd=ROOT, capture_output=True, text=True,
                         timeout=60, check=True).stdout
    with h5py.File(h5) as f:
        batch, stage, memory = (f[f"unit/{n}"][:] for n in ("batches", "stages", "memory"))
        assert str(f.attrs["argv"]).startswith("moebatch study --unit inputs/")
    decode = batch[batch["role"] == b"decode"]
    printed = re.findall(r"^ +(\d+) +([0-9.]+) +([0-9.]+) +([0-9.]+) +(\d+) +\d+ +[0-9.]+", out,
                         re.M)
    assert len(printed) == len(decode) == 16  # 8 batch sizes at each level
    for row, text in zip(decode, printed):
        assert row["load"] == int(text[0])
        assert 1e3 * row["tpot_s"] == pytest.approx(float(text[2]), abs=0.006)
        assert row["tokens_per_s_gpu"] == pytest.approx(float(text[4]), abs=0.6)
        assert row["tokens_per_s_request"] == pytest.approx(1 / row["tpot_s"])
    assert np.isnan(batch[batch["role"] == b"prefill"]["tpot_s"]).all()
    parts = sum(stage[c] for c in stage.dtype.names if c.endswith("_us"))
    assert parts == pytest.approx(stage["us"])
    assert {s.decode() for s in stage["stage"]} >= {"ATTN", "ATTN_0", "ATTN_1", "MLP", "DISPATCH"}
    used = sum(memory[c] for c in ("replicated", "experts", "absorbed", "buffers", "workspace",
                                   "reserve", "kv_cache"))
    assert used == pytest.approx(memory["capacity"])
    page = tmp_path / "unit.html"
    text = subprocess.run([str(BINARY), "report", str(h5), "--html", str(page)],
                          capture_output=True, text=True, timeout=60, check=True).stdout
    assert len(re.findall(r"^  decode ", text, re.M)) == 16
    for chart in ("Decode: throughput of a GPU", "Stages of a decode step", "memory of a GPU"):
        assert chart in page.read_text()


WIDE = """
targets: {{prompt: 3576.47, output: 988.235, hit_ratio: 0.5625, kv_per_output: 4989}}
results: {results}
sweep:
  hardware: [h800, h20, b200, gb200]
  usd_per_gpu_hour: [2, 3]
  prefill.ep: [8, 32]
  decode.ep: [16, 72, 144]
  decode.redundant_experts: [0, 32]
  decode.mtp: [false, true]
  decode.overlap: [true, false]
"""


def test_wide_sweep_counts_what_cannot_be(tmp_path):
    h5, path = tmp_path / "w.h5", tmp_path / "w.yaml"
    path.write_text(WIDE.format(results=h5))
    out = study(path).stdout
    with h5py.File(h5) as f:
        rows = f["sweep"][:]
    assert len(rows) == 4 * 2 * 2 * 3 * 2 * 2 * 2
    ok = rows[rows["feasible"] == 1]
    assert f"# {len(ok)} points are possible" in out
    assert f"# {len(rows) - len(ok)} points cannot be" in out
    reasons = {r.decode() for r in rows["reason"][rows["feasible"] == 0]}
    assert any("evenly: take ep" in r for r in reasons) and any("does not fit" in r for r in reasons)
    counts = re.findall(r"^ +(\d+) like point", out, re.M)
    assert sum(map(int, counts)) == len(rows) - len(ok)
    assert "the cheapest within the SLO for each value" in out and "# hardware=h20" in out
    # The front against the definition, point by point
    v = np.stack([ok["tokens_per_s_request"], ok["tokens_per_s_gpu"], -ok["usd_per_m_output"]], 1)
    beaten = [bool(((v >= a).all(1) & (v > a).any(1)).any()) for a in v]
    assert (ok["pareto"] == ~np.array(beaten)).all()
    meets = ok[ok["meets_slo"] == 1]
    assert rows["best"].sum() == 1
    assert ok[ok["best"] == 1]["usd_per_m_output"][0] == meets["usd_per_m_output"].min()
    assert ok["extrapolated"].any() and not ok["extrapolated"].all()


def test_sweep_killed_in_the_middle(tmp_path):
    def sweep(name):
        path = tmp_path / f"{name}.yaml"
        text = WIDE.format(results=tmp_path / f"{name}.h5")
        path.write_text(text + "  decode.max_batch: [16, 32, 48, 64, 96, 128, 192, 256]\n")
        return path, tmp_path / f"{name}.h5"

    def rows(h5):
        with h5py.File(h5) as f:
            return f["sweep"][:].tobytes()

    path, h5 = sweep("killed")
    points = tmp_path / "killed.h5.points.0"
    with subprocess.Popen([str(BINARY), "study", str(path)], cwd=ROOT, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not points.exists() or points.stat().st_size < 1 << 16):
            time.sleep(0.001)
        process.kill()
    assert not h5.exists(), "the sweep ended before it could be killed: give it more points"
    taken = int(re.search(r"3072 points, (\d+) taken over", study(path).stdout)[1])
    assert 0 < taken < 3072
    whole, whole_h5 = sweep("whole")
    study(whole, ranks=2)
    assert rows(h5) == rows(whole_h5)
    assert not list(tmp_path.glob("*.points.*"))


@pytest.mark.parametrize("axis,text", [
    ("hardware: [h800, h900]", "h900"), ("model: [inputs/shapes/none]", "inputs/shapes/none"),
    ("decode.batch: [1]", "decode.batch"), ("decode.ep: [many]", "many"), ("decode.ep: []", "list")])
def test_sweep_of_names_that_do_not_exist(tmp_path, axis, text):
    path = tmp_path / "w.yaml"
    path.write_text(SWEEP.format(results="null").split("sweep:")[0] + f"sweep:\n  {axis}\n")
    done = subprocess.run([str(BINARY), "study", str(path)], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode in (2, 3) and text in done.stderr, done.stderr


HEAD = "arrived_at,num_prefill_tokens,num_decode_tokens\n"


@pytest.mark.parametrize("name,content,texts", [
    ("t.csv", "", ["t.csv"]),
    ("t.csv", HEAD, ["t.csv"]),
    ("t.csv", HEAD + "0,10,5\n2,10,5\n1,10,5\n", ["t.csv:4"]),
    ("t.csv", HEAD + "0,-10,5\n", ["t.csv:2", "-10"]),
    ("t.csv", HEAD + "0,10,-5\n", ["t.csv:2", "-5"]),
    ("t.csv", HEAD + "0,ten,5\n", ["t.csv:2"]),
    ("t.jsonl", "", ["t.jsonl"]),
    ("t.jsonl", '{"timestamp": 0, "input_length": -3, "output_length": 5, "hash_ids": []}\n',
     ["t.jsonl:1", "-3"]),
    ("t.jsonl", '{"timestamp": 9, "input_length": 3, "output_length": 5, "hash_ids": [1]}\n'
     '{"timestamp": 8, "input_length": 3, "output_length": 5, "hash_ids": [1]}\n', ["t.jsonl:2"]),
    ("t.jsonl", "not json\n", ["t.jsonl:1"]),
])
def test_bad_trace(tmp_path, name, content, texts):
    trace = tmp_path / name
    trace.write_text(content)
    err = study(DAY, *SMALL, "workload.curve=null", f"workload.trace={trace}", code=3,
                flags=["--force"]).stderr
    for t in texts:
        assert t in err, err


@pytest.mark.parametrize("key,good,bad,text", [
    ("hardware", "inputs/hardware/h20.yaml", "\nhbm_tb_s: 3\n", "hbm_tb_s"),
    ("hardware", "inputs/hardware/h20.yaml", "\nhbm_gb_s: -1\n", "hbm_gb_s"),
    ("prices", "inputs/prices/deepseek_r1.yaml", "\nprice_of_tea: 3\n", "price_of_tea"),
    ("published", "inputs/workloads/deepseek_day_published.yaml", "\nnoise: 3\n", "noise"),
])
def test_unknown_keys_of_tables(tmp_path, key, good, bad, text):
    path = tmp_path / "x.yaml"
    body = (ROOT / good).read_text().replace("tables: ", f"tables: {ROOT}/inputs/hardware/")
    path.write_text(body.replace("tables: /", "tables: /") + bad)
    err = study(DAY, *[s for s in SMALL if not s.startswith("published")], f"{key}={path}",
                code=3, flags=["--force"]).stderr
    assert text in err and "x.yaml" in err, err


@pytest.mark.parametrize("sets,code,texts", [
    (["hardware=h900"], 3, ["h900"]),
    (["model=inputs/shapes/none"], 3, ["inputs/shapes/none"]),
    (["prices=inputs/prices/none.yaml"], 3, ["none.yaml"]),
    (["decode.maxbatch=3"], 2, ["decode.maxbatch", "decode.max_batch"]),
    (["targets.kv_per_output=3000"], 3, ["impossible", "3000"]),
    (["nodes.available=100"], 3, ["278", "100"]),
    (["nodes.group_prefill=2"], 3, ["group of 26 nodes"]),
    (["decode.ep=7"], 3, ["7"]),
    (["workload.curve=none.csv"], 3, ["none.csv"]),
    (["workload.requests=0"], 3, ["workload.requests is missing"]),
])
def test_bad_input(tmp_path, sets, code, texts):
    err = study(DAY, *sets, f"results={tmp_path / 'x.h5'}", code=code).stderr
    for t in texts:
        assert t in err, err
    assert not (tmp_path / "x.h5").exists()


def test_model_that_does_not_fit(tmp_path):
    err = study(DAY, "decode.ep=8", f"results={tmp_path / 'x.h5'}", code=4).stderr
    assert "does not fit" in err and "80.0 GB" in err


def test_fit_is_printed():
    out = study(DAY, flags=["--fit-workload"]).stdout
    assert "turns: 2.3" in out and "4989.00" in out
