"""Compare a vLLM source tree with the facts that the planner was built on, and say what moved.

The facts lie in scripts/drift_facts.json: defaults and choices of every flag, names of cache dtypes, quantization
methods and architectures, the log lines that a verifier reads, and a fingerprint of every piece of vLLM that a
docstring of the planner cites. Nothing of the tree is imported or run.

usage: check_drift.py VLLM_PACKAGE_FOLDER [--output REPORT.md]     compare
       check_drift.py VLLM_PACKAGE_FOLDER --record                 write scripts/drift_facts.json anew
Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from generate_vllm_flags import FlagReader
from vllm_source import SourceTree

from planner.releases.flags import Flag
from planner.releases.known import RELEASES

REPOSITORY = Path(__file__).resolve().parents[1]
FACTS = Path(__file__).with_name("drift_facts.json")
LOG_LINES = (
    "Model loading took {} GiB memory and {} seconds",
    "Model loading took {} GiB and {} seconds",
    "Available KV cache memory: {} GiB",
    "GPU KV cache size: {} tokens",
    "Maximum concurrency for {} tokens per request: {}x",
    "Graph capturing finished in {} secs, took {} GiB",
    "CUDA graph pool memory: {} GiB (actual), {} GiB (estimated), ",
    "Desired GPU memory utilization is ({}, {} GiB). Actual usage is {} GiB for weight, {} GiB for peak activation, "
    "{} GiB for non-torch memory, and {} GiB for CUDAGraph memory.",
    "Auto-fit max_model_len: reduced from {} to {} to fit in available GPU memory ({} GiB available for KV cache)",
    "init engine (profile, create kv cache, warmup model) took {} s",
    "No available memory for the cache blocks.",
    "To serve at least one request with the model's max seq len (",
    "on startup is less than desired GPU memory utilization (",
)
"""What a verifier looks for; {} stands for a value. A line counts as present where its text occurs in a message."""

LITERALS = (
    ("cache dtypes", "vllm.config.cache", "CacheDType"),
    ("quantization methods", "vllm.model_executor.layers.quantization", "QuantizationMethods"),
)
VALUES = (
    ("deprecated quantization methods", "vllm.model_executor.layers.quantization", "DEPRECATED_QUANTIZATION_METHODS"),
    ("architectures listed for the V2 runner", "vllm.config.vllm", "DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES"),
    ("removed architectures", "vllm.model_executor.models.registry", "_PREVIOUSLY_SUPPORTED_MODELS"),
)
_CITATION = re.compile(r"([\w./]+\.py)(?::([0-9]+(?:, ?[0-9]+)*))?(?: ([A-Za-z_][\w.]*))?")
_SEGMENT = re.compile(r"vLLM 0\.26\.0 (.*?)(?=vLLM 0\.|PyTorch|transformers [0-9]|$)", re.DOTALL)


def collect(tree: SourceTree, pieces: list[str] | None) -> dict[str, Any]:
    """The facts of a tree. `pieces`: the cited pieces to fingerprint; None reads them from the planner's docstrings."""
    rows = [dict(zip(Flag._fields, row, strict=True)) for row in FlagReader(tree).read()]
    cited: dict[str, list[str]] = citations(tree) if pieces is None else {piece: [] for piece in pieces}
    facts = {
        "version": tree.version(),
        "flags": {row["dest"]: row for row in rows},
        "names": {title: names(tree, module, name) for title, module, name in (*LITERALS, *VALUES)},
        "log_lines": log_lines(tree),
        "pieces": {piece: piece_facts(tree, piece, cited[piece]) for piece in sorted(cited)},
    }
    document: dict[str, Any] = json.loads(json.dumps(facts))
    return document


def names(tree: SourceTree, dotted: str, name: str) -> list[str]:
    """The members of a Literal, a set, a list or the keys of a dictionary, sorted; empty where it is gone."""
    module = tree.module(dotted)
    where = tree.resolve(module, name) if module else None
    value = getattr(where.node, "value", None) if where else None
    if where is None or value is None:
        return []
    found = tree.literals(where.module, value)
    if found is None:
        plain = value.args[0] if isinstance(value, ast.Call) else value
        found = ast.literal_eval(plain)
    return sorted(str(item) for item in found)


