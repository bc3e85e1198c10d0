"""Figures with their arithmetic, and tensors as lines of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from planner.memory.program import LiveTensor
from planner.sharding.rank import Tensor
from planner.values import DTYPE_BYTES

_LAYER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Part:
    """One line of a figure: what it is, how it is computed, and its bytes."""

    name: str
    arithmetic: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: its value in `unit`, the rule, the rule with numbers, where the rule comes from, and its parts."""

    name: str
    value: float
    unit: str
    formula: str
    arithmetic: str
    source: str
    parts: tuple[Part, ...] = ()


def tensor_parts(tensors: Iterable[Tensor]) -> list[Part]:
    """Equal tensors of different layers on one line, in order of first appearance."""
    counts: dict[tuple[str, tuple[int, ...], str], int] = {}
    for tensor in tensors:
        name = tensor.module if not tensor.name else f"{tensor.module}.{tensor.name}"
        key = (_LAYER.sub(".N", name), tensor.shape, tensor.dtype)
        counts[key] = counts.get(key, 0) + 1
    parts = []
    for (name, shape, dtype), count in counts.items():
        size = DTYPE_BYTES[dtype]
        for dimension in shape:
            size *= dimension
        times = f"{count} x " if count > 1 else ""
        shown = " x ".join(f"{dimension:,}" for dimension in shape) or "1"
        parts.append(Part(name, f"{times}[{shown}] {dtype}, {DTYPE_BYTES[dtype]} B each", count * size))
    return parts


def live_part(tensor: LiveTensor, tokens: int, seqs: int) -> Part:
    terms = []
    if tensor.bytes_per_token:
        terms.append(f"{tensor.bytes_per_token:,} B x T")
    if tensor.bytes_per_seq:
        terms.append(f"{tensor.bytes_per_seq:,} B x S")
    if tensor.constant_bytes:
        terms.append(f"{tensor.constant_bytes:,} B")
    return Part(tensor.name, " + ".join(terms) or "0", tensor.bytes(tokens, seqs))
