"""Run one target over many made texts: no traceback, no answer that must not be, no input over two seconds."""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

from targets import TARGETS, TOLD, Finding

LIMIT_SECONDS = 2.0
"""Of processor time, for one input."""


@dataclass
class Report:
    """`answers`: inputs that got one, `told`: one-line errors by kind, `broken`: (what happened, input)."""

    target: str
    inputs: int = 0
    answers: int = 0
    slowest_seconds: float = 0.0
    told: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[str, str]] = field(default_factory=list)


def attempt(name: str, text: str, report: Report) -> None:
    """One input."""
    run = TARGETS[name][0]
    started = time.process_time()
    try:
        run(text)
        report.answers += 1
    except TOLD as error:
        report.told[type(error).__name__] += 1
        if not str(error).strip() and type(error).__name__ != "RefusedCommand" and type(error).__name__ != "Rejected":
            report.broken.append((f"{type(error).__name__} without a word", text))
    except Finding as finding:
        report.broken.append((str(finding), text))
    except Exception as error:
        report.broken.append((f"{_where(error)}: {type(error).__name__}: {error}", text))
    seconds = time.process_time() - started
    report.inputs += 1
    report.slowest_seconds = max(report.slowest_seconds, seconds)
    if seconds > LIMIT_SECONDS:
        report.broken.append((f"{seconds:.1f} s", text))


def _where(error: BaseException) -> str:
    """The innermost place in the program."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if "planner" in frame.filename]
    return f"{places[-1].filename.rpartition('planner/')[2]}:{places[-1].lineno}" if places else "outside"


def campaign(name: str, seed: int, count: int) -> Report:
    """`count` inputs of a seed, or fewer once twenty are broken."""
    rng = random.Random(f"{name} {seed}")
    report = Report(name)
    make = TARGETS[name][1]
    while report.inputs < count and len(report.broken) < 20:
        attempt(name, make(rng), report)
    return report
