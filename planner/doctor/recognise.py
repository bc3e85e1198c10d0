"""Which failure a log shows: the first cause in it, told apart from what only follows from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from planner.doctor.failure import Failure, Severity
from planner.doctor.log import ERROR, HEALTHY, Log
from planner.doctor.table import FAILURES

Status = Literal["recognised", "healthy", "unknown"]
_RANK: dict[Severity, int] = {"fatal": 0, "symptom": 1, "request": 2, "warning": 3}


@dataclass(frozen=True, slots=True)
class Finding:
    """One failure in a log. `line`: its number, from 1; `text`: that line; `figures`: what the sentences state."""

    failure: Failure
    line: int
    text: str
    figures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`findings`: the cause first, then whatever else is in the log. Empty for a healthy and for an unknown text."""

    status: Status
    findings: tuple[Finding, ...] = ()


def diagnose(log: Log) -> Diagnosis:
    """The failures of a log, by rank: what stops an engine before what follows from it, before requests and warnings.

    Among causes the first in the log counts; symptoms go by the order of the table. An error that the engine's start
    came after was none (vLLM prints the tracebacks of kernels that it then does without); one after the start counts.
    """
    found = [(_order(index, item, position), finding) for index, item, position, finding in _candidates(log)]
    if found:
        return Diagnosis("recognised", tuple(finding for _, finding in sorted(found, key=lambda pair: pair[0])))
    started = HEALTHY.search(log.body)
    healthy = started is not None and not ERROR.search(log.body, started.start())
    return Diagnosis("healthy" if healthy else "unknown")


def _order(index: int, item: Failure, position: int) -> tuple[int, int, int]:
    rank = _RANK[item.severity]
    return (rank, 0 if item.severity == "symptom" else position, index)


def _candidates(log: Log) -> Iterator[tuple[int, Failure, int, Finding]]:
    for index, item in enumerate(FAILURES):
        for match in sorted(_matches(item, log.body), key=lambda match: match.start()):
            near = log.around(match.start())
            contexts = [expression.search(near) for expression in _compiled(item.context)]
            if item.context and not any(contexts):
                continue
            yield index, item, match.start(), _finding(log, item, match, [one for one in contexts if one])
            break


def _finding(log: Log, item: Failure, first: re.Match[str], contexts: list[re.Match[str]]) -> Finding:
    figures: dict[str, str] = {}
    for match in (first, *contexts, *_matches(item, log.body)):
        for name, value in match.groupdict().items():
            if value is not None:
                figures.setdefault(name, " ".join(value.split()))
    line = log.line_of(first.start())
    return Finding(item, line + 1, log.lines[line].strip(), figures)


def _matches(item: Failure, body: str) -> list[re.Match[str]]:
    return [match for expression in _compiled(item.patterns) for match in expression.finditer(body)]


@cache
def _compiled(expressions: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(expression) for expression in expressions)
