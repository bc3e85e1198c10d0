"""The lines of a plan that a running engine is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.monitor.sample import CardUse
from planner.plan_file import read_plan_file
from planner.values import Value

_MOST_RESERVED = 0.04
_LINES = (
    ("weights_memory_bytes", "weights"), ("kv_cache_allocated_bytes", "KV cache"),
    ("cuda_graph_actual_bytes", "CUDA graphs"), ("runner_state_bytes", "runner state"),
    ("non_torch_bytes", "non-torch"), ("cuda_context_bytes", "CUDA and NCCL"),
    ("allocator_retained_bytes", "allocator"),
)  # fmt: skip


class Planned(Value):
    """One GPU's share of a plan, in bytes: `used` after startup with its interval, and `peak`, the most that a full
    media batch may add up to. `capacity_tokens`: of the cache. `lines`: the device's ledger; its sum is `used`."""

    model: str
    used_bytes: int
    used_interval: tuple[int, int]
    peak_bytes: int
    total_bytes: int
    capacity_tokens: int
    lines: tuple[tuple[str, int], ...] = ()

    def reserved_bytes(self, nvml_total_bytes: int) -> int:
        """What the driver keeps of a card: NVML counts it as in use (so on an idle card), CUDA and the plan do not.

        On an H200 150,754,820,096 of NVML less 150,109,880,320 of CUDA are the 644,939,776 that NVML shows in use with
        no process on the card. 0 where the plan is for a card of another size.
        """
        reserved = nvml_total_bytes - self.total_bytes
        return reserved if 0 <= reserved <= nvml_total_bytes * _MOST_RESERVED else 0

    def held_bytes(self, card: CardUse) -> int | None:
        """What processes hold of a card, as the plan counts it."""
        if card.used_bytes is None or card.total_bytes is None:
            return None
        return max(card.used_bytes - self.reserved_bytes(card.total_bytes), 0)


def read_plan(file: Path, rank: int = 1) -> Planned:
    """The plan of a vplan.estimate/1 or of one rank of a vplan.fit/1 document. InputError for anything else."""
    plan = read_plan_file(file, rank, f"--plan {file}")
    try:
        return _planned(plan.estimate)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{plan.where}: not the plan of an engine that starts ({error!r})") from None


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
        lines=tuple((name, int(gpu[key])) for key, name in _LINES if gpu.get(key)),
    )
