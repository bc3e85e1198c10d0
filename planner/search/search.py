"""Find the plans: judge every layout's grid, choose each layout's best candidate, and rank what holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from planner.engine.args import EngineArgs
from planner.hardware.spec import GpuPool
from planner.memory.assess import Assessment, Deployment, assess_deployment
from planner.memory.kv_capacity import whole_requests
from planner.model.spec import ModelSpec
from planner.search.costs import Costs, size_costs
from planner.search.grid import VERDICTS, Grid, evaluate, size_pairs
from planner.search.layouts import Layout, cache_dtypes, layout, pipeline_parallel_sizes, tensor_parallel_sizes
from planner.search.media import media_of, refused_media, served_pairs, too_long, with_media_limits, with_media_room
from planner.search.plan import Plan, RejectedCount, SearchResult
from planner.search.space import SEQUENCES, SearchOptions
from planner.values import Bottleneck, Rejection

BALANCED_CONCURRENCY = 8
"""Requests of full length that the balanced objective holds at once where the user names no number."""

_OCTAVE = 0.02


@dataclass(slots=True)
class _Tally:
    counts: Counter[Bottleneck] = field(default_factory=Counter)
    examples: dict[Bottleneck, tuple[Rejection, tuple[tuple[str, str | int | float], ...]]] = field(
        default_factory=dict
    )
    evaluated: int = 0
    feasible: int = 0

    def refuse(
        self, reason: Bottleneck, count: int, example: Rejection, flags: tuple[tuple[str, str | int | float], ...]
    ) -> None:
        self.counts[reason] += count
        self.evaluated += count
        self.examples.setdefault(reason, (example, flags))


def search(model: ModelSpec, gpus: GpuPool, options: SearchOptions, vllm_version: str) -> SearchResult:
    """The best plans for the objective. Deterministic; every candidate ends as a plan or in a rejected count.

    Plans with an FP8 cache come after those with the model's own, whatever they score: the search trades no accuracy
    that the user did not offer. Pipeline stages are tried only where no tensor-parallel layout holds the workload.
    """
    tally = _Tally()
    args, notes = with_media_limits(model, options)
    options = with_media_room(model, options.model_copy(update={"args": args}))
    refused = too_long(options)
    if refused is not None:
        return refused_search(refused, notes)
    explorer = _Explorer(model, gpus, options, vllm_version, tally)
    plans: list[tuple[tuple[float, ...], Plan]] = []
    for dtype_rank, cache_dtype in enumerate(cache_dtypes(options)):
        found = [plan for tp in tensor_parallel_sizes(gpus, options) for plan in explorer.explore(cache_dtype, tp, 1)]
        if not found and "pipeline_parallel_size" not in options.given:
            found = [
                plan
                for tp in tensor_parallel_sizes(gpus, options)
                for stages in pipeline_parallel_sizes(gpus, tp, model)
                for plan in explorer.explore(cache_dtype, tp, stages)
            ]
        plans += [((dtype_rank, -score), plan) for score, plan in found]
    plans.sort(key=lambda item: item[0])
    return SearchResult(
        plans=tuple(plan for _, plan in plans[: options.max_plans]),
        feasible=tally.feasible,
        rejected=tuple(
            RejectedCount(
                reason=reason, count=count, example=tally.examples[reason][0], flags=tally.examples[reason][1]
            )
            for reason, count in tally.counts.most_common()
        ),
        evaluated=tally.evaluated,
        notes=notes,
    )


def refused_search(rejection: Rejection, notes: tuple[str, ...] = ()) -> SearchResult:
    """The answer where vLLM refuses whatever the flags that are left."""
    count = RejectedCount(reason=rejection.bottleneck, count=1, example=rejection)
    return SearchResult(plans=(), feasible=0, rejected=(count,), evaluated=1, notes=notes)


@dataclass(slots=True)
class _Explorer:
    """Judges layouts one after the other; the weights of a layout are split once for all cache dtypes."""

    model: ModelSpec
    gpus: GpuPool
    options: SearchOptions
    vllm_version: str
    tally: _Tally
    known: dict[tuple[int, int], Deployment] = field(default_factory=dict)
    costs: dict[tuple[int, int], Costs] = field(default_factory=dict)

    def explore(self, cache_dtype: str, tp: int, stages: int) -> Iterator[tuple[float, Plan]]:
        options = self.options
        if "pipeline_parallel_size" in options.given:
            stages = options.args.pipeline_parallel_size
        sizes: dict[str, str | int | float] = {
            "tensor_parallel_size": tp,
            "pipeline_parallel_size": stages,
            "kv_cache_dtype": cache_dtype,
        }
        args = options.args.model_copy(update=sizes)
        flags = tuple(sizes.items())
        found = layout(self.model, self.gpus, args, self.vllm_version, self.known.get((tp, stages)))
        if found.deployment is None:
            assert found.rejection is not None
            self.tally.refuse(found.rejection.bottleneck, 1, found.rejection, flags)
            return
        self.known.setdefault((tp, stages), found.deployment)
        costs = self.costs.get((tp, stages))
        if costs is None:
            pairs = size_pairs(found.deployment.config, options)
            tried = len(pairs)
            pairs, refusal = served_pairs(found.deployment, options, pairs)
            if refusal is not None:
                self.tally.refuse(refusal.bottleneck, max(1, tried - len(pairs)), refusal, flags)
            if not pairs:
                return
            costs = size_costs(found.deployment, args, pairs, media_of(options), options.confidence)
            self.costs[tp, stages] = costs
        grid = evaluate(found.deployment, costs, options, _concurrency(options))
        _count(grid, flags, self.tally)
        for row, column in _best(grid, found, options):
            plan = _plan(self, args, grid, row, column)
            if plan is not None:
                yield _score_of(plan, options), plan
                return


def _concurrency(options: SearchOptions) -> int:
    if options.workload.concurrency is not None:
        return options.workload.concurrency
    return BALANCED_CONCURRENCY if options.objective == "balanced" and "max_model_len" not in options.given else 1


def _best(grid: Grid, found: Layout, options: SearchOptions) -> list[tuple[int, int]]:
    """(sizes, utilization) by falling objective, each pair of sizes at its best utilization.

    Near ties go to vLLM's default sizes and to the lower utilization.
    """
    if not (grid.verdicts == 0).any():
        return []
    longest = grid.longest
    fixed = int(grid.lengths[-1])
    floor = int(grid.lengths[0])
    tokens = grid.blocks.astype(np.float64)
    holds = longest >= (fixed if len(grid.lengths) == 1 else floor)
    if options.objective == "context" or options.objective == "balanced":
        value = np.log2(np.maximum(longest, 1))
        value = value + np.where(longest >= fixed, 0.25 * np.log2(np.maximum(tokens, 1)), 0.0)
    else:
        value = np.log2(np.maximum(np.minimum(grid.requests, grid.seqs[:, None]), 1))
    config = found.deployment.config if found.deployment else None
    assert config is not None
    preferred_seqs = _preferred_seqs(options, config.max_num_seqs)
    drift = np.abs(np.log2(grid.seqs / preferred_seqs)) + np.abs(np.log2(grid.tokens / config.max_num_batched_tokens))
    value = np.where(holds, value - _OCTAVE * drift[:, None], -np.inf)
    columns = np.argmax(value, axis=1)
    best = value[np.arange(len(columns)), columns]
    order = np.argsort(-best, kind="stable")
    return [(int(sizes), int(columns[sizes])) for sizes in order if np.isfinite(best[sizes])]


def _preferred_seqs(options: SearchOptions, default: int) -> int:
    wanted = options.workload.concurrency
    if wanted is None:
        return min(default, 256)
    return next((size for size in SEQUENCES if size >= wanted), SEQUENCES[-1])


def _plan(explorer: _Explorer, args: EngineArgs, grid: Grid, sizes: int, column: int) -> Plan | None:
    """The candidate replayed whole. Where the grid was too hopeful about the device, the next lower utilizations."""
    for lower in range(column, -1, -1):
        if grid.longest[sizes, lower] <= 0:
            continue
        plan = _replayed(explorer, args, grid, sizes, lower)
        if plan is not None:
            return plan
    return None


def _replayed(explorer: _Explorer, args: EngineArgs, grid: Grid, sizes: int, column: int) -> Plan | None:
    options = explorer.options
    update: dict[str, object] = {
        "max_num_seqs": int(grid.seqs[sizes]),
        "max_num_batched_tokens": int(grid.tokens[sizes]),
    }
    if args.kv_cache_memory_bytes is None:
        update["gpu_memory_utilization"] = float(grid.utilizations[column])
    if "max_model_len" not in options.given or args.max_model_len == -1:
        update["max_model_len"] = int(grid.longest[sizes, column])
    chosen = args.model_copy(update=update)
    found = layout(explorer.model, explorer.gpus, chosen, explorer.vllm_version, grid.deployment)
    if found.deployment is None:
        return None
    if refused_media(found.deployment, options) is not None:
        return None
    assessment = assess_deployment(found.deployment, media_of(options), options.confidence)
    per_gpu = assessment.estimate.per_gpu
    if not assessment.estimate.starts or per_gpu is None:
        return None
    need = per_gpu.used_after_startup_bytes + per_gpu.vision_encoder_runtime_peak_bytes
    if need * (1 + options.safety_margin) > per_gpu.total_memory_bytes:
        return None
    return Plan(chosen, assessment, _full_length_requests(assessment), per_gpu.total_memory_bytes - need)


def _full_length_requests(assessment: Assessment) -> int:
    cache, config = assessment.estimate.kv_cache, assessment.config
    assert cache is not None
    assert config is not None
    assert assessment.deployment is not None
    return int(
        whole_requests(
            assessment.deployment.pool, cache.num_gpu_blocks, config.max_model_len, config.max_num_batched_tokens
        )
    )


def _score_of(plan: Plan, options: SearchOptions) -> float:
    cache, engine = plan.estimate.kv_cache, plan.estimate.engine
    assert cache is not None
    assert engine is not None
    if options.objective == "concurrency":
        return float(min(plan.concurrency, engine.max_num_seqs))
    return float(engine.max_model_len) * (1.0 + 1e-9 * plan.concurrency) + min(plan.concurrency, 10**6) * 1e-3


def _count(grid: Grid, flags: tuple[tuple[str, str | int | float], ...], tally: _Tally) -> None:
    codes, counts = np.unique(grid.verdicts, return_counts=True)
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        reason = VERDICTS[code]
        if reason is None:
            tally.feasible += count
            tally.evaluated += count
            continue
        tally.counts[reason] += count
        tally.evaluated += count
        if reason not in tally.examples:
            tally.examples[reason] = (_example(grid, code, reason), (*flags, *_flags_of(grid, code)))


def _flags_of(grid: Grid, code: int) -> tuple[tuple[str, str | int | float], ...]:
    sizes, utilization, length = (int(axis[0]) for axis in np.nonzero(grid.verdicts == code))
    return (
        ("max_num_seqs", int(grid.seqs[sizes])), ("max_num_batched_tokens", int(grid.tokens[sizes])),
        ("gpu_memory_utilization", float(grid.utilizations[utilization])), ("max_model_len", int(grid.lengths[length])),
    )  # fmt: skip


_SENTENCES: dict[Bottleneck, str] = {
    "startup_memory": "free memory at startup is below the requested share of the card",
    "weights": "the weights do not fit the card",
    "kv_cache": "the cache does not hold the requests asked for",
    "device_memory": "the device would not keep the safety margin free",
}


def _example(grid: Grid, code: int, reason: Bottleneck) -> Rejection:
    sizes, utilization, _ = (int(axis[0]) for axis in np.nonzero(grid.verdicts == code))
    need = have = None
    if reason == "device_memory":
        need, have = int(grid.needed_device_bytes[sizes, utilization]), grid.deployment.gpus.gpu.total_memory_bytes
    return Rejection(bottleneck=reason, message=_SENTENCES[reason], need_bytes=need, have_bytes=have)
