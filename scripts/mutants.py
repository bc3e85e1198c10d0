"""Small wrong changes to a file of Python, one at a time: the standard operators of mutation testing.

Left alone is what cannot change an answer, whatever the tests: annotations, docstrings and other texts, raised errors
(their condition is changed, their wording not), decorators, blocks under TYPE_CHECKING, keywords of a class statement
(`frozen`, `gc`, `kw_only`), and the keywords of `HARMLESS`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.Mod: ast.Mult,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
HARMLESS = {"strict", "maxsize", "frozen", "slots", "repr"}  # keywords: a guard of zip, a cache's size, a class's form
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Mutant:
    """A change: its file, the number of the changed node in the order of ast.walk, its line, and the change in words.

    first, last: the lines of the statement around it. names: where the statement runs at import only, the names that it
    binds, by which the lines are found that feel the change.
    """

    file: str
    node: int
    line: int
    change: str
    first: int
    last: int
    names: tuple[str, ...] = ()


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Every change to a file that `changed` can make."""
    tree = ast.parse(source)
    skipped = {id(inner) for part in _left_alone(tree) for inner in ast.walk(part)}
    around = _statements(tree)
    for number, node in enumerate(ast.walk(tree)):
        if id(node) not in skipped and (mutated := mutation(node)) is not None:
            before, after = (" ".join(ast.unparse(part).split())[:70] for part in (node, mutated))
            yield Mutant(file, number, getattr(node, "lineno", 0), f"{before}  ->  {after}", *around[id(node)])


def _left_alone(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        match node:
            case ast.Raise():
                yield node
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield node
            case ast.keyword(arg=name) if name in HARMLESS:
                yield node
            case ast.ClassDef():
                yield from (*node.decorator_list, *node.keywords)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from node.decorator_list
        yield from filter(None, (getattr(node, "annotation", None), getattr(node, "returns", None)))


def _statements(tree: ast.Module) -> dict[int, tuple[int, int, tuple[str, ...]]]:
    """For each node the lines of the innermost statement around it, and the names that it binds at import."""
    found: dict[int, tuple[int, int, tuple[str, ...]]] = {}

    def visit(node: ast.AST, span: tuple[int, int, tuple[str, ...]], inside: bool) -> None:
        body = getattr(node, "body", None)
        if isinstance(node, Function):  # what its defaults do is felt where its body runs
            span = (node.body[0].lineno, node.end_lineno or node.lineno, ())
        elif isinstance(node, (ast.stmt, ast.match_case, ast.ExceptHandler)):
            first = node.pattern.lineno if isinstance(node, ast.match_case) else node.lineno
            last = (
                node.cases[0].pattern.lineno - 1 if isinstance(node, ast.Match) else getattr(node, "end_lineno", first)
            )
            if isinstance(body, list):
                last = body[0].lineno - 1
            span = (first, max(first, last), () if inside else _bound(node))
        found[id(node)] = span
        for child in ast.iter_child_nodes(node):
            visit(child, span, inside or (isinstance(node, Function) and child in node.body))

    visit(tree, (0, 0, ()), False)
    return found


def _bound(statement: ast.AST) -> tuple[str, ...]:
    return tuple(
        node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ) or ("",)


def mentions(source: str, names: tuple[str, ...]) -> list[tuple[int, int]]:
    """First and last lines of the statements within functions that mention one of the names."""
    tree = ast.parse(source)
    around = _statements(tree)
    named = {
        around[id(node)]
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id in names) or (isinstance(node, ast.Attribute) and node.attr in names)
    }
    return sorted((first, last) for first, last, bound in named if not bound)


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
        case ast.Constant(value=int() | float() as number):
            changed.value = number + 1
        case ast.IfExp(body=body, orelse=other):
            changed.body, changed.orelse = other, body
        case ast.Call(func=ast.Name(id="min" | "max" as name) as called):
            called.id = "max" if name == "min" else "min"
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
        def visit(self, node: ast.AST) -> Any:
            return replacement if node is target else self.generic_visit(node)

    return ast.unparse(ast.fix_missing_locations(Put().visit(tree)))
