"""--trace FILE.json: what Perfetto and chrome://tracing accept, with both micro-batches' compute
and communication tracks of every rank, and the overlap (or its absence) that the job asked for.

Alone: python3 -m pytest tests/e2e/test_trace.py -k overlap
"""
import collections
import json

import pytest

from conftest import line, prompts_of

TRACKS = {f"micro-batch {mb} {lane}" for mb in (0, 1) for lane in ("compute", "communication")}
ROUNDING_US = 0.0021  # ts and dur are rounded to nanoseconds, each by itself

# name: (ranks, keys of the job); every rank has both micro-batches and communication
JOBS = {
    "overlap": (2, {"mixed": {"ep": 2, "overlap": True}}),
    "no-overlap": (2, {"mixed": {"ep": 2, "overlap": False}}),
    "split": (4, {"prefill": {"ep": 2}, "decode": {"ep": 2}}),
}


class Trace:
    def __init__(self, path):
        self.records = json.loads(path.read_text(encoding="utf-8"))
        self.processes, self.tracks = {}, {}
        self.spans = collections.defaultdict(list)  # (pid, track's name): [(begin, end, name)]
        for record in self.records:
            if record["name"] == "process_name":
                self.processes[record["pid"]] = record["args"]["name"]
            if record["name"] == "thread_name":
                self.tracks[record["pid"], record["tid"]] = record["args"]["name"]
        for record in self.records:
            if record["ph"] == "X":
                track = self.tracks[record["pid"], record["tid"]]
                self.spans[record["pid"], track].append(
                    (record["ts"], record["ts"] + record["dur"], record["name"]))

    def of(self, pid, mb, lane):
        return sorted(self.spans[pid, f"micro-batch {mb} {lane}"])


@pytest.fixture(scope="module", params=JOBS)
def traced(request, shared_jobs):
    ranks, keys = JOBS[request.param]
    lines = [line(f"r{i}", p, max_tokens=8, ignore_eos=True)
             for i, p in enumerate(prompts_of(12, [60, 9, 33]))]
    path = shared_jobs.folder / f"{request.param}.json"
    shared_jobs.run(ranks, shared_jobs.job(lines, **keys), "--trace", path).ok()
    return request.param, ranks, Trace(path)


def crossings(ones, others):
    """Pairs of spans that overlap by more than the rounding."""
    return [(a, b) for a in ones for b in others
            if min(a[1], b[1]) - max(a[0], b[0]) > 2 * ROUNDING_US]


def test_form(traced):
    _, ranks, trace = traced
    assert isinstance(trace.records, list) and trace.records
    for record in trace.records:
        assert record["ph"] in ("X", "M") and 0 <= record["pid"] < ranks, record
        if record["ph"] == "X":
            assert record["ts"] >= 0 and record["dur"] >= 0, record
            assert isinstance(record["tid"], int) and record["name"], record
        else:
            assert record["args"], record


def test_tracks_are_named(traced):
    name, ranks, trace = traced
    assert sorted(trace.processes) == list(range(ranks))
    for pid, process in trace.processes.items():
        unit = ("prefill0" if pid < 2 else "decode0") if name == "split" else "mixed0"
        assert process == f"{unit} rank {pid}"
        assert {t for (p, _), t in trace.tracks.items() if p == pid} == TRACKS
        assert all(trace.spans[pid, track] for track in TRACKS)
    # Perfetto's importer keeps threads by tid: one used twice, 0, or a pid merges two tracks
    tids = [tid for _, tid in trace.tracks]
    assert len(set(tids)) == len(tids) and not set(tids) & set(range(ranks))


def test_compute_is_one_at_a_time(traced):
    _, ranks, trace = traced
    for pid in range(ranks):
        spans = sorted(trace.of(pid, 0, "compute") + trace.of(pid, 1, "compute"))
        for before, after in zip(spans, spans[1:]):
            assert before[1] <= after[0] + ROUNDING_US, (pid, before, after)


def test_overlap(traced):
    """Communication of one micro-batch runs beside computation of the other, if it may."""
    name, ranks, trace = traced
    found = []
    for pid in range(ranks):
        for mb in (0, 1):
            found += crossings(trace.of(pid, mb, "communication"), trace.of(pid, 1 - mb, "compute"))
        if name != "no-overlap":
            assert found, f"rank {pid} hides nothing"
    if name == "no-overlap":
        assert not found, found[:3]
    print(f"# {name}: {len(found)} overlaps")


def test_communication_ends_before_it_is_used(traced):
    """DISPATCH of a layer has ended where the experts of that layer begin, on every rank."""
    _, ranks, trace = traced
    for pid in range(ranks):
        for mb in (0, 1):
            dispatches = [s for s in trace.of(pid, mb, "communication")
                          if s[2].startswith("DISPATCH")]
            experts = [s for s in trace.of(pid, mb, "compute") if s[2].startswith("MLP")]
            assert len(dispatches) == len(experts) > 0
            for sent, used in zip(dispatches, experts):
                assert sent[1] <= used[0] + ROUNDING_US, (pid, sent, used)


def test_unwritable_trace(jobs):
    job = jobs.job([line("a", [5, 6], max_tokens=2)])
    run = jobs.run(1, job, "--trace", jobs.folder / "no" / "trace.json", timeout=60)
    assert run.code in (3, 4) and "trace.json" in run.err
