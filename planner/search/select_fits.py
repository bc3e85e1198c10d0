"""Whether cards hold a workload, for many models at once: the verdicts of `select` without its figures.

For each card and count the answer is the least tensor parallelism whose engines hold the workload side by side, or that
none does. That question rarely needs the whole model. The configuration, the cache's pool and the CUDA context are
exact; so is what else the engine sets aside (peak activation, graphs, the runner's state, what the allocator retains,
the encoder's peak), which `select` too replays on a model with two layers of each kind. Weights are bounded by the
split of that thin model, each layer counted as often as the model has it. An engine's answer goes through bounds that
are ever tighter and ever dearer, and stops at the first that decides:

1. an engine that was replayed, with the guard ALIKE about its terms where it is of the same kind, or else OTHER;
2. the engine's own terms, but for what the allocator retains, which is bounded by the peak activation;
3. that as well, from a replay of the startup;
4. the weights of the whole model, which leaves nothing open.

The guards are not proven: they are wider than what the catalog's models show, and were held against the replays of
`select` over the catalog (benchmarks/matrix_bounds.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Literal, NamedTuple

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.hardware.spec import GpuPool, GpuSpec
from planner.memory.device import cuda_context_bytes
from planner.memory.intervals import is_verified
from planner.memory.kv_pool import KVPool, build_pool
from planner.memory.runtime import thin
from planner.model.modules import Linear, TokenBuffer
from planner.model.spec import ModelSpec
from planner.search.grid import Grid
from planner.search.select_bounds import (
    ALIKE,
    NOTHING,
    OTHER,
    OTHER_DENSE,
    Aside,
    Card,
    Engine,
    Guard,
    Weighed,
    kind_of,
    times_of,
)
from planner.search.select_judge import TENSOR_PARALLEL, Judge, best_budget, judge_of
from planner.search.select_thin import ThinEngine, replay_of, with_one_dtype
from planner.search.space import UTILIZATIONS, SearchOptions
from planner.sharding.rank import RankShare
from planner.sharding.shard import kv_layers, shard
from planner.values import DTYPE_BYTES, Rejected, Value

Evidence = Literal["bounds", "replay"]


class Fit(Value):
    """`count` of a card: `replicas` engines of `tensor_parallel_size` hold the workload; 0 of 0 where none does.

    `evidence`: "bounds" where bounds decided, "replay" where the weights of a whole model were needed.
    """

    gpu: str
    count: int
    tensor_parallel_size: int
    replicas: int
    evidence: Evidence

    @property
    def fits(self) -> bool:
        return self.tensor_parallel_size > 0


class Bounds(NamedTuple):
    """At least and at most so many requests; "replay" where the whole model's weights were laid out for it."""

    least: int
    most: int
    evidence: Evidence = "bounds"


