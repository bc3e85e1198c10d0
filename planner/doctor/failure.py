"""What the doctor knows about one failure, as data: how it reads in a log, what it means, how it is cured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["fatal", "symptom", "request", "warning"]
Change = Literal["set", "default", "drop", "rename", "env"]


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of a launch command. `name`: an option or, for "env", a variable; `value`: its text. Both may name
    figures of the log in braces; an edit whose figures are not all known is left out. "set" replaces a value,
    "default" only fills in a missing one, "drop" removes every option that `name` lists, with its value."""

    change: Change
    name: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a cure: what to do in words, and the same as changes of the command where it is one."""

    text: str
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One way in which vLLM fails.

    `patterns`: regular expressions over the log without its line prefixes; any of them names the failure, and its
    named groups are figures. `context`: where given, one of these must match near before the pattern (the frames of
    the traceback), for sentences that many failures share. `facts`: sentences with figures in braces, told where all
    of them are known. `versions`: the first and last release known to print it, None for still. `bottleneck`: as in
    the contract, or environment, request, model. A "symptom" names the failure only where no cause is in the log.
    """

    id: str
    title: str
    patterns: tuple[str, ...]
    bottleneck: str
    cause: str
    cure: tuple[Step, ...]
    context: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    versions: tuple[str, str | None] = ("0.6.0", None)
    severity: Severity = "fatal"


def put(name: str, value: str) -> Edit:
    """Give an option this value."""
    return Edit("set", name, value)


def fill(name: str, value: str) -> Edit:
    """Give an option this value unless it has one."""
    return Edit("default", name, value)


def drop(name: str) -> Edit:
    """Remove an option and its value."""
    return Edit("drop", name)
