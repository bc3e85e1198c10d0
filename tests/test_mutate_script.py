"""scripts/mutate.py makes each change alone, knows which tests execute it, and tells killed from survived."""

import csv
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SOURCE = '''
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    WIDTH = 7


def room(total: int = 3) -> int:
    """Text of 4."""
    if not total > 2 and total is not None:
        raise ValueError(f"{total + 1}")
    return min(total * 2, 99) if total else -1


def pairs(left, right):
    return list(zip(left, right, strict=True))


def unused(total):
    return total + 5
'''
TESTS = """
import pytest

from planner.room.rule import pairs, room


def test_pairs():
    assert pairs("a", "b") == [("a", "b")]


@pytest.mark.parametrize("total", [3, 4])
def test_room(total):
    assert room(total) == 2 * total
"""


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield
    for name in ("mutants", "executed_lines"):
        sys.modules.pop(name, None)


def test_each_mutant_is_one_change_of_the_code(scripts):
    from mutants import changed, mutants

    found = list(mutants("rule.py", SOURCE))
    texts = {changed(SOURCE, mutant) for mutant in found}
    assert len(texts) == len(found) == 14
    assert all("Text of 4" in text and "total + 1" in text and "strict=True" in text for text in texts)
    assert all("WIDTH = 7" in text for text in texts)
    assert {
        "3  ->  4",
        "total > 2  ->  total >= 2",
        "not total > 2  ->  total > 2",
        "total * 2  ->  total + 2",
        "min(total * 2, 99)  ->  max(total * 2, 99)",
    } <= {mutant.change for mutant in found}


def test_a_mutant_knows_the_lines_of_its_statement(scripts):
    from mutants import mentions, mutants

    source = "LIMIT = 3\n\n\ndef f(a, b=2):\n    if a > 1:\n        return (a +\n            LIMIT)\n    return b\n"
    spans = {mutant.change: (mutant.first, mutant.last, mutant.names) for mutant in mutants("rule.py", source)}
    assert spans["3  ->  4"] == (1, 1, ("LIMIT",))
    assert spans["2  ->  3"] == (5, 8, ())  # a default is felt where the body runs
    assert spans["a > 1  ->  a >= 1"] == (5, 5, ())
    assert spans["a + LIMIT  ->  a - LIMIT"] == (6, 7, ())
    assert mentions(source, ("LIMIT",)) == [(6, 7)]


def test_a_mutant_meets_the_tests_that_execute_it(tmp_path):
    """In a small repository of its own: what tests notice is killed, what none executes is "not covered"."""
    for name in ("planner/room", "tests", "scripts", "docs", "measurements", "verification", "benchmarks"):
        (tmp_path / name).mkdir(parents=True)
    for script in ("mutate.py", "mutants.py", "executed_lines.py"):
        (tmp_path / "scripts" / script).write_text((ROOT / "scripts" / script).read_text())
    (tmp_path / "planner" / "__init__.py").touch()
    (tmp_path / "planner" / "room" / "rule.py").write_text(SOURCE)
    (tmp_path / "tests" / "test_room.py").write_text(TESTS)
    (tmp_path / "tests" / "test_wrong.py").write_text("def test_wrong():\n    assert False\n")
    command = [sys.executable, "scripts/mutate.py", "planner/room", "--tests", "tests", "--map", "map.json"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    for out in ("first.csv", "second.csv"):
        done = subprocess.run(
            [*command, "--out", out, "--count", "99"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 1, done.stderr
        assert "left out, 1 that do not pass: tests/test_wrong.py::test_wrong" in done.stdout
        assert ("traced: tests/test_room.py: 3 tests" in done.stdout) is (out == "first.csv")
    first, second = (
        list(csv.DictReader((tmp_path / out).read_text().splitlines())) for out in ("first.csv", "second.csv")
    )
    keys = ("file", "line", "change", "verdict", "killed_by", "tests")
    assert [[row[key] for key in keys] for row in first] == [[row[key] for key in keys] for row in second]
    verdicts = {row["change"]: row for row in first}
    assert verdicts["total * 2  ->  total + 2"]["killed_by"].startswith("tests/test_room.py::test_room[")
    assert verdicts["total * 2  ->  total + 2"]["tests"] == "2"
    assert verdicts["99  ->  100"]["verdict"] == "survived"
    assert verdicts["total + 5  ->  total - 5"]["verdict"] == "not covered"
    assert (tmp_path / "planner" / "room" / "rule.py").read_text() == SOURCE