@dataclass
class Fits:
    """The verdicts of one model, with what its engines have taught so far."""

    judge: Judge
    concurrency: int
    weighed: Weighed | None = None
    densest: float = 0.0
    pools: dict[EngineConfig, KVPool] = field(default_factory=dict)
    shares: dict[tuple[object, ...], RankShare] = field(default_factory=dict)
    weights: dict[tuple[object, ...], tuple[int, int]] = field(default_factory=dict)
    engines: dict[EngineConfig, Engine | None] = field(default_factory=dict)
    thin: dict[tuple[object, ...], ThinEngine] = field(default_factory=dict)
    refused: set[EngineConfig] = field(default_factory=set)
    cards: dict[str, Card] = field(default_factory=dict)
    alike: dict[tuple[object, ...], ThinEngine] = field(default_factory=dict)

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
            requests = self._requests(gpu, tp, set(wanted.values()))
            evidence = "replay" if requests.evidence == "replay" else evidence
            for count, needed in wanted.items():
                if requests.least >= needed:
                    found[count] = Fit(
                        gpu=gpu.name, count=count, tensor_parallel_size=tp, replicas=count // tp, evidence=evidence
                    )
        for count in range(1, max_count + 1):
            yield found.get(count) or Fit(
                gpu=gpu.name, count=count, tensor_parallel_size=0, replicas=0, evidence=evidence
            )

    def _requests(self, gpu: GpuSpec, tp: int, wanted: set[int]) -> Bounds:
        """What one engine holds, narrowed until it decides for each of `wanted`."""
        try:
            config = self.judge.shared(self.judge.config(gpu, tp, 1), gpu)
        except (Rejected, UnsupportedError):
            return Bounds(0, 0)
        alike = config.model_copy(update={"gpu_memory_bytes": 0})
        found = Bounds(0, 0)
        if alike not in self.refused:
            try:
                for found in self.narrowing(gpu, config):
                    if not any(found.least < needed <= found.most for needed in wanted):
                        break
            except (Rejected, UnsupportedError):
                self.refused.add(alike)
                return Bounds(0, 0)
        return found

    def narrowing(self, gpu: GpuSpec, config: EngineConfig) -> Iterator[Bounds]:
        """What is known of the requests that an engine of this card holds, each time more and each time dearer; the
        last leaves nothing open. `config`: as `Judge.shared` gives it. Raises Rejected and UnsupportedError."""
        engine = None
        if self._is_bounded(config):
            if self._is_far_too_large(gpu, config):
                yield Bounds(0, 0)
                return
            engine = self._engine(config)
        if engine is None:
            held = self.replayed(gpu, config)
            yield Bounds(held, held, "replay")
            return
        card = self._card(gpu)
        least, most = self.weights[self._stored(config)]
        yield self._from_others(engine, card, least, most)
        thin, slack = self._thin(engine), engine.block_bytes
        for _ in range(2):
            yield Bounds(
                engine.requests(thin.most, most, card, slack=slack),
                engine.requests(thin.least, least, card, slack=-slack),
            )
            thin.add_device()
        (weights,) = self.judge.split(_pool_of(gpu, config), config).weights_bytes(config)
        held = engine.requests(thin.aside, weights, card)
        yield Bounds(held, held, "replay")

    def replayed(self, gpu: GpuSpec, config: EngineConfig) -> int:
        """Requests that the engine holds as `select` has it. Raises Rejected and UnsupportedError."""
        grid = self.judge.judged(gpu, config)
        return best_budget(grid)[1] if isinstance(grid, Grid) else 0

    def _from_others(self, engine: Engine, card: Card, least: int, most: int) -> Bounds:
        """What engines of the model that were replayed before say of this one."""
        alike = self.alike.get(kind_of(engine.config))
        if alike is not None:
            low = engine.requests(_raised(alike.most, ALIKE), most, card)
            return Bounds(low, engine.requests(_lowered(alike.aside, ALIKE), least, card))
        low = 0
        if self.alike and not engine.config.gpu_memory_bytes:
            scaled = [_scaled(other, engine.config) for other in self.alike.values()]
            nearest = min(scaled, key=lambda aside: aside.budget)
            low = engine.requests(_raised(nearest, self._guard), most, card)
        return Bounds(low, engine.requests(NOTHING, least, card))

    def _thin(self, engine: Engine) -> ThinEngine:
        share = self.shares[self._stored(engine.config)]
        key = (id(share), engine.pool, engine.context, replay_of(self.judge.model, engine.config))
        if key not in self.thin:
            assert self.weighed is not None
            found = self.thin[key] = ThinEngine(self.judge, engine, self.weighed.small, share)
            self.alike.setdefault(kind_of(engine.config), found)
        return self.thin[key]

    def _is_bounded(self, config: EngineConfig) -> bool:
        """Whether the bounds speak of such engines: without adapters, drafts, calibration and fixed cache sizes."""
        args = self.judge.args
        return not (
            config.enable_lora
            or config.speculative_method
            or config.calibrated
            or config.max_model_len < 1
            or args.kv_cache_memory_bytes is not None
            or args.num_gpu_blocks_override is not None
        )

    def _engine(self, shared: EngineConfig) -> Engine | None:
        """None where there is no pool, so that only a replay can tell. Raises as `shard` does."""
        if shared in self.engines:
            return self.engines[shared]
        self._weigh(shared)
        pool = self._pool(shared)
        safe = self.judge.options.confidence == "safe" and not is_verified(shared)
        context = cuda_context_bytes(self.judge.model, shared).value
        found = self.engines[shared] = Engine.of(shared, pool, context, has_margin=safe) if pool.groups else None
        return found

    def _is_far_too_large(self, gpu: GpuSpec, config: EngineConfig) -> bool:
        """Whether even an equal share of the weights as the first layout has them, stored as densely as another card
        could (quantized where that one has float32), exceeds the card."""
        if self.weighed is None:
            share = shard(self.judge.model, self.judge.with_most_sms(config))
            self.weighed = Weighed(thin(self.judge.model, share)[0], times_of(share))
            self._weigh(config)
            self.densest = 0.1 if config.quantization is not None else 0.9 * 2 / DTYPE_BYTES[config.dtype]
            self.densest *= self.weights[self._stored(config)][0]
        return self.densest / config.tensor_parallel_size > gpu.total_memory_bytes

    def _weigh(self, config: EngineConfig) -> None:
        assert self.weighed is not None
        key = self._stored(config)
        if key not in self.weights:
            share = self.weighed.split(self.judge.with_most_sms(config))
            share = next((known for known in self.shares.values() if known == share), share)
            self.shares[key] = share
            self.weights[key] = self.weighed.bounds(share)

    def _stored(self, config: EngineConfig) -> tuple[object, ...]:
        """What decides how a rank's weights are stored: kernels and some gates' dtype depend on the card, and some
        buffers have a row for each token of a batch."""
        card = config.compute_capability if config.quantization is not None or self._by_card else None
        batch = config.max_num_batched_tokens if self._by_batch else None
        dtype = config.dtype if config.quantization is not None else DTYPE_BYTES[config.dtype]
        return config.tensor_parallel_size, dtype, card, batch

    @cached_property
    def _by_card(self) -> bool:
        return any(isinstance(module, Linear) and module.float32_gate for module in self.judge.model.modules)

    @cached_property
    def _by_batch(self) -> bool:
        return any(isinstance(module, TokenBuffer) for module in self.judge.model.modules)

    def _pool(self, config: EngineConfig) -> KVPool:
        """The cache's pool, which depends on the card by what `config` names, and on compute capability 12."""
        key = with_one_dtype(config).model_copy(
            update={
                "compute_capability": (12, 0) if config.compute_capability[0] == 12 else (9, 0),
                "sm_count": None,
                "cudagraph_capture_sizes": (),
                "gpu_memory_bytes": 0,
                "max_num_batched_tokens": 0,
            }
        )
        if key not in self.pools:
            self.pools[key] = build_pool([kv_layers(self.judge.model, key)], key)
        return self.pools[key]

    @property
    def _guard(self) -> Guard:
        model = self.judge.model
        return OTHER if model.is_moe or model.vision is not None else OTHER_DENSE

    def _card(self, gpu: GpuSpec) -> Card:
        if gpu.name not in self.cards:
            self.cards[gpu.name] = self._card_of(gpu)
        return self.cards[gpu.name]

    def _card_of(self, gpu: GpuSpec) -> Card:
        args, options = self.judge.args, self.judge.options
        asked = args.gpu_memory_utilization if "gpu_memory_utilization" in options.given else None
        tried = UTILIZATIONS if asked is None else (asked,)
        total = gpu.total_memory_bytes
        return Card(total, options.safety_margin, sorted((ceil(total * part) for part in tried), reverse=True))


