"""What happened when the engine was started: how it ended, and every figure that was read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from planner.verify.readings import Failure, Figure
from planner.verify.requests import RequestResult

Status = Literal["started", "refused", "timeout", "crashed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`figures`: by the names of the contract, of the rank with least room. `failure` is None where it started.

    `device_used_bytes`: growth of each device's used memory after startup, by NVML; `device_used_loaded_bytes`: the
    same after the requests; `left_behind_bytes`: what was still used once the engine was gone.
    """

    status: Status
    failure: Failure | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    requests: tuple[RequestResult, ...] = ()
    device_used_bytes: tuple[int, ...] = ()
    device_used_loaded_bytes: tuple[int, ...] = ()
    left_behind_bytes: tuple[int, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