def log_lines(tree: SourceTree) -> dict[str, bool]:
    messages: list[str] = []
    for path in sorted((tree.root / "v1").rglob("*.py")):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                messages.append(re.sub(r"%(?:\.[0-9]+)?[sdf]", "{}", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                messages.append("".join(str(part) for part in parts))
    return {line: any(line in message for message in messages) for line in LOG_LINES}


def citations(tree: SourceTree) -> dict[str, list[str]]:
    """The pieces of vLLM that the planner's docstrings name, each with the files that name it."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((REPOSITORY / "planner").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            text = " ".join((ast.get_docstring(node) or "").split())
            for segment in _SEGMENT.findall(text):
                for file, lines, name in _CITATION.findall(segment):
                    for piece in cited_pieces(tree, file, lines, name):
                        found[piece].add(path.relative_to(REPOSITORY).as_posix())
    return {piece: sorted(files) for piece, files in found.items()}


def cited_pieces(tree: SourceTree, file: str, lines: str, name: str) -> list[str]:
    """`path` or `path::Class.function` for one citation; empty where the path is none of the tree's or ambiguous."""
    matches = [tree.root / file] if (tree.root / file).is_file() else sorted(tree.root.rglob(f"*/{file}"))
    if len(matches) != 1:
        return []
    path = matches[0].relative_to(tree.root).as_posix()
    definitions = pieces_of(matches[0])
    named = [piece for piece in definitions if piece and (piece == name or piece.endswith(f".{name}"))]
    if named and name:
        return [f"{path}::{named[0]}"]
    found = []
    for line in map(int, re.findall(r"[0-9]+", lines)):
        around = [piece for piece, node in definitions.items() if node.lineno <= line <= (node.end_lineno or 0)]
        found.append(f"{path}::{max(around, key=lambda piece: definitions[piece].lineno)}" if around else path)
    return found or [path]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def pieces_of(path: Path) -> dict[str, ast.stmt]:
    """Every class, function and top-level assignment of a file by its dotted name, decorators included."""
    found: dict[str, ast.stmt] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for statement in body:
            if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                found[prefix + statement.name] = statement
                if isinstance(statement, ast.ClassDef):
                    visit(statement.body, f"{prefix}{statement.name}.")
            elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name) and not prefix:
                found[statement.targets[0].id] = statement

    visit(parsed(path).body, "")
    return found


def piece_facts(tree: SourceTree, piece: str, cited_by: list[str]) -> dict[str, Any]:
    """Where the piece is (elsewhere, if exactly one other file has a piece of its name), and its fingerprint there."""
    here = piece
    name = piece.partition("::")[2]
    if name and fingerprint(tree, piece) is None:
        pattern = re.compile(rf"^ *(?:class|def) {re.escape(name.rpartition('.')[2])}\b", re.MULTILINE)
        texts = ((file, file.read_text(encoding="utf-8")) for file in tree.root.rglob("*.py"))
        others = [file for file, text in texts if pattern.search(text) and name in pieces_of(file)]
        if len(others) == 1:
            here = f"{others[0].relative_to(tree.root).as_posix()}::{name}"
    return {"found_at": here, "fingerprint": fingerprint(tree, here), "cited_by": cited_by}


def fingerprint(tree: SourceTree, piece: str) -> str | None:
    """Of the code without docstrings, comments and layout; None where the piece is gone."""
    path, _, name = piece.partition("::")
    file = tree.root / path
    if not file.is_file():
        return None
    node: ast.AST | None = pieces_of(file).get(name) if name else parsed(file)
    if node is None:
        return None
    for inner in ast.walk(node):
        if isinstance(inner, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            inner.body = [item for item in inner.body if not _is_text(item)] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(node).encode()).hexdigest()[:16]


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def report(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, bool]:
    """A Markdown report, and whether anything differs."""
    before, after, lines = old["flags"], new["flags"], old["log_lines"]
    sections = [
        ("Flags gone", [f"`{_name(before[dest])}`" for dest in before if dest not in after]),
        ("Flags added", [f"`{_name(after[dest])}`" for dest in after if dest not in before]),
        ("Flags changed", _changed_flags(before, after)),
        *(
            (title[0].upper() + title[1:], _members(old["names"][title], new["names"].get(title, [])))
            for title in old["names"]
        ),
        ("Log lines gone", [f"`{line}`" for line in lines if lines[line] and not new["log_lines"].get(line)]),
        ("Cited code gone", _pieces(old, new, gone=True)),
        ("Cited code changed", _pieces(old, new, gone=False)),
        ("The planner's own entry for this release", _own_entry(new)),
    ]
    same = sum(new["pieces"][piece]["fingerprint"] == fact["fingerprint"] for piece, fact in old["pieces"].items())
    text = [
        f"# From vLLM {old['version']} to {new['version']}",
        "",
        "Written by scripts/check_drift.py. Each item is something that the planner states or relies on.",
        "",
        f"Cited code unchanged (moved or not): {same} of {len(old['pieces'])} pieces.",
    ]
    for title, items in sections:
        text += ["", f"## {title}", "", *([f"- {item}" for item in items] or ["Nothing."])]
    return "\n".join(text) + "\n", any(items for _, items in sections)


def _name(flag: dict[str, Any]) -> str:
    options: list[str] = flag["options"]
    return next((option for option in options if option.startswith("--")), options[0])


def _changed_flags(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found = []
    for dest, before in old.items():
        after = new.get(dest, before)
        for part in ("options", "arity", "kind", "default"):
            if before[part] != after[part]:
                found.append(f"`{_name(before)}` {part}: `{before[part]}` became `{after[part]}`")
        if before["choices"] != after["choices"]:
            members = _members(list(map(str, before["choices"])), list(map(str, after["choices"])))
            found.append(f"`{_name(before)}` choices: {'; '.join(members) or 'in another order'}")
    return found


def _members(old: list[str], new: list[str]) -> list[str]:
    gone, added = [item for item in old if item not in new], [item for item in new if item not in old]
    found = [f"gone: {', '.join(f'`{item}`' for item in gone)}"] if gone else []
    return found + ([f"added: {', '.join(f'`{item}`' for item in added)}"] if added else [])


def _pieces(old: dict[str, Any], new: dict[str, Any], *, gone: bool) -> list[str]:
    found = []
    for piece, fact in old["pieces"].items():
        now = new["pieces"][piece]
        if now["fingerprint"] != fact["fingerprint"] and (now["fingerprint"] is None) == gone:
            moved = "" if now["found_at"] == piece else f" (now `{now['found_at']}`)"
            found.append(f"`{piece}`{moved}, cited by {', '.join(f'`{file}`' for file in fact['cited_by'])}")
    return found


def _own_entry(new: dict[str, Any]) -> list[str]:
    """Where planner/releases/known.py, read for this very release, says otherwise than the tree."""
    entry = next((release for release in RELEASES if release.version == new["version"]), None)
    if entry is None:
        return ["there is none: its rules would be borrowed from the nearest release"]
    deprecated = new["names"]["deprecated quantization methods"]
    utilization = new["flags"]["gpu_memory_utilization"]["default"]
    removed = sorted(dict(entry.removed_architectures))
    pairs = (
        ("kv_cache_dtypes", sorted(entry.kv_cache_dtypes), new["names"]["cache dtypes"]),
        ("quantization_methods", sorted(entry.quantization_methods), new["names"]["quantization methods"]),
        ("deprecated_quantization_methods", sorted(entry.deprecated_quantization_methods), deprecated),
        ("v2_architectures", sorted(entry.v2_architectures), new["names"]["architectures listed for the V2 runner"]),
        ("removed_architectures", removed, [name for name in removed if name in new["names"]["removed architectures"]]),
        ("default_gpu_memory_utilization", entry.default_gpu_memory_utilization, utilization),
    )
    return [f"`{name}`: `{ours}`, the tree has `{theirs}`" for name, ours, theirs in pairs if ours != theirs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the unpacked `vllm` package")
    parser.add_argument("--output", type=Path, help="default: standard output")
    parser.add_argument("--record", action="store_true", help="write the facts of this tree")
    arguments = parser.parse_args()
    tree = SourceTree(arguments.folder)
    if arguments.record:
        FACTS.write_text(json.dumps(collect(tree, None), indent=1) + "\n", encoding="utf-8")
        return 0
    old = json.loads(FACTS.read_text(encoding="utf-8"))
    text, differs = report(old, collect(tree, list(old["pieces"])))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
