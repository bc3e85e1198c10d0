"""What a search tells beside its plans, as the JSON keys that it adds and as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any, Literal

from planner.search.analysis import Analysis
from planner.search.near_misses import NearMiss
from planner.search.pareto import Point
from planner.search.plan import Plan
from planner.search.recommend import Recommendation
from planner.units import format_gib

Command = Callable[[Plan, str], str]
_SHOWN = 16


def analysis_record(analysis: Analysis, command: Command) -> dict[str, Any]:
    """The keys `pareto`, `recommended`, `sensitivity`, `near_misses` and `variants`, each where it was asked for."""
    found: dict[str, Any] = {}
    if analysis.front is not None:
        found["pareto"] = [_point(point, command) for point in analysis.front]
    if analysis.recommended is not None:
        found["recommended"] = [_recommendation(item, command) for item in analysis.recommended]
    if analysis.sensitivity is not None:
        found["sensitivity"] = [change.model_dump(mode="json") for change in analysis.sensitivity]
    if analysis.near_misses is not None:
        found["near_misses"] = [_near_miss(miss, command) for miss in analysis.near_misses]
    if analysis.variants is not None:
        found["variants"] = [
            {
                "scheme": item.scheme,
                "model": item.name,
                "plans": [_plan(plan, command(plan, item.name)) for plan in item.result.plans],
                "rejected": [{"reason": why.reason, "count": why.count} for why in item.result.rejected],
            }
            for item in analysis.variants
        ]
    return found


def _plan(plan: Plan, command: str) -> dict[str, Any]:
    engine, cache = plan.estimate.engine, plan.estimate.kv_cache
    assert engine is not None
    assert cache is not None
    return {
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "data_parallel_size": engine.data_parallel_size,
        "enable_expert_parallel": engine.enable_expert_parallel,
        "kv_cache_dtype": engine.kv_cache_dtype,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "concurrency": plan.concurrency,
        "gpus": plan.gpus,
        "headroom_bytes": plan.headroom_bytes,
        "command": command,
    }


def _point(point: Point, command: Command) -> dict[str, Any]:
    return {
        "model": point.variant or None,
        "accuracy_given_up": point.accuracy,
        "requests": point.requests,
        "decode_tokens_per_s_estimate": _rounded(point.tokens_per_s, 1),
        "usd_per_hour": _rounded(point.usd_per_hour, 4),
        "usd_per_million_tokens_estimate": _rounded(point.usd_per_million_tokens, 4),
        **_plan(point.plan, command(point.plan, point.variant)),
    }


def _recommendation(item: Recommendation, command: Command) -> dict[str, Any]:
    return {
        "objective": item.objective,
        "figure": item.figure,
        "best": _point(item.best, command),
        "next_best": None if item.next_best is None else _point(item.next_best, command),
        "next_best_loses": _rounded(item.loses, 4),
    }


def _near_miss(miss: NearMiss, command: Command) -> dict[str, Any]:
    return {
        "harm": miss.harm, "change": miss.change, "model": miss.model, "gpus": miss.gpus,
        "plan": _plan(miss.plan, command(miss.plan, miss.model or "")),
    }  # fmt: skip


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def analysis_text(analysis: Analysis, record: Mapping[str, Any], *, color: bool = False) -> str:
    """The same for a terminal; of a long front the plans that are recommended and a few between."""
    from planner.report.text import console_for

    buffer = StringIO()
    console = console_for(buffer, color=color)
    if analysis.recommended:
        console.print("\nBest for each objective (speeds are estimates):")
        console.print(_columns(_HEADER, [_recommended_row(item) for item in analysis.recommended]))
    if analysis.front:
        shown = _spread(analysis.front)
        console.print(f"\nPareto front, {len(shown)} of {len(analysis.front)} plans that no other beats:")
        console.print(_columns(_HEADER[2:], [_point_row(point) for point in shown]))
    if analysis.variants is not None:
        console.print("\nOther checkpoints:" if analysis.variants else "\nThe catalog knows no other checkpoint.")
        for variant in analysis.variants:
            plans = variant.result.plans
            told = _shape(plans[0]) if plans else f"does not fit ({variant.result.rejected[0].reason})"
            console.print(f"  {variant.scheme}: {variant.name}: {told}", soft_wrap=True)
    if analysis.sensitivity:
        console.print("\nFrom plan 1, one flag changed:")
        console.print(_columns(_CHANGES, [_change_row(change) for change in record["sensitivity"]]))
    if analysis.near_misses:
        console.print("\nWhat would make it fit, the least harmful first:")
        for number, miss in enumerate(analysis.near_misses, 1):
            console.print(f"  {number}. {miss.harm}: {miss.change}: {_shape(miss.plan)}", soft_wrap=True)
        first = record["near_misses"][0]["plan"]["command"]
        console.print(f"\n# 1\n{first}", soft_wrap=True, markup=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


_HEADER = (
    "objective", "next loses", "TPxPPxDP", "KV", "length", "at once", "tok/s", "cards", "$/h", "$/Mtok", "headroom", "",
)  # fmt: skip
_WORDS = ("objective", "TPxPPxDP")
_CHANGES = ("KV cache", "headroom", "KV tokens", "at once", "tok/s", "$/h", "with")


def _recommended_row(item: Recommendation) -> tuple[str, ...]:
    loses = "-" if item.loses is None else f"{item.loses:.0%}"
    return (item.objective, loses, *_point_row(item.best))


def _point_row(point: Point) -> tuple[str, ...]:
    args = point.plan.args
    layout = f"{args.tensor_parallel_size}x{args.pipeline_parallel_size}x{args.data_parallel_size}"
    if args.enable_expert_parallel:
        layout += " EP"
    name = point.variant.rpartition("/")[2]
    return (
        layout, args.kv_cache_dtype, f"{point.context:,}", f"{point.requests:,}",
        _number(point.tokens_per_s, ",.0f"), str(point.plan.gpus), _number(point.usd_per_hour, ".2f"),
        _number(point.usd_per_million_tokens, ".2f"), format_gib(point.plan.headroom_bytes), name,
    )  # fmt: skip


def _change_row(change: Mapping[str, Any]) -> tuple[str, ...]:
    if change["refused"] is not None:
        return "", "", "", "", "", "", f"{change['flag']}: refused: {change['refused'].partition('. ')[0]}"
    return (
        _gib(change["kv_cache_bytes"]), _gib(change["headroom_bytes"]), f"{change['tokens']:+,}",
        f"{change['requests']:+,}", _number(change["tokens_per_s"], "+,.0f"), _number(change["usd_per_hour"], "+.2f"),
        change["flag"] if change["within_margin"] else f"{change['flag']} (breaks the margin)",
    )  # fmt: skip


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):+.2f} GiB"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _shape(plan: Plan) -> str:
    engine = plan.estimate.engine
    assert engine is not None
    return (
        f"TP {engine.tensor_parallel_size}, PP {engine.pipeline_parallel_size}, DP {engine.data_parallel_size}, "
        f"{engine.kv_cache_dtype} cache, max_model_len {engine.max_model_len:,}, {plan.concurrency:,} at once, "
        f"headroom {format_gib(plan.headroom_bytes)}"
    )


def _spread(front: Sequence[Point]) -> Sequence[Point]:
    """At most _SHOWN of a front, evenly picked, its ends among them."""
    if len(front) <= _SHOWN:
        return front
    return [front[index * (len(front) - 1) // (_SHOWN - 1)] for index in range(_SHOWN)]


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    last = len(header) - 1
    for index, name in enumerate(header):
        justify: Literal["left", "right"] = "left" if index == last or name in _WORDS else "right"
        table.add_column(name, justify=justify, no_wrap=index != last, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
