"""The plans that no other plan beats: context, requests at once, speed, cards and headroom, all at once.

The grids choose the few candidates that may stand on the front; each of those is replayed whole, and the front is
drawn from the replays. Accuracy counts as an objective of its own: a smaller cache dtype, a smaller image or another
checkpoint never pushes out a plan that keeps the model as it is.

Requests and speed are compared in steps of a fifth (a quarter of an octave), headroom in tenths of the card: a plan
that is better by less does not stand beside another, it takes its place where it is better in the first that differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import floor, log2

import numpy as np
from msgspec import structs

from planner.hardware.spec import GpuPool, GpuSpec
from planner.memory.assess import Deployment
from planner.memory.kv_capacity import whole_requests
from planner.model.spec import ModelSpec
from planner.search.costs import Ints
from planner.search.explorer import Candidates, Explorer
from planner.search.plan import Plan
from planner.search.roofline import EngineLoad, cache_read_bytes, decode_tokens_per_s, engine_load
from planner.search.search import all_candidates, exact_plan, explorers
from planner.search.space import SearchOptions
from planner.units import MIB
from planner.values import Rejected

SLACK_BYTES = 64 * MIB
"""How far a grid's headroom may be off: candidates that are beaten by less are replayed too."""
REFERENCE_TOKENS = 4096
"""Tokens of a sequence, on average, by which speeds are compared where the user states no lengths."""


