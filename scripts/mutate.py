"""Mutation testing of one room: small wrong changes to its code, one at a time, each of which some test has to notice.

usage: mutate.py FOLDER --tests PATH ... [--count 150] [--seed 0] [--seconds N]

Works on a copy of the repository, so the working tree stays as it is. A mutant counts as killed where a test fails, or
where the tests take much longer than without it. Survivors are printed with file, line and change. Of its own, and not
mutmut or cosmic-ray: both change the tree that they test or install the project anew, and neither draws a sample by
seed over a folder. Exit code 1 where mutants survive.
"""

from __future__ import annotations

import argparse
import ast
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
COPIED = ("planner", "tests", "scripts", "docs", "measurements", "verification", "benchmarks")
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.Mod: ast.Mult,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A file of the room, the number of the changed node in the order of ast.walk, and the change in words."""

    file: str
    node: int
    line: int
    change: str


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Every change to a file that `changed` can make; none in annotations, texts or raised errors."""
    tree = ast.parse(source)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        left_out = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Raise):
            left_out.append(node)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            left_out += node.decorator_list
        skipped |= {id(inner) for part in left_out if part is not None for inner in ast.walk(part)}
    for number, node in enumerate(ast.walk(tree)):
        if id(node) not in skipped and (mutated := mutation(node)) is not None:
            before, after = (" ".join(ast.unparse(part).split())[:70] for part in (node, mutated))
            yield Mutant(file, number, getattr(node, "lineno", 0), f"{before}  ->  {after}")


def mutation(node: ast.AST) -> ast.expr | None:
    """The node changed in one small way; None for a node that has none."""
    changed = deepcopy(node)
    match changed:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in OPERATORS:
            changed.op = OPERATORS[type(op)]()  # type: ignore[assignment]
        case ast.Compare(ops=[op]) if type(op) in OPERATORS:
            changed.ops = [OPERATORS[type(op)]()]  # type: ignore[list-item]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return operand
        case ast.Constant(value=bool() as value):
            changed.value = not value
        case ast.Constant(value=int() as value):
            changed.value = value + 1
        case ast.IfExp(body=body, orelse=other):
            changed.body, changed.orelse = other, body
        case _:
            return None
    assert isinstance(changed, ast.expr)
    return changed


def changed(source: str, mutant: Mutant) -> str:
    """The file's text with the mutant in it."""
    tree = ast.parse(source)
    target = list(ast.walk(tree))[mutant.node]
    replacement = mutation(target)
    assert replacement is not None

    class Put(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return replacement if node is target else self.generic_visit(node)

    return ast.unparse(ast.fix_missing_locations(Put().visit(tree)))


def passes(place: Path, tests: list[str], timeout_s: float) -> bool:
    """Whether the tests pass in the copy within the time."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="for example planner/sharding")
    parser.add_argument("--tests", nargs="+", required=True, help="test files and folders, the quickest first")
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no mutant after so long")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vplan-mutants-") as folder:
        place = Path(folder)
        for name in COPIED:
            shutil.copytree(REPOSITORY / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        for file in (*REPOSITORY.glob("*.yaml"), *REPOSITORY.glob("*.md"), REPOSITORY / "pyproject.toml"):
            shutil.copy(file, place / file.name)
        files = sorted(path.relative_to(place).as_posix() for path in (place / asked.folder).rglob("*.py"))
        found = [mutant for file in files for mutant in mutants(file, (place / file).read_text(encoding="utf-8"))]
        sample = random.Random(asked.seed).sample(found, min(asked.count, len(found)))
        began = time.monotonic()
        if not passes(place, asked.tests, 3600):
            print("the tests fail without a mutant")
            return 2
        took = time.monotonic() - began
        survivors, tried = [], 0
        for mutant in sample:
            if time.monotonic() - began > asked.seconds:
                break
            tried += 1
            path = place / mutant.file
            source = path.read_text(encoding="utf-8")
            path.write_text(changed(source, mutant), encoding="utf-8")
            if passes(place, asked.tests, 3 * took + 10):
                survivors.append(mutant)
                print(f"survived: {mutant.file}:{mutant.line}: {mutant.change}", flush=True)
            path.write_text(source, encoding="utf-8")
    killed = tried - len(survivors)
    print(f"{asked.folder}: {killed} of {tried} killed ({killed / max(tried, 1):.0%}), of {len(found)} possible")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
