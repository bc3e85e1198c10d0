"""Write the tables of verification/ that hold plans predicted first and then started: edge_, tp4_ and verify_.

usage: python scripts/build_edge.py
Reads verification/raw/*.jsonl, one line a case: the flags, what was predicted before the batch ran, and what each rank
of the engine said; or, for verify_, what `vplan verify --format json` printed. See verification/README.md.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from planner.units import GIB
from planner.verify.readings import find_failure

ROOT = Path(__file__).resolve().parent.parent
NAME = "edge_h200_vllm0.26.0"
NAMES = (NAME, "tp4_h200_vllm0.26.0")
VERIFY = "verify_h200_vllm0.26.0"
TERMS = (
    "weights_memory_bytes",
    "peak_activation_bytes",
    "non_torch_bytes",
    "available_kv_cache_bytes",
    "num_gpu_blocks",
    "used_after_startup_bytes",
)
"""Of the rank with the least cache; the last is not among what a rank says."""


def recorded(name: str = NAME) -> list[dict[str, Any]]:
    """Every case of a batch."""
    lines = (ROOT / "verification" / "raw" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def measured_bottleneck(record: dict[str, Any]) -> str:
    """What vLLM's last line means, with the calls that it was raised in. Empty if it started."""
    if record["outcome"] != "refused":
        return ""
    calls = (frame.split() for frame in record["frames"])
    failure = find_failure([*(f'File "{place}", in {name}' for place, name in calls), record["error"]])
    return failure.bottleneck if failure else "unknown"


def agreement(record: dict[str, Any]) -> str:
    """Yes where outcome and reason were predicted and a full batch was served; empty where the case did not finish."""
    if record["outcome"] not in ("started", "refused"):
        return ""
    expected = "started" if record["case"]["expect"] == "starts" else "refused"
    served = record["outcome"] == "refused" or all(record["full_batch"])
    same = record["outcome"] == expected and measured_bottleneck(record) == (record["case"]["bottleneck"] or "")
    return "yes" if same and served else "no"


def measured_terms(record: dict[str, Any]) -> dict[str, int]:
    """The ledger of the rank with the least cache, and what it took of its card; nothing if it did not start."""
    if record["outcome"] != "started":
        return {}
    rank, before = min(
        zip(record["ranks"], record["free_before_bytes"], strict=True),
        key=lambda pair: pair[0]["available_kv_cache_bytes"],
    )
    return {**rank, "used_after_startup_bytes": before - rank["free_bytes"]}


def after_batch(record: dict[str, Any]) -> int | str:
    """Used on the fullest card once a full batch and a long prompt were served."""
    if record["outcome"] != "started":
        return ""
    pairs = zip(record["free_before_bytes"], record["free_after_batch_bytes"], strict=True)
    return max(int(before) - int(after) for before, after in pairs)


def flags(case: dict[str, Any]) -> str:
    """The command's flags, without the utilization, and the environment that is not the machine's."""
    given = {name: value for name, value in case["args"].items() if name != "gpu_memory_utilization"}
    words = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {_word(value)}") for name, value in given.items()
    ]
    runner = [f"{name}={value}" for name, value in case["env"].items() if name.startswith("VLLM_USE_")]
    return " ".join([*runner, *words])


def _word(value: Any) -> str:
    return "'" + json.dumps(value) + "'" if isinstance(value, dict) else str(value)


def row(record: dict[str, Any]) -> dict[str, Any]:
    """One line of the table; sizes in bytes."""
    case = record["case"]
    measured = measured_terms(record)
    gpus = case["args"].get("tensor_parallel_size", 1) * case["args"].get("pipeline_parallel_size", 1)
    found: dict[str, Any] = {
        "name": record["name"], "model": case["model"], "emulated_card": case["card"], "card_bytes": case["card_bytes"],
        "gpus": gpus, "gpu_memory_utilization": round(case["util"], 6),
        "flags": flags(case), "kind": case["pair"], "predicted_verdict": case["expect"],
        "predicted_bottleneck": case["bottleneck"] or "", "measured_outcome": record["outcome"],
        "measured_bottleneck": measured_bottleneck(record), "agrees": agreement(record),
    }  # fmt: skip
    for term in TERMS:
        found[f"predicted_{term}"] = case["predicted"].get(term, "")
        found[f"measured_{term}"] = measured.get(term, "")
    return found | {
        "full_batch": "served" if all(record.get("full_batch", [False])) else "",
        "measured_used_after_batch_bytes": after_batch(record),
        "error": record.get("error", record.get("note", "")), "raised_in": (record.get("frames") or [""])[-1],
        "seconds": record.get("seconds", ""), "device": "NVIDIA H200", "vllm": "0.26.0", "date": "2026-11-22",
    }  # fmt: skip


def verify_row(record: dict[str, Any]) -> dict[str, Any]:
    """One run of `vplan verify`: how it ended, and each term as the log, the engine or NVML gave it."""
    answer = record["answer"]
    found: dict[str, Any] = {"name": record["name"], "command": record["command"]}
    found |= {key: answer[key] for key in ("conclusion", "status", "seconds")}
    found["reasons"] = "; ".join(answer["reasons"])[:200]
    found["requests"] = "; ".join(f"{sent['sent']}: {sent['error'] or 'answered'}"[:120] for sent in answer["requests"])
    terms = {term["term"]: term for term in answer["terms"]}
    for name in TERMS:
        for side in ("predicted", "measured"):
            value = terms.get(name, {}).get(side)
            found[f"{side}_{name}"] = "" if value is None else value
    found["left_behind_bytes"] = max(answer["left_behind_bytes"], default="")
    return found | {"device": "NVIDIA H200", "vllm": "0.26.0", "date": record["date"]}


def _write(name: str, rows: list[dict[str, Any]]) -> None:
    with (ROOT / "verification" / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _summarize(rows: list[dict[str, Any]]) -> None:
    for kind in sorted({found["kind"] for found in rows}):
        some = [found for found in rows if found["kind"] == kind]
        agreed = sum(found["agrees"] == "yes" for found in some)
        finished = sum(found["agrees"] != "" for found in some)
        print(f"{kind:9s} {agreed} of {finished} as predicted, {len(some) - finished} did not finish", file=sys.stderr)
    for term in ("available_kv_cache_bytes", "used_after_startup_bytes"):
        off = [
            (found[f"predicted_{term}"] - found[f"measured_{term}"]) / GIB
            for found in rows
            if found[f"measured_{term}"]
        ]
        print(f"{term:28s} {len(off)} boots, lowest {min(off):+.4f} highest {max(off):+.4f} GiB", file=sys.stderr)


def main() -> None:
    for name in NAMES:
        rows = [row(record) for record in recorded(name)]
        _write(name, rows)
        _summarize(rows)
    _write(VERIFY, [verify_row(record) for record in recorded(VERIFY)])


if __name__ == "__main__":
    main()
