"""Two flags over ranges: rows of the `sweep` table, and the plans on the frontier of what starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.engine.args import EngineArgs
from planner.memory.assess import Assessment
from planner.report.fit import Launch, launched_record
from planner.report.rows import Row, estimate_cells, who
from planner.search.variants import Variants


@dataclass(frozen=True, slots=True)
class Axis:
    """A flag as vLLM spells it, its field of EngineArgs, and its values in ascending order where they are numbers."""

    flag: str
    field: str
    values: tuple[int | float | str, ...]


Pairs = dict[tuple[int, int], tuple[EngineArgs, Assessment]]
"""The flags and the assessment of each pair, by the places of its values on x and y; y by y."""


def sweep_pairs(
    variants: Variants,
    args: EngineArgs,
    x: Axis,
    y: Axis,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pairs:
    """Assess every pair. `progress` is told pairs done and pairs in all."""
    found: Pairs = {}
    total = len(x.values) * len(y.values)
    for row, other in enumerate(y.values):
        for column, one in enumerate(x.values):
            changed = args.model_copy(update={x.field: one, y.field: other})
            found[column, row] = changed, variants.assess(changed)
            progress(len(found), total)
    return found


def on_frontier(found: Pairs) -> set[tuple[int, int]]:
    """The pairs that start and have a neighbour that does not."""
    starts = {place for place, (_, item) in found.items() if item.estimate.starts}
    return {
        (x, y)
        for x, y in starts
        if any(near in found and near not in starts for near in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)))
    }


def sweep_rows(found: Pairs, x: Axis, y: Axis, command: Callable[[EngineArgs, Assessment], str]) -> list[Row]:
    """A row a pair, in the order of `found`."""
    frontier = on_frontier(found)
    rows: list[Row] = []
    for (column, row), (changed, item) in found.items():
        starts = item.estimate.starts
        rows.append(
            {
                **who(item.estimate),
                "x_flag": x.field,
                "x_value": str(x.values[column]),
                "y_flag": y.field,
                "y_value": str(y.values[row]),
                "frontier": (column, row) in frontier,
                "fits_with_media": starts and _free(item) >= 0,
                **estimate_cells(item.estimate),
                "command": command(changed, item) if starts else None,
            }
        )
    return rows


def frontier_json(found: Pairs, launch: Callable[[EngineArgs, Assessment], Launch]) -> str:
    """The plan at each frontier point, in the order of `found`, as a `vplan.fit/1` document that report, launch and
    compare read."""
    plans = []
    for rank, place in enumerate((place for place in found if place in on_frontier(found)), 1):
        args, item = found[place]
        plans.append(launched_record(item.estimate, launch(args, item), rank, _free(item)))
    document = {"schema": "vplan.fit/1", "plans": plans, "rejected": [], "evaluated": len(found)}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _free(assessment: Assessment) -> int:
    per_gpu = assessment.estimate.per_gpu
    if per_gpu is None:
        return -1
    return per_gpu.total_memory_bytes - per_gpu.used_after_startup_bytes - per_gpu.vision_encoder_runtime_peak_bytes


def free_bytes(row: Row) -> int | None:
    """What the device keeps free at the height of a row's plan; None where vLLM refuses before the weights."""
    sizes = [
        row[name] for name in ("total_memory_bytes", "used_after_startup_bytes", "vision_encoder_runtime_peak_bytes")
    ]
    if not all(isinstance(size, int) for size in sizes):
        return None
    total, used, encoder = (int(size or 0) for size in sizes)
    return total - used - encoder


def axes_of(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The values of both flags in the order of the sweep."""
    return list(dict.fromkeys(str(row["x_value"]) for row in rows)), list(
        dict.fromkeys(str(row["y_value"]) for row in rows)
    )
