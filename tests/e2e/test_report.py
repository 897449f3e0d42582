"""moebatch report: the table of a results file, the page with its charts, and files that it refuses.

Alone: python3 -m pytest tests/e2e/test_report.py -k page
"""
import html.parser
import re
import shutil

import h5py
import numpy as np
import pytest

from conftest import line, moebatch, prompts_of

CHARTS = ["Steps of each unit", "Tokens per second, prefill", "Tokens per second, decode",
          "Step time, decode", "Where the time of a mean step goes", "Time to first token",
          "Time per output token", "Tokens computed by each rank", "How each rank spent its time",
          "Most KV pages in use, each rank", "layer 1"]


class Page(html.parser.HTMLParser):
    """Checks that every element is closed in its turn, and collects text and titles of charts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.charts, self.text, self.wrong = [], [], [], []
        self.marks = {}  # chart: number of boxes, lines and dots in it
        self.feed(text)
        self.close()
        assert not self.open and not self.wrong, (self.open, self.wrong)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "svg":
            self.charts.append(attrs["aria-label"])
        if tag in ("rect", "path", "circle") and self.charts:
            self.marks[self.charts[-1]] = self.marks.get(self.charts[-1], 0) + 1
        for name in ("x", "y", "width", "height", "d", "cx", "cy"):
            if re.search(r"nan|inf", attrs.get(name) or "", re.IGNORECASE):
                self.wrong.append((tag, attrs))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def finished(shared_jobs):
    """A run of 2 + 2 ranks with a trace: (Run, trace)."""
    lines = [line(f"r{i}", p, max_tokens=8, ignore_eos=True)
             for i, p in enumerate(prompts_of(12, [60, 9, 33]))]
    job = shared_jobs.job(lines, prefill={"ep": 2}, decode={"ep": 2})
    trace = shared_jobs.folder / "report.trace.json"
    return shared_jobs.run(4, job, "--trace", trace).ok(), trace


def report(*args):
    return moebatch("report", *args, timeout=60)


def table(text):
    """The closing table without what the file does not hold: its name, and the order of sending."""
    only_run = ("# results:", "moebatch [", "  order by prefix:")
    return [x for x in text.splitlines() if x and not x.startswith(only_run)]


def test_terminal_is_the_table_of_the_run(finished):
    run, _ = finished
    code, out, err = report(run.h5)
    assert code == 0, err
    head, *rest = out.splitlines()
    assert str(run.h5) in head and "complete" in head
    assert table("\n".join(rest)) == table(run.out)


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    run, trace = finished
    path = tmp_path_factory.mktemp("page") / "out.html"
    code, out, err = report(run.h5, "--html", path, "--trace", trace)
    assert code == 0 and str(path) in out, err
    return path.read_text(encoding="utf-8")


def test_page_stands_alone(page):
    assert not re.findall(r"https?:|//[a-z]|\bsrc=|\bhref=|@import|url\(", page)


def test_page_is_well_formed_and_whole(page, finished):
    run, _ = finished
    found = Page(page)
    assert [x for x in CHARTS if x not in found.charts] == []
    with run.open() as f:
        steps = len(f["steps/prefill"]) + len(f["steps/decode"])
        ranks, argv = len(f["ranks"]), f.attrs["argv"]
    assert found.marks["Steps of each unit"] >= steps
    assert found.marks["Most KV pages in use, each rank"] >= ranks
    text = "".join(found.text)
    for fact in (argv, "VALID: all 12 requests ended: 12 ok, 0 failed", "Provenance"):
        assert fact in text, fact


def test_page_figures_are_the_files(page, finished):
    run, _ = finished
    rows = run.values("throughput")[0]
    tips = re.findall(r"<title>decode0, decode step \d+: [^<]*, (\d+) tokens of", page)
    assert sum(map(int, tips)) == rows["decode_tokens"]
    requests = run.requests()
    bars = re.findall(r"<title>[^<]*: (\d+) requests</title>", page)
    assert sum(map(int, bars)) == len(requests) + (requests["output_tokens"] >= 2).sum()


def test_schedule_of_both_kinds(page):
    found = Page(page)
    assert [x for x in found.charts if x.startswith("One prefill step of prefill0")]
    assert [x for x in found.charts if x.startswith("One decode step of decode0")]
    for stage in ("ATTN,", "ATTN_0,", "ATTN_1,", "DISPATCH,", "COMBINE,", "MLP,", "SHARED,"):
        assert f"<title>{stage} layer" in page, stage


def test_rank_of_the_schedule(finished, tmp_path):
    run, trace = finished
    path = tmp_path / "out.html"
    assert report(run.h5, "--html", path, "--trace", trace, "--rank", 3)[0] == 0
    charts = [x for x in Page(path.read_text(encoding="utf-8")).charts if x.startswith("One ")]
    assert charts == ["One decode step of decode0 rank 3"]
    code, _, err = report(run.h5, "--html", path, "--trace", trace, "--rank", 9)
    assert code == 3 and "rank 9" in err


def test_text_of_the_file_is_escaped(finished, tmp_path):
    run, _ = finished
    copy, path = tmp_path / "copy.h5", tmp_path / "out.html"
    shutil.copy(run.h5, copy)
    with h5py.File(copy, "r+") as f:
        f.attrs["argv"] = "moebatch run \"<script>alert(1)</script>\" & more"
    assert report(copy, "--html", path)[0] == 0
    text = path.read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    Page(text)


def test_partial_file(finished, tmp_path):
    run, _ = finished
    copy, path = tmp_path / "copy.h5", tmp_path / "out.html"
    shutil.copy(run.h5, copy)
    with h5py.File(copy, "r+") as f:
        f.attrs["status"] = "partial"
        rows = f["requests"][:]
        rows["status"][-3:] = b"pending"
        f["requests"][:] = rows
    code, out, err = report(copy, "--html", path)
    assert code == 0, err
    assert "PARTIAL" in out and "9 ok, 0 failed, 3 pending" in out
    assert "INVALID: 3 of 12 requests are pending" in out
    assert "PARTIAL" in path.read_text(encoding="utf-8")


def test_nothing_finished(finished, tmp_path):
    """All tables empty but the account: a job killed at once."""
    run, _ = finished
    copy, path = tmp_path / "copy.h5", tmp_path / "out.html"
    with h5py.File(run.h5) as old, h5py.File(copy, "w") as new:
        for key, value in old.attrs.items():
            new.attrs[key] = value
        for name in ("requests", "steps/prefill", "steps/decode", "ranks", "attempts",
                     "experts/load", "experts/placement", "throughput"):
            new.create_dataset(name, data=old[name][:0])
        new.create_dataset("account", data=old["account"][:])
    code, out, err = report(copy, "--html", path)
    assert code == 0 and "0 ok, 0 failed, 0 pending" in out, err
    Page(path.read_text(encoding="utf-8"))


def break_file(path, how):
    with h5py.File(path, "r+") as f:
        if how == "version":
            f.attrs["schema_version"] = 99
        elif how == "no version":
            del f.attrs["schema_version"]
        elif how == "column":
            rows = f["ranks"][:]
            keep = [n for n in rows.dtype.names if n != "kv_pages_peak"]
            del f["ranks"]
            f["ranks"] = np.array(rows[keep].tolist(), [(n, rows.dtype[n]) for n in keep])
        elif how == "type":
            del f["steps/decode"]
            f["steps/decode"] = np.arange(5)
        else:
            del f[how]


@pytest.mark.parametrize("how, texts", [
    ("version", ["schema_version 99", "reads 1"]),
    ("no version", ["no attribute schema_version"]),
    ("column", ["/ranks has no column kv_pages_peak"]),
    ("type", ["/steps/decode is not a table"]),
    ("requests", ["/requests"]),
    ("steps/decode", ["no dataset /steps/decode"]),
    ("attempts", ["no dataset /attempts"]),
    ("account", ["no dataset /account"]),
])
def test_broken_file(finished, tmp_path, how, texts):
    run, _ = finished
    copy, path = tmp_path / "copy.h5", tmp_path / "out.html"
    shutil.copy(run.h5, copy)
    break_file(copy, how)
    code, out, err = report(copy, "--html", path)
    assert code == 3 and not out and not path.exists(), (code, out)
    assert len(err.strip().splitlines()) == 1, err
    for text in [str(copy), *texts]:
        assert text in err, err


@pytest.mark.parametrize("content, text", [
    (None, "No such file"), (b"", "not an HDF5 file"), (b"{}\n" * 200, "not an HDF5 file"),
])
def test_not_a_results_file(tmp_path, content, text):
    path = tmp_path / "x.h5"
    if content is not None:
        path.write_bytes(content)
    code, _, err = report(path)
    assert code == 3 and text in err and len(err.strip().splitlines()) == 1, err


def test_truncated_file(finished, tmp_path):
    run, _ = finished
    path = tmp_path / "x.h5"
    path.write_bytes(run.h5.read_bytes()[:3000])
    code, _, err = report(path)
    assert code == 3 and str(path) in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.parametrize("content, text", [
    ("not json\n", "line 1"), ('[\n{"name": "x"}\n]\n', "line 2"), ("[\n]\n", "no whole step"),
])
def test_bad_trace(finished, tmp_path, content, text):
    run, _ = finished
    trace, path = tmp_path / "t.json", tmp_path / "out.html"
    trace.write_text(content, encoding="utf-8")
    code, _, err = report(run.h5, "--html", path, "--trace", trace)
    assert code == 3 and text in err and not path.exists(), err


@pytest.mark.parametrize("args, text", [
    ([], "no results file"), (["a.h5", "b.h5"], "two files"), (["--html"], "needs a value"),
    (["a.h5", "--colour"], "unknown option"), (["a.h5", "--trace", "t.json"], "--html"),
    (["a.h5", "--html", "o", "--trace", "t", "--rank", "-1"], "--rank"),
])
def test_usage(args, text):
    code, _, err = report(*args)
    assert code == 2 and text in err, err


def test_page_never_replaces_the_file(finished):
    run, _ = finished
    before = run.h5.read_bytes()
    code, _, err = report(run.h5, "--html", run.h5)
    assert code == 2 and "results file itself" in err
    assert run.h5.read_bytes() == before


# A study's file, made here by the columns of src/account/study_results.h.

HOURS = 24


def put_table(f, name, columns):
    f.create_dataset(name, data=np.rec.fromarrays(list(columns.values()), names=list(columns)))


def day_columns(rows, seconds):
    t = np.arange(rows) * seconds
    load = 1 + 0.5 * np.sin(2 * np.pi * t / 86400)
    columns = {"t_start": t * 1.0, "hour_of_day": (12 + t / 3600) % 24,
               "prefill_nodes": np.full(rows, 116.0), "decode_nodes": np.full(rows, 162.0),
               "requests": 7e6 * seconds / 3600 * load, "hit_tokens": 14e9 * seconds / 3600 * load,
               "miss_tokens": 11e9 * seconds / 3600 * load,
               "output_tokens": 7e9 * seconds / 3600 * load,
               "cost_usd": np.full(rows, 278 * 16.0 * seconds / 3600),
               "revenue_usd": 23e3 * seconds / 3600 * load,
               "tpot_p50_s": 0.045 * load, "prefill_utilisation": 0.6 * load}
    return columns


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.h5"
    with h5py.File(path, "w") as f:
        f.attrs["schema_version"] = 1
        f.attrs["status"] = "complete"
        hours = day_columns(HOURS, 3600)
        hours["published_revenue_usd"] = np.full(HOURS, 23000.0)
        hours["published_revenue_usd"][3] = np.nan
        put_table(f, "account/hourly", hours)
        put_table(f, "minutes", day_columns(60 * HOURS, 60))
        put_table(f, "account/units", {
            "unit": np.array([f"prefill{i % 3}".encode() for i in range(3 * HOURS)]),
            "hour": np.arange(3 * HOURS) // 3, "tokens": np.full(3 * HOURS, 1000),
            "busy_s": np.linspace(0, 3600, 3 * HOURS)})
        put_table(f, "published", {
            "figure": np.array([b"output tokens/s of a request", b"nodes, mean"]),
            "units": np.array([b"tokens/s", b"nodes"]), "published": np.array([20, 226.75]),
            "published_high": np.array([22, np.nan]), "predicted": np.array([21.0, 240.0]),
            "error": np.array([0.0, 240 / 226.75 - 1]), "tolerance": np.array([np.nan, 0.005])})
        n = 12
        put_table(f, "sweep", {
            "values": np.array([b"hardware=h800 decode.ep=144", b"hardware=h20"] * (n // 2)),
            "batch": np.arange(n) * 16.0 + 16, "feasible": (np.arange(n) != 5).astype("i4"),
            "tokens_per_s_request": 40.0 - np.arange(n), "tokens_per_s_gpu": 900.0 + np.arange(n),
            "usd_per_m_output": 0.5 + np.arange(n), "meets_slo": np.arange(n) % 2,
            "pareto": (np.arange(n) < 3).astype("i4"), "best": (np.arange(n) == 1).astype("i4")})
    return path


def test_study_terminal(study):
    code, out, err = report(study)
    assert code == 0, err
    with h5py.File(study) as f:
        hours = f["account/hourly"][:]
    cost, revenue = hours["cost_usd"].sum(), hours["revenue_usd"].sum()
    assert f"cost $ {cost:.0f}, theoretical revenue $ {revenue:.0f}" in out
    assert f"requests {hours['requests'].sum():.0f}; nodes, mean: prefill 116.00, decode 162" in out
    assert len(re.findall(r"^  \d\d:00 ", out, re.MULTILINE)) == HOURS
    assert out.index("  12:00") < out.index("  23:00") < out.index("  00:00")
    assert "# sweep: 12 points, 11 of them feasible; the Pareto front and the best (*)" in out
    assert re.search(r"^ \* +32 .* 39 +901 .* hardware=h20$", out, re.MULTILINE)
    assert re.search(r"request +tokens/s +20 to 22 +21 +\+0.00 +- *$", out, re.MULTILINE)
    assert re.search(r"nodes, mean +nodes +226.75 +240 +\+5.84 +0.50 missed$", out, re.MULTILINE)


def test_study_page(study, tmp_path):
    path = tmp_path / "out.html"
    assert report(study, "--html", path)[0] == 0
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    for chart in ("Nodes in service", "Cost and theoretical income of each hour", "Utilisation",
                  "Tokens per second, all units", "Time per output token",
                  "How busy each unit was in each hour",
                  "Speed of a request against throughput of a GPU"):
        assert chart in found.charts, chart
    assert found.marks["How busy each unit was in each hour"] == 3 * HOURS + 3  # and the legend
    assert "Published and predicted" in "".join(found.text)
    assert "Time to first token" not in found.charts  # the file has no such column
    assert len(re.findall(r"<title>cost from", text)) == HOURS
    assert len(re.findall(r"<title>published income from", text)) == HOURS - 1  # one is unknown
    assert not re.findall(r"https?:|\bsrc=|\bhref=", text)


@pytest.mark.parametrize("gone", ["account", "minutes", "sweep"])
def test_study_in_parts(study, tmp_path, gone):
    path = tmp_path / "out.html"
    with h5py.File(study, "r+") as f:
        del f[gone]
    code, _, err = report(study, "--html", path)
    assert code == 0, err
    Page(path.read_text(encoding="utf-8"))


def test_study_times_must_rise(study):
    with h5py.File(study, "r+") as f:
        rows = f["account/hourly"][:]
        rows["t_start"][5] = 0
        f["account/hourly"][:] = rows
    code, _, err = report(study)
    assert code == 3 and "/account/hourly, row 5" in err and "rising" in err
