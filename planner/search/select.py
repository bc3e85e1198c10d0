"""Which cards to buy or rent for a workload: every card of a catalog, every count, fits or why not.

Cards share work. Those of one compute capability that vLLM resolves to the same configuration share the replay of the
engine, done at their largest SM count; those whose first layers of each kind are stored alike share the split of the
weights, done at the catalog's largest SM count. A card with fewer SMs needs a little less (workspaces of 4 bytes an SM
and layer, sampler buffers of the V1 runner). Totals, budgets and verdicts are each card's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.errors import UnsupportedError
from planner.hardware.spec import GpuPool, GpuSpec
from planner.memory.allocator import weights_memory_bytes
from planner.memory.assess import Deployment, deploy
from planner.memory.kv_capacity import whole_requests
from planner.memory.runtime import thin
from planner.model.spec import ModelSpec
from planner.search.costs import Costs, size_costs
from planner.search.grid import VERDICTS, evaluate
from planner.search.media import media_of, with_media_limits
from planner.search.roofline import EngineLoad, engine_load
from planner.search.space import SEQUENCES, SearchOptions
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard_stages
from planner.values import Rejected, Rejection

TENSOR_PARALLEL = (1, 2, 4, 8, 16)

_READ_THE_CARDS_MEMORY = ("Gemma4",)
"""Families whose towers choose their batch by the card's memory (planner.memory.multimodal.run_tower)."""

_WHY = {
    "startup_memory": "the CUDA context leaves less than any budget tried",
    "weights": "the weights do not fit the card",
    "kv_cache": "one request of max_model_len does not fit the cache",
    "device_memory": "the device would not keep the safety margin free",
}


@dataclass(frozen=True, slots=True)
class EngineFit:
    """One engine of `tensor_parallel_size` x `pipeline_parallel_size` cards that holds at least one request.

    `requests`: of max_model_len at once. `headroom_bytes`: free on the fullest card, the encoder's peak set aside.
    """

    tensor_parallel_size: int
    pipeline_parallel_size: int
    gpu_memory_utilization: float
    config: EngineConfig
    requests: int
    weights_memory_bytes: int
    headroom_bytes: int
    load: EngineLoad


@dataclass(frozen=True, slots=True)
class Choice:
    """`count` cards in each of `nodes` machines: `engine` times `replicas`, or why there is none."""

    gpu: GpuSpec
    count: int
    nodes: int
    engine: EngineFit | None
    replicas: int
    rejection: Rejection | None

    @property
    def requests(self) -> int:
        return self.engine.requests * self.replicas if self.engine else 0


@dataclass(slots=True)
class _Split:
    """The weights of one layout, split once for all cards that store them alike.

    `small`: the model with two layers of each kind; `probe`: its split.
    """

    small: ModelSpec
    probe: tuple[RankShare, ...]
    deployment: Deployment
    weights_bytes: tuple[int, ...]


@dataclass(slots=True)
class _Judge:
    """Judges engines. Keys are configurations at the largest SM count of their capability."""

    model: ModelSpec
    args: EngineArgs
    options: SearchOptions
    vllm_version: str
    most_sms: dict[tuple[int, int], int]
    splits: dict[tuple[int, int], list[_Split]] = field(default_factory=dict)
    known: dict[EngineConfig, tuple[Deployment, tuple[int, ...]] | Rejection] = field(default_factory=dict)
    costs: dict[EngineConfig, tuple[Costs, EngineLoad]] = field(default_factory=dict)

    def engine(self, gpu: GpuSpec, tp: int, pp: int) -> EngineFit | Rejection:
        args = self.args.model_copy(update={"tensor_parallel_size": tp, "pipeline_parallel_size": pp})
        pool = GpuPool(spelling=f"{gpu.name}:{tp}", gpu=gpu, count=tp, nodes=pp)
        try:
            config = resolve(self.model, gpu, args, self.vllm_version)
            shared = self._shared(config, gpu)
            found = self.known.get(shared)
            if found is None:
                found = self.known[shared] = self._deployed(pool, shared)
        except Rejected as refused:
            return refused.rejection
        except UnsupportedError as unsupported:
            return Rejection(bottleneck="flag", message=f"not supported by this planner: {unsupported}")
        if isinstance(found, Rejection):
            return found
        deployment, weights_bytes = found
        if max(weights_bytes) > gpu.total_memory_bytes:
            have = gpu.total_memory_bytes
            return Rejection(
                bottleneck="weights", message=_WHY["weights"], need_bytes=max(weights_bytes), have_bytes=have
            )
        if shared not in self.costs:
            pair = (config.max_num_seqs, config.max_num_batched_tokens)
            media, confidence = media_of(self.options), self.options.confidence
            costs = size_costs(deployment, args, [pair], media, confidence, weights_bytes)
            self.costs[shared] = costs, engine_load(deployment)
        return self._fit(replace(deployment, gpus=pool), *self.costs[shared])

    def _shared(self, config: EngineConfig, gpu: GpuSpec) -> EngineConfig:
        """The configuration by which cards share work: what is a card's own and touches no ledger is left out."""
        own = self.model.vision is not None and self.model.vision.family in _READ_THE_CARDS_MEMORY
        sms = self.most_sms.get(gpu.compute_capability)
        return config.model_copy(
            update={"sm_count": sms, "warnings": (), "gpu_memory_bytes": config.gpu_memory_bytes if own else 0}
        )

    def _deployed(self, pool: GpuPool, config: EngineConfig) -> tuple[Deployment, tuple[int, ...]] | Rejection:
        try:
            split = self._split(pool, config)
            return deploy(self.model, pool, config, split.deployment), split.weights_bytes
        except Rejected as refused:
            return refused.rejection

    def _split(self, pool: GpuPool, config: EngineConfig) -> _Split:
        config = config.model_copy(update={"sm_count": max(self.most_sms.values(), default=None)})
        splits = self.splits.setdefault((config.tensor_parallel_size, config.pipeline_parallel_size), [])
        probe: tuple[RankShare, ...] = ()
        if splits:
            probe = shard_stages(splits[0].small, config)
            for split in splits:
                if split.probe == probe:
                    return split
        deployment = deploy(self.model, pool, config)
        small = splits[0].small if splits else thin(self.model, deployment.shares[0])[0]
        weights = tuple(weights_memory_bytes(share) for share in deployment.shares)
        splits.append(_Split(small, probe or shard_stages(small, config), deployment, weights))
        return splits[-1]

    def _fit(self, deployment: Deployment, costs: Costs, load: EngineLoad) -> EngineFit | Rejection:
        grid = evaluate(deployment, costs, self.options, 1)
        verdicts = grid.verdicts[0, :, 0]
        if not (verdicts == 0).any():
            reason = VERDICTS[int(np.bincount(verdicts[verdicts > 0]).argmax())]
            assert reason is not None
            return Rejection(bottleneck=reason, message=_WHY[reason])
        best = int(np.argmax(np.where(verdicts == 0, grid.blocks[0], -1)))
        config, blocks = deployment.config, int(grid.blocks[0, best])
        needed = max(
            int(stage.beside_cache[0] + stage.encoder[0]) + blocks * pool.bytes_per_block
            for stage, pool in zip(costs.stages, deployment.pool.stages, strict=True)
        )
        return EngineFit(
            tensor_parallel_size=config.tensor_parallel_size,
            pipeline_parallel_size=config.pipeline_parallel_size,
            gpu_memory_utilization=float(grid.utilizations[best]),
            config=config,
            requests=int(whole_requests(deployment.pool, blocks, config.max_model_len, config.max_num_batched_tokens)),
            weights_memory_bytes=max(int(stage.weights[0]) for stage in costs.stages),
            headroom_bytes=deployment.gpus.gpu.total_memory_bytes - needed,
            load=load,
        )


