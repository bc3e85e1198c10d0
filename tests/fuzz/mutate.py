"""Changes that strangers' files come with: swapped types, missing and repeated keys, huge and negative numbers, NaN,
deep nesting, odd Unicode, cut and flipped text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 63, 64, 65, 127, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 10**18, -(10**18), 10**40, 0.5, -0.0, 1e308,
    5e-324,
)  # fmt: skip
STRINGS = (
    "", " ", "0", "-1", "auto", "null", "true", "bfloat16", "float8_e4m3fn", "$(id)", "`id`", "'; rm -rf /", '"', "\\",
    "../../etc/passwd", "\x00", "\x1b[31m", "\u202egnp.exe", "\ud7ff", "e\u0301", "\u200b", "\ufeff", "𝟙𝟚", "१२",
    "a" * 5000,    "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "{{7*7}}", "%s%n", "\r\n", "\u2028",
)  # fmt: skip
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "-0", "01", "0x10", "1_000", "nan", "'single'", "[" * 200 + "]" * 200)
"""Literals put in place of a value in the text itself."""


def value(rng: random.Random) -> Any:
    """Something that is probably not what the key wants."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(STRINGS)
    if kind == 5:
        return rng.choice((None, True, False))
    if kind == 6:
        return [value(rng) for _ in range(rng.randrange(4))]
    return {rng.choice(STRINGS[:8]): value(rng) for _ in range(rng.randrange(3))}


def _places(document: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, item in list(items):
        found.append((document, key))
        _places(item, found)
    return found


def structure(document: Any, rng: random.Random) -> Any:
    """A copy with one to four places changed."""
    found = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = _places(found, [])
        if not places:
            return value(rng)
        holder, key = rng.choice(places)
        deed = rng.randrange(7)
        if deed == 0:
            del holder[key]
        elif deed == 1:
            other, name = rng.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                holder[key] = json.loads(json.dumps(other[name]))
        elif deed == 2 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = rng.choice((-1, 2, 0.5, 10, 1000, 10**9)) * holder[key]
        elif deed == 3 and isinstance(holder, dict):
            holder[str(key) + rng.choice(("", "_", "s", "\u200b"))] = holder.pop(key)
        elif deed == 4:
            holder[key] = [holder[key]]
        elif deed == 5:
            holder[key] = str(holder[key])
        else:
            holder[key] = value(rng)
    return found


def text(whole: str, rng: random.Random) -> str:
    """A text with a piece cut, doubled, moved, replaced or flipped."""
    deed = rng.randrange(6)
    if not whole:
        return rng.choice(STRINGS)
    start = rng.randrange(len(whole))
    end = min(len(whole), start + rng.choice((1, 2, 8, 40, 400)))
    if deed == 0:
        return whole[:start] + whole[end:]
    if deed == 1:
        return whole[:end] + whole[start:end] * rng.choice((1, 3, 50)) + whole[end:]
    if deed == 2:
        return whole[:start] + rng.choice(STRINGS) + whole[end:]
    if deed == 3:
        return whole[:start] + chr(rng.choice((0, 9, 10, 34, 39, 92, 127, 160, 0x2028, 0x10FFFF))) + whole[start + 1 :]
    if deed == 4:
        return whole[:start]
    return whole[:start] + rng.choice(RAW) + whole[end:]


def json_text(document: Any, rng: random.Random) -> str:
    """A changed document as text; sometimes the text itself is spoilt, or a key repeated."""
    written = json.dumps(structure(document, rng), ensure_ascii=rng.random() < 0.5)
    chance = rng.random()
    if chance < 0.15:
        return text(written, rng)
    if chance < 0.2 and written.startswith("{") and len(written) > 2:
        return "{" + json.dumps(rng.choice(sorted(document))) + ": 1, " + written[1:]
    if chance < 0.23:
        return written.replace(rng.choice((": 1", ": 0", "true", "null")), ": " + rng.choice(RAW), 1)
    return written


Mutator = Callable[[random.Random], str]
