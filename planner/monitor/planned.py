"""The lines of a plan that a running engine is held against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.values import Value


class Planned(Value):
    """One GPU's share of a plan, in bytes: `used` after startup with its interval, and `peak`, the most that a full
    media batch may add up to. `capacity_tokens`: of the cache."""

    model: str
    used_bytes: int
    used_interval: tuple[int, int]
    peak_bytes: int
    total_bytes: int
    capacity_tokens: int


def read_plan(file: Path, rank: int = 1) -> Planned:
    """The plan of a vplan.estimate/1 or of one rank of a vplan.fit/1 document. InputError for anything else."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--plan {file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--plan {file}: not JSON ({error})") from None
    try:
        if document["schema"] == "vplan.fit/1":
            document = next(plan["estimate"] for plan in document["plans"] if plan["rank"] == rank)
        return _planned(document)
    except (KeyError, TypeError, IndexError, StopIteration) as error:
        raise InputError(
            f"--plan {file}: not a vplan.estimate/1 or vplan.fit/1 of an engine that starts ({error!r})"
        ) from None


def _planned(document: dict[str, Any]) -> Planned:
    gpu, cache = document["per_gpu"], document["kv_cache"]
    used = int(gpu["used_after_startup_bytes"])
    low, high = gpu.get("used_after_startup_bytes_interval") or (used, used)
    return Planned(
        model=str(document["model"]),
        used_bytes=used,
        used_interval=(int(low), int(high)),
        peak_bytes=int(high) + int(gpu.get("vision_encoder_runtime_peak_bytes") or 0),
        total_bytes=int(gpu["total_memory_bytes"]),
        capacity_tokens=int(cache["capacity_tokens"]),
    )
