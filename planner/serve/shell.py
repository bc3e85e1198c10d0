"""A pasted shell text -> its simple commands, as words. Nothing is ever run, expanded from the host, or looked up."""

from __future__ import annotations

import re

from msgspec import Struct, field

from planner.errors import InputError

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_EXPANSION = re.compile(rf"\$(?:({_NAME})|\{{({_NAME})(?::?-([^}}]*))?\}})")
_SUBSTITUTION = re.compile(r"\$\(|`")
_OPERATORS = ("&&", "||", ";;", ";", "|&", "|", "&", "\n", "(", ")")
_REDIRECTION = re.compile(r"[0-9]?(?:&>>|&>|>>|>&|<<<|<<|<>|>|<)")


class Script(Struct, frozen=True):
    """`commands`: words of each simple command. `unresolved`: texts such as `$HF_TOKEN` or `$(pwd)` left as written."""

    commands: tuple[tuple[str, ...], ...]
    unresolved: frozenset[str]


class _Reader(Struct):
    text: str
    at: int = 0
    variables: dict[str, str] = field(default_factory=dict)
    unresolved: set[str] = field(default_factory=set)

    def peek(self, length: int = 1) -> str:
        return self.text[self.at : self.at + length]

    def until(self, end: str, what: str) -> str:
        stop = self.text.find(end, self.at)
        if stop < 0:
            raise InputError(f"--command: {what} is not closed")
        found = self.text[self.at : stop]
        self.at = stop + len(end)
        return found


def split_script(text: str) -> Script:
    """Words as a POSIX shell forms them: quotes, backslashes, continued lines, comments, redirections left out.

    `$NAME` is replaced where an earlier word of the text sets NAME (or where `${NAME:-default}` gives one).
    Raises InputError for quotes that are not closed.
    """
    reader = _Reader(text.replace("\r\n", "\n"))
    commands: list[tuple[str, ...]] = []
    words: list[str] = []
    skip_next = False
    while reader.at < len(reader.text):
        if reader.peek() in " \t":
            reader.at += 1
            continue
        if reader.peek(2) == "\\\n":
            reader.at += 2
            continue
        if reader.peek() == "#":
            end = reader.text.find("\n", reader.at)
            reader.at = len(reader.text) if end < 0 else end
            continue
        redirection = _REDIRECTION.match(reader.text, reader.at)
        if redirection:
            reader.at = redirection.end()
            skip_next = True
            continue
        operator = next((item for item in _OPERATORS if reader.peek(len(item)) == item), None)
        if operator:
            reader.at += len(operator)
            _close(reader, commands, words)
            continue
        word = _word(reader)
        if skip_next:
            skip_next = False
        else:
            words.append(word)
    _close(reader, commands, words)
    return Script(tuple(commands), frozenset(reader.unresolved))


def _close(reader: _Reader, commands: list[tuple[str, ...]], words: list[str]) -> None:
    if not words:
        return
    for word in words[1:] if words[0] == "export" else words:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(_NAME, name):
            break
        reader.variables[name] = value
    commands.append(tuple(words))
    words.clear()


def _word(reader: _Reader) -> str:
    parts: list[str] = []
    while reader.at < len(reader.text):
        here = reader.peek()
        if here in " \t\n;|&()<>":
            break
        reader.at += 1
        if here == "'":
            parts.append(reader.until("'", "a single quote"))
        elif here == '"':
            parts.append(_double_quoted(reader))
        elif here == "\\":
            if reader.peek() != "\n":
                parts.append(reader.peek())
            reader.at += 1
        elif here in "$`":
            reader.at -= 1
            parts.append(_expansion(reader))
        else:
            parts.append(here)
    return "".join(parts)


def _double_quoted(reader: _Reader) -> str:
    parts: list[str] = []
    while True:
        here = reader.peek()
        if not here:
            raise InputError("--command: a double quote is not closed")
        reader.at += 1
        if here == '"':
            return "".join(parts)
        if here == "\\" and reader.peek() in '$`"\\\n' and reader.peek():
            if reader.peek() != "\n":
                parts.append(reader.peek())
            reader.at += 1
        elif here in "$`":
            reader.at -= 1
            parts.append(_expansion(reader))
        else:
            parts.append(here)


def _expansion(reader: _Reader) -> str:
    """The value of a variable that the text itself sets; else the expansion as written, noted as unresolved."""
    match = _EXPANSION.match(reader.text, reader.at)
    if match:
        reader.at = match.end()
        value = reader.variables.get(match[1] or match[2], match[3])
        if value is None:
            reader.unresolved.add(match[0])
            return match[0]
        return value
    substitution = _SUBSTITUTION.match(reader.text, reader.at)
    if not substitution:
        reader.at += 1
        return "$"
    start = reader.at
    reader.at = substitution.end()
    reader.until(")" if substitution[0] == "$(" else "`", f"the command substitution {substitution[0]}")
    found = reader.text[start : reader.at]
    reader.unresolved.add(found)
    return found
