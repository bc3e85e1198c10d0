"""Write planner/releases/flags_vX_Y_Z.py: every option of `vllm serve`, read from vLLM's source without running it.

usage: generate_vllm_flags.py VLLM_PACKAGE_FOLDER [--output FILE]
"""

from __future__ import annotations

import argparse
import ast
import itertools
import sys
from pathlib import Path
from typing import Any

from vllm_source import Module, SourceTree, function

CLI_MODULES = ("vllm.entrypoints.common.cli_args", "vllm.entrypoints.openai.cli_args")
Keywords = dict[str, Any]
"""What one option is added with: type (a kind), nargs, action, choices, default, dest; as in argparse."""


class FlagReader:
    """Follows the functions that add the options, statement by statement."""

    def __init__(self, tree: SourceTree) -> None:
        self.tree = tree
        self.engine = tree.first_module("vllm.engine.arg_utils")
        self.frontend = tree.first_module(*CLI_MODULES)
        parser = tree.first_module("vllm.utils.argparse_utils")
        self.disable_pairs = "EnableDisableAction" in parser.names
        compute = function(self.engine.tree, "_compute_kwargs")
        assert compute is not None
        self.human_ints = _human_ints(compute)
        self.none_choice = _none_choice(compute)
        self.engine_fields = set(tree.fields(self.engine, "AsyncEngineArgs"))
        self.flags: list[tuple[Any, ...]] = []

    def read(self) -> list[tuple[Any, ...]]:
        make = function(self.frontend.tree, "make_arg_parser")
        assert make is not None
        self.run(self.frontend, make.body, {})
        return self.flags

    def run(self, module: Module, body: list[ast.stmt], names: dict[str, Any]) -> None:
        for statement in body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    found = self.value(module, value, names)
                    if found is not None:
                        names[name] = found
                case ast.Assign(targets=[ast.Subscript(value=base, slice=ast.Constant(value=key))], value=value):
                    target = self.value(module, base, names)
                    if isinstance(target, dict):
                        target[key] = _kind(value) if key == "type" else self.plain(module, value)
                case ast.AugAssign(target=ast.Subscript(value=base, slice=ast.Constant(value="choices")), value=value):
                    self.value(module, base, names)["choices"] += self.joined_permutations(module, value)
                case ast.Delete(targets=[ast.Subscript(value=base, slice=ast.Constant(value=key))]):
                    self.value(module, base, names).pop(key, None)
                case ast.If(body=inner):
                    self.run(module, inner, names)
                case ast.For(iter=ast.Call(func=ast.Attribute(value=ast.Name(id="frontend_kwargs")))):
                    for key, keywords in names["frontend_kwargs"].items():
                        self.add([f"--{key.replace('_', '-')}"], keywords)
                case ast.Expr(value=ast.Call(func=ast.Attribute(attr="add_argument"), args=options, keywords=keywords)):
                    self.add([ast.literal_eval(option) for option in options], self.keywords(module, keywords, names))
                case ast.Expr(value=ast.Call(func=ast.Attribute(value=base, attr="remove"), args=[removed])):
                    self.value(module, base, names).remove(self.tree.constant(module, removed))

    def value(self, module: Module, node: ast.expr, names: dict[str, Any]) -> Any:
        """Keyword tables, by the expressions that vLLM reaches them with. None for anything else."""
        match node:
            case ast.Name(id=name):
                return names.get(name)
            case ast.Call(func=ast.Name(id="get_kwargs"), args=[ast.Name(id=name)]):
                return self.kwargs_of(module, "FrontendArgs" if name == "cls" else name)
            case ast.Subscript(value=base, slice=ast.Constant(value=key)):
                table = self.value(module, base, names)
                return table[key] if isinstance(table, dict) else None
            case ast.Call(func=ast.Attribute(value=ast.Name(id="cls"), attr="_customize_cli_kwargs")):
                for where in self.tree.bases_first(module, "FrontendArgs"):
                    customize = function(where.node, "_customize_cli_kwargs")
                    if customize is not None:
                        self.run(where.module, customize.body, names)
                return names["frontend_kwargs"]
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr="add_cli_args")):
                self.add_class(owner)
        return None

    def add_class(self, name: str) -> None:
        """The options of a class's add_cli_args, its own or the one it inherits."""
        where = self.tree.resolve(self.frontend, name) or self.tree.resolve(self.engine, name)
        assert where is not None
        for owner in reversed(self.tree.bases_first(where.module, name)):
            add = function(owner.node, "add_cli_args")
            if add is not None:
                self.run(owner.module, add.body, {})
                return

    def keywords(self, module: Module, keywords: list[ast.keyword], names: dict[str, Any]) -> Keywords:
        found: Keywords = {}
        for keyword in keywords:
            if keyword.arg is None and isinstance(keyword.value, ast.Dict):
                for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                    if key is None:
                        found |= self.value(module, value, names)
                    else:
                        found[ast.literal_eval(key)] = self.plain(module, value)
            elif keyword.arg is None:
                found |= self.value(module, keyword.value, names)
            elif keyword.arg == "type":
                found["type"] = _kind(keyword.value)
            elif keyword.arg not in ("help", "metavar"):
                found[keyword.arg] = self.plain(module, keyword.value)
        return found

    def plain(self, module: Module, node: ast.expr) -> Any:
        """A value as data; what is no literal as its source in angle brackets. The platform is CUDA."""
        match node:
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return [*self.plain(module, left), *self.plain(module, right)]
            case ast.IfExp(body=body):
                return self.plain(module, body)
            case ast.List(elts=items):
                return [self.plain(module, item) for item in items]
            case ast.Attribute(value=ast.Name(id="current_platform"), attr="device_type"):
                return "cuda"
            case ast.Call(func=ast.Name(id="get_args"), args=[alias]):
                return self.tree.literals(module, alias)
            case ast.Call(func=ast.Name(id=("Field" | "PydanticField" | "field")), args=args, keywords=keywords):
                given = {keyword.arg: keyword.value for keyword in keywords}
                if args or "default" in given:
                    return self.plain(module, args[0] if args else given["default"])
                factory = given.get("default_factory")
                if isinstance(factory, ast.Lambda):
                    return self.plain(module, factory.body)
                if isinstance(factory, ast.Name) and factory.id in ("list", "dict", "set"):
                    return {"list": [], "dict": {}, "set": []}[factory.id]
                return f"<{ast.unparse(factory)}()>" if factory else None
        try:
            value = self.tree.constant(module, node)
        except (ValueError, TypeError):
            return f"<{ast.unparse(node)}>"
        return sorted(value) if isinstance(value, set) else value

    def joined_permutations(self, module: Module, node: ast.expr) -> list[str]:
        """`[",".join(p) for p in permutations(get_args(T), r=2)]`."""
        source = node.generators[0].iter if isinstance(node, ast.ListComp) else None
        match source:
            case ast.Call(args=[ast.Call(args=[alias])], keywords=[ast.keyword(value=ast.Constant(value=int(size)))]):
                return [
                    ",".join(group) for group in itertools.permutations(self.tree.literals(module, alias) or [], size)
                ]
        raise SystemExit(f"{module.dotted}:{node.lineno}: choices are added in a way this script does not read")

    def kwargs_of(self, module: Module, class_name: str) -> dict[str, Keywords]:
        """What _compute_kwargs of engine/arg_utils.py makes of a configuration class."""
        fields = self.tree.fields(module, class_name)
        return {name: self.field_keywords(name, owner, statement) for name, (owner, statement) in fields.items()}

    def field_keywords(self, name: str, module: Module, statement: ast.AnnAssign) -> Keywords:
        hints = self.tree.type_hints(module, statement.annotation)
        kinds = [kind for kind, _ in hints]
        details = dict(hints)
        found: Keywords = {"default": self.plain(module, statement.value) if statement.value else None}
        optional = "None" in kinds and "bool" not in kinds
        if "dataclass" in kinds:
            found["type"] = "json"
        elif sorted(kinds) == ["None", "bool", "str"]:
            return found | {"type": "str", "nargs": "?"}
        elif "bool" in kinds:
            return found | {"action": "BooleanOptionalAction"}
        elif "literal" in kinds:
            options = [option for kind, detail in hints if kind == "literal" for option in detail]
            found["type"] = type(options[0]).__name__
            if "str" not in kinds:
                found["choices"] = sorted(options)
        elif collection := next((kind for kind in ("tuple", "list", "set") if kind in kinds), None):
            found |= self.element(details[collection])
        elif "int" in kinds:
            human = "human_int" if name in self.human_ints else "int"
            found["type"] = "human_int_or_auto" if name == "max_model_len" else human
        elif "float" in kinds:
            found["type"] = "float"
        elif "dict" in kinds:
            found["type"] = "json_or_str" if "str" in kinds or "class" in kinds else "json"
        else:
            found["type"] = "str"
        if optional:
            found["type"] += "?"
            if found.get("choices"):
                found["choices"].append(self.none_choice)
        return found

    def element(self, where: Any) -> Keywords:
        hints = self.tree.type_hints(where.module, where.node)
        kind, detail = hints[0]
        if len(hints) > 1 or kind not in ("int", "float", "literal"):
            return {"type": "str", "nargs": "+"}
        if kind == "literal":
            return {"type": type(detail[0]).__name__, "nargs": "+", "choices": sorted(detail)}
        return {"type": kind, "nargs": "+"}

    def add(self, options: list[str], keywords: Keywords) -> None:
        if not options[0].startswith("-"):
            return
        action, nargs = keywords.get("action"), keywords.get("nargs")
        negatives: list[str] = []
        arity = {None: "value", "+": "list", "?": "optional"}[nargs]
        if action == "store_true":
            arity = "switch"
        elif action == "append":
            arity = "append"
        elif action is not None and str(action).strip("<>").endswith("BooleanOptionalAction"):
            arity = "bool"
            long = [option for option in options if option.startswith("--")]
            negatives = [f"--no-{option[2:]}" for option in long]
            if self.disable_pairs:
                negatives += [f"--disable-{option[9:]}" for option in long if option.startswith("--enable-")]
                negatives += [f"--enable-{option[10:]}" for option in long if option.startswith("--disable-")]
        long_name = next((option for option in options if option.startswith("--")), options[0])
        dest = keywords.get("dest") or long_name.lstrip("-").replace("-", "_")
        kind = "str" if arity in ("switch", "bool") else keywords.get("type") or "str"
        default = keywords.get("default", False if arity == "switch" else None)
        choices = _frozen(keywords.get("choices") or ())
        row = (
            tuple(options),
            tuple(negatives),
            dest,
            arity,
            kind,
            choices,
            _frozen(default),
            dest in self.engine_fields,
        )
        self.flags.append(row)


