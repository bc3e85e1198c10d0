"""Text that others wrote (names in configs and catalogs, flags of a pasted command, logs, servers' answers), made safe
to show, to put in a table, and to quote in a command."""

from __future__ import annotations

import re
from collections.abc import Iterable

from planner.errors import InputError

_HIDDEN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_INVISIBLE = re.compile(f"[{_HIDDEN}]")
_INVISIBLE_BUT_COLOR = re.compile(rf"(\x1b\[[0-9;]*m)|[{_HIDDEN}]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_HF_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_USER_INFO = re.compile(r"(?<=://)[^/\s@]*@")
_SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|(?:API|ACCESS|PRIVATE|SECRET)_KEY)(?:_|$)", re.I)


def visible(text: str, *, color: bool = False) -> str:
    r"""`text` with what a terminal would obey, or a reader would not see, written as \uXXXX: control characters other
    than newline and tab, line separators, and marks that turn the direction of writing. `color`: colours stay."""
    pattern = _INVISIBLE_BUT_COLOR if color else _INVISIBLE
    return pattern.sub(lambda found: found[1] if color and found[1] else f"\\u{ord(found[0]):04x}", text)


def table_cell(text: str) -> str:
    """`text` for a CSV cell: one that a spreadsheet would take for a formula gets an apostrophe before it, and a
    carriage return, at which readers begin a new row, is a space."""
    guarded = "'" + text if text.startswith(_FORMULA) else text
    return guarded.replace("\r\n", "\n").replace("\r", " ")


def check_words(words: Iterable[str]) -> None:
    """InputError for a word that no command can carry (NUL, a half of a surrogate pair) or whose display would not be
    what runs: control characters other than newline and tab, marks that turn the direction of writing."""
    for word in words:
        found = _INVISIBLE.search(word)
        if found:
            shown = visible(word if len(word) <= 80 else word[:80] + "...")
            raise InputError(f"{shown!r} holds the character U+{ord(found[0]):04X}, which no command here carries")


def check_variable_names(names: Iterable[str]) -> None:
    """InputError for what is no name of an environment variable: the shell would read it as something else."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(f"{visible(name)!r} is not the name of an environment variable")


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a token, key or password: HF_TOKEN, VLLM_API_KEY."""
    return _SECRET_NAME.search(name) is not None


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without Hugging Face tokens, users and passwords in addresses, and the given secrets."""
    for secret in secrets:
        if len(secret) >= 8:
            text = text.replace(secret, "***")
    return _USER_INFO.sub("***@", _HF_TOKEN.sub("hf_***", text))
