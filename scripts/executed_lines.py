"""Which test executes which lines of a room, and how long it takes: one run of each test file under a line tracer.

A file of tests runs in a process of its own, and before each test the caches of planner and of the tests are emptied,
so that a line counts for every test that needs it and not only for the first. Lines executed while the file is
imported, or by a fixture that several tests share, count for every test of the file.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

Lines = dict[str, int]  # file -> bit mask of executed lines
PYTEST = ["-q", "--tb=no", "-p", "no:cacheprovider"]


@dataclass(frozen=True)
class Test:
    """Seconds that a test takes under the tracer, and the lines that it executes itself and through what it shares."""

    id: str
    seconds: float
    own: Lines
    shared: Lines

    @property
    def file(self) -> str:
        return self.id.partition("::")[0]

    def executes(self, file: str, first: int, last: int, *, shared: bool = True) -> bool:
        mask = (2 << last) - (1 << first)
        return bool((self.own.get(file, 0) | (self.shared.get(file, 0) if shared else 0)) & mask)


@dataclass(eq=False)
class Recorder:
    """A pytest plugin and tracer: lines and seconds of each test of one file."""

    place: Path
    room: list[str]
    lines: dict[str, set[int]] = field(default_factory=dict)
    shared: dict[str, set[int]] = field(default_factory=dict)
    tests: dict[str, tuple[float, Lines]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    caches: list[Any] = field(default_factory=list)
    modules: int = 0

    def start(self) -> None:
        self.lines = {str(self.place / file): set() for file in self.room}
        self.shared = {file: set() for file in self.lines}
        local = {file: _line_tracer(found.add) for file, found in self.lines.items()}
        get = local.get

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            return get(frame.f_code.co_filename)

        threading.settrace(trace)
        sys.settrace(trace)

    def _take(self) -> dict[str, set[int]]:
        taken = {file: set(found) for file, found in self.lines.items() if found}
        for found in self.lines.values():
            found.clear()
        return taken

    def _share(self) -> None:
        for file, found in self._take().items():
            self.shared[file] |= found

    def masks(self, lines: dict[str, set[int]]) -> Lines:
        return {
            Path(file).relative_to(self.place).as_posix(): sum(1 << line for line in found)
            for file, found in lines.items()
            if found
        }

    def pytest_collection_finish(self) -> None:
        self._share()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        before = self._take()
        try:
            return (yield)
        finally:
            self._share()
            for file, found in before.items():
                self.lines[file] |= found

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if len(sys.modules) != self.modules:
            self.modules = len(sys.modules)
            self.caches = [cache for cache in gc.get_objects() if _is_ours(cache)]
        for cache in self.caches:
            cache.cache_clear()
        self._take()
        began = time.perf_counter()
        try:
            return (yield)
        finally:
            self.tests[item.nodeid] = (time.perf_counter() - began, self.masks(self._take()))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed and report.nodeid not in self.dropped:
            self.dropped.append(report.nodeid)


def _line_tracer(add: Callable[[int], None]) -> Any:
    def line(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            add(frame.f_lineno)
        return line

    return line


def _is_ours(cache: object) -> bool:
    return isinstance(cache, functools._lru_cache_wrapper) and str(cache.__module__).startswith(("planner", "test"))


def record(place: Path, room: list[str], file: str) -> dict[str, Any]:
    """Run one test file under the tracer, in this process: what `read` understands."""
    recorder = Recorder(place, room)
    began = time.perf_counter()
    recorder.start()
    try:
        status = pytest.main([*PYTEST, file], plugins=[recorder])
    finally:
        sys.settrace(None)
        threading.settrace(None)
    tests = {name: entry for name, entry in recorder.tests.items() if name not in recorder.dropped}
    shared = recorder.masks(recorder.shared)
    touched = set(shared).union(*(lines for _, lines in tests.values()))
    return {
        "collected": status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED),
        "seconds": round(time.perf_counter() - began - sum(seconds for seconds, _ in tests.values()), 3),
        "sources": {name: digest(place / name) for name in sorted(touched)},
        "shared": {name: hex(mask) for name, mask in shared.items()},
        "tests": {
            test: [round(seconds, 4), {name: hex(mask) for name, mask in lines.items()}]
            for test, (seconds, lines) in tests.items()
        },
        "dropped": recorder.dropped,
    }


def read(entry: dict[str, Any]) -> list[Test]:
    """The tests of a recorded file."""
    shared = {name: int(mask, 16) for name, mask in entry["shared"].items()}
    return [
        Test(test, seconds, {name: int(mask, 16) for name, mask in lines.items()}, shared)
        for test, (seconds, lines) in entry["tests"].items()
    ]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_key(place: Path, file: str) -> str:
    """Changes with the test file and with the helpers in its folder."""
    path = place / file
    helpers = sorted(helper for helper in path.parent.glob("*.py") if not helper.name.startswith("test_"))
    return hashlib.sha256(b"".join(part.read_bytes() for part in (path, *helpers))).hexdigest()[:16]


def is_fresh(place: Path, file: str, entry: dict[str, Any]) -> bool:
    """Whether an entry of the map still holds: same tests, same text of the room's files that they execute.

    One with failing tests does not: they may have failed for a change under way elsewhere.
    """
    same = all((place / name).is_file() and digest(place / name) == known for name, known in entry["sources"].items())
    return same and not entry["dropped"] and bool(entry["key"] == test_key(place, file))


def load(path: Path | None) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}


def save(path: Path | None, entries: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(entries), encoding="utf-8")
        partial.replace(path)
