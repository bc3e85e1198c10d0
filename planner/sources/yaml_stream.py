"""Catalog files: streams of YAML documents, one per entry, in which one entry is found without parsing the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, ClassVar

import yaml
from msgspec import Struct

from planner.errors import InputError

_SEPARATOR = re.compile(r"---[ \t]*(?:#.*)?$", re.MULTILINE)
_HEAD_CHARACTERS = 512
_CONTENT = re.compile(r"^[ \t]*[^\s#]", re.MULTILINE)
_NAME_LINE = re.compile(r"^(?:name|id):[ \t]+([^#\n]+?)[ \t]*$", re.MULTILINE)
_MODELSCOPE_LINE = re.compile(r"^modelscope:[ \t]+([^#\n]+?)[ \t]*$", re.MULTILINE)
_ALIASES_LINE = re.compile(r"^aliases:[ \t]*\[([^\]\n]*)\][ \t]*$", re.MULTILINE)
_TIMESTAMP = "tag:yaml.org,2002:timestamp"

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_SafeLoader):  # type: ignore[misc]
    """Safe YAML in which a key is a plain scalar and not repeated, and a date stays text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in _SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain value", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is repeated", key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


class Document(Struct, frozen=True):
    """One document of a catalog file: where it lies in the text, and its names (None: not on lines of their own)."""

    where: str
    stream: str
    start: int
    end: int
    names: tuple[str, ...] | None

    @property
    def text(self) -> str:
        return self.stream[self.start : self.end]

    @property
    def line(self) -> int:
        """The line of the file in which the document begins, for messages."""
        return self.stream.count("\n", 0, self.start) + 1

    def parse(self) -> dict[str, Any]:
        """The document as a mapping. InputError names file and line when it is no valid YAML mapping."""
        try:
            loaded = yaml.load(self.text, Loader=_StrictLoader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise InputError(f"{self.where}: {self._explain(error)}") from None
        if _repeats(loaded):
            raise InputError(f"{self.where}, line {self.line}: an alias (*name) of a list or mapping is not taken")
        if not isinstance(loaded, dict):
            raise InputError(f"{self.where}, line {self.line}: expected an entry of `key: value` lines")
        return loaded

    def _explain(self, error: Exception) -> str:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        line = self.line + mark.line if mark is not None else self.line
        return f"line {line}: {' '.join(str(problem).split())}"


def _repeats(loaded: object) -> bool:
    """Whether one list or mapping stands in two places: a few lines of aliases can make billions of values."""
    seen: set[int] = set()
    waiting = [loaded]
    while waiting:
        value = waiting.pop()
        if not isinstance(value, (dict, list)):
            continue
        if id(value) in seen:
            return True
        seen.add(id(value))
        waiting += value.values() if isinstance(value, dict) else value
    return False


@lru_cache(maxsize=4)
def split_documents(text: str, where: str) -> tuple[Document, ...]:
    """The documents of a stream, unparsed. Comments and empty documents are left out."""
    return tuple(_split(text, where))


def _split(text: str, where: str) -> Iterator[Document]:
    start = 0
    for end, next_start in _bounds(text):
        if _CONTENT.search(text, start, end):
            names = _header_names(text[start : min(end, start + _HEAD_CHARACTERS)])
            yield Document(where=where, stream=text, start=start, end=end, names=names)
        start = next_start


def documents_by_name(
    documents: Iterable[Document], names: Callable[[Document], Iterable[str]], compared: Callable[[str], str]
) -> dict[str, Document]:
    """The documents by each of their names as `compared`; where several have a name, the first of them."""
    found: dict[str, Document] = {}
    for document in documents:
        for name in names(document):
            found.setdefault(compared(name), document)
    return found


def _bounds(text: str) -> Iterator[tuple[int, int]]:
    """Where each document ends and the next one begins: at lines that are only `---`."""
    position = 0
    while position >= 0:
        if match := _SEPARATOR.match(text, position):
            yield match.start(), match.end()
        newline = text.find("\n---", position)
        position = newline + 1 if newline >= 0 else -1
    yield len(text), len(text)


def _header_names(head: str) -> tuple[str, ...] | None:
    """The names of a document read from its first lines; None when they are written in another YAML style."""
    names, aliases = _NAME_LINE.findall(head), _ALIASES_LINE.search(head)
    if not names or not aliases:
        return None
    return tuple(
        _unquoted(part)
        for part in (*names, *aliases.group(1).split(","), *_MODELSCOPE_LINE.findall(head))
        if part.strip()
    )


def _unquoted(scalar: str) -> str:
    return scalar.strip().strip("\"'")
