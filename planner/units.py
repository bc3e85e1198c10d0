"""Bytes and the few ways people write them. Inside the program every size is whole bytes."""

from __future__ import annotations

import re
from typing import NewType

from planner.errors import InputError

Bytes = NewType("Bytes", int)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_BINARY = {"": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB}
_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)

_HUMAN_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_HUMAN_BINARY = {"K": KIB, "M": MIB, "G": GIB, "T": TIB}
_HUMAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kKmMgGtT]?)")


def parse_size(text: str) -> Bytes:
    """Bytes of a size with an explicit unit: `44.5GiB`, `800MB`, `1024`. Binary and decimal units differ."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InputError(f"not a size: {text!r} (write for example 44.5GiB)")
    number, unit = match.groups()
    scale = (_BINARY | _DECIMAL).get(unit.lower())
    if scale is None:
        raise InputError(f"unknown unit {unit!r} in size {text!r} (use KiB, MiB, GiB, KB, MB or GB)")
    return Bytes(int(_scaled(number, scale)))


def parse_human_int(text: str) -> int:
    """A whole number as vLLM reads it: `32k` is 32,000, `32K` is 32,768, `1.5K` is 1,536.

    Source: vLLM 0.26.0 engine/arg_utils.py human_readable_int: a decimal point is allowed with the small
    (decimal) suffixes only.
    """
    match = _HUMAN.fullmatch(text.strip())
    if not match:
        raise InputError(f"not a whole number: {text!r} (write for example 32768, 32k or 32K)")
    number, suffix = match.groups()
    if suffix in _HUMAN_BINARY:
        if "." in number:
            raise InputError(
                f"{text!r}: decimals are not allowed with the binary suffix {suffix}; use {suffix.lower()}"
            )
        return int(number) * _HUMAN_BINARY[suffix]
    if "." in number and not suffix:
        raise InputError(f"not a whole number: {text!r}")
    return int(_scaled(number, _HUMAN_DECIMAL.get(suffix, 1)))


def _scaled(number: str, scale: int) -> int:
    whole, _, fraction = number.partition(".")
    return int(whole + fraction) * scale // int(10 ** len(fraction))


def format_gib(size_bytes: int) -> str:
    """`15343488512` as `14.29 GiB`, rounded as vLLM's log rounds it (utils/mem_utils.py format_gib)."""
    return f"{size_bytes / GIB:.2f} GiB"


def format_bytes(size_bytes: int) -> str:
    """A size for eyes in the largest binary unit that keeps it at or above one."""
    for name, unit in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size_bytes) >= unit:
            return f"{size_bytes / unit:.2f} {name}"
    return f"{size_bytes} B"