def select(
    model: ModelSpec,
    gpus: Iterable[GpuSpec],
    options: SearchOptions,
    vllm_version: str,
    *,
    max_count: int = 16,
    nodes: tuple[int, ...] = (1,),
) -> tuple[Choice, ...]:
    """Every card with 1 to `max_count` in each of `nodes` machines, in catalog order.

    A machine's cards serve as many engines as fit side by side (tensor parallelism within the machine). Pipeline
    stages across machines are tried only where no engine fits in one. `options.args.max_model_len` and
    `options.workload.concurrency` are the workload; --max-num-seqs follows from it where it is not given.
    """
    cards = tuple(gpus)
    args, _ = with_media_limits(model, options)
    concurrency = options.workload.concurrency or 1
    if "max_num_seqs" not in options.given:
        enough = next((size for size in SEQUENCES if size >= concurrency), SEQUENCES[-1])
        args = args.model_copy(update={"max_num_seqs": enough})
    given = tuple({*options.given, "max_model_len", "max_num_seqs", "max_num_batched_tokens"})
    options = options.model_copy(update={"args": args, "given": given})
    most_sms: dict[tuple[int, int], int] = {}
    for gpu in cards:
        most_sms[gpu.compute_capability] = max(most_sms.get(gpu.compute_capability, 0), gpu.sm_count or 0)
    judge = _Judge(model, args, options, vllm_version, {key: sms for key, sms in most_sms.items() if sms})
    return tuple(choice for gpu in cards for choice in _choices(judge, gpu, concurrency, max_count, nodes))


def _choices(judge: _Judge, gpu: GpuSpec, concurrency: int, max_count: int, nodes: tuple[int, ...]) -> Iterator[Choice]:
    if gpu.vendor != "nvidia":
        reason = Rejection(bottleneck="attention_backend", message="AMD card: plans are made for NVIDIA cards only")
        yield from (Choice(gpu, count, many, None, 0, reason) for many in nodes for count in range(1, max_count + 1))
        return
    sizes = [tp for tp in TENSOR_PARALLEL if tp <= max_count]
    single = {tp: judge.engine(gpu, tp, 1) for tp in sizes}
    for many in nodes:
        found = single
        if many > 1 and not any(isinstance(engine, EngineFit) for engine in single.values()):
            found = {tp: judge.engine(gpu, tp, many) for tp in sizes}
        for count in range(1, max_count + 1):
            yield _choice(gpu, count, many, {tp: one for tp, one in found.items() if tp <= count}, concurrency)


def _choice(
    gpu: GpuSpec, count: int, nodes: int, engines: dict[int, EngineFit | Rejection], concurrency: int
) -> Choice:
    """The layout of these cards that holds most requests; the smaller tensor parallelism where two hold as many.

    Without one, what speaks against the largest layout that only lacks memory, else against the largest of all.
    """
    best: Choice | None = None
    for tp, engine in engines.items():
        if isinstance(engine, EngineFit):
            replicas = count // tp * (nodes if engine.pipeline_parallel_size == 1 else 1)
            choice = Choice(gpu, count, nodes, engine, replicas, None)
            if best is None or choice.requests > best.requests:
                best = choice
    if best is None:
        reasons = [reason for _, reason in sorted(engines.items()) if isinstance(reason, Rejection)]
        for_memory = [reason for reason in reasons if reason.bottleneck in _WHY]
        return Choice(gpu, count, nodes, None, 0, (for_memory or reasons)[-1])
    if best.requests < concurrency:
        message = f"holds {best.requests} of {concurrency} requests"
        return replace(best, rejection=Rejection(bottleneck="kv_cache", message=message))
    return best
