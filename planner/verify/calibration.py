"""What the logs of a user's own engines say about the terms that only a machine can tell, kept for that machine.

A calibration may only add to safety: it holds how much more than predicted a term took, never less.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planner.errors import InputError, OutsideError
from planner.memory.result import Estimate
from planner.verify.compare import predicted_values
from planner.verify.readings import Figure, Reading

SCHEMA = "vplan.calibration/1"
SHIFTED = ("non_torch_bytes", "cuda_graph_actual_bytes")
"""The terms whose excess is kept: no source gives them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine on one card. `add_bytes`: what each shifted term took beyond its prediction and the rounding of the
    log. `cache_short_bytes`: how much less cache there was than predicted."""

    gpu: str
    vllm_version: str
    model: str
    add_bytes: dict[str, int]
    cache_short_bytes: int
    logs: int = 1


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


def entry_of(estimate: Estimate, reading: Reading, gpu: str, vllm_version: str) -> Entry:
    """What one log adds to its prediction."""
    predicted = predicted_values(estimate)
    excess = {term: _beyond(reading.figures.get(term), predicted.get(term)) for term in SHIFTED}
    return Entry(
        gpu=gpu,
        vllm_version=vllm_version,
        model=estimate.model,
        add_bytes={term: size for term, size in excess.items() if size > 0},
        cache_short_bytes=_short(
            reading.figures.get("available_kv_cache_bytes"), predicted.get("available_kv_cache_bytes")
        ),
    )


def read_calibration(path: Path) -> tuple[Entry, ...]:
    """The entries of a file; none where there is no file. Raises InputError for a file that is no calibration."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    try:
        if document["schema"] != SCHEMA:
            raise InputError(f"{path}: expected {SCHEMA}, found {document['schema']!r}")
        return tuple(_entry(item) for item in document["entries"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a calibration ({type(error).__name__}: {error})") from None


def merged(old: Sequence[Entry], new: Sequence[Entry]) -> tuple[Entry, ...]:
    """One entry a card, release and model: the larger of each figure, the logs counted."""
    found: dict[tuple[str, str, str], Entry] = {}
    for entry in (*old, *new):
        key = (entry.gpu, entry.vllm_version, entry.model)
        known = found.get(key)
        if known is not None:
            terms = {*known.add_bytes, *entry.add_bytes}
            entry = Entry(
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


def write_calibration(path: Path, entries: Sequence[Entry]) -> None:
    """Replace the file as a whole. Raises OutsideError where it cannot be written."""
    document = {"schema": SCHEMA, "entries": [asdict(entry) for entry in entries]}
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


def _entry(item: Mapping[str, Any]) -> Entry:
    entry = Entry(**item)
    sizes = [entry.cache_short_bytes, entry.logs, *entry.add_bytes.values()]
    if not set(entry.add_bytes) <= set(SHIFTED) or any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError("a figure that is no size")
    return entry


def _beyond(measured: Figure | None, predicted: float | None) -> int:
    if measured is None or predicted is None:
        return 0
    return max(0, int(measured.value - measured.rounding - predicted))


def _short(measured: Figure | None, predicted: float | None) -> int:
    if measured is None or predicted is None:
        return 0
    return max(0, int(predicted - measured.value - measured.rounding))
