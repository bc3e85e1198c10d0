"""The monitor's rows of a load test, read again."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from planner.errors import InputError
from planner.load.recorder import CardPeak
from planner.monitor.csv_log import COLUMNS

Look = dict[str, str]


def read_looks(file: Path) -> list[Look]:
    """Every whole row. InputError for another file."""
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as opened:
            rows = csv.DictReader(opened)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise InputError(f"{file}: not the CSV of a monitor")
            return [row for row in rows if None not in row.values() and None not in row]
    except (OSError, csv.Error) as error:
        raise InputError(f"{file}: {error}") from None


def used_series(looks: Sequence[Look], gpu: int) -> list[tuple[float, int]]:
    """Time and bytes in use of one card, where a look told them."""
    found = []
    for look in looks:
        cells = look["gpu_used_bytes"].split()
        if gpu < len(cells) and cells[gpu] != "-":
            found.append((float(look["time"]), int(cells[gpu])))
    return found


def card_peaks(looks: Sequence[Look], only: tuple[int, ...] | None) -> tuple[CardPeak, ...]:
    """The cards of a test, or those of them that are asked for."""
    totals: dict[int, int] = {}
    for look in looks:
        totals |= {gpu: int(cell) for gpu, cell in enumerate(look["gpu_total_bytes"].split()) if cell != "-"}
    peaks = []
    for gpu in sorted(totals if only is None else totals.keys() & set(only)):
        used = [size for _, size in used_series(looks, gpu)]
        if used:
            peaks.append(CardPeak(gpu, used[0], max(used), totals[gpu]))
    return tuple(peaks)
