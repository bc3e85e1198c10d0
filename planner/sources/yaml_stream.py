"""Catalog files: streams of YAML documents, one per entry, in which one entry is found without parsing the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from planner.errors import InputError

_SEPARATOR = re.compile(r"^---[ \t]*(?:#.*)?$", re.MULTILINE)
_NAME_LINE = re.compile(r"^(?:name|id):[ \t]+([^#\n]+?)[ \t]*$", re.MULTILINE)
_ALIASES_LINE = re.compile(r"^aliases:[ \t]*\[([^\]\n]*)\][ \t]*$", re.MULTILINE)
_ALIASES_KEY = re.compile(r"^aliases:", re.MULTILINE)
_TIMESTAMP = "tag:yaml.org,2002:timestamp"

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_SafeLoader):  # type: ignore[misc]
    """Safe YAML in which a repeated key is an error and a date stays text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in _SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is repeated", key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a catalog file: its text, where it begins, and the names it answers to (None: not on one line)."""

    where: str
    line: int
    text: str
    names: tuple[str, ...] | None

    def parse(self) -> dict[str, Any]:
        """The document as a mapping. InputError names file and line when it is no valid YAML mapping."""
        try:
            loaded = yaml.load(self.text, Loader=_StrictLoader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise InputError(f"{self.where}: {self._explain(error)}") from None
        if not isinstance(loaded, dict):
            raise InputError(f"{self.where}, line {self.line}: expected an entry of `key: value` lines")
        return loaded

    def _explain(self, error: Exception) -> str:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        line = self.line + mark.line if mark is not None else self.line
        return f"line {line}: {' '.join(str(problem).split())}"


def split_documents(text: str, where: str) -> Iterator[Document]:
    """The documents of a stream, unparsed. Comments and empty documents are left out."""
    start = 0
    for match in [*_SEPARATOR.finditer(text), None]:
        end = match.start() if match else len(text)
        body = text[start:end]
        if any(line.strip() and not line.lstrip().startswith("#") for line in body.splitlines()):
            yield Document(where=where, line=text.count("\n", 0, start) + 1, text=body, names=_header_names(body))
        if match:
            start = match.end()


def _header_names(body: str) -> tuple[str, ...] | None:
    """The name and aliases of a document read from their lines; None when they are written in another YAML style."""
    name, aliases = _NAME_LINE.search(body), _ALIASES_LINE.search(body)
    if not name or (not aliases and _ALIASES_KEY.search(body)):
        return None
    listed = aliases.group(1).split(",") if aliases else []
    return tuple(_unquoted(part) for part in (name.group(1), *listed) if part.strip())


def _unquoted(scalar: str) -> str:
    return scalar.strip().strip("\"'")
