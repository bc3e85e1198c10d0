"""Shares of a card's roofs that vLLM's kernels reach, from the measurements that ship with aiconfigurator-core.

    python scripts/build_kernel_shares.py FOLDER/aiconfigurator_core/systems

FOLDER is the unpacked wheel (Apache-2.0, NVIDIA); reading it takes pandas and pyarrow. Prints, for each kernel, the
median over the cards of each card's median, the least of their 10 % quantiles and the greatest of their 90 % quantiles:
what `planner/search/kernel_shares.py` states.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import yaml

CARDS = ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm", "l40s", "rtx_pro_6000_server")
MIB = 1 << 20


def table(systems: Path, card: str, kind: str, name: str) -> pd.DataFrame:
    """The newest measurement of a kernel with vLLM."""
    found = sorted((systems / "data" / card / kind / "vllm").glob(f"*/{name}.parquet"))
    return pd.read_parquet(found[-1]) if found else pd.DataFrame()


def gemm(systems: Path, card: str, gpu: dict, eight_bit: bool) -> Iterator[tuple[str, pd.Series]]:
    """Weights of at least 32 MiB read for at most 32 rows; at least 2048 rows through 16 Mi weights; small ones."""
    rows = table(systems, card, "gemm", "gemm_perf")
    rows = rows[rows.gemm_dtype == ("fp8" if eight_bit else "bfloat16")]
    if rows.empty:
        return
    size = 1 if eight_bit else 2
    weights = rows.n * rows.k * size
    read_ms = (weights + rows.m * rows.k * size + rows.m * rows.n * 2) / gpu["mem_bw"] * 1e3
    flops_ms = 2.0 * rows.m * rows.n * rows.k / gpu["fp8_tc_flops" if eight_bit else "bfloat16_tc_flops"] * 1e3
    bits = 8 if eight_bit else 16
    few = (rows.m <= 32) & (weights >= 32 * MIB) & (read_ms > 2 * flops_ms)
    many = (rows.m >= 2048) & (rows.n * rows.k >= 16 * MIB) & (flops_ms > 2 * read_ms)
    yield f"bandwidth, {bits} bits", (read_ms / rows.latency)[few]
    yield f"FLOPS, {bits} bits", (flops_ms / rows.latency)[many]
    if not eight_bit:
        small = (rows.m <= 16) & (weights < 16 * MIB)
        yield "seconds of a small kernel", ((rows.latency - read_ms)[small] / 1e3).clip(lower=0)


def attention(systems: Path, card: str, gpu: dict) -> Iterator[tuple[str, pd.Series]]:
    """Heads of 128, no window, at least 64 MB of cache or 1 TFLOP; the floor from less than 1 MB."""
    for name in ("generation", "context"):
        rows = table(systems, card, "attention", f"{name}_attention_perf")
        rows = rows[(rows.head_dim == 128) & (rows.kv_cache_dtype == "bfloat16")]
        if "window_size" in rows:
            rows = rows[rows.window_size <= 0]
        if name == "context":
            rows = rows[rows.step == 0] if "step" in rows else rows
            flops = 2.0 * rows.batch_size * rows.num_heads * rows.isl.astype(float) ** 2 * 128
            yield "FLOPS, attention", (flops / gpu["bfloat16_tc_flops"] * 1e3 / rows.latency)[flops > 1e12]
        else:
            read = rows.batch_size * (rows.step + 1.0) * rows.num_key_value_heads * 128 * 4
            yield "bandwidth, attention", (read / gpu["mem_bw"] * 1e3 / rows.latency)[read > 64e6]
            yield "seconds of attention", rows.latency[read < 1e6] / 1e3


def all_reduce(systems: Path, card: str, link: float) -> Iterator[tuple[str, pd.Series]]:
    rows = table(systems, card, "comm", "custom_allreduce_perf")
    rows = rows[rows.kernel_source.str.contains("graph")]
    kind = "NVLink" if link > 1e11 else "PCIe"
    ideal_ms = rows.message_size * 2 * (rows.num_gpus - 1) / rows.num_gpus / link * 1e3
    yield f"link, {kind}", (ideal_ms / rows.latency)[rows.message_size >= 4 * MIB]
    for count, group in rows.groupby("num_gpus"):
        yield f"seconds of an all-reduce, {kind}, {count}", (group.latency / 1e3)[group.message_size <= 8192]


def main() -> None:
    systems = Path(sys.argv[1])
    found: dict[str, list[pd.Series]] = {}
    for card in CARDS:
        spec = yaml.safe_load((systems / f"{card}.yaml").read_text())
        gpu = spec["gpu"]
        parts = [*gemm(systems, card, gpu, False), *attention(systems, card, gpu)]
        if gpu.get("fp8_tc_flops"):
            parts += gemm(systems, card, gpu, True)
        parts += all_reduce(systems, card, spec["node"]["intra_node_bw"])
        for name, series in parts:
            if len(series):
                found.setdefault(name, []).append(series)
    for name, series in sorted(found.items()):
        low = min(one.quantile(0.1) for one in series)
        high = max(one.quantile(0.9) for one in series)
        middle = pd.Series([one.median() for one in series]).median()
        print(f"{name:36} low {low:.3g} value {middle:.3g} high {high:.3g} cards {len(series)}")


if __name__ == "__main__":
    main()
