"""Mutation testing of one room: small wrong changes to its code, one at a time, each of which some test has to notice.

usage: mutate.py FOLDER --tests PATH ... [--map FILE] [--out FILE.csv] [--count 200] [--seed 1] [--budget 40]

Works on a copy of the repository. The named tests run once under a line tracer (--map keeps what they execute, for
later runs); a mutant then meets only the tests that execute its line, quickest first, until their seconds reach
--budget, in a forked process of its own. It is killed where a test fails, the code no longer imports, the process dies,
or a test takes more than three times its seconds and ten more. A test that kills must pass alone without the mutant.
Exit code 1 where mutants survive. Of its own, and not mutmut or cosmic-ray: both change the tree that they test or
install the project anew, and neither draws a sample by seed over a folder.
"""

from __future__ import annotations

import argparse
import compileall
import csv
import gc
import os
import py_compile
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import msgspec  # noqa: F401  (imported once here and not in each forked process)
import numpy  # noqa: F401
import pydantic  # noqa: F401
import pytest
import yaml  # noqa: F401
from executed_lines import PYTEST, Test, is_fresh, load, read, record, save, test_key
from mutants import Mutant, changed, mentions, mutants

REPOSITORY = Path(__file__).resolve().parents[1]
COPIED = ("planner", "tests", "scripts", "docs", "measurements", "verification", "benchmarks")
MEMORY_BYTES = 6 << 30
COLUMNS = ("file", "line", "change", "verdict", "killed_by", "seconds", "tests", "left_out")


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant. tests: how many it met; left_out: how many more execute its line, beyond the budget."""

    mutant: Mutant
    verdict: str
    killed_by: str
    seconds: float
    tests: int
    left_out: int

    @property
    def killed(self) -> bool:
        return self.verdict not in ("survived", "not covered")


@dataclass(eq=False)
class Selected:
    """A pytest plugin that keeps the wanted tests, in their order, and says where it is."""

    wanted: dict[str, int]
    say: Callable[[str, str], None]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.wanted), key=lambda it: self.wanted[it.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.say("test", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.say("failed", report.nodeid)


def forked(work: Callable[[Callable[[str, str], None]], None], wait_s: Callable[[str, str], float]) -> tuple[str, str]:
    """Do the work in a process of its own; the word that ended it ("failed", "error" or "done") and what it was about.

    work: gets a function to say words with. wait_s: the seconds that may pass after a word until the next one.
    ("timeout", last word) and ("crashed", last word) where it went silent or died.
    """
    receive, send = os.pipe()
    process = os.fork()
    if process == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)

        def say(word: str, about: str) -> None:
            os.write(send, f"{word}\t{about}\n".encode())

        try:
            work(say)
            say("done", "")
        except BaseException as error:  # a process of its own ends here, whatever came
            say("error", type(error).__name__)
        finally:
            os._exit(0)
    os.close(send)
    word, about, rest = "start", "", b""
    try:
        while word not in ("failed", "error", "done"):
            if not select.select([receive], [], [], wait_s(word, about))[0]:
                return "timeout", about
            got = os.read(receive, 65536)
            if not got:
                return "crashed", about
            *lines, rest = (rest + got).split(b"\n")
            for line in lines:
                if word not in ("failed", "error", "done"):
                    word, _, about = line.decode().partition("\t")
        return word, about
    finally:
        os.close(receive)
        for kill in (lambda: os.killpg(process, signal.SIGKILL), lambda: os.waitpid(process, 0)):
            try:
                kill()
            except ProcessLookupError:
                os.kill(process, signal.SIGKILL)


@dataclass
class Room:
    """A copy of the repository, the room's files in it, and the tests known by the lines that they execute."""

    place: Path
    files: list[str]
    tests: dict[str, Test] = field(default_factory=dict)
    overhead_s: dict[str, float] = field(default_factory=dict)
    alone: dict[str, bool] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)

    def run(self, chosen: list[Test]) -> tuple[str, str]:
        """Run tests, file by file, until one fails."""
        by_file: dict[str, dict[str, int]] = {}
        for number, test in enumerate(chosen):
            by_file.setdefault(test.file, {})[test.id] = number

        def work(say: Callable[[str, str], None]) -> None:
            for file, wanted in by_file.items():
                say("file", file)
                status = pytest.main(["-x", *PYTEST, file], plugins=[Selected(wanted, say)])
                if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                    say("error", file)

        def wait_s(word: str, about: str) -> float:
            usual = self.tests[about].seconds if about in self.tests else self.overhead_s.get(about, 0)
            return 3 * usual + 10 + (20 if word in ("start", "file") else 0)

        return forked(work, wait_s)

    def meant_for(self, mutant: Mutant) -> list[Test]:
        """The tests that execute the statement or, run at import, what mentions its names; then others."""
        spans = [(mutant.file, mutant.first, mutant.last)]
        if mutant.names:
            spans = [
                (file, *span)
                for file in self.files
                for span in mentions((self.place / file).read_text(encoding="utf-8"), mutant.names)
            ]
        found = [test for test in self.tests.values() if any(test.executes(*span, shared=False) for span in spans)]
        known = {test.id for test in found}
        found.sort(key=lambda test: test.seconds)
        others = [
            test
            for test in self.tests.values()
            if test.id not in known
            and any(test.executes(*span) for span in [*spans, (mutant.file, mutant.first, mutant.last)])
        ]
        return found + sorted(others, key=lambda test: test.seconds)

    def judge(self, mutant: Mutant, budget_s: float) -> Verdict:
        began = time.monotonic()
        able = [test for test in self.meant_for(mutant) if self.alone.get(test.id, True)]
        chosen, spent = [], 0.0
        for test in able:
            spent += test.seconds
            if spent <= budget_s:
                chosen.append(test)
        path = self.place / mutant.file
        source = path.read_text(encoding="utf-8")
        path.write_text(changed(source, mutant), encoding="utf-8")
        try:
            word, about = self.run(chosen)
        finally:
            path.write_text(source, encoding="utf-8")
        if word == "failed" and not self.passes_alone(about):
            return self.judge(mutant, budget_s)
        if word == "error" and about not in self.imports:
            self.check_imports(about)
        verdict = {"failed": "killed", "error": "killed", "done": "survived" if chosen else "not covered"}.get(
            word, word
        )
        return Verdict(mutant, verdict, about, round(time.monotonic() - began, 1), len(chosen), len(able) - len(chosen))

    def passes_alone(self, test: str) -> bool:
        """Whether a test passes without a mutant and without others before it."""
        if test not in self.alone:
            self.alone[test] = self.run([self.tests[test]])[0] == "done"
        return self.alone[test]

    def check_imports(self, file: str) -> None:
        """A mutant that no longer imports is killed only if the copy imports without it."""
        word, about = self.run([test for test in self.tests.values() if test.file == file][:1])
        if word == "error":
            raise SystemExit(f"no mutant is to blame: {file} does not run in the copy ({about})")
        self.imports.add(file)

    def trace(self, files: list[str], known: Path | None) -> None:
        """Run each test file under the tracer, or take what an earlier run found out about it."""
        entries = load(known)
        for file in files:
            if file not in entries or not is_fresh(self.place, file, entries[file]):
                entry = self.traced(file)
                if entry is None or not entry["collected"]:
                    print(f"left out, could not be traced: {file}", flush=True)
                    continue
                entries[file] = entry
                save(known, entries)
                print(
                    f"traced: {file}: {len(entries[file]['tests'])} tests, {_seconds(entries[file]):.1f} s", flush=True
                )
            if dropped := entries[file]["dropped"]:
                print(f"left out, {len(dropped)} that do not pass: {dropped[0]}", flush=True)
            self.overhead_s[file] = entries[file]["seconds"]
            self.tests |= {test.id: test for test in read(entries[file])}

    def traced(self, file: str) -> dict[str, Any] | None:
        result = self.place / "traced.json"
        result.unlink(missing_ok=True)
        forked(lambda say: save(result, record(self.place, self.files, file)), lambda word, about: 1800)
        return load(result) | {"key": test_key(self.place, file)} if result.is_file() else None


