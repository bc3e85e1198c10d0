"""JSON as model folders hold it, read strictly: what cannot be a config is refused in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from planner.errors import InputError

MAX_JSON_BYTES = 8 << 20
MAX_DEPTH = 64
NON_FINITE_KEYS = frozenset({"time_step_limit"})


def read_text(path: Path, *, limit_bytes: int = MAX_JSON_BYTES) -> str:
    """A UTF-8 text file of at most `limit_bytes`. InputError names the file otherwise."""
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    return decode(data, str(path), limit_bytes=limit_bytes)


def decode(data: bytes, where: str, *, limit_bytes: int = MAX_JSON_BYTES) -> str:
    """`data` as text; InputError when it is too long or not UTF-8."""
    if len(data) > limit_bytes:
        raise InputError(f"{where}: larger than {limit_bytes >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start})") from None


def parse_json_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Refuses repeated keys, other top-level values, nesting beyond 64 levels, and NaN or Infinity.

    Infinity is let through under the keys in NON_FINITE_KEYS: published Nemotron-H configs have it there.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            repeated = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
            raise InputError(f"{where}: the key {repeated!r} is repeated")
        return mapping

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise InputError(f"{where}: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {_kind(value)}")
    check_values(value, where)
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, read as `read_text` and `parse_json_object` do."""
    return parse_json_object(read_text(path), str(path))


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}[type(value)]


def check_values(value: object, where: str, *, key: str = "", levels: int = MAX_DEPTH) -> None:
    """InputError for a value nested deeper than `levels`, or a number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value) and key not in NON_FINITE_KEYS:
        raise InputError(f"{where}: {key!r} holds {value}, which is not a JSON number")
    if not isinstance(value, (dict, list)):
        return
    if levels == 0:
        raise InputError(f"{where}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for name, item in value.items():
            check_values(item, where, key=str(name), levels=levels - 1)
    else:
        for item in value:
            check_values(item, where, key=key, levels=levels - 1)
