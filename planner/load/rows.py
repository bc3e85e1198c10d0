"""One row for each request: written as it ends, read again for the picture."""

from __future__ import annotations

import csv
from pathlib import Path

from msgspec import Struct

from planner.errors import InputError
from planner.foreign import table_cell

COLUMNS = (
    "number", "kind", "sent_at", "status", "text_tokens", "width", "height", "pieces", "prompt_tokens",
    "completion_tokens", "ttft_s", "itl_mean_s", "itl_max_s", "duration_s", "problem",
)  # fmt: skip
"""sent_at: seconds since 1970. text_tokens: asked for; prompt_tokens: as the server counted. itl: between tokens."""


class Outcome(Struct, frozen=True):
    """What became of one request. `status`: ok, failed, timeout, or cancelled when the test ended before the answer."""

    number: int
    kind: str
    sent_at: float
    status: str
    text_tokens: int
    width: int
    height: int
    pieces: int
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    ttft_s: float | None = None
    itl_mean_s: float | None = None
    itl_max_s: float | None = None
    duration_s: float = 0.0
    problem: str | None = None


def cells(outcome: Outcome) -> list[str]:
    values = [getattr(outcome, name) for name in COLUMNS]
    return [
        "" if value is None else f"{value:.6f}" if isinstance(value, float) else table_cell(str(value))
        for value in values
    ]


def read_rows(file: Path) -> list[Outcome]:
    """The requests of a test, without a line that was cut short. InputError for another file."""
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as opened:
            lines = csv.reader(opened)
            if tuple(next(lines, ())) != COLUMNS:
                raise InputError(f"{file}: not the CSV of a load test")
            return [_outcome(line) for line in lines if len(line) == len(COLUMNS)]
    except (OSError, csv.Error) as error:
        raise InputError(f"{file}: {error}") from None
    except ValueError as error:
        raise InputError(f"{file}: not the CSV of a load test ({error})") from None


def _outcome(line: list[str]) -> Outcome:
    row = dict(zip(COLUMNS, line, strict=True))

    def seconds(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    return Outcome(
        number=int(row["number"]),
        kind=row["kind"],
        sent_at=float(row["sent_at"]),
        status=row["status"],
        text_tokens=int(row["text_tokens"]),
        width=int(row["width"]),
        height=int(row["height"]),
        pieces=int(row["pieces"]),
        prompt_tokens=int(row["prompt_tokens"]) if row["prompt_tokens"] else None,
        completion_tokens=int(row["completion_tokens"]),
        ttft_s=seconds("ttft_s"),
        itl_mean_s=seconds("itl_mean_s"),
        itl_max_s=seconds("itl_max_s"),
        duration_s=float(row["duration_s"]),
        problem=row["problem"] or None,
    )