@dataclass(frozen=True, slots=True)
class Point:
    """A plan with what it is judged by. `variant`: the checkpoint's id, "" for the model asked for; `accuracy`: 0
    where nothing is given up, more the more is. `requests`: served at once, by all replicas. `tokens_per_s`: estimate
    of the decode speed of all of them (planner.search.roofline), None where the card's speed is not known."""

    plan: Plan
    accuracy: int
    requests: int
    tokens_per_s: float | None
    usd_per_hour: float | None
    variant: str = ""

    @property
    def context(self) -> int:
        engine = self.plan.estimate.engine
        assert engine is not None
        return engine.max_model_len

    @property
    def usd_per_million_tokens(self) -> float | None:
        if self.usd_per_hour is None or not self.tokens_per_s:
            return None
        return self.usd_per_hour / (self.tokens_per_s * 3600) * 1e6

    @property
    def merits(self) -> Merits:
        per_gpu = self.plan.estimate.per_gpu
        assert per_gpu is not None
        return Merits(
            self.accuracy, self.context, self.requests, self.tokens_per_s or 0.0, self.plan.gpus,
            self.plan.headroom_bytes, per_gpu.total_memory_bytes,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Merits:
    """What a plan is judged by."""

    accuracy: int
    context: int
    requests: int
    tokens_per_s: float
    gpus: int
    headroom_bytes: int
    total_memory_bytes: int

    def steps(self, slack_bytes: int = 0) -> tuple[int, ...]:
        """In the steps in which plans are compared, the greater the better; `slack_bytes` more headroom."""
        return (
            -self.accuracy, self.context, _fifths(self.requests), _fifths(self.tokens_per_s), -self.gpus,
            (self.headroom_bytes + slack_bytes) * 10 // self.total_memory_bytes,
        )  # fmt: skip

    def exact(self) -> tuple[float, ...]:
        """As they are, in the order in which ties are decided."""
        return (-self.accuracy, self.context, self.requests, self.tokens_per_s, -self.gpus, self.headroom_bytes)


def _fifths(value: float) -> int:
    return floor(4 * log2(value)) if value >= 1 else 0


@dataclass(frozen=True, slots=True)
class _Hope:
    """A candidate that may stand on the front, with its merits as the grid has them."""

    explorer: Explorer
    candidates: Candidates
    update: dict[str, object]
    speed: Speed
    merits: Merits


def front(model: ModelSpec, gpus: GpuPool, options: SearchOptions, vllm_version: str) -> tuple[Point, ...]:
    """The Pareto front of the whole grid, longest context first: plans that hold the workload's requests, one where
    the user names no number. Pipeline stages and fewer cards are always among the layouts."""
    options = options.model_copy(update={"objective": "context", "vary": (*options.vary, "data-parallel")})
    hopes: list[_Hope] = []
    try:
        for explorer, accuracy in explorers(model, gpus, options, vllm_version):
            for candidates in all_candidates(explorer):
                hopes += _hopes(explorer, candidates, accuracy + (candidates.args.kv_cache_dtype != "auto"))
    except Rejected:
        return ()
    points = []
    known: dict[object, Plan | None] = {}
    for hope in _may_stand(hopes):
        plan = _replayed(hope, known)
        if plan is not None:
            points.append(point_of(plan, hope.speed, hope.merits.accuracy))
    return unbeaten(points)


def front_lengths(lengths: Ints) -> Ints:
    """The lengths of a grid that a front is drawn at: every second, the longest among them."""
    return lengths[::-1][::2][::-1]


def _replayed(hope: _Hope, known: dict[object, Plan | None]) -> Plan | None:
    """The candidate replayed whole; replicas of one dense engine are replayed once."""
    candidates = hope.candidates
    if hope.explorer.model.is_moe or candidates.demand is not None:
        return exact_plan(hope.explorer, candidates, hope.update)
    single = candidates.args.model_copy(update={**hope.update, "data_parallel_size": 1})
    if single not in known:
        known[single] = exact_plan(hope.explorer, candidates, hope.update)
    plan = known[single]
    if plan is None or plan.args.data_parallel_size == candidates.replicas:
        return plan
    return _replicated(plan, candidates.replicas)


def _replicated(plan: Plan, replicas: int) -> Plan:
    """The plan with another number of independent engines."""
    update = {"data_parallel_size": replicas}
    assessment, before = plan.assessment, plan.args.data_parallel_size
    engine, config, deployment = assessment.estimate.engine, assessment.config, assessment.deployment
    assert engine is not None
    assert config is not None
    assert deployment is not None
    config = config.model_copy(update=update)
    estimate = assessment.estimate.model_copy(update={"engine": engine.model_copy(update=update)})
    return structs.replace(
        plan,
        args=plan.args.model_copy(update=update),
        assessment=replace(assessment, estimate=estimate, config=config, deployment=replace(deployment, config=config)),
        concurrency=plan.concurrency // before * replicas,
    )


def unbeaten(points: Iterable[Point]) -> tuple[Point, ...]:
    """Those than which none is as good in everything, in steps; of those in one step the first by exact merits."""
    ranked = sorted(points, key=lambda point: (point.merits.steps(), point.merits.exact()), reverse=True)
    chosen: list[Point] = []
    steps = np.zeros((0, 6), dtype=np.int64)
    for point in ranked:
        mine = np.array(point.merits.steps())
        if not (steps >= mine).all(axis=1).any():
            chosen.append(point)
            steps = np.vstack([steps, mine])
    return tuple(sorted(chosen, key=lambda point: (point.accuracy, -point.context, -point.requests)))


def _may_stand(hopes: list[_Hope]) -> Iterator[_Hope]:
    """The candidates that none beats for certain, headrooms being off by the slack at most."""
    ranked = sorted(hopes, key=lambda hope: (hope.merits.steps(), hope.merits.exact()), reverse=True)
    kept = np.zeros((len(ranked), 6), dtype=np.int64)
    exact = np.zeros((len(ranked), 2))
    count = 0
    for hope in ranked:
        merits = hope.merits
        as_good = (kept[:count] >= np.array(merits.steps(SLACK_BYTES))).all(axis=1)
        better = (kept[:count] > np.array(merits.steps(SLACK_BYTES))).any(axis=1)
        better |= exact[:count, 0] > merits.requests
        better |= (exact[:count, 0] == merits.requests) & (exact[:count, 1] >= merits.headroom_bytes + 2 * SLACK_BYTES)
        if (as_good & better).any():
            continue
        kept[count] = merits.steps(-SLACK_BYTES)
        exact[count] = merits.requests, merits.headroom_bytes
        count += 1
        yield hope


def labelled(points: Iterable[Point], variant: str, accuracy: int) -> list[Point]:
    """The points of another checkpoint, `accuracy` steps less accurate than the model asked for."""
    return [replace(point, variant=variant, accuracy=point.accuracy + accuracy) for point in points]


def cheapest(gpu: GpuSpec) -> float | None:
    """Dollars for a card and hour, of the cheapest offer that the catalog knows."""
    return min((price.usd_per_gpu_hour for price in gpu.prices), default=None)


@dataclass(slots=True)
class Speed:
    """Decode speed of a layout's engines, at one average length for all plans."""

    load: EngineLoad
    gpu: GpuSpec
    dtype: str
    replicas: int

    def tokens_per_s(self, requests: int) -> float | None:
        """Of `requests` at once, spread evenly over the replicas."""
        each = decode_tokens_per_s(self.load, self.gpu, self.dtype, max(1, -(-requests // self.replicas)))
        return None if each is None else each * self.replicas


def speed_of(deployment: Deployment, options: SearchOptions) -> Speed:
    """The roofline of one layout with the workload's average length."""
    config = deployment.config
    cache = cache_read_bytes(deployment.pool, _average(options))
    return Speed(
        replace(engine_load(deployment), cache_bytes=cache), deployment.gpus.gpu, config.dtype,
        config.data_parallel_size,
    )  # fmt: skip


def point_of(plan: Plan, speed: Speed, accuracy: int, variant: str = "") -> Point:
    """A plan's figures."""
    held = plan.concurrency if plan.demand is None else plan.demand.held
    requests = min(held, (plan.args.max_num_seqs or 1) * plan.args.data_parallel_size)
    price = cheapest(speed.gpu)
    usd = None if price is None else price * plan.gpus
    return Point(plan, accuracy, requests, speed.tokens_per_s(requests), usd, variant)


def _average(options: SearchOptions) -> int:
    mix = options.workload.mix
    if mix is None:
        length = options.args.max_model_len
        return length // 2 + 1 if length is not None and length > 0 else REFERENCE_TOKENS
    from planner.search.population import in_flight

    return int(in_flight(mix, 1 << 12).mean())


def _hopes(explorer: Explorer, candidates: Candidates, accuracy: int) -> Iterator[_Hope]:
    """The candidates of one layout that no other of it beats by more than the slack."""
    grid = candidates.grid
    if not (grid.verdicts == 0).any():
        return
    speed = speed_of(grid.deployment, explorer.options)
    total = grid.deployment.gpus.gpu.total_memory_bytes
    headroom = total - np.ceil(grid.needed_device_bytes / (1.0 + explorer.options.safety_margin))
    best_requests, best_headroom = np.array([], dtype=np.int64), np.array([])
    chosen = set(front_lengths(grid.lengths).tolist())
    enough = candidates.enough_seqs(explorer.options)[:, None]
    for index in range(len(grid.lengths) - 1, -1, -1):
        if int(grid.lengths[index]) not in chosen:
            continue
        rows, columns = np.nonzero((grid.verdicts[:, :, index] == 0) & enough)
        if not len(rows):
            continue
        requests = _requests(candidates, index)[rows, columns]
        mine = headroom[rows, columns]
        best_requests = np.concatenate([best_requests, requests])
        best_headroom = np.concatenate([best_headroom, mine])
        order = np.lexsort((-best_headroom, -best_requests))
        best_requests, best_headroom = best_requests[order], np.maximum.accumulate(best_headroom[order])
        rivals = best_headroom[np.searchsorted(-best_requests, -requests, side="right") - 1]
        for place in np.nonzero(mine + SLACK_BYTES >= rivals)[0].tolist():
            length, served = int(grid.lengths[index]), int(requests[place]) * candidates.replicas
            merits = Merits(
                accuracy, length, served, speed.tokens_per_s(served) or 0.0, candidates.gpus, int(mine[place]), total
            )
            update = _update(candidates, int(rows[place]), int(columns[place]), length)
            yield _Hope(explorer, candidates, update, speed, merits)


def _requests(candidates: Candidates, index: int) -> Ints:
    """Requests served at once, of the length with this index or of the workload's own: [sizes, utilization]."""
    grid = candidates.grid
    held = grid.requests
    if candidates.demand is None:
        length = int(grid.lengths[index])
        held = whole_requests(grid.deployment.pool, grid.blocks, length, grid.tokens[:, None])
    served: Ints = np.minimum(held, grid.seqs[:, None])
    return served


def _update(candidates: Candidates, row: int, column: int, length: int) -> dict[str, object]:
    grid = candidates.grid
    found: dict[str, object] = {
        "max_num_seqs": int(grid.seqs[row]),
        "max_num_batched_tokens": int(grid.tokens[row]),
        "max_model_len": length,
    }
    if candidates.args.kv_cache_memory_bytes is None:
        found["gpu_memory_utilization"] = float(grid.utilizations[column])
    return found
