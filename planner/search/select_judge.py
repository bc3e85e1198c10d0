"""Judges engines of one model on many cards, sharing what cards have in common.

Cards of one compute capability that vLLM resolves to the same configuration share the replay of the engine, done at
their largest SM count; those whose first layers of each kind are stored alike share the split of the weights, done at
the catalog's largest SM count. A card with fewer SMs needs a little less (workspaces of 4 bytes an SM and layer,
sampler buffers of the V1 runner). Totals, budgets and verdicts are each card's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from planner.engine.args import EngineArgs
from planner.engine.batching import batch_tier
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.errors import InputError, UnsupportedError
from planner.hardware.spec import GpuPool, GpuSpec
from planner.memory.assess import Deployment, deploy
from planner.memory.kv_capacity import whole_requests
from planner.memory.runtime import thin
from planner.model.spec import ModelSpec
from planner.releases.choose import release_for
from planner.search.costs import Costs, loaded_bytes, size_costs, traits_of
from planner.search.grid import VERDICTS, Grid, evaluate
from planner.search.media import media_of, with_media_limits
from planner.search.roofline import EngineLoad, engine_load
from planner.search.space import SEQUENCES, SearchOptions
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard_stages
from planner.values import Rejected, Rejection

TENSOR_PARALLEL = (1, 2, 4, 8, 16)

_READ_THE_CARDS_MEMORY = ("Gemma4",)
"""Families whose towers choose their batch by the card's memory (planner.memory.multimodal.run_tower)."""

WHY = {
    "startup_memory": "the CUDA context leaves less than any budget tried",
    "weights": "the weights do not fit the card",
    "kv_cache": "one request of max_model_len does not fit the cache",
    "device_memory": "the device would not keep the safety margin free",
}
"""What speaks against an engine that only lacks memory."""


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


@dataclass(slots=True)
class Split:
    """The weights of one layout, split once for all cards that store them alike.

    `small`: the model with two layers of each kind; `probe`: its split.
    """

    small: ModelSpec
    probe: tuple[RankShare, ...]
    deployment: Deployment
    _weights_bytes: dict[object, tuple[int, ...]] = field(default_factory=dict)

    def weights_bytes(self, config: EngineConfig) -> tuple[int, ...]:
        """Of each stage, as loaded under a configuration that stores them alike."""
        deployment = replace(self.deployment, config=config)
        traits = traits_of(deployment)
        if traits not in self._weights_bytes:
            self._weights_bytes[traits] = loaded_bytes(deployment)
        return self._weights_bytes[traits]


@dataclass(slots=True)
class Judge:
    """Judges engines. Keys are configurations at the largest SM count of their capability."""

    model: ModelSpec
    args: EngineArgs
    options: SearchOptions
    vllm_version: str
    most_sms: dict[tuple[int, int], int]
    configs: dict[tuple[object, ...], EngineConfig] = field(default_factory=dict)
    splits: dict[tuple[int, int], list[Split]] = field(default_factory=dict)
    known: dict[EngineConfig, tuple[Deployment, tuple[int, ...]] | Rejection] = field(default_factory=dict)
    costs: dict[EngineConfig, Costs] = field(default_factory=dict)
    loads: dict[EngineConfig, EngineLoad] = field(default_factory=dict)

    def engine(self, gpu: GpuSpec, tp: int, pp: int) -> EngineFit | Rejection:
        """The engine of `tp` x `pp` of these cards, or why it holds nothing."""
        try:
            config = self.config(gpu, tp, pp)
            shared = self.shared(config, gpu)
            found = self.judged(gpu, shared)
        except Rejected as refused:
            return refused.rejection
        except UnsupportedError as unsupported:
            return Rejection(bottleneck="flag", message=f"not supported by this planner: {unsupported}")
        if isinstance(found, Rejection):
            return found
        if shared not in self.loads:
            self.loads[shared] = engine_load(found.deployment)
        return _fit(found, self.costs[shared], self.loads[shared])

    def config(self, gpu: GpuSpec, tp: int, pp: int) -> EngineConfig:
        """What vLLM resolves the flags to on this card. Raises Rejected and UnsupportedError.

        Cards of one compute capability and class of default batch sizes differ in what they are called and in two
        fields; a configuration whose warnings or calibration name the card is worked out for that card alone.
        """
        tier = batch_tier(gpu, release_for(self.vllm_version).release)
        key = (gpu.compute_capability, tier, tp, pp)
        known = None if gpu.calibrations else self.configs.get(key)
        if known is not None:
            return known.model_copy(update={"sm_count": gpu.sm_count, "gpu_memory_bytes": gpu.total_memory_bytes})
        args = self.args.model_copy(update={"tensor_parallel_size": tp, "pipeline_parallel_size": pp})
        config = resolve(self.model, gpu, args, self.vllm_version)
        if not gpu.calibrations and not any(gpu.device_name in warning for warning in config.warnings):
            self.configs[key] = config
        return config

    def shared(self, config: EngineConfig, gpu: GpuSpec) -> EngineConfig:
        """The configuration by which cards share work: what is a card's own and touches no ledger is left out."""
        own = self.model.vision is not None and self.model.vision.family in _READ_THE_CARDS_MEMORY
        sms = self.most_sms.get(gpu.compute_capability)
        return config.model_copy(
            update={"sm_count": sms, "warnings": (), "gpu_memory_bytes": config.gpu_memory_bytes if own else 0}
        )

    def judged(self, gpu: GpuSpec, shared: EngineConfig) -> Grid | Rejection:
        """The budgets tried for an engine on this card, at least one of which holds, or why none does."""
        tp, pp = shared.tensor_parallel_size, shared.pipeline_parallel_size
        pool = GpuPool(spelling=f"{gpu.name}:{tp}", gpu=gpu, count=tp, nodes=pp)
        found = self.known.get(shared)
        if found is None:
            found = self.known[shared] = self._deployed(pool, shared)
        if isinstance(found, Rejection):
            return found
        deployment, weights_bytes = found
        if max(weights_bytes) > gpu.total_memory_bytes:
            have = gpu.total_memory_bytes
            return Rejection(
                bottleneck="weights", message=WHY["weights"], need_bytes=max(weights_bytes), have_bytes=have
            )
        if shared not in self.costs:
            args = self.args.model_copy(update={"tensor_parallel_size": tp, "pipeline_parallel_size": pp})
            pair = (shared.max_num_seqs, shared.max_num_batched_tokens)
            media, confidence = media_of(self.options), self.options.confidence
            self.costs[shared] = size_costs(deployment, args, [pair], media, confidence, weights_bytes)
        grid = evaluate(replace(deployment, gpus=pool), self.costs[shared], self.options, 1)
        verdicts = grid.verdicts[0, :, 0]
        if (verdicts == 0).any():
            return grid
        reason = VERDICTS[int(np.bincount(verdicts[verdicts > 0]).argmax())]
        assert reason is not None
        return Rejection(bottleneck=reason, message=WHY[reason])

    def split(self, pool: GpuPool, config: EngineConfig) -> Split:
        """The split of this layout's weights, shared by configurations that store them alike."""
        config = self.with_most_sms(config)
        splits = self.splits.setdefault((config.tensor_parallel_size, config.pipeline_parallel_size), [])
        probe: tuple[RankShare, ...] = ()
        if splits:
            probe = shard_stages(splits[0].small, config)
            for split in splits:
                if split.probe == probe:
                    return split
        deployment = deploy(self.model, pool, config)
        small = splits[0].small if splits else thin(self.model, deployment.shares[0])[0]
        splits.append(Split(small, probe or shard_stages(small, config), deployment))
        return splits[-1]

    def with_most_sms(self, config: EngineConfig) -> EngineConfig:
        """The configuration at the catalog's largest SM count."""
        return config.model_copy(update={"sm_count": max(self.most_sms.values(), default=None)})

    def _deployed(self, pool: GpuPool, config: EngineConfig) -> tuple[Deployment, tuple[int, ...]] | Rejection:
        try:
            split = self.split(pool, config)
            return deploy(self.model, pool, config, split.deployment), split.weights_bytes(config)
        except Rejected as refused:
            return refused.rejection