def fits(
    model: ModelSpec, gpus: Iterable[GpuSpec], options: SearchOptions, vllm_version: str, *, max_count: int = 16
) -> tuple[Fit, ...]:
    """For every card with 1 to `max_count` of it in one machine, in order: whether it holds the workload of `options`.

    The workload, and what a layout may be, are those of `planner.search.select.select`; a choice of it without
    rejection is a fit here and the other way round.
    """
    cards = tuple(gpus)
    judged = Fits(judge_of(model, cards, options, vllm_version), options.workload.concurrency or 1)
    return tuple(fit for gpu in cards for fit in judged.of(gpu, max_count))


def _pool_of(gpu: GpuSpec, config: EngineConfig) -> GpuPool:
    return GpuPool(spelling=gpu.name, gpu=gpu, count=config.tensor_parallel_size, nodes=1)


def _scaled(engine: ThinEngine, config: EngineConfig) -> Aside:
    """Another engine's terms as this one's batch, ranks and dtype can at most raise them. What the device holds beyond
    the budget is not raised: a larger batch's peak is in the budget, and is given back before the device is full."""
    aside, other = engine.aside, engine.config
    larger = max(1.0, config.max_num_batched_tokens / other.max_num_batched_tokens)
    larger *= max(1.0, other.tensor_parallel_size / config.tensor_parallel_size)
    larger *= max(1.0, DTYPE_BYTES[config.dtype] / DTYPE_BYTES[other.dtype])
    budget, profile = (ceil(max(0, size) * larger) for size in (aside.budget, aside.profile))
    return Aside(budget, profile, engine.most.device)


def _raised(aside: Aside, guard: Guard) -> Aside:
    budget, profile, device = (
        max(0, size) + guard.room(size) for size in (aside.budget, aside.profile, aside.device or 0)
    )
    return Aside(budget, profile, device)


def _lowered(aside: Aside, guard: Guard) -> Aside:
    """The least budget; profile and device may be anything."""
    return Aside(max(0, aside.budget - guard.room(aside.budget)), 0)
