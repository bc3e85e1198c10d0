"""A pasted log -> its lines without the prefixes of workers, loggers, containers and clusters."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

_ANSI = re.compile(r"(?:\x1b|\u2190)\[[0-9;]*m")
_PREFIXES = tuple(
    re.compile(expression)
    for expression in (
        r"^[\w.-]+ +\| ",
        r"^\[?\d{4}-\d\d-\d\dT[\d:.]+Z?\]?\s+(?:(?:stdout|stderr) [FP] )?",
        r"^\(\w+[^()]*\bpid=\d+[^()]*\) ?",
        r"^\[rank\d+\]: ?",
        r"^(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]+\]|[\w.]+:\d+\]) ?",
        r"^> ?",
    )
)
_WINDOW_BEFORE = 300
_WINDOW_AFTER = 40
_STAGE_ENDS = re.compile(
    r"Application startup complete|Starting vLLM API server|init engine \(profile|Avg prompt throughput|Graph "
    r"capturing finished"
)
HEALTHY = re.compile(
    r"Application startup complete|Starting vLLM API server|init engine \(profile|Avg prompt throughput"
    r"|Uvicorn running on|Graph capturing finished"
)
ERROR = re.compile(
    r"(?m)^Traceback \(most recent call "
    r"last\)|\b\w*(?:Error|Exception)\b(?::|\()|\berror:|\bFATAL\b|^Aborted|core dumped"
)


@dataclass(frozen=True)
class Log:
    """`lines` as given; `body` is the same without prefixes, line by line."""

    lines: tuple[str, ...]
    body: str

    @cached_property
    def starts(self) -> list[int]:
        """Where each line of the body begins."""
        found = [0]
        for line in self.body.split("\n")[:-1]:
            found.append(found[-1] + len(line) + 1)
        return found

    def line_of(self, position: int) -> int:
        """The index of the line that holds a position of the body."""
        return bisect_right(self.starts, position) - 1

    def around(self, position: int) -> str:
        """The lines near a position: what precedes it since the last completed stage of startup, and a little after."""
        line = self.line_of(position)
        rows = self.body.split("\n")
        first = max(0, line - _WINDOW_BEFORE)
        for index in range(line - 1, first - 1, -1):
            if _STAGE_ENDS.search(rows[index]):
                first = index
                break
        return "\n".join(rows[first : line + _WINDOW_AFTER])


def read_log(text: str) -> Log:
    """The log of a pasted text. Carriage returns of progress bars end a line."""
    lines = tuple(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return Log(lines, "\n".join(_bare(line) for line in lines))


def _bare(line: str) -> str:
    line = _ANSI.sub("", line)
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            shorter = prefix.sub("", line, count=1)
            if shorter != line:
                line, changed = shorter, True
    return line
