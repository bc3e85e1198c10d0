"""Whether cards hold a workload, for many models at once: the verdicts of `select` without its figures.

For each card and count the answer is the least tensor parallelism whose engines hold the workload side by side, or that
none does. That question rarely needs a replay of the engine. The configuration, the cache's pool and the CUDA context
are exact; two things are bounded:

- weights, by the split of a model with two layers of each kind, each counted as often as the model has it: the tensors'
  bytes less a fiftieth (copies that share a block) are the least, those of the allocator's blocks the most;
- what else the engine sets aside (peak activation, graphs, the runner's state, what the allocator retains, the
  encoder's peak), by an engine of the same model that was replayed: ALIKE and OTHER say how far others may lie from it.

Where the bounds leave an answer open, the engine is replayed as for `select`. The guards are not proven: they are wider
than what the catalog's models show, and the verdicts were compared with those of `select` on a third of the catalog
(docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.hardware.spec import GpuPool, GpuSpec
from planner.memory.device import cuda_context_bytes
from planner.memory.intervals import is_verified
from planner.memory.kv_capacity import blocks_for_request
from planner.memory.kv_pool import KVPool, build_pool
from planner.model.spec import ModelSpec
from planner.search.grid import Grid
from planner.search.select_bounds import (
    ALIKE,
    OTHER,
    OTHER_DENSE,
    Aside,
    Engine,
    Guard,
    Weighed,
    held,
    kind_of,
    times_of,
)
from planner.search.select_judge import TENSOR_PARALLEL, Judge, best_budget, judge_of
from planner.search.space import UTILIZATIONS, SearchOptions
from planner.sharding.shard import kv_layers
from planner.values import DTYPE_BYTES, Rejected, Value

Evidence = Literal["bounds", "replay"]


class Fit(Value):
    """`count` of a card: `replicas` engines of `tensor_parallel_size` hold the workload; 0 of 0 where none does.

    `evidence`: "bounds" where bounds decided, "replay" where an engine that the answer depends on was replayed.
    """

    gpu: str
    count: int
    tensor_parallel_size: int
    replicas: int
    evidence: Evidence

    @property
    def fits(self) -> bool:
        return self.tensor_parallel_size > 0


@dataclass(slots=True)
class _Fits:
    judge: Judge
    concurrency: int
    weighed: Weighed | None = None
    densest: float = 0.0
    pools: dict[EngineConfig, KVPool] = field(default_factory=dict)
    weights: dict[tuple[object, ...], tuple[int, int]] = field(default_factory=dict)
    engines: dict[EngineConfig, Engine | None] = field(default_factory=dict)
    alike: dict[tuple[object, ...], Aside] = field(default_factory=dict)
    other: Aside | None = None

    def of(self, gpu: GpuSpec, max_count: int) -> Iterator[Fit]:
        """The answers for 1 to `max_count` of a card."""
        found: dict[int, Fit] = {}
        evidence: Evidence = "bounds"
        for tp in TENSOR_PARALLEL if gpu.vendor == "nvidia" else ():
            wanted = {
                count: ceil(self.concurrency / (count // tp))
                for count in range(tp, max_count + 1)
                if count not in found
            }
            if not wanted:
                continue
            requests, replayed = self._requests(gpu, tp, set(wanted.values()))
            evidence = "replay" if replayed else evidence
            for count, needed in wanted.items():
                if requests >= needed:
                    found[count] = Fit(
                        gpu=gpu.name, count=count, tensor_parallel_size=tp, replicas=count // tp, evidence=evidence
                    )
        for count in range(1, max_count + 1):
            yield found.get(count) or Fit(
                gpu=gpu.name, count=count, tensor_parallel_size=0, replicas=0, evidence=evidence
            )

    def _requests(self, gpu: GpuSpec, tp: int, wanted: set[int]) -> tuple[int, bool]:
        """Requests that one engine holds, or as many as decide for each of `wanted`; and whether it was replayed."""
        try:
            config = self.judge.config(gpu, tp, 1)
            shared = self.judge.shared(config, gpu)
            if self._is_bounded(shared):
                if self._is_far_too_large(gpu, shared):
                    return 0, False
                engine = self._engine(gpu, shared)
                if engine is not None:
                    most = self._most(engine, gpu)
                    least = self._least(engine, gpu) if most >= min(wanted) else 0
                    if not any(least < needed <= most for needed in wanted):
                        return least, False
            return self._replayed(gpu, shared), True
        except (Rejected, UnsupportedError):
            return 0, False

    def _is_bounded(self, config: EngineConfig) -> bool:
        """Whether the bounds speak of such engines: without adapters, drafts, calibration and fixed cache sizes."""
        args = self.judge.args
        return not (
            config.enable_lora
            or config.speculative_method
            or config.calibrated
            or config.gpu_memory_bytes
            or config.max_model_len < 1
            or args.kv_cache_memory_bytes is not None
            or args.num_gpu_blocks_override is not None
        )

    def _engine(self, gpu: GpuSpec, shared: EngineConfig) -> Engine | None:
        """None where only a replay can tell: the pool has pages of several sizes, or none. Raises as `shard` does."""
        if shared in self.engines:
            return self.engines[shared]
        self._weigh(shared)
        pool = self._pool(shared)
        plain = pool.groups and pool.fullest.bytes_per_needed_block == pool.bytes_per_block
        safe = self.judge.options.confidence == "safe" and not is_verified(shared)
        found = self.engines[shared] = (
            Engine(
                config=shared,
                margin=1 / 200 if safe else 0.0,
                context=cuda_context_bytes(self.judge.model, shared).value,
                bytes_per_block=pool.bytes_per_block,
                request_blocks=blocks_for_request(pool, shared.max_model_len, shared.max_num_batched_tokens),
            )
            if plain
            else None
        )
        return found

    def _is_far_too_large(self, gpu: GpuSpec, config: EngineConfig) -> bool:
        """Whether even an equal share of the weights as the first layout has them, stored as densely as another card
        could (quantized where that one has float32), exceeds the card."""
        if self.weighed is None:
            share = self.judge.split(_pool_of(gpu, config), config)
            self.weighed = Weighed(share.small, times_of(share.deployment.shares[0]))
            self._weigh(config)
            self.densest = 0.1 if config.quantization is not None else 0.9 * 2 / DTYPE_BYTES[config.dtype]
            self.densest *= self.weights[self._stored(config)][0]
        return self.densest / config.tensor_parallel_size > gpu.total_memory_bytes

    def _weigh(self, config: EngineConfig) -> None:
        assert self.weighed is not None
        key = self._stored(config)
        if key not in self.weights:
            self.weights[key] = self.weighed.bounds(self.judge.with_most_sms(config))

    def _stored(self, config: EngineConfig) -> tuple[object, ...]:
        """What decides how a rank's weights are stored; buffers of towers have a row for each token of a batch."""
        card = config.compute_capability if config.quantization is not None else None
        batch = config.max_num_batched_tokens if self.judge.model.vision is not None else None
        return config.tensor_parallel_size, config.dtype, card, batch

    def _pool(self, config: EngineConfig) -> KVPool:
        """The cache's pool, which depends on the card by what `config` names, and on compute capability 12."""
        capability = (12, 0) if config.compute_capability[0] == 12 else (9, 0)
        key = config.model_copy(
            update={"compute_capability": capability, "sm_count": None, "cudagraph_capture_sizes": ()}
        )
        if key not in self.pools:
            self.pools[key] = build_pool([kv_layers(self.judge.model, key)], key)
        return self.pools[key]

    def _most(self, engine: Engine, gpu: GpuSpec) -> int:
        """No more requests than these."""
        total, least = gpu.total_memory_bytes, self.weights[self._stored(engine.config)][0]
        budgets = [size for size in self._budgets(gpu) if total - engine.context >= size]
        aside = self._alike(engine)
        beside = 0 if aside is None else max(0, aside.budget - ALIKE.room(aside.budget))
        room = min(max(budgets, default=0) - beside, total / (1 + self.judge.options.safety_margin) - engine.context)
        return held(engine, int(room) - least)

    def _least(self, engine: Engine, gpu: GpuSpec) -> int:
        """No fewer requests than these: of the largest budget that leaves the device its safety margin for certain."""
        total, weights = gpu.total_memory_bytes, self.weights[self._stored(engine.config)][1]
        most = weights + ceil(weights * engine.margin)
        aside, guard = self._alike(engine), ALIKE
        if aside is None or aside.device is None:
            aside, guard = self.other, self._guard
        if aside is None or aside.device is None:
            return 0
        config, other = engine.config, aside.config
        larger = max(1.0, config.max_num_batched_tokens / other.max_num_batched_tokens)
        larger *= max(1.0, other.tensor_parallel_size / config.tensor_parallel_size)
        larger *= max(1.0, DTYPE_BYTES[config.dtype] / DTYPE_BYTES[other.dtype])
        beside, device, profile = (
            ceil(max(0, size) * larger) + guard.room(ceil(size * larger))
            for size in (aside.budget, aside.device, aside.profile)
        )
        usable = total / (1 + self.judge.options.safety_margin) - engine.context
        if weights > total - engine.context or most + profile > usable:
            return 0
        budgets = [size for size in self._budgets(gpu) if size <= total - engine.context and size + device <= usable]
        return held(engine, max(budgets, default=0) - beside - most)

    @property
    def _guard(self) -> Guard:
        model = self.judge.model
        return OTHER if model.is_moe or model.vision is not None else OTHER_DENSE

    def _budgets(self, gpu: GpuSpec) -> list[int]:
        args, given = self.judge.args, self.judge.options.given
        asked = args.gpu_memory_utilization if "gpu_memory_utilization" in given else None
        return [ceil(gpu.total_memory_bytes * part) for part in (UTILIZATIONS if asked is None else (asked,))]

    def _alike(self, engine: Engine) -> Aside | None:
        return self.alike.get(kind_of(engine.config))

    def _replayed(self, gpu: GpuSpec, shared: EngineConfig) -> int:
        grid = self.judge.judged(gpu, shared)
        self._learn(shared)
        return best_budget(grid)[1] if isinstance(grid, Grid) else 0

    def _learn(self, config: EngineConfig) -> None:
        costs, engine = self.judge.costs.get(config), self.engines.get(config)
        if costs is None or engine is None:
            return
        (stage,) = costs.stages
        weights, context, reserved = int(stage.weights[0]), int(stage.context[0]), int(stage.non_kv[0])
        margin = ceil(weights * engine.margin)
        other = weights // 100 if self.judge.model.is_moe and config.quantization is None else 0
        self.weights[self._stored(config)] = weights - other, weights + other
        aside = Aside(
            config=config,
            budget=reserved - weights - margin,
            device=int(stage.beside_cache[0] + stage.encoder[0]) - context - reserved
            if stage.is_complete or self.other is None
            else None,
            profile=int(stage.profile_peak[0]) - weights - context - margin,
        )
        known = self.alike.get(kind_of(config))
        if known is None or known.device is None:
            self.alike[kind_of(config)] = aside
        if aside.device is not None and self.other is None:
            self.other = aside


def fits(
    model: ModelSpec, gpus: Iterable[GpuSpec], options: SearchOptions, vllm_version: str, *, max_count: int = 16
) -> tuple[Fit, ...]:
    """For every card with 1 to `max_count` of it in one machine, in order: whether it holds the workload of `options`.

    The workload, and what a layout may be, are those of `planner.search.select.select`; a choice of it without
    rejection is a fit here and the other way round.
    """
    cards = tuple(gpus)
    judged = _Fits(judge_of(model, cards, options, vllm_version), options.workload.concurrency or 1)
    return tuple(fit for gpu in cards for fit in judged.of(gpu, max_count))


def _pool_of(gpu: GpuSpec, config: EngineConfig) -> GpuPool:
    return GpuPool(spelling=gpu.name, gpu=gpu, count=config.tensor_parallel_size, nodes=1)