def judge_of(model: ModelSpec, cards: Iterable[GpuSpec], options: SearchOptions, vllm_version: str) -> Judge:
    """The judge of a workload: --max-num-seqs follows from its concurrency where it is not given.

    Raises InputError for --max-model-len auto, under which each card would hold another workload.
    """
    if options.args.max_model_len == -1:
        raise InputError("--max-model-len auto: cards are compared by requests of one length; state it")
    args, _ = with_media_limits(model, options)
    if "max_num_seqs" not in options.given:
        concurrency = options.workload.concurrency or 1
        enough = next((size for size in SEQUENCES if size >= concurrency), SEQUENCES[-1])
        args = args.model_copy(update={"max_num_seqs": enough})
    given = tuple({*options.given, "max_model_len", "max_num_seqs", "max_num_batched_tokens"})
    options = options.model_copy(update={"args": args, "given": given})
    most_sms: dict[tuple[int, int], int] = {}
    for gpu in cards:
        most_sms[gpu.compute_capability] = max(most_sms.get(gpu.compute_capability, 0), gpu.sm_count or 0)
    return Judge(model, args, options, vllm_version, {key: sms for key, sms in most_sms.items() if sms})


def best_budget(grid: Grid) -> tuple[int, int]:
    """Of the budgets that hold, the index of the one with the largest cache, and the requests that it holds."""
    best = int(np.argmax(np.where(grid.verdicts[0, :, 0] == 0, grid.blocks[0], -1)))
    config, blocks = grid.deployment.config, int(grid.blocks[0, best])
    pool = grid.deployment.pool
    return best, int(whole_requests(pool, blocks, config.max_model_len, config.max_num_batched_tokens))


def _fit(grid: Grid, costs: Costs, load: EngineLoad) -> EngineFit:
    best, requests = best_budget(grid)
    deployment, blocks = grid.deployment, int(grid.blocks[0, best])
    needed = max(
        int(stage.beside_cache[0] + stage.encoder[0]) + blocks * pool.bytes_per_block
        for stage, pool in zip(costs.stages, deployment.pool.stages, strict=True)
    )
    return EngineFit(
        tensor_parallel_size=deployment.config.tensor_parallel_size,
        pipeline_parallel_size=deployment.config.pipeline_parallel_size,
        gpu_memory_utilization=float(grid.utilizations[best]),
        config=deployment.config,
        requests=requests,
        weights_memory_bytes=max(int(stage.weights[0]) for stage in costs.stages),
        headroom_bytes=deployment.gpus.gpu.total_memory_bytes - needed,
        load=load,
    )
