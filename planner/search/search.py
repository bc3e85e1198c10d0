"""Find the plans: judge every layout's grid, choose each layout's best candidate, and rank what holds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.hardware.spec import GpuPool
from planner.memory.assess import Assessment, Deployment, assess_deployment
from planner.memory.kv_capacity import whole_requests
from planner.model.spec import ModelSpec
from planner.search.explorer import Candidates, Explorer, Tally, tally_grid
from planner.search.layouts import (
    cache_dtypes,
    data_parallel_sizes,
    engine_updates,
    layout,
    pipeline_parallel_sizes,
    tensor_parallel_sizes,
)
from planner.search.media import media_of, refused_media, too_long, with_media_limits, with_media_room
from planner.search.plan import Plan, RejectedCount, SearchResult
from planner.search.space import SEQUENCES, SearchOptions
from planner.values import Rejected, Rejection

_OCTAVE = 0.02
_UNMEASURED = (
    "replicas of a mixture of experts split its experts: their shards are counted, but what the transfers between the "
    "replicas take was not measured; verify such a plan before you rely on its headroom"
)
_WEIGHTLESS = frozenset({"block_size", "enforce_eager"})
"""Flags that leave the split of the weights as it is."""


def search(model: ModelSpec, gpus: GpuPool, options: SearchOptions, vllm_version: str) -> SearchResult:
    """The best plans for the objective. Deterministic; every candidate ends as a plan or in a rejected count.

    Plans with an FP8 cache come after those with the model's own, whatever they score: the search trades no accuracy
    that the user did not offer. Pipeline stages are tried only where no tensor-parallel layout holds the workload, and
    no more of them than that takes.
    """
    tally = Tally()
    notes = with_media_limits(model, options)[1]
    plans: list[tuple[tuple[float, ...], Plan]] = []
    try:
        for explorer, accuracy in explorers(model, gpus, options, vllm_version, tally):
            plans += (((accuracy + rank, -score), plan) for rank, score, plan in _explored(explorer))
    except Rejected as refused:
        return refused_search(refused.rejection, notes)
    plans.sort(key=lambda item: item[0])
    if model.is_moe and any(plan.args.data_parallel_size > 1 for _, plan in plans[: options.max_plans]):
        notes += (_UNMEASURED,)
    if plans and plans[0][1].gpus > gpus.count:
        machines = -(-plans[0][1].gpus // gpus.count)
        notes += (f"plan 1 takes {machines} machines: --launch-form multinode writes the command of each",)
    if plans and plans[0][1].demand is not None and options.workload.mix is not None:
        from planner.search.demand import demand_notes

        notes += demand_notes(options.workload.mix, plans[0][1].demand)
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


def explorers(
    model: ModelSpec, gpus: GpuPool, options: SearchOptions, vllm_version: str, tally: Tally | None = None
) -> Iterator[tuple[Explorer, int]]:
    """The user's flags and each change to them that `options.vary` asks for, with the accuracy that it gives up (0:
    none). Raises Rejected where the workload's requests are too long under every one of them."""
    limited, _ = with_media_limits(model, options)
    refused: Rejection | None = None
    some = False
    known: dict[tuple[int, int, int], Deployment] = {}
    for update in engine_updates(model, options.model_copy(update={"args": limited})):
        asked = with_media_room(model, options.model_copy(update={"args": limited.model_copy(update=update)}))
        if asked.workload.mix is not None:
            from planner.search.demand import with_request_room

            asked = with_request_room(model, asked)
        refusal = too_long(model, asked)
        if refusal is None:
            some = True
            explorer = Explorer(model, gpus, asked, vllm_version, tally or Tally())
            if _WEIGHTLESS.issuperset(update):
                explorer.known = known
            yield explorer, 2 * ("mm_processor_kwargs" in update)
        refused = refused or refusal
    if not some and refused is not None:
        raise Rejected(refused)


def all_candidates(explorer: Explorer) -> Iterator[Candidates]:
    """Every layout of the pool, pipeline stages that use every card included."""
    model, gpus, options = explorer.model, explorer.gpus, explorer.options
    for cache_dtype in cache_dtypes(options):
        for tp in tensor_parallel_sizes(gpus, options):
            if "pipeline_parallel_size" in options.given:
                depths: tuple[int, ...] = (options.args.pipeline_parallel_size,)
            else:
                ranks = gpus.world_size // tp
                depths = (1, *(deep for deep in pipeline_parallel_sizes(gpus, tp, model) if ranks % deep == 0))
            for stages in depths:
                for replicas in data_parallel_sizes(gpus, options, model, tp, stages):
                    candidates = explorer.candidates(cache_dtype, tp, stages, replicas)
                    if candidates is not None:
                        yield candidates


def _explored(explorer: Explorer) -> Iterator[tuple[int, float, Plan]]:
    """(rank of the cache dtype, score, plan) of every layout that holds the workload."""
    gpus, options = explorer.gpus, explorer.options
    for dtype_rank, cache_dtype in enumerate(cache_dtypes(options)):
        found = [plan for tp in tensor_parallel_sizes(gpus, options) for plan in _explore(explorer, cache_dtype, tp, 1)]
        if not found and "pipeline_parallel_size" not in options.given:
            found = _staged(explorer, cache_dtype)
        yield from ((dtype_rank, score, plan) for score, plan in found)


