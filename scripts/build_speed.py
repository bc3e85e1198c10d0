"""Set vplan's speed estimates against figures that others measured and published: verification/published_speed.csv.

Reads verification/published_speed_figures.csv; docs/speed.md explains the result. Run from the repository root.
"""

from __future__ import annotations

import csv
import math
import shlex
import statistics
from pathlib import Path
from typing import Any

from planner import api
from planner.engine.resolve import resolve
from planner.memory.assess import deploy
from planner.search.speed import Range, Speed, speed_of
from planner.serve.parse import parse_command

FIGURES = Path("verification/published_speed_figures.csv")
TABLE = Path("verification/published_speed.csv")
METRICS = (("ttft_ms", "ttft_s", 1e3), ("itl_ms", "itl_s", 1e3), ("output_tokens_per_s", "output_tokens_per_s", 1.0))
"""Published column, field of Speed, and the factor between them."""


def predicted(row: dict[str, str]) -> Speed | None:
    """The estimate for a row's cards, lengths and load, under the newest verified release."""
    line = f"vllm serve {row['model']} --tensor-parallel-size {row['tensor_parallel_size']} {row['flags']}"
    parsed = parse_command(shlex.join(shlex.split(line)))
    request = api.Request(model=parsed.model, gpus=row["gpus"], args=parsed.args, given=parsed.given, offline=True)
    model, gpus = api.load_spec(request), api.load_gpus(request)
    deployment = deploy(model, gpus, resolve(model, gpus.gpu, parsed.args, api.DEFAULT_VERSION))
    lengths = int(row["prompt_tokens"]), int(row["output_tokens"])
    return speed_of(deployment, int(row["concurrency"]), *lengths)


def compared(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        speed = predicted(row)
        for column, field, factor in METRICS:
            if not row[column] or speed is None:
                continue
            span: Range = getattr(speed, field).scaled(factor)
            measured = float(row[column])
            found.append(
                {
                    "id": row["id"], "model": row["model"], "gpus": row["gpus"],
                    "tensor_parallel_size": row["tensor_parallel_size"], "prompt_tokens": row["prompt_tokens"],
                    "output_tokens": row["output_tokens"], "concurrency": row["concurrency"], "metric": column,
                    "published": f"{measured:.2f}", "low": f"{span.low:.2f}", "expected": f"{span.value:.2f}",
                    "high": f"{span.high:.2f}", "ratio": f"{span.value / measured:.6g}",
                    "within": "yes" if span.low <= measured <= span.high else "no",
                }
            )  # fmt: skip
    return found


def summary(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for column, _, _ in METRICS:
        mine = [row for row in rows if row["metric"] == column]
        ratios = [abs(math.log(float(row["ratio"]))) for row in mine]
        hits = sum(row["within"] == "yes" for row in mine)
        lines.append(
            f"{column:20} {len(mine):4} figures, {hits} within ({hits / len(mine):.0%}), expected value off by a "
            f"factor of {math.exp(statistics.median(ratios)):.2f} in the median, {math.exp(max(ratios)):.1f} at most"
        )
    return lines


def main() -> None:
    with FIGURES.open(encoding="utf-8", newline="") as source:
        rows = compared(list(csv.DictReader(source)))
    with TABLE.open("w", encoding="utf-8", newline="") as target:
        writer = csv.DictWriter(target, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
