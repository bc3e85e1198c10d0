"""Samples appended to a CSV file. A row that was written is on the disk; what cannot be written is told, not raised."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from planner.errors import InputError
from planner.foreign import table_cell
from planner.monitor.sample import Sample

_SERVER = (
    "running", "waiting", "kv_cache_usage", "preemptions", "prompt_tokens", "generation_tokens", "prefix_cache_queries",
    "prefix_cache_hits", "mm_cache_queries", "mm_cache_hits", "requests_finished",
)  # fmt: skip
COLUMNS = (
    "time", "model", *_SERVER, "prompt_tokens_per_s", "generation_tokens_per_s", "new_preemptions", "restarted",
    "gpu_used_bytes", "gpu_total_bytes", "gpu_utilization_percent", "warnings",
)  # fmt: skip
"""gpu_* hold one figure for each card, separated by spaces, `-` where unknown."""


class AppendedCsv:
    """A CSV file that is only ever appended to, row by row; with `durable`, each flushed to the disk (fsync).

    The file is opened anew for each row, so a file that was rotated or removed is simply begun again. A last line
    that a crash cut short is ended before the next row.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], *, durable: bool = True) -> None:
        self._path, self._columns, self._durable = path, columns, durable
        self._check()

    def append_cells(self, cells: Sequence[str]) -> str | None:
        """Write one row. The problem in words where it could not be written."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                text = _line(self._columns) if size == 0 else ""
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    text = "\n"
                self._write(descriptor, (text + _line(cells)).encode("utf-8"), size)
            finally:
                os.close(descriptor)
        except OSError as error:
            return f"--csv {self._path}: {error.strerror or error}; this row is lost, the rest goes on"
        return None

    def _write(self, descriptor: int, data: bytes, size: int) -> None:
        """All of the row or none of it."""
        try:
            written = os.write(descriptor, data)
            if written < len(data):
                raise OSError(28, "No space left on device")
            if self._durable:
                os.fsync(descriptor)
        except OSError:
            if os.fstat(descriptor).st_size > size:
                os.ftruncate(descriptor, size)
            raise

    def _check(self) -> None:
        """InputError for a file with other columns, or a place that cannot be written."""
        if self._path.exists() and not self._path.is_file():
            raise InputError(f"--csv {self._path}: not a file that rows could be appended to")
        try:
            with self._path.open("a+", encoding="utf-8", errors="replace") as file:
                file.seek(0)
                first = file.readline()
        except OSError as error:
            raise InputError(f"--csv {self._path}: {error.strerror or error}") from None
        if first.endswith("\n") and first.strip() != ",".join(self._columns):
            raise InputError(f"--csv {self._path}: it has other columns; name another file")


class CsvLog(AppendedCsv):
    """Samples as rows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, COLUMNS)

    def append(self, sample: Sample) -> str | None:
        """Write one row. The problem in words where it could not be written."""
        return self.append_cells(_row(sample))


def _row(sample: Sample) -> list[str]:
    server = sample.server
    cells: list[object] = [
        f"{sample.time:.3f}",
        table_cell(server.model or ""),
        *(getattr(server, name) for name in _SERVER),
    ]
    cells += [sample.prompt_tokens_per_s, sample.generation_tokens_per_s, sample.new_preemptions, int(sample.restarted)]
    for field in ("used_bytes", "total_bytes", "utilization_percent"):
        cells.append(
            " ".join("-" if getattr(card, field) is None else str(getattr(card, field)) for card in sample.cards)
        )
    cells.append(table_cell("; ".join(sample.warnings)))
    return [
        "" if cell is None else f"{cell:.6g}" if isinstance(cell, float) and abs(cell) < 1e6 else str(cell)
        for cell in cells
    ]


def _line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([re.sub(r"[\r\n]", " ", cell) for cell in cells])
    return buffer.getvalue()
