"""A search's answer as the JSON of the contract (`vplan.fit/1`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from planner.memory.result import Estimate
from planner.search.plan import Plan, SearchResult


class Launch(Struct, frozen=True):
    """How a plan is started: the arguments, the environment, and both as one shell line."""

    argv: list[str]
    env: dict[str, str]
    command: str


def launched_record(estimate: Estimate, launch: Launch, rank: int, headroom_bytes: int) -> dict[str, Any]:
    """The part of a plan's record that every plan has, from a search or not."""
    return {
        "rank": rank,
        "estimate": estimate.model_dump(mode="json"),
        "command": launch.command,
        "argv": launch.argv,
        "env": launch.env,
        "headroom_bytes": headroom_bytes,
    }


def plan_record(plan: Plan, launch: Launch, rank: int) -> dict[str, Any]:
    """One plan as the contract states it."""
    estimate = plan.estimate
    assert estimate.kv_cache is not None
    assert estimate.engine is not None
    return {
        **launched_record(estimate, launch, rank, plan.headroom_bytes),
        "objective": {
            "max_model_len": estimate.engine.max_model_len,
            "concurrency": plan.concurrency,
            "capacity_tokens": estimate.kv_cache.capacity_tokens,
            "gpus": plan.gpus,
        },
        "demand": None if plan.demand is None else plan.demand.model_dump(mode="json"),
    }


def fit_json(
    result: SearchResult, launches: Sequence[Launch], elapsed_seconds: float, parts: Mapping[str, Any] | None = None
) -> str:
    """`parts`: what an analysis adds (planner.report.fit_analysis)."""
    plans = [
        plan_record(plan, launch, rank)
        for rank, (plan, launch) in enumerate(zip(result.plans, launches, strict=True), 1)
    ]
    rejected = [
        {
            "reason": item.reason,
            "count": item.count,
            "example": {**item.example.model_dump(mode="json"), "flags": dict(item.flags)},
        }
        for item in result.rejected
    ]
    document = {
        "schema": "vplan.fit/1",
        "plans": plans,
        "rejected": rejected,
        "evaluated": result.evaluated,
        "feasible": result.feasible,
        "elapsed_seconds": round(elapsed_seconds, 3),
        "notes": list(result.notes),
        **(parts or {}),
    }
    return json.dumps(document, indent=1)
