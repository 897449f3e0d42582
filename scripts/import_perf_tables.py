#!/usr/bin/env python3
"""Converts the kernel tables of the PyPI package aiconfigurator-core to inputs/hardware/tables.

    pip install pandas pyarrow && pip download --no-deps aiconfigurator-core
    scripts/import_perf_tables.py aiconfigurator_core-*.whl [OUT_DIR] [SYSTEM...]

Measured GEMM, MLA, MoE and DeepEP times become rows of the CSV that src/cluster/hardware.h
describes; only shapes that a DeepSeek-V3-family model can use are kept. Each file says which
package version and which table its rows come from.
"""
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = "aiconfigurator_core/systems/data/"
SYSTEMS = {"h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200", "b300_sxm": "b300",
           "gb200": "gb200", "gb300": "gb300"}
ROWS = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]
# (n, k) near the shapes of DeepSeek-V3, Kimi-K2 and V2-Lite
SHAPES_N = [512, 1024, 1536, 2048, 4096, 7168, 16384, 65536]
SHAPES_K = [512, 1536, 2048, 4096, 7168, 16384]
FAMILY = {"hidden": 7168, "inter": 2048, "topk": 8, "experts": 256}


class Tables:
    """The parquet files of one system inside the wheel."""

    def __init__(self, wheel, system):
        self.wheel, self.prefix = wheel, ROOT + system + "/"
        self.names = [n for n in wheel.namelist()
                      if n.startswith(self.prefix) and n.endswith(".parquet")]

    def versions(self, kind, framework, name):
        """Tables of that file name, newest version first."""
        found = [n for n in self.names if n.startswith(f"{self.prefix}{kind}/{framework}/")
                 and n.endswith("/" + name)]
        key = lambda n: [int("".join(c for c in p if c.isdigit()) or 0)
                         for p in n.split("/")[-2].split(".")]
        return sorted(found, key=key, reverse=True)

    def read(self, path):
        return pd.read_parquet(io.BytesIO(self.wheel.read(path)))

    def source(self, path):
        return path[len(self.prefix):].replace(".parquet", "")


def gemm(tables, out):
    for path in tables.versions("gemm", "sglang", "gemm_perf.parquet")[:1]:
        d = tables.read(path)
        d = d[d.m.isin(ROWS) & d.n.isin(SHAPES_N) & d.k.isin(SHAPES_K)]
        for dtype, op in (("fp8_block", "gemm_fp8"), ("bfloat16", "gemm_bf16")):
            best = d[d.gemm_dtype == dtype].groupby(["n", "k", "m"]).latency.min()
            for (n, k, m), ms in best.items():
                if op == "gemm_fp8" or k == FAMILY["hidden"]:
                    out.add(op, n, k, m, "", ms * 1e3, tables.source(path))


def mla(tables, out):
    # TensorRT-LLM's prefill keeps heads apart (128 + 64 wide keys, 128 wide values), as this engine
    # does. SGLang's rows of Hopper time the absorbed form: collect_mla.py of the same project sets
    # 512 + 64 and 512 there, and its rows are 3.3 times longer, as (576 + 512) / (192 + 128) says.
    for path in tables.versions("mla", "trtllm", "context_mla_perf.parquet")[:1]:
        d = tables.read(path)
        d = d[(d.kv_cache_dtype == "bfloat16") & (d.tp_size == 1) & d.num_heads.isin([64, 128])
              & d.isl.isin([1024, 2048, 4096, 8192, 16384]) & (d.batch_size <= 8)]
        for (h, s, b), ms in d.groupby(["num_heads", "isl", "batch_size"]).latency.min().items():
            out.add("mla_prefill", h, s, b, 0, ms * 1e3, tables.source(path))
    for path in tables.versions("mla", "sglang", "generation_mla_perf.parquet")[:1]:
        d = tables.read(path)
        d = d[(d.kv_cache_dtype == "bfloat16") & (d.tp_size == 1) & (d.batch_size <= 256)
              & d.num_heads.isin([16, 64, 128]) & (d.step >= 1023) & (d.step <= 16383)]
        for (h, kv, b), ms in d.groupby(["num_heads", "step", "batch_size"]).latency.min().items():
            out.add("mla_decode", h, kv + 1, b, 1, ms * 1e3, tables.source(path))


def expert_rows(tables, name):
    """Uniform rows of the newest such table; and its path."""
    for path in tables.versions("moe", "sglang", name)[:1]:
        d = tables.read(path)
        d = d[(d.distribution == "uniform") & (d.hidden_size == FAMILY["hidden"])
              & (d.num_experts == FAMILY["experts"]) & (d.topk == FAMILY["topk"])
              & (d.moe_tp_size == 1)]
        d = d.groupby(["moe_ep_size", "num_tokens"]).latency.min().reset_index()
        # num_tokens counts the whole EP group: an expert has so many rows
        d["m"] = d.num_tokens * FAMILY["topk"] / FAMILY["experts"]
        return d, path
    return None, None


