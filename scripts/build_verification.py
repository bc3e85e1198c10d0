"""Predict every measured boot again: verification/h200_vllm0.26.0.csv and its picture.

usage: python scripts/build_verification.py            (about a minute; needs `vplan[report]` for the picture)
Reads measurements/*.csv and tests/data/measured_models; see verification/README.md for the columns.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from planner import api
from planner.engine.args import EngineArgs
from planner.memory.result import Estimate
from planner.units import GIB

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "tests" / "data" / "measured_models"
SOURCES = ("h200_vllm0.26.0_2026-11-22_first.csv", "h200_vllm0.26.0_2026-11-22.csv")
NAME = "h200_vllm0.26.0"
TERMS = (
    ("weights_memory_bytes", "weights_bytes"),
    ("peak_activation_bytes", "peak_activation_bytes"),
    ("non_torch_bytes", "non_torch_bytes"),
    ("cuda_graph_estimate_bytes", "cuda_graph_estimate_bytes"),
    ("available_kv_cache_bytes", "available_kv_bytes"),
    ("runner_state_bytes", "runner_state_bytes"),
    ("used_after_startup_bytes", "used_at_end_bytes"),
)
"""Field of the estimate's `per_gpu`, and column of the measurements."""
IDENTITY = (
    "name", "model", "gpu", "tp", "pp", "vllm", "runner", "dtype", "quantization", "max_model_len", "max_num_seqs",
    "max_num_batched_tokens", "kv_cache_dtype", "gpu_memory_utilization", "enforce_eager", "enable_expert_parallel",
    "limit_mm_per_prompt", "mm_processor_kwargs", "max_cudagraph_capture_size", "env",
)  # fmt: skip


def measured_rows() -> Iterator[dict[str, str]]:
    """Every measured boot, with the date of its file."""
    for source in SOURCES:
        with (ROOT / "measurements" / source).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield {**row, "date": "2026-11-22"}


def predict(row: dict[str, str]) -> Estimate:
    """The estimate for the flags of one measured boot."""
    given: dict[str, object] = {
        "tensor_parallel_size": int(row["tp"]),
        "pipeline_parallel_size": int(row["pp"]),
        "max_model_len": int(row["max_model_len"]),
        "max_num_seqs": int(row["max_num_seqs"]),
        "max_num_batched_tokens": int(row["max_num_batched_tokens"]),
        "kv_cache_dtype": row["kv_cache_dtype"],
        "gpu_memory_utilization": float(row["gpu_memory_utilization"]),
        "dtype": row["dtype"],
        "enforce_eager": row["enforce_eager"] == "True",
    }
    for column, field in (
        ("limit_mm_per_prompt", "limit_mm_per_prompt"),
        ("mm_processor_kwargs", "mm_processor_kwargs"),
        ("online_quantization", "quantization"),
    ):
        if row[column]:
            given[field] = row[column]
    if row.get("max_cudagraph_capture_size"):
        given["max_cudagraph_capture_size"] = int(row["max_cudagraph_capture_size"])
    if row.get("enable_expert_parallel"):
        given["enable_expert_parallel"] = True
    env = tuple(json.loads(row["env"]).items()) if row["env"] else ()
    request = api.Request(
        model=str(MODELS / row["model"]), gpus=f"{row['gpu']}:{int(row['tp']) * int(row['pp'])}", offline=True,
        vllm_version=row["vllm"], given=tuple(sorted(given)), args=EngineArgs(**given, env=env),  # type: ignore[arg-type]
    )  # fmt: skip
    return api.estimate(request).estimate


def compared(row: dict[str, str], estimate: Estimate) -> dict[str, str | int]:
    """One row of the matrix: flags, then predicted, measured and difference of each term in bytes."""
    found: dict[str, str | int] = {name: row.get(name, "") for name in IDENTITY}
    found |= {"device": "NVIDIA H200", "torch": "2.11.0", "date": row["date"], "predicted_verdict": estimate.verdict}
    found["measured_verdict"] = "starts"
    for field, column in TERMS:
        predicted = getattr(estimate.per_gpu, field) if estimate.per_gpu else None
        measured = int(float(row[column])) if row[column] else None
        found[f"predicted_{field}"] = "" if predicted is None else predicted
        found[f"measured_{field}"] = "" if measured is None else measured
        found[f"difference_{field}"] = "" if predicted is None or measured is None else predicted - measured
    blocks = estimate.kv_cache.num_gpu_blocks if estimate.kv_cache else None
    found["predicted_num_gpu_blocks"] = "" if blocks is None else blocks
    found["measured_num_gpu_blocks"] = int(row["num_gpu_blocks"])
    return found


def draw(rows: list[dict[str, str | int]], path: Path) -> None:
    """Predicted against measured, and the differences, one mark a term (colours of Okabe and Ito)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    marks = {
        "weights_memory_bytes": ("weights", "#0072b2", "o"),
        "peak_activation_bytes": ("peak activation", "#d55e00", "^"),
        "runner_state_bytes": ("runner and sampler state", "#cc79a7", "v"),
        "available_kv_cache_bytes": ("available for KV cache", "#009e73", "s"),
        "used_after_startup_bytes": ("used after startup", "#000000", "x"),
    }
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5.4))
    for position, (field, (label, color, mark)) in enumerate(marks.items()):
        pairs = [
            (int(row[f"measured_{field}"]) / GIB, int(row[f"predicted_{field}"]) / GIB)
            for row in rows
            if row[f"measured_{field}"] != "" and row[f"predicted_{field}"] != ""
        ]
        style = {"color": color, "marker": mark, "s": 26, "alpha": 0.75, "linewidths": 1.2}
        if mark != "x":
            style |= {"facecolors": "none", "edgecolors": color}
            del style["color"]
        left.scatter(*zip(*pairs, strict=True), label=f"{label} ({len(pairs)})", **style)  # type: ignore[arg-type]
        spread = [position + (index / max(len(pairs) - 1, 1) - 0.5) * 0.6 for index in range(len(pairs))]
        right.scatter(spread, [predicted - measured for measured, predicted in pairs], **style)  # type: ignore[arg-type]
    left.plot([0.02, 150], [0.02, 150], color="#888888", linewidth=0.8, zorder=0)
    left.set(
        xscale="log", yscale="log", xlim=(0.02, 160), ylim=(0.02, 160), xlabel="measured, GiB", ylabel="predicted, GiB"
    )
    left.legend(frameon=False, loc="upper left")
    left.set_title(f"{len(rows)} boots of vLLM 0.26.0 on H200")
    right.axhline(0, color="#888888", linewidth=0.8, zorder=0)
    right.set_xticks(range(len(marks)), [label.replace(" ", "\n") for label, _, _ in marks.values()])
    right.set_ylabel("predicted - measured, GiB")
    right.set_title("one mark a boot, in the order of the table")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": ""})


def main() -> None:
    rows = [compared(row, predict(row)) for row in measured_rows()]
    target = ROOT / "verification" / f"{NAME}.csv"
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, target.with_suffix(".png"))
    started = sum(row["predicted_verdict"] == "starts" for row in rows)
    print(f"{len(rows)} boots, {started} predicted to start", file=sys.stderr)
    for field, _ in TERMS:
        errors = [int(row[f"difference_{field}"]) / GIB for row in rows if row[f"difference_{field}"] != ""]
        mean = sum(map(abs, errors)) / len(errors)
        print(f"{field:28s} mean {mean:.3f} lowest {min(errors):+.3f} highest {max(errors):+.3f} GiB", file=sys.stderr)


if __name__ == "__main__":
    main()
