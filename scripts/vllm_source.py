"""Read an unpacked vLLM source tree without importing it: its modules, the names in them, its dataclass fields."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Where:
    """A definition and the module whose names it is to be read with."""

    module: Module
    node: ast.AST


class Module:
    """One file and what its top level defines. Under `if TYPE_CHECKING` the names of the run-time branch win."""

    def __init__(self, path: Path, dotted: str, is_package: bool) -> None:
        self.dotted = dotted
        self.package = dotted if is_package else dotted.rpartition(".")[0]
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)

    @cached_property
    def names(self) -> dict[str, ast.AST]:
        found: dict[str, ast.AST] = {}
        for statement in self._statements(self.tree.body):
            for name in _bound_names(statement):
                found[name] = statement
        return found

    def _statements(self, body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for statement in body:
            if isinstance(statement, (ast.If, ast.Try)):
                yield from self._statements(statement.body)
                yield from self._statements(statement.orelse)
            else:
                yield statement


def _bound_names(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.ImportFrom(names=aliases) | ast.Import(names=aliases):
            return [alias.asname or alias.name for alias in aliases]
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


class SourceTree:
    """The `vllm` package folder at `root`."""

    def __init__(self, root: Path) -> None:
        if not (root / "engine" / "arg_utils.py").is_file():
            raise SystemExit(f"{root}: not a vLLM package folder (engine/arg_utils.py is missing)")
        self.root = root
        self._modules: dict[str, Module | None] = {}

    def version(self) -> str:
        """The release this tree was unpacked from, of its `_version.py` or its wheel's metadata folder."""
        for path in (self.root / "_version.py", self.root / "version.py"):
            if path.is_file():
                for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                    match statement:
                        case ast.Assign(value=ast.Constant(value=str(text))) if text[:1].isdigit():
                            return text.partition("+")[0]
        for path in self.root.parent.glob("vllm-*.dist-info"):
            return path.name.removeprefix("vllm-").removesuffix(".dist-info").partition("+")[0]
        raise SystemExit(f"{self.root}: the release cannot be told")

    def module(self, dotted: str) -> Module | None:
        """`vllm.config.cache` -> its file, None for what is outside the tree."""
        if dotted not in self._modules:
            path = self.root.joinpath(*dotted.split(".")[1:])
            files = [(path / "__init__.py", True), (path.with_suffix(".py"), False)]
            found = [item for item in files if dotted.startswith("vllm") and item[0].is_file()]
            self._modules[dotted] = Module(found[0][0], dotted, found[0][1]) if found else None
        return self._modules[dotted]

    def first_module(self, *dotted: str) -> Module:
        for name in dotted:
            module = self.module(name)
            if module is not None:
                return module
        raise SystemExit(f"{self.root}: none of {', '.join(dotted)} exists")

    def resolve(self, module: Module, name: str) -> Where | None:
        """The definition behind a name, through imports; None outside the tree."""
        node = module.names.get(name)
        if node is None:
            imports = (item for item in module.tree.body if isinstance(item, ast.ImportFrom))
            targets = (self._imported(module, item) for item in imports if item.names[0].name == "*")
            return next((found for target in targets if target and (found := self.resolve(target, name))), None)
        if isinstance(node, ast.ImportFrom):
            original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
            target = self._imported(module, node)
            return self.resolve(target, original) if target else None
        return Where(module, node) if not isinstance(node, ast.Import) else None

    def _imported(self, module: Module, node: ast.ImportFrom) -> Module | None:
        source = node.module or ""
        if node.level:
            base = module.package.split(".")
            source = ".".join([*base[: len(base) - node.level + 1], *([source] if source else [])])
        return self.module(source)

    def constant(self, module: Module, node: ast.expr) -> Any:
        """The value of a literal or of a name bound to one. ValueError where it is neither."""
        if isinstance(node, ast.Name):
            where = self.resolve(module, node.id)
            value = getattr(where.node, "value", None) if where else None
            if where is None or value is None:
                raise ValueError(node.id)
            return self.constant(where.module, value)
        return ast.literal_eval(node)

    def literals(self, module: Module, node: ast.expr) -> list[Any] | None:
        """The options of a `Literal[...]`, spelt out or behind an alias; None for any other type."""
        match node:
            case ast.Name(id=name):
                where = self.resolve(module, name)
                value = getattr(where.node, "value", None) if where else None
                return self.literals(where.module, value) if where and isinstance(value, ast.expr) else None
            case ast.Subscript(value=ast.Name(id="Literal"), slice=options):
                found: list[Any] = []
                for option in options.elts if isinstance(options, ast.Tuple) else [options]:
                    nested = None if isinstance(option, ast.Constant) else self.literals(module, option)
                    found += nested if nested is not None else [ast.literal_eval(option)]
                return found
        return None

    def type_hints(self, module: Module, node: ast.expr) -> list[tuple[str, Any]]:
        """The members of a union as (kind, detail): ("int", None), ("literal", options), ("list", Where of the
        element), ("dataclass", name), ("class", name) for anything else that is no builtin."""
        match node:
            case ast.Constant(value=None):
                return [("None", None)]
            case ast.Constant(value=str(text)):
                return self.type_hints(module, ast.parse(text, mode="eval").body)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return [*self.type_hints(module, left), *self.type_hints(module, right)]
            case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[first, *_])):
                return self.type_hints(module, first)
            case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
                return [*self.type_hints(module, inner), ("None", None)]
            case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
                return [hint for part in parts for hint in self.type_hints(module, part)]
            case ast.Subscript(value=ast.Name(id="Literal")):
                return [("literal", self.literals(module, node))]
            case ast.Subscript(value=ast.Name(id=("list" | "tuple" | "set" | "dict") as name), slice=inner):
                element = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
                return [(name, Where(module, element))]
            case ast.Name(id=name) if hasattr(builtins, name):
                return [(name, None)]
            case ast.Name(id=name):
                return self._named_type(module, name)
        return [("class", ast.unparse(node))]

    def _named_type(self, module: Module, name: str) -> list[tuple[str, Any]]:
        where = self.resolve(module, name)
        match where:
            case Where(node=ast.ClassDef() as definition):
                if any(ast.unparse(base).startswith("dict") for base in definition.bases):
                    return [("dict", None)]
                return [("dataclass" if is_dataclass(definition) else "class", name)]
            case Where(node=ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value)):
                return self.type_hints(where.module, value)
        return [("class", name)]

    def bases_first(self, module: Module, name: str) -> list[Where]:
        """The class and its bases inside the tree, oldest base first."""
        where = self.resolve(module, name)
        if where is None or not isinstance(where.node, ast.ClassDef):
            return []
        bases = [base.id for base in where.node.bases if isinstance(base, ast.Name)]
        return [*(found for base in bases for found in self.bases_first(where.module, base)), where]

    def fields(self, module: Module, name: str) -> dict[str, tuple[Module, ast.AnnAssign]]:
        """The annotated fields of a dataclass and of its bases, in the order dataclasses gives them."""
        found: dict[str, tuple[Module, ast.AnnAssign]] = {}
        for where in self.bases_first(module, name):
            assert isinstance(where.node, ast.ClassDef)
            for statement in where.node.body:
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    found[statement.target.id] = (where.module, statement)
        return found


def is_dataclass(definition: ast.ClassDef) -> bool:
    for decorator in definition.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(called, ast.Name) and called.id in ("config", "dataclass"):
            return True
    return False


def function(where: ast.AST, name: str) -> ast.FunctionDef | None:
    """The function or method `name` inside a module or class."""
    for node in ast.walk(where):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    return None