def without_foreign_rows(d):
    """Prefill rows as a rank sees them. The collector (collect_wideep_deepep_moe.py of the same
    project) times the whole expert layer: scatter, product, activation and quantisation, product,
    gather. But it hands a rank the tokens of *all* ranks, most of them without an expert here;
    DeepEP delivers only those with one. Scatter and gather walk over the others too, so that the
    time grows with the EP size. Two constants, us per row that an expert computes and us per token
    handed over, fit the table's own rows; the second one times the tokens that DeepEP would not
    deliver is taken off. Rows that are mostly that, or mostly the host's launches, are left out."""
    topk, ep = FAMILY["topk"], d.moe_ep_size
    valid, handed = d.num_tokens / ep * topk, d.num_tokens
    foreign = handed * (1 - 1 / ep) ** topk
    use = (d.m >= 1024) & (d.latency > 2 * d.latency.min())
    a = np.stack([valid[use], handed[use]], 1) / d.latency[use].to_numpy()[:, None]
    cost = np.linalg.lstsq(a, np.ones(len(a)), rcond=None)[0]
    worst = float(abs(a @ cost - 1).max())
    d = d.assign(off=cost[1] * foreign)[use]
    d = d[d.off < d.latency / 3]
    print(f"  prefill experts: {cost[0] * 1e6:.1f} ns a computed row, {cost[1] * 1e6:.1f} ns a "
          f"token handed over, worst residual {100 * worst:.0f} %")
    return d.assign(latency=d.latency - d.off)


def moe(tables, out):
    """The whole expert layer, as one product of 3 x inter columns."""
    for name, op in (("wideep_generation_moe_perf.parquet", "masked"),
                     ("wideep_context_moe_perf.parquet", "grouped")):
        d, path = expert_rows(tables, name)
        if path is None:
            continue
        d = without_foreign_rows(d) if op == "grouped" else d[(d.m >= 16) & (d.m <= 2048)]
        for r in d.itertuples():
            out.add(op, 3 * FAMILY["inter"], FAMILY["hidden"], r.m,
                    FAMILY["experts"] // r.moe_ep_size, r.latency * 1e3, tables.source(path))


def deepep(tables, gpus_per_node, out):
    def widest(name):
        """The version with most node counts, the newest of those."""
        paths = tables.versions("comm", "sglang", name)
        return max(paths, key=lambda p: tables.read(p).node_num.max(), default=None)

    path = widest("wideep_deepep_ll_perf.parquet")
    if path:
        d = tables.read(path)
        d = d[(d.hidden_size == FAMILY["hidden"]) & (d.num_topk == FAMILY["topk"])
              & d.num_experts.isin([256, 288]) & d.num_token.isin([8, 32, 64, 128, 256])]
        for (nodes, tokens), g in d.groupby(["node_num", "num_token"]):
            key = (nodes * gpus_per_node, tokens, FAMILY["hidden"], FAMILY["topk"])
            out.add("ll_dispatch", *key, g.dispatch_avg_t_us.min(), tables.source(path))
            out.add("ll_combine", *key, g.combine_avg_t_us.min(), tables.source(path))
    path = widest("wideep_deepep_normal_perf.parquet")
    if path:
        d = tables.read(path)
        d = d[(d.hidden_size == FAMILY["hidden"]) & (d.num_topk == FAMILY["topk"])
              & (d.num_experts == 256) & (d.num_token == 8192) & d.dispatch_sms.isin([20, 24])]
        for nodes, g in d.groupby("node_num"):
            ep = nodes * gpus_per_node
            # logical rows of a token: distinct nodes, inside one node distinct GPUs; DeepEP's
            # own benchmark keeps min(nodes, 4) nodes a token
            bins = min(nodes, 4) if nodes > 1 else gpus_per_node
            rows = 8192 * bins * (1 - (1 - 1 / bins) ** FAMILY["topk"])
            for op, col, row in (("normal_dispatch", "dispatch_transmit_us", 7392),
                                 ("normal_combine", "combine_transmit_us", 14336)):
                out.add(op, ep, 8192, FAMILY["hidden"], 8, rows * row / g[col].min() / 1e3,
                        tables.source(path), "gb_s")


class Rows:
    def __init__(self):
        self.lines, self.sources = [], {}

    def add(self, op, a, b, c, d, value, source, unit="us"):
        tag = self.sources.setdefault(source, f"[{len(self.sources) + 1}]")
        self.lines.append(f"{op},{a:g},{b:g},{c:g},{d if d == '' else format(d, 'g')},{unit},"
                          f"{value:.4g},{tag}")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    wheel_path = Path(sys.argv[1])
    out_dir = Path(sys.argv[2] if len(sys.argv) > 2 else "inputs/hardware/tables")
    systems = sys.argv[3:] or list(SYSTEMS)
    with zipfile.ZipFile(wheel_path) as wheel:
        for system in systems:
            tables, out = Tables(wheel, system), Rows()
            if not tables.names:
                sys.exit(f"{wheel_path}: no tables of {system}; known: {', '.join(SYSTEMS)}")
            gemm(tables, out)
            mla(tables, out)
            moe(tables, out)
            deepep(tables, 4 if system.startswith("gb") else 8, out)
            head = [f"# Kernel times of {system} from {'-'.join(wheel_path.name.split('-')[:2])}",
                    "# (PyPI, Apache-2.0, NVIDIA CORPORATION & AFFILIATES), converted by",
                    "# scripts/import_perf_tables.py; src/cluster/hardware.h explains the columns."]
            head += ["# grouped: less the time of tokens that DeepEP would not deliver (see there)"]
            head += [f"# {tag} {source}" for source, tag in out.sources.items()]
            path = out_dir / f"{SYSTEMS[system]}.csv"
            path.write_text("\n".join(head + ["op,a,b,c,d,unit,value,source"] + out.lines) + "\n")
            print(f"{path}: {len(out.lines)} points, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
