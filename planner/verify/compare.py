"""Predicted against measured, term by term, with the verdict that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.memory.result import Estimate
from planner.units import GIB
from planner.verify.outcome import Outcome
from planner.verify.readings import Figure

Conclusion = Literal[
    "agrees", "differs", "refused as predicted", "refused otherwise", "started though refused", "did not start"
]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far above and below the measured value a prediction may be and still agree: bytes and a share of it."""

    over_bytes: int
    under_bytes: int
    share: float = 0.0


_QUARTER = GIB // 4
TOLERANCES: dict[str, Tolerance] = {
    "weights_memory_bytes": Tolerance(GIB // 50, GIB // 50),
    "peak_activation_bytes": Tolerance(2 * GIB // 5, 3 * GIB // 20),
    "non_torch_bytes": Tolerance(_QUARTER, 3 * GIB // 20),
    "cuda_graph_estimate_bytes": Tolerance(_QUARTER, _QUARTER),
    "cuda_graph_actual_bytes": Tolerance(_QUARTER, _QUARTER),
    "available_kv_cache_bytes": Tolerance(3 * GIB // 20, 2 * GIB // 5),
    "used_after_startup_bytes": Tolerance(GIB // 2, GIB // 5),
    "num_gpu_blocks": Tolerance(0, 0, 0.005),
    "capacity_tokens": Tolerance(0, 0, 0.005),
    "max_concurrency": Tolerance(0, 0, 0.005),
}
"""The bounds that the runtime ledger promises: the cache at most 0.15 GiB too large and 0.40 GiB too small, use after
startup at most 0.2 GiB too low, blocks within 0.5 %."""


@dataclass(frozen=True, slots=True)
class Row:
    """One term. `difference` = predicted - measured; `agrees` is None where only one side is known."""

    term: str
    predicted: float | None
    measured: float | None
    rounding: float
    agrees: bool | None

    @property
    def difference(self) -> float | None:
        if self.predicted is None or self.measured is None:
            return None
        return self.predicted - self.measured


@dataclass(frozen=True, slots=True)
class Comparison:
    conclusion: Conclusion
    rows: tuple[Row, ...]
    reasons: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return self.conclusion in ("agrees", "refused as predicted")


def compare(estimate: Estimate, outcome: Outcome) -> Comparison:
    """The rows of every term that either side has, and what they amount to."""
    rows = _rows(estimate, outcome)
    if outcome.status == "started":
        if not estimate.starts:
            return Comparison("started though refused", rows, (_predicted_refusal(estimate),))
        reasons = [_off(row) for row in rows if row.agrees is False]
        reasons += [f"{result.kind} request failed: {result.error}" for result in outcome.requests if result.error]
        return Comparison("differs" if reasons else "agrees", rows, tuple(reasons))
    assert outcome.failure is not None
    found = f"{outcome.failure.bottleneck}: {outcome.failure.message}"
    if estimate.rejection is None or outcome.status in ("timeout", "crashed"):
        return Comparison("did not start", rows, (found,))
    if _same_reason(estimate.rejection.bottleneck, outcome.failure.bottleneck):
        return Comparison("refused as predicted", rows, (found,))
    return Comparison("refused otherwise", rows, (found, _predicted_refusal(estimate)))


def predicted_values(estimate: Estimate) -> dict[str, float]:
    """The estimate's side of every term that a boot can be asked for."""
    found: dict[str, float] = {}
    if estimate.per_gpu is not None:
        found |= {
            name: float(getattr(estimate.per_gpu, name))
            for name in TOLERANCES
            if name in estimate.per_gpu.__struct_fields__
        }
    if estimate.kv_cache is not None and estimate.starts:
        found |= {
            name: float(getattr(estimate.kv_cache, name))
            for name in ("num_gpu_blocks", "capacity_tokens", "max_concurrency")
        }
    return found


def _rows(estimate: Estimate, outcome: Outcome) -> tuple[Row, ...]:
    predicted = predicted_values(estimate)
    slack = _cache_slack(estimate, outcome)
    rows = []
    for term, tolerance in TOLERANCES.items():
        mine, theirs = predicted.get(term), outcome.figures.get(term)
        if mine is None and theirs is None:
            continue
        rows.append(_row(term, mine, theirs, tolerance, slack))
    return tuple(rows)


def _row(term: str, mine: float | None, theirs: Figure | None, tolerance: Tolerance, slack: float) -> Row:
    if mine is None or theirs is None:
        return Row(term, mine, theirs.value if theirs else None, theirs.rounding if theirs else 0.0, None)
    share = max(tolerance.share, slack) if tolerance.share else 0.0
    allowed_over = tolerance.over_bytes + share * abs(theirs.value) + theirs.rounding
    allowed_under = tolerance.under_bytes + share * abs(theirs.value) + theirs.rounding
    difference = mine - theirs.value
    return Row(term, mine, theirs.value, theirs.rounding, -allowed_under <= difference <= allowed_over)


def _cache_slack(estimate: Estimate, outcome: Outcome) -> float:
    """How far the count of blocks may be off where the cache memory is off by its own tolerance: for a small cache
    that is more than half a percent."""
    available = outcome.figures.get("available_kv_cache_bytes")
    if estimate.per_gpu is None or available is None or available.value <= 0:
        return 0.0
    return TOLERANCES["available_kv_cache_bytes"].over_bytes / available.value


def _same_reason(predicted: str, found: str) -> bool:
    """Running out of memory has no fixed place: an allocator may give up a stage earlier or later than predicted."""
    out_of_memory = {"weights", "device_memory"}
    return predicted == found or {predicted, found} <= out_of_memory


def _off(row: Row) -> str:
    assert row.difference is not None
    if row.term.endswith("_bytes"):
        return f"{row.term} predicted {abs(row.difference) / GIB:.3f} GiB too {'high' if row.difference > 0 else 'low'}"
    return f"{row.term} predicted {row.predicted:g}, measured {row.measured:g}"


def _predicted_refusal(estimate: Estimate) -> str:
    assert estimate.rejection is not None
    return f"predicted: {estimate.rejection.bottleneck}: {estimate.rejection.message}"
