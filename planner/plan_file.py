"""A plan's file: the JSON that `vplan fit` and `vplan estimate` print, read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import InputError

FIT = "vplan.fit/1"
ESTIMATE = "vplan.estimate/1"


@dataclass(frozen=True, slots=True)
class PlanFile:
    """One plan of a file. `where`: the file, as messages name it. `estimate`: its `vplan.estimate/1`. `fitted`: the
    whole plan, with its command, where the file is a `vplan.fit/1`."""

    where: str
    estimate: dict[str, Any]
    fitted: dict[str, Any] | None = None


def read_plan_file(file: Path, rank: int, where: str) -> PlanFile:
    """The plan of an estimate, or that of one rank of a fit. InputError, beginning with `where`, for anything else."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{where}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(document, dict):
        raise InputError(f"{where}: not a JSON object: expected {FIT} or {ESTIMATE}")
    schema = document.get("schema")
    if schema == ESTIMATE:
        return PlanFile(where, document)
    if schema != FIT:
        raise InputError(f"{where}: schema is {schema!r}, expected {FIT} or {ESTIMATE}")
    with whole_plan(where):
        plans = document["plans"]
        for plan in plans:
            if plan["rank"] == rank:
                return PlanFile(where, plan["estimate"], plan)
    raise InputError(f"{where}: it has {len(plans)} plans, none of rank {rank}")


@contextmanager
def whole_plan(where: str) -> Iterator[None]:
    """What a plan's document lacks, or has in another shape, as InputError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: not a whole plan: {type(error).__name__} {' '.join(str(error).split())[:200]}"
        ) from None
