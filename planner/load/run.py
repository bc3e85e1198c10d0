"""A whole load test: the driver, the monitor beside it, and what both leave in files."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgspec import Struct

from planner.errors import InputError, OutsideError
from planner.load.drive import Driver, Pace
from planner.load.looks import card_peaks, read_looks
from planner.load.mix import Mix
from planner.load.recorder import Recorder
from planner.load.rows import COLUMNS, Outcome, cells, read_rows
from planner.load.summary import memory, summary
from planner.load.target import Served, Target
from planner.monitor.csv_log import AppendedCsv
from planner.monitor.planned import Planned
from planner.monitor.session import Session

_LOOK_TIMEOUT_S = 5.0


class Files(Struct, frozen=True):
    """Where a test writes: requests, looks, summary and picture, side by side."""

    requests: Path
    looks: Path
    summary: Path
    picture: Path


def files_of(csv: Path) -> Files:
    """`load.csv` and, beside it, `load.monitor.csv`, `load.json` and `load.png`."""
    if csv.suffix != ".csv" or csv.name == ".csv":
        raise InputError(f"--csv {csv}: a name that ends in .csv")
    return Files(csv, csv.with_suffix(".monitor.csv"), csv.with_suffix(".json"), csv.with_suffix(".png"))


def refuse_existing(files: Files) -> None:
    """InputError where a test lies already: two tests in one file could not be told apart."""
    for file in (files.requests, files.looks, files.summary):
        if file.exists() and not (file.is_file() and file.stat().st_size == 0):
            raise InputError(f"--csv: {file} is there already; name another file")


class LoadTest(Struct, frozen=True):
    """Everything that decides a test but its mix and pace. `setup`: the choices, for the summary."""

    target: Target
    served: Served
    files: Files
    setup: dict[str, Any]
    planned: Planned | None = None
    interval_s: float = 0.5
    seed: int = 0
    text_as_chat: bool = False
    cards: tuple[int, ...] | None = None


def run_test(test: LoadTest, mix: Mix, pace: Pace) -> tuple[dict[str, Any], bool]:
    """Run it; the summary, and whether it was interrupted. The summary is written too; rows are as they come.

    A row that cannot be written is counted (`rows_lost`) and the test goes on.
    """
    outcomes: list[Outcome] = []
    lost: list[str] = []
    log = AppendedCsv(test.files.requests, COLUMNS, durable=False)

    def keep(outcome: Outcome) -> None:
        outcomes.append(outcome)
        problem = log.append_cells(cells(outcome))
        if problem is not None:
            lost.append(problem)

    driver = Driver(
        test.target, test.served, pace, mix.jobs(test.seed), seed=test.seed, text_as_chat=test.text_as_chat, tell=keep
    )
    with ExitStack() as stack:
        session = Session(
            stack,
            test.target.base,
            _LOOK_TIMEOUT_S,
            test.planned,
            test.files.looks,
            None,
            local=test.target.is_loopback,
            only=test.cards,
        )
        with Recorder(session, test.interval_s) as recorder:
            began = time.monotonic()
            interrupted = driver.run()
            seconds = time.monotonic() - began
    document = summary(outcomes, recorder.peaks(), test.planned, seconds, test.setup)
    document["requests"] |= {"left_out": driver.left_out, "rows_lost": len(lost)}
    document["interrupted"] = interrupted
    document["warnings"] += lost[:1]
    problem = _write(test.files.summary, _json(document))
    document["warnings"] += [problem] if problem else []
    return document, interrupted


def draw(csv: Path, planned: Planned | None = None, only: tuple[int, ...] | None = None) -> Path:
    """Draw the picture of a test from its files; with `planned` or `only`, hold its memory against that plan first.

    The warnings about cards, which go by the plan of the test itself, are left out then.

    InputError where a file is missing or is none, OutsideError without matplotlib.
    """
    files = files_of(csv)
    outcomes, looks = read_rows(files.requests), read_looks(files.looks)
    try:
        from planner.load.picture import picture
    except ImportError:
        raise OutsideError("a picture needs the package matplotlib (pip install 'vplan[report]')") from None
    try:
        document = json.loads(files.summary.read_text(encoding="utf-8"))
        if planned is not None or only is not None:
            document["memory"] = memory(card_peaks(looks, only), planned)
            document["warnings"] = [words for words in document["warnings"] if not words.startswith("GPU ")]
            _write_or_raise(files.summary, _json(document))
        drawn = picture(outcomes, looks, document)
    except OSError as error:
        raise InputError(f"{files.summary}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{csv}: its files are not those of one load test ({error!r})") from None
    _write_or_raise(files.picture, drawn)
    return files.picture


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"


def _write_or_raise(file: Path, data: bytes) -> None:
    problem = _write(file, data)
    if problem is not None:
        raise OutsideError(problem)


def _write(file: Path, data: bytes) -> str | None:
    try:
        file.write_bytes(data)
    except OSError as error:
        return f"{file}: {error.strerror or error}"
    return None
