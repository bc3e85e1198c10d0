"""From a Pareto front: the plan to take for each objective, and what the next best layout loses by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from planner.search.pareto import Point


class Recommendation(Struct, frozen=True):
    """The best plan for one objective, and the best of another layout. `figure`: what the objective counts; `loses`:
    how much less (of a cost: more) the next best has, as a share of the best's."""

    objective: str
    figure: str
    best: Point
    next_best: Point | None
    loses: float | None


def recommendations(front: Sequence[Point]) -> tuple[Recommendation, ...]:
    """One for each objective. Only plans that give up the least accuracy of the front are taken."""
    least = min((point.accuracy for point in front), default=0)
    points = [point for point in front if point.accuracy == least]
    found = []
    for objective, figure, value in _OBJECTIVES:
        rated = [(rating, point) for point in points if (rating := value(point)) is not None]
        if not rated:
            continue
        ranked = sorted(rated, key=lambda item: (item[0], item[1].merits.exact()), reverse=True)
        top, best = ranked[0]
        others = [(rating, point) for rating, point in ranked if _layout(point) != _layout(best)]
        rating, rival = others[0] if others else (None, None)
        loses = None if rating is None or not top else abs(top - rating) / abs(top)
        found.append(Recommendation(objective, figure, best, rival, loses))
    return tuple(found)


def _layout(point: Point) -> tuple[object, ...]:
    args = point.plan.args
    return (
        args.tensor_parallel_size, args.pipeline_parallel_size, args.data_parallel_size, args.enable_expert_parallel,
        args.kv_cache_dtype, args.enforce_eager, args.block_size, point.variant,
    )  # fmt: skip


def _cost(point: Point) -> float | None:
    cost = point.usd_per_million_tokens
    return None if cost is None else -cost


def _balance(point: Point) -> float:
    """Context times requests: tokens of whole requests that the caches hold."""
    return float(point.context) * point.requests


_OBJECTIVES: tuple[tuple[str, str, Callable[[Point], float | None]], ...] = (
    ("context", "max_model_len", lambda point: float(point.context)),
    ("concurrency", "requests at once", lambda point: float(point.requests)),
    ("balanced", "max_model_len x requests", _balance),
    ("throughput", "tokens per second, estimate", lambda point: point.tokens_per_s),
    ("fewest cards", "cards", lambda point: -float(point.plan.gpus)),
    ("cost per token", "dollars per million tokens, estimate", _cost),
    ("headroom", "bytes free on the fullest card", lambda point: float(point.plan.headroom_bytes)),
)