def _staged(explorer: Explorer, cache_dtype: str) -> list[tuple[float, Plan]]:
    """Plans with pipeline stages. Each stage more is a longer way for every token: depths beyond the first that holds
    the workload on all cards are tried only for the longest context."""
    model, gpus, options = explorer.model, explorer.gpus, explorer.options
    depths = {tp: pipeline_parallel_sizes(gpus, tp, model) for tp in tensor_parallel_sizes(gpus, options)}
    found: list[tuple[float, Plan]] = []
    for stages in sorted({stages for sizes in depths.values() for stages in sizes}):
        for tp, sizes in depths.items():
            if stages in sizes:
                found += _explore(explorer, cache_dtype, tp, stages)
        if options.objective != "context" and any(plan.gpus == gpus.world_size for _, plan in found):
            break
    return found


def refused_search(rejection: Rejection, notes: tuple[str, ...] = ()) -> SearchResult:
    """The answer where vLLM refuses whatever the flags that are left."""
    count = RejectedCount(reason=rejection.bottleneck, count=1, example=rejection)
    return SearchResult(plans=(), feasible=0, rejected=(count,), evaluated=1, notes=notes)


def _explore(explorer: Explorer, cache_dtype: str, tp: int, stages: int) -> Iterator[tuple[float, Plan]]:
    """The best plan of a layout for each number of replicas, with its score."""
    options = explorer.options
    if "pipeline_parallel_size" in options.given:
        stages = options.args.pipeline_parallel_size
    for replicas in data_parallel_sizes(explorer.gpus, options, explorer.model, tp, stages):
        candidates = explorer.candidates(cache_dtype, tp, stages, replicas)
        if candidates is None:
            continue
        tally_grid(candidates.grid, candidates.flags, explorer.tally)
        for row, column in _best(candidates, options):
            plan = _plan(explorer, candidates, row, column)
            if plan is not None:
                yield _score_of(plan, options), plan
                break


def _best(candidates: Candidates, options: SearchOptions) -> list[tuple[int, int]]:
    """(sizes, utilization) by falling objective, each pair of sizes at its best utilization.

    Near ties go to vLLM's default sizes and to the lower utilization.
    """
    grid = candidates.grid
    if not (grid.verdicts == 0).any():
        return []
    longest = grid.longest
    fixed = int(grid.lengths[-1])
    floor = int(grid.lengths[0])
    tokens = grid.blocks.astype(np.float64)
    holds = longest >= (fixed if len(grid.lengths) == 1 else floor)
    holds &= candidates.enough_seqs(options)[:, None]
    if options.objective == "context" or options.objective == "balanced":
        value = np.log2(np.maximum(longest, 1))
        value = value + np.where(longest >= fixed, 0.25 * np.log2(np.maximum(tokens, 1)), 0.0)
    else:
        value = np.log2(np.maximum(np.minimum(grid.requests, grid.seqs[:, None]), 1))
    config = grid.deployment.config
    wanted = options.workload.concurrency if candidates.demand is None else candidates.demand.requests
    preferred_seqs = _preferred_seqs(wanted, config.max_num_seqs)
    drift = np.abs(np.log2(grid.seqs / preferred_seqs)) + np.abs(np.log2(grid.tokens / config.max_num_batched_tokens))
    value = np.where(holds, value - _OCTAVE * drift[:, None], -np.inf)
    columns = np.argmax(value, axis=1)
    best = value[np.arange(len(columns)), columns]
    order = np.argsort(-best, kind="stable")
    return [(int(sizes), int(columns[sizes])) for sizes in order if np.isfinite(best[sizes])]


def _preferred_seqs(wanted: int | None, default: int) -> int:
    if wanted is None:
        return min(default, 256)
    return next((size for size in SEQUENCES if size >= wanted), SEQUENCES[-1])


def _plan(explorer: Explorer, candidates: Candidates, sizes: int, column: int) -> Plan | None:
    """The candidate replayed whole. Where the grid was too hopeful about the device, the next lower utilizations."""
    for lower in range(column, -1, -1):
        if candidates.grid.longest[sizes, lower] <= 0:
            continue
        plan = _replayed(explorer, candidates, sizes, lower)
        if plan is not None:
            return plan
    return None


def _replayed(explorer: Explorer, candidates: Candidates, sizes: int, column: int) -> Plan | None:
    options, args, grid = explorer.options, candidates.args, candidates.grid
    update: dict[str, object] = {
        "max_num_seqs": int(grid.seqs[sizes]),
        "max_num_batched_tokens": int(grid.tokens[sizes]),
    }
    if args.kv_cache_memory_bytes is None:
        update["gpu_memory_utilization"] = float(grid.utilizations[column])
    if "max_model_len" not in options.given or args.max_model_len == -1:
        update["max_model_len"] = int(grid.longest[sizes, column])
    return exact_plan(explorer, candidates, update)


def exact_plan(explorer: Explorer, candidates: Candidates, update: dict[str, object]) -> Plan | None:
    """One candidate of a layout replayed whole; None where it does not hold after all."""
    options, args, grid = explorer.options, candidates.args, candidates.grid
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
    demand = None
    if candidates.demand is not None and explorer.demands is not None:
        cache = assessment.estimate.kv_cache
        assert cache is not None
        demand = explorer.demands.summary(
            found.deployment, candidates.demand, candidates.replicas, cache.num_gpu_blocks, chosen.max_num_seqs or 1
        )
        if demand.held < demand.concurrency:
            return None
    requests = _full_length_requests(assessment) * candidates.replicas
    return Plan(chosen, assessment, requests, per_gpu.total_memory_bytes - need, demand)


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
        replicas = engine.data_parallel_size
        held = plan.concurrency if plan.demand is None else plan.demand.held
        return float(min(held, engine.max_num_seqs * replicas))
    return engine.max_model_len + min(plan.concurrency, 10**6) * 1e-3
