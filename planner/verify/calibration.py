"""What the logs of a user's own engines say about the terms that only a machine can tell, kept for that machine.

A calibration may only add to safety: it holds how much more than predicted a term took, never less.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from planner.errors import InputError, OutsideError
from planner.hardware.spec import CALIBRATED_TERMS, Calibration
from planner.memory.result import Estimate
from planner.verify.compare import predicted_values
from planner.verify.readings import Figure, Reading


def command_in(lines: Sequence[str]) -> list[str] | None:
    """The command that a server's log begins with, rebuilt from its line of non-default arguments; None without one.

    Source: vLLM 0.26.0 entrypoints/serve/utils/api_utils.py:273.
    """
    for line in lines:
        found = re.search(r"non-default args: (\{.*\})\s*$", line)
        if not found:
            continue
        try:
            arguments = ast.literal_eval(found[1])
        except (ValueError, SyntaxError, RecursionError):
            raise InputError("the log's line of non-default args cannot be read; give --command") from None
        return _command(arguments)
    return None


def entry_of(estimate: Estimate, reading: Reading, gpu: str, vllm_version: str) -> Calibration:
    """What one log adds to its prediction."""
    predicted = predicted_values(estimate)
    excess = {term: _beyond(reading.figures.get(term), predicted.get(term)) for term in CALIBRATED_TERMS}
    return Calibration(
        gpu=gpu,
        vllm_version=vllm_version,
        model=estimate.model,
        add_bytes={term: size for term, size in excess.items() if size > 0},
        cache_short_bytes=_short(
            reading.figures.get("available_kv_cache_bytes"), predicted.get("available_kv_cache_bytes")
        ),
    )


def merged(old: Sequence[Calibration], new: Sequence[Calibration]) -> tuple[Calibration, ...]:
    """One entry a card, release and model: the larger of each figure, the logs counted."""
    found: dict[tuple[str, str, str], Calibration] = {}
    for entry in (*old, *new):
        key = (entry.gpu, entry.vllm_version, entry.model)
        known = found.get(key)
        if known is not None:
            terms = {*known.add_bytes, *entry.add_bytes}
            entry = Calibration(
                gpu=entry.gpu,
                vllm_version=entry.vllm_version,
                model=entry.model,
                add_bytes={
                    term: max(known.add_bytes.get(term, 0), entry.add_bytes.get(term, 0)) for term in sorted(terms)
                },
                cache_short_bytes=max(known.cache_short_bytes, entry.cache_short_bytes),
                logs=known.logs + entry.logs,
            )
        found[key] = entry
    return tuple(found[key] for key in sorted(found))


def write_calibration(path: Path, entries: Sequence[Calibration]) -> None:
    """Replace the file as a whole. Raises OutsideError where it cannot be written."""
    document = {"schema": "vplan.calibration/1", "entries": [to_builtins(entry) for entry in entries]}
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise OutsideError(f"{path}: {error.strerror or error}") from None


def _command(arguments: Mapping[str, Any]) -> list[str]:
    values = dict(arguments)
    model = values.pop("model_tag", None) or values.get("model")
    values.pop("model", None)
    words = ["vllm", "serve", *([str(model)] if model else [])]
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is False:
            words.append("--no-" + flag.removeprefix("--"))
        elif isinstance(value, dict):
            words += [flag, json.dumps(value)]
        elif isinstance(value, (list, tuple)):
            words += [flag, *map(str, value)]
        elif value is not None:
            words += [flag, str(value)]
    return words


def _beyond(measured: Figure | None, predicted: float | None) -> int:
    if measured is None or predicted is None:
        return 0
    return max(0, int(measured.value - measured.rounding - predicted))


def _short(measured: Figure | None, predicted: float | None) -> int:
    if measured is None or predicted is None:
        return 0
    return max(0, int(predicted - measured.value - measured.rounding))