def _seconds(entry: dict[str, Any]) -> float:
    return float(entry["seconds"]) + sum(float(test[0]) for test in entry["tests"].values())


def copy_into(place: Path) -> None:
    """The repository as it lies here; planner compiled to files that are checked by the text and not by its date."""
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, place / name, ignore=shutil.ignore_patterns("__pycache__", ".mypy_cache"))
    for file in REPOSITORY.glob("[!.]*"):
        if file.is_file():
            shutil.copy(file, place / file.name)
    compileall.compile_dir(
        place / "planner", quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH, stripdir=None
    )


def prepare(place: Path) -> None:
    """Make this process one whose forks test the copy: its modules, no plugins, no random choice."""
    os.chdir(place)
    sys.path.insert(0, str(place))
    os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(place)}
    hypothesis.settings.register_profile(
        "mutants",
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )
    hypothesis.settings.load_profile("mutants")
    gc.freeze()


def write(out: Path | None, verdicts: list[Verdict]) -> None:
    if out is None:
        return
    with out.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for done in verdicts:
            where = (done.mutant.file, done.mutant.line, done.mutant.change)
            rows.writerow((*where, done.verdict, done.killed_by, done.seconds, done.tests, done.left_out))


def chosen_mutants(found: list[Mutant], asked: argparse.Namespace) -> list[Mutant]:
    """The sample by seed; with --again those of an earlier CSV that survived."""
    if asked.again is None:
        return random.Random(asked.seed).sample(found, min(asked.count, len(found)))
    with asked.again.open(encoding="utf-8", newline="") as file:
        survived = {
            (row["file"], row["line"], row["change"])
            for row in csv.DictReader(file)
            if row["verdict"] in ("survived", "not covered")
        }
    return [mutant for mutant in found if (mutant.file, str(mutant.line), mutant.change) in survived]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="for example planner/sharding")
    parser.add_argument("--tests", nargs="+", required=True, help="test files and folders")
    parser.add_argument("--map", type=Path, help="JSON file that keeps which test executes which lines")
    parser.add_argument("--out", type=Path, help="CSV file of verdicts")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--budget", type=float, default=40, help="seconds of tests that a mutant meets at most")
    parser.add_argument("--again", type=Path, help="only what survived in this earlier --out")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no mutant after so long")
    asked = parser.parse_args()
    for name in ("map", "out", "again"):
        if getattr(asked, name) is not None:
            setattr(asked, name, getattr(asked, name).resolve())
    return asked


