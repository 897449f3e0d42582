"""Reads what `moebatch plan` prints and compares it with what the ranks of a run then held."""
import json
import re

from conftest import moebatch

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
GROWTH = 0.35  # of the activations, either way: they grow with the load


def plan(jobs, job, *args):
    path = jobs.folder / "plan.yaml"
    path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in job.items()), encoding="utf-8")
    return moebatch("plan", path, *args)


def memory(out):
    """{role: {row of the memory table: bytes}}."""
    head, *lines = out.split("# memory of a rank")[1].split("\n\n")[0].splitlines()
    found = {role: {} for role in head.split()}
    for text in lines:
        values = re.findall(r"(?:([\d.]+) (\w*B)|(-))(?= |$)", text[34:])
        for role, (value, unit, _) in zip(found, values):
            found[role][text[2:34].strip()] = float(value) * UNITS[unit] if unit else 0
    return found


def equal(printed, exact):
    """To the digits that are printed."""
    return abs(printed - exact) <= max(0.006 * exact, 6)


def activations(planned):
    return sum(planned[k] for k in ("activations of a step", "context of the longest prompt",
                                    "rows of the routed experts"))


def compare(out, ranks, same_pages=True):
    """ranks: the table of a run of that job. Returns the plan by role."""
    planned = memory(out)
    for row in ranks:
        mine = planned[row["role"].decode()]
        assert equal(mine["experts' weights"], row["experts_bytes"])
        assert not same_pages or equal(mine["KV pages"], row["kv_bytes"])
        alltoall = [k for k in mine if re.search("all-to-all|low-latency|COMBINE|forward", k)]
        assert equal(sum(mine[k] for k in alltoall), row["alltoall_bytes"])
        assert row["activation_bytes"] <= (1 + GROWTH) * activations(mine)
        assert row["resident_bytes"] <= 1.1 * mine["a rank"]
    return planned
