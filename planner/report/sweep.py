"""Two flags over ranges: rows of the `sweep` table, with the frontier of what starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.engine.args import EngineArgs
from planner.memory.assess import Assessment
from planner.report.rows import Row, estimate_cells, who
from planner.search.variants import Variants


@dataclass(frozen=True, slots=True)
class Axis:
    """A flag as vLLM spells it, its field of EngineArgs, and its values in ascending order where they are numbers."""

    flag: str
    field: str
    values: tuple[int | float | str, ...]


def sweep_rows(
    variants: Variants,
    args: EngineArgs,
    x: Axis,
    y: Axis,
    command: Callable[[EngineArgs, Assessment], str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Every pair, y by y. `progress` is told pairs done and pairs in all."""
    found: dict[tuple[int, int], tuple[EngineArgs, Assessment]] = {}
    total = len(x.values) * len(y.values)
    for row, other in enumerate(y.values):
        for column, one in enumerate(x.values):
            changed = args.model_copy(update={x.field: one, y.field: other})
            found[column, row] = changed, variants.assess(changed)
            progress(len(found), total)
    starts = {place for place, (_, item) in found.items() if item.estimate.starts}
    rows: list[Row] = []
    for (column, row), (changed, item) in found.items():
        place = (column, row)
        near = ((column + 1, row), (column - 1, row), (column, row + 1), (column, row - 1))
        edge = any(other in found and other not in starts for other in near)
        rows.append(
            {
                **who(item.estimate),
                "x_flag": x.field,
                "x_value": str(x.values[column]),
                "y_flag": y.field,
                "y_value": str(y.values[row]),
                "frontier": place in starts and edge,
                "fits_with_media": place in starts and _free(item) >= 0,
                **estimate_cells(item.estimate),
                "command": command(changed, item) if place in starts else None,
            }
        )
    return rows


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
