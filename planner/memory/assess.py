"""One set of flags on one kind of card -> the estimate, with everything that it was computed from."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from msgspec.structs import replace

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.hardware.spec import GpuPool
from planner.memory.books import available_spread, book, cache_summary, engine_summary
from planner.memory.device import Boot
from planner.memory.intervals import Confidence
from planner.memory.kv_capacity import auto_max_model_len, check_fits, num_blocks
from planner.memory.kv_pool import KVPool, build_pool
from planner.memory.multimodal.workload import MediaWorkload
from planner.memory.result import Estimate
from planner.memory.runtime import RuntimeTerms, retained_bytes, runtime_terms
from planner.memory.verdicts import (
    device_rejection,
    encoder_warning,
    slack_warning,
    stage_warning,
    startup_rejection,
    used_bytes,
)
from planner.model.spec import ModelSpec
from planner.sharding.rank import RankShare
from planner.sharding.shard import kv_layers, shard_stages
from planner.values import Rejected, Rejection, reject


@dataclass(frozen=True, slots=True)
class Deployment:
    """What does not change with lengths, batch sizes and utilization: the shares of the stages and their pool."""

    model: ModelSpec
    gpus: GpuPool
    config: EngineConfig
    shares: tuple[RankShare, ...]
    pool: KVPool


@dataclass(frozen=True, slots=True)
class Assessment:
    """An estimate and its evidence. What vLLM's refusal came before is None. `terms` and `retained_bytes` (what the
    allocator holds beyond weights, state and cache) are of each stage."""

    estimate: Estimate
    config: EngineConfig | None = None
    deployment: Deployment | None = None
    terms: tuple[RuntimeTerms, ...] = ()
    retained_bytes: tuple[int, ...] = ()


def assess(
    model: ModelSpec,
    gpus: GpuPool,
    args: EngineArgs,
    vllm_version: str,
    workload: MediaWorkload | None = None,
    confidence: Confidence = "safe",
) -> Assessment:
    """Follow vLLM from flags to the running engine, and say where it would stop.

    `workload`: the media of concurrent requests; None counts the worst that limits and budget allow.
    Raises InputError and UnsupportedError for what is no answer; a refusal of vLLM's is an answer.
    """
    try:
        config = resolve(model, gpus.gpu, args, vllm_version)
        deployment = deploy(model, gpus, config)
    except Rejected as refused:
        return Assessment(refused_estimate(model.name, gpus, vllm_version, refused.rejection))
    return assess_deployment(deployment, workload, confidence)


def deploy(model: ModelSpec, gpus: GpuPool, config: EngineConfig, like: Deployment | None = None) -> Deployment:
    """Split the model and form its pool. Raises Rejected where vLLM refuses the split.

    `like`: a deployment of the same model that differs at most in cache dtype, lengths and batch sizes; its weights
    are taken over instead of being split again.
    """
    if config.world_size > gpus.world_size:
        raise reject(
            "parallelism",
            f"World size ({config.world_size}) is larger than the number of available GPUs ({gpus.world_size}).",
        )
    if like is None:
        shares = shard_stages(model, config)
    else:
        shares = tuple(replace(share, kv_layers=kv_layers(model, config, share.pp_rank)) for share in like.shares)
    pool = build_pool([share.kv_layers for share in shares], config)
    return Deployment(model=model, gpus=gpus, config=config, shares=shares, pool=pool)


def assess_deployment(
    deployment: Deployment, workload: MediaWorkload | None = None, confidence: Confidence = "safe"
) -> Assessment:
    """The books of every stage under the deployment's own configuration, then vLLM's checks in its order.

    Bytes are expected values. `confidence` "safe" asks that the verdict holds at the unfavourable ends of their
    intervals too.
    """
    model, asked, shares, pool = deployment.model, deployment.config, deployment.shares, deployment.pool
    config, total = asked, deployment.gpus.gpu.total_memory_bytes
    boots = tuple(Boot(model, share, config) for share in shares)
    terms = tuple(runtime_terms(boot, workload) for boot in boots)
    requested = requested_memory_bytes(total, config.gpu_memory_utilization)
    available = tuple(available_kv_cache_bytes(requested, term, config) for term in terms)
    rejection: Rejection | None = None
    blocks = 0
    try:
        rejection = startup_rejection(terms, total, config.gpu_memory_utilization, requested, confidence)
        if rejection is None:
            fitted = _with_length(deployment, available)
            rejection = check_fits(pool, available, fitted)
            if rejection is None and confidence == "safe" and config.max_model_len != -1:
                rejection = check_fits(pool, _least(available, terms, config), fitted)
            config = fitted
    except Rejected as refused:
        rejection = refused.rejection
    if (min(available) > 0 or pool.num_gpu_blocks_override is not None) and config.max_model_len > 0:
        blocks = num_blocks(pool, available)
    fullest = min(range(len(terms)), key=lambda stage: (available[stage], -terms[stage].weights_memory_bytes))
    retained = [
        retained_bytes(boot, pool, stage, blocks) if blocks else 0
        for boot, stage in zip(boots, pool.stages, strict=True)
    ]
    books = [
        book(
            term, asked, shares[stage].parameter_bytes, total, requested, available[stage],
            blocks * pool.stages[stage].bytes_per_block, retained[stage],
        )
        for stage, term in enumerate(terms)
    ]  # fmt: skip
    per_gpu = books[fullest]
    crowded = max(range(len(books)), key=lambda stage: used_bytes(books[stage], confidence))
    used = used_bytes(books[crowded], confidence)
    if rejection is None and used > total:
        rejection = device_rejection(books[crowded], used)
    estimate = Estimate(
        model=model.name,
        gpus=deployment.gpus.spelling,
        vllm_version=config.vllm_version,
        verdict="starts" if rejection is None else "rejected",
        rejection=rejection,
        engine=engine_summary(config, pool),
        per_gpu=per_gpu,
        kv_cache=cache_summary(pool, fullest, blocks, config),
        warnings=(
            *config.warnings,
            *model.notes,
            *(slack_warning(model, shares[crowded], asked, books[crowded], workload) if rejection is None else ()),
            *stage_warning(books, fullest, crowded),
            *encoder_warning(model, shares[0], asked, workload),
        ),
    )
    return Assessment(estimate, config, deployment, terms, tuple(retained))


def requested_memory_bytes(total_memory_bytes: int, gpu_memory_utilization: float) -> int:
    """Source: vLLM 0.26.0 v1/worker/utils.py:425 request_memory."""
    return ceil(total_memory_bytes * gpu_memory_utilization)


def available_kv_cache_bytes(requested_bytes: int, terms: RuntimeTerms, config: EngineConfig) -> int:
    """What the engine leaves for the cache, or --kv-cache-memory-bytes as given.

    Source: vLLM 0.26.0 v1/worker/gpu_worker.py:448 determine_available_memory.
    """
    if config.kv_cache_memory_bytes is not None:
        return config.kv_cache_memory_bytes
    return requested_bytes - terms.non_kv_bytes


def _with_length(deployment: Deployment, available: tuple[int, ...]) -> EngineConfig:
    config = deployment.config
    if config.max_model_len != -1:
        return config
    full = config.model_copy(update={"max_model_len": deployment.model.derived_max_model_len})
    return full.model_copy(update={"max_model_len": auto_max_model_len(deployment.pool, available, full)})


def _least(available: tuple[int, ...], terms: tuple[RuntimeTerms, ...], config: EngineConfig) -> tuple[int, ...]:
    """The cache of each stage at the unfavourable end of its interval."""
    return tuple(size - int(available_spread(config, term).down) for size, term in zip(available, terms, strict=True))


def refused_estimate(model: str, gpus: GpuPool, vllm_version: str, rejection: Rejection) -> Estimate:
    """The answer where vLLM refuses before it touches the weights."""
    return Estimate(
        model=model, gpus=gpus.spelling, vllm_version=vllm_version, verdict="rejected", rejection=rejection,
        engine=None, per_gpu=None, kv_cache=None,
    )  # fmt: skip
