"""What a load test found, as the document vplan.loadtest/1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from planner.load.mix import KINDS
from planner.load.recorder import CardPeak, Peaks
from planner.load.rows import Outcome
from planner.monitor.planned import Planned

SCHEMA = "vplan.loadtest/1"
_SHARES = (0.5, 0.9, 0.99)


def summary(
    outcomes: Sequence[Outcome], peaks: Peaks, planned: Planned | None, seconds: float, setup: dict[str, Any]
) -> dict[str, Any]:
    """Counts, latencies, rates and peaks. `within_plan`: None without a plan or a card to hold against it."""
    answered = [outcome for outcome in outcomes if outcome.status == "ok"]
    failed = [outcome for outcome in outcomes if outcome.status in ("failed", "timeout")]
    kinds = [kind for kind in KINDS if any(outcome.kind == kind for outcome in outcomes)]
    return {
        "schema": SCHEMA,
        "setup": setup,
        "seconds": round(seconds, 3),
        "requests": {
            "sent": len(outcomes),
            "answered": len(answered),
            "failed": len(failed),
            "cancelled": len(outcomes) - len(answered) - len(failed),
            "problems": dict(Counter(outcome.problem or outcome.status for outcome in failed).most_common(8)),
        },
        "rates": {
            "requests_per_s": _rate(len(answered), seconds),
            "prompt_tokens_per_s": _rate(sum(outcome.prompt_tokens or 0 for outcome in answered), seconds),
            "completion_tokens_per_s": _rate(sum(outcome.completion_tokens for outcome in outcomes), seconds),
        },
        "latency": {kind: _latency([one for one in answered if one.kind == kind]) for kind in kinds},
        "memory": memory(peaks.cards, planned),
        "server": {
            "kv_cache_usage_peak": peaks.kv_cache_usage,
            "running_peak": peaks.running,
            "waiting_peak": peaks.waiting,
            "preemptions": peaks.preemptions,
            "looks": peaks.looks,
        },
        "warnings": list(peaks.warnings),
    }


def exit_code(document: dict[str, Any]) -> int:
    """0: every request answered and memory within the plan. 1: not so. 4: no request answered at all."""
    requests = document["requests"]
    if requests["answered"] == 0:
        return 4
    return 1 if requests["failed"] or document["memory"]["within_plan"] is False else 0


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    place = -(-len(ordered) * share // 1)
    return ordered[max(int(place) - 1, 0)]


def _latency(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    read: dict[str, Callable[[Outcome], float | None]] = {
        "ttft_s": lambda outcome: outcome.ttft_s,
        "itl_mean_s": lambda outcome: outcome.itl_mean_s,
        "itl_max_s": lambda outcome: outcome.itl_max_s,
        "duration_s": lambda outcome: outcome.duration_s,
    }
    found: dict[str, Any] = {"answered": len(outcomes)}
    for name, of in read.items():
        values = [value for outcome in outcomes if (value := of(outcome)) is not None]
        found[name] = (
            {f"p{share * 100:.0f}": round(quantile(values, share), 6) for share in _SHARES}
            | {"max": round(max(values), 6)}
            if values
            else None
        )
    return found


def memory(cards: Sequence[CardPeak], planned: Planned | None) -> dict[str, Any]:
    """The cards as NVML shows them, and the fullest one against the plan, which is of the GPU with least room.

    `reserved_bytes` are the driver's, which NVML counts as in use and the plan does not; `peak_bytes` is without them.
    """
    shown, plan = [], None
    for card in cards:
        reserved = 0 if planned is None else planned.reserved_bytes(card.total_bytes)
        shown.append(
            {
                "gpu": card.index, "before_bytes": card.before_bytes, "peak_bytes": card.peak_bytes,
                "total_bytes": card.total_bytes, "reserved_bytes": reserved,
            }
        )  # fmt: skip
    fullest = max((card["peak_bytes"] - card["reserved_bytes"] for card in shown), default=None)
    if planned is not None:
        plan = {
            "used_after_startup_bytes": planned.used_bytes,
            "used_after_startup_bytes_interval": list(planned.used_interval),
            "peak_bytes": planned.peak_bytes,
        }
    within = None if planned is None or fullest is None else fullest <= planned.peak_bytes
    return {"cards": shown, "peak_bytes": fullest, "plan": plan, "within_plan": within}


def _rate(count: float, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0 else 0.0