def _kind(node: ast.expr) -> str:
    """The reader of a value, by the expression that names its type."""
    match node:
        case ast.Name(id=("int" | "float" | "str") as name):
            return name
        case ast.Attribute(value=ast.Name(id="json"), attr="loads"):
            return "json"
        case ast.Call(func=ast.Name(id="optional_type"), args=[inner]):
            return _kind(inner) + "?"
        case ast.Lambda(body=body) if ast.unparse(body) == "s.lower().replace('-', '_')":
            return "lower_snake"
    return "str"


def _human_ints(compute: ast.FunctionDef) -> set[str]:
    for node in ast.walk(compute):
        match node:
            case ast.Assign(targets=[ast.Name(id="human_readable_int_args")], value=value):
                return set(ast.literal_eval(value))
    raise SystemExit("engine/arg_utils.py: human_readable_int_args is not where it was")


def _none_choice(compute: ast.FunctionDef) -> str | None:
    """What stands for no value among the choices: the text "None", or None itself."""
    for node in ast.walk(compute):
        match node:
            case ast.Call(func=ast.Attribute(attr="append"), args=[ast.Constant(value=("None" | None) as value)]):
                return value
    raise SystemExit("engine/arg_utils.py: the choice for None is not where it was")


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    return value


def render(version: str, flags: list[tuple[Any, ...]]) -> str:
    rows = "".join(f"    {flag!r},\n" for flag in flags)
    return (
        f'"""The options of `vllm serve` {version}, one row each, in the order of planner.releases.flags.Flag.\n\n'
        "Written by scripts/generate_vllm_flags.py from engine/arg_utils.py, cli_args.py and config/ of that release.\n"
        '"""\n\n# ruff: noqa\n# fmt: off\nfrom __future__ import annotations\n\nfrom typing import Any\n\n'
        f"FLAGS: tuple[tuple[Any, ...], ...] = (\n{rows})\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the unpacked `vllm` package")
    parser.add_argument("--output", type=Path, help="default: standard output")
    arguments = parser.parse_args()
    tree = SourceTree(arguments.folder)
    text = render(tree.version(), FlagReader(tree).read())
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
