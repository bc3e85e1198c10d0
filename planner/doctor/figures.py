"""Figures of a log that a cure needs: what its lines state, and what follows from that."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from planner.doctor.launch import LoggedLaunch
from planner.doctor.log import Log

_BLOCK_TOKENS = 16
_USUAL_UTILIZATION = 0.9
_USUAL_SEQUENCES = 256
_LINES: tuple[tuple[str, str], ...] = (
    ("weights", r"(?:Model loading took|Loading model weights took|model weights take) ([\d.]+) ?Gi?B"),
    ("cache_log", r"(?:Available KV cache memory:|the rest of the memory reserved for KV Cache is) (-?[\d.]+) ?GiB"),
    ("peak_log", r"PyTorch activation peak memory takes ([\d.]+) ?GiB"),
    ("total_log", r"total_gpu_memory \(([\d.]+) ?GiB\)"),
    ("utilization_log", r"gpu_memory_utilization \(([\d.]+)\)"),
    ("capacity_log", r"GPU KV cache size: ([\d,]+) tokens"),
)


def logged_figures(log: Log) -> dict[str, str]:
    """What the ledger's lines of the log state, as they are printed (GiB)."""
    found = {}
    for name, expression in _LINES:
        match = re.search(expression, log.body)
        if match:
            found[name] = match[1]
    return found


def with_derived(figures: Mapping[str, str], launch: LoggedLaunch, given: Mapping[str, Any]) -> dict[str, str]:
    """The figures and whatever can be derived from them.

    `given`: the options of the command by vLLM's names, over what the log says of them.
    """
    known = dict(figures)
    options = {**launch.arguments, **given}
    for name, derive in _DERIVED:
        try:
            value = derive(known, options)
        except (KeyError, ValueError, ZeroDivisionError):
            continue
        if value is not None:
            known.setdefault(name, value)
    return known


def fill_in(text: str, figures: Mapping[str, str]) -> str | None:
    """A text with its braces filled; None where a figure is not known."""
    try:
        return text.format_map(dict(figures))
    except KeyError:
        return None


_Figures = Mapping[str, str]
_Options = Mapping[str, Any]


def _utilization(known: _Figures, options: _Options) -> float:
    return float(
        known.get("utilization")
        or known.get("utilization_log")
        or options.get("gpu_memory_utilization")
        or _USUAL_UTILIZATION
    )


def _utilization_free(known: _Figures, options: _Options) -> str | None:
    share = int(float(known["free_gib"]) / float(known["total_gib"]) * 100 - 1e-9) / 100
    return f"{share:g}" if share >= 0.1 else None


def _missing(known: _Figures, options: _Options) -> str:
    return f"{float(known['requested_gib']) - float(known['free_gib']):.2f}"


def _sequences_lower(known: _Figures, options: _Options) -> str:
    now = int(known.get("dummy_seqs") or options.get("max_num_seqs") or _USUAL_SEQUENCES)
    return str(_USUAL_SEQUENCES if now > _USUAL_SEQUENCES else max(1, now // 2))


def _batched_lower(known: _Figures, options: _Options) -> str:
    now = int(options.get("max_num_batched_tokens") or 8192)
    return str(max(1024, now // 2))


def _length_that_fits(known: _Figures, options: _Options) -> str | None:
    if "estimated" in known:
        tokens = int(known["estimated"])
    elif "cache_tokens" in known:
        tokens = int(known["cache_tokens"])
    else:
        tokens = int(int(known["max_len"]) * float(known["have_gib"]) / float(known["need_gib"]))
    tokens -= tokens % _BLOCK_TOKENS
    return str(tokens) if tokens > 0 else None


def _split_that_fits(known: _Figures, options: _Options) -> str:
    """The largest power of two that divides the heads, else the largest divisor."""
    heads, asked = int(known["heads"]), int(known["tp"])
    divisors = [size for size in range(1, asked + 1) if heads % size == 0]
    powers = [size for size in divisors if size & (size - 1) == 0 and size > 1]
    return str(max(powers or divisors))


def _limits_json(known: _Figures, options: _Options) -> str:
    pairs = (pair.split("=") for pair in known["limits"].split(","))
    return json.dumps({name: int(count) for name, count in pairs})


def _rounded_up(tokens: int, step: int = 256) -> str:
    return str(-(-tokens // step) * step)


_DERIVED: tuple[tuple[str, Callable[[_Figures, _Options], str | None]], ...] = (
    ("utilization_free", _utilization_free),
    ("missing_gib", _missing),
    ("utilization_lower", lambda known, options: f"{_utilization(known, options) - 0.05:.2f}".rstrip("0")),
    ("utilization_higher", lambda known, options: f"{min(0.95, _utilization(known, options) + 0.05):.2f}".rstrip("0")),
    ("max_num_seqs_lower", _sequences_lower),
    ("batched_lower", _batched_lower),
    ("max_len_fit", _length_that_fits),
    ("tp_fit", _split_that_fits),
    ("tp_used", lambda known, options: str(int(options["tensor_parallel_size"]))),
    ("limits_json", _limits_json),
    ("item_tokens_rounded", lambda known, options: _rounded_up(int(known["item_tokens"]))),
    (
        "placeholders_room",
        lambda known, options: _rounded_up(2 * max(int(known["embedded"]), int(known["placeholders"])), 1024),
    ),
    ("requested_rounded", lambda known, options: _rounded_up(int(known["requested"]))),
    ("argument_underscored", lambda known, options: known["argument"].replace("-", "_")),
    ("port_next", lambda known, options: str(int(known["port"]) + 1)),
)