def main() -> int:
    asked = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the copy goes then too
    with tempfile.TemporaryDirectory(prefix="vplan-mutants-") as folder:
        place = Path(folder).resolve()
        copy_into(place)
        prepare(place)
        room = Room(place, sorted(path.relative_to(place).as_posix() for path in (place / asked.folder).rglob("*.py")))
        tests = {
            path.relative_to(place).as_posix()
            for named in asked.tests
            for path in ([place / named] if named.endswith(".py") else (place / named).rglob("test_*.py"))
        }
        room.trace(sorted(tests), asked.map)
        found = [mutant for file in room.files for mutant in mutants(file, (place / file).read_text(encoding="utf-8"))]
        began = time.monotonic()
        verdicts: list[Verdict] = []
        for mutant in chosen_mutants(found, asked):
            if time.monotonic() - began > asked.seconds:
                break
            done = room.judge(mutant, asked.budget)
            verdicts.append(done)
            if not done.killed:
                met = f"met {done.tests} tests, {done.left_out} more beyond the budget"
                print(f"{done.verdict}: {mutant.file}:{mutant.line}: {mutant.change}  ({met})", flush=True)
            write(asked.out, verdicts)
        os.chdir(REPOSITORY)
    killed = sum(done.killed for done in verdicts)
    tried = max(len(verdicts), 1)
    took = (time.monotonic() - began) / tried
    print(
        f"{asked.folder}: {killed} of {len(verdicts)} killed ({killed / tried:.1%}), of {len(found)} possible", end=""
    )
    print(f"; {took:.1f} s a mutant, at most {asked.budget:.0f} s of tests for each")
    return 0 if killed == len(verdicts) else 1


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        once = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        once |= {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], once)
    sys.exit(main())
