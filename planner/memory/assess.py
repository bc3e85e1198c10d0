"""One set of flags on one kind of card -> the estimate, with everything that it was computed from."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from msgspec.structs import replace

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.hardware.spec import GpuPool
from planner.memory.device import Boot
from planner.memory.intervals import CERTAIN, Confidence, Spread
from planner.memory.kv_capacity import (
    auto_max_model_len,
    capacity_tokens,
    check_fits,
    max_concurrency,
    num_blocks,
    usable_tokens,
)
from planner.memory.kv_pool import KVPool, build_pool
from planner.memory.multimodal.recommend import limits_sentence
from planner.memory.multimodal.workload import MediaWorkload
from planner.memory.result import EngineSummary, Estimate, GroupSummary, KVCacheSummary, PerGpu
from planner.memory.runtime import RuntimeTerms, encoder_peak, retained_bytes, runtime_terms
from planner.model.spec import ModelSpec
from planner.sharding.rank import RankShare
from planner.sharding.shard import kv_layers, shard_stages
from planner.units import format_gib
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
    """An estimate and its evidence. What vLLM's refusal came before is None."""

    estimate: Estimate
    config: EngineConfig | None = None
    deployment: Deployment | None = None
    terms: tuple[RuntimeTerms, ...] = ()


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
    config, gpu, pool = deployment.config, deployment.gpus.gpu, deployment.pool
    boots = tuple(Boot(deployment.model, share, config) for share in deployment.shares)
    terms = tuple(runtime_terms(boot, workload) for boot in boots)
    requested = requested_memory_bytes(gpu.total_memory_bytes, config.gpu_memory_utilization)
    available = tuple(available_kv_cache_bytes(requested, term, config) for term in terms)
    rejection: Rejection | None = None
    blocks = 0
    try:
        rejection = _startup_rejection(deployment, terms, requested, confidence)
        if rejection is None:
            fitted = _with_length(deployment, available)
            rejection = check_fits(pool, available, fitted)
            if rejection is None and confidence == "safe" and config.max_model_len != -1:
                rejection = check_fits(pool, _least(available, terms, config), fitted)
            config = fitted
    except Rejected as refused:
        rejection = refused.rejection
    if min(available) > 0 and config.max_model_len > 0:
        blocks = num_blocks(pool, available)
    fullest = min(range(len(terms)), key=lambda stage: (available[stage], -terms[stage].weights_memory_bytes))
    retained = [
        retained_bytes(boot, pool, stage, blocks) if blocks else 0
        for boot, stage in zip(boots, pool.stages, strict=True)
    ]
    books = [
        _per_gpu(deployment, term, stage, requested, available[stage], blocks, retained[stage])
        for stage, term in enumerate(terms)
    ]
    per_gpu = books[fullest]
    crowded = max(range(len(books)), key=lambda stage: _used(books[stage], confidence))
    used = _used(books[crowded], confidence)
    if rejection is None and used > gpu.total_memory_bytes:
        rejection = _device_rejection(books[crowded], used)
    estimate = Estimate(
        model=deployment.model.name,
        gpus=deployment.gpus.spelling,
        vllm_version=config.vllm_version,
        verdict="starts" if rejection is None else "rejected",
        rejection=rejection,
        engine=_engine(config, pool),
        per_gpu=per_gpu,
        kv_cache=_cache(pool, fullest, blocks, config),
        warnings=(
            *config.warnings,
            *deployment.model.notes,
            *_slack_warning(deployment, crowded, books[crowded], rejection, workload),
            *_stage_warning(books, fullest, crowded),
            *_encoder_warning(deployment, workload),
        ),
    )
    return Assessment(estimate, config, deployment, terms)


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


def _available_spread(config: EngineConfig, term: RuntimeTerms) -> Spread:
    """What the engine leaves for the cache is off by what it subtracts, the other way round."""
    if config.kv_cache_memory_bytes is not None:
        return Spread()
    return Spread(term.spreads.engine.up, term.spreads.engine.down)


def _with_length(deployment: Deployment, available: tuple[int, ...]) -> EngineConfig:
    config = deployment.config
    if config.max_model_len != -1:
        return config
    full = config.model_copy(update={"max_model_len": deployment.model.derived_max_model_len})
    return full.model_copy(update={"max_model_len": auto_max_model_len(deployment.pool, available, full)})


def _startup_rejection(
    deployment: Deployment, terms: tuple[RuntimeTerms, ...], requested: int, confidence: Confidence
) -> Rejection | None:
    """Free memory below the request at startup, then the weights and the profile run against the card itself."""
    total = deployment.gpus.gpu.total_memory_bytes
    utilization = deployment.config.gpu_memory_utilization
    for term in terms:
        spread = term.spreads if confidence == "safe" else CERTAIN
        free = total - term.cuda_context_bytes - spread.context.up
        profile = term.profile_peak_bytes + spread.profile.up
        if free < requested:
            return Rejection(
                bottleneck="startup_memory",
                message=(
                    f"Free memory on device cuda:0 ({_gib(free)}/{_gib(total)} GiB) on startup is less than desired "
                    f"GPU memory utilization ({utilization:g}, {_gib(requested)} GiB). Decrease GPU memory utilization "
                    "or reduce GPU memory used by other processes."
                ),
                need_bytes=requested,
                have_bytes=free,
                fix=(f"--gpu-memory-utilization {int(free / total * 1000) / 1000:g}",),
            )
        if term.weights_memory_bytes > free:
            return Rejection(
                bottleneck="weights",
                message=(
                    "Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization to free "
                    "memory for weights, increasing --tensor-parallel-size, or using --quantization."
                ),
                need_bytes=term.weights_memory_bytes,
                have_bytes=free,
                fix=("a larger --tensor-parallel-size", "a quantized checkpoint"),
            )
        if profile > total:
            return Rejection(
                bottleneck="device_memory",
                message=(
                    "CUDA out of memory while profiling: weights, runner state and peak activation exceed the card."
                ),
                need_bytes=profile,
                have_bytes=total,
                fix=("a smaller --max-num-batched-tokens", "a smaller --max-num-seqs"),
            )
    return None


def _least(available: tuple[int, ...], terms: tuple[RuntimeTerms, ...], config: EngineConfig) -> tuple[int, ...]:
    """The cache of each stage at the unfavourable end of its interval."""
    return tuple(size - int(_available_spread(config, term).down) for size, term in zip(available, terms, strict=True))


def _used(per_gpu: PerGpu, confidence: Confidence) -> int:
    """What startup needs of the device: the expected use, or more where the unfavourable end needs more even after
    PyTorch has given its cached blocks back, as it does before it runs out of memory."""
    interval = per_gpu.used_after_startup_bytes_interval
    if confidence == "expected" or interval is None:
        return per_gpu.used_after_startup_bytes
    return max(per_gpu.used_after_startup_bytes, interval[1] - per_gpu.allocator_retained_bytes)


def _device_rejection(per_gpu: PerGpu, used: int) -> Rejection:
    over = used - per_gpu.total_memory_bytes
    share = (per_gpu.requested_memory_bytes - over) / per_gpu.total_memory_bytes
    return Rejection(
        bottleneck="device_memory",
        message=(
            f"CUDA out of memory during startup: the engine's budget holds, but the device would need "
            f"{format_gib(used)} of {format_gib(per_gpu.total_memory_bytes)}."
        ),
        need_bytes=used,
        have_bytes=per_gpu.total_memory_bytes,
        fix=(f"--gpu-memory-utilization {int(share * 1000) / 1000:g}", "a smaller --max-num-seqs"),
    )


def _slack_warning(
    deployment: Deployment, stage: int, per_gpu: PerGpu, rejection: Rejection | None, workload: MediaWorkload | None
) -> tuple[str, ...]:
    need = per_gpu.used_after_startup_bytes + per_gpu.vision_encoder_runtime_peak_bytes
    if rejection is not None or need <= per_gpu.total_memory_bytes:
        return ()
    advice = limits_sentence(deployment.model, deployment.shares[stage], deployment.config, workload)
    return (
        f"starts, but a full media batch needs {format_gib(per_gpu.vision_encoder_runtime_peak_bytes)} for the vision "
        f"encoder and only {format_gib(per_gpu.total_memory_bytes - per_gpu.used_after_startup_bytes)} is left on the "
        "device; lower "
        "--gpu-memory-utilization, --limit-mm-per-prompt or max_pixels",
        *((advice,) if advice else ()),
    )


def _stage_warning(books: list[PerGpu], fullest: int, crowded: int) -> tuple[str, ...]:
    """The cache is bounded by one pipeline stage, the device by another: the last one samples."""
    more = books[crowded].used_after_startup_bytes - books[fullest].used_after_startup_bytes
    if more <= 0:
        return ()
    return (
        f"the ledger is that of pipeline stage {fullest}, which bounds the cache; the GPUs of stage {crowded} use "
        f"{format_gib(more)} more after startup",
    )


def _encoder_warning(deployment: Deployment, workload: MediaWorkload | None) -> tuple[str, ...]:
    if deployment.model.vision is None:
        return ()
    reason = encoder_peak(deployment.model, deployment.shares[0], deployment.config, workload)[1]
    return () if reason is None else (reason,)


def _per_gpu(
    deployment: Deployment, term: RuntimeTerms, stage: int, requested: int, available: int, blocks: int, retained: int
) -> PerGpu:
    cache = blocks * deployment.pool.stages[stage].bytes_per_block
    used = term.device_bytes_beside_cache + cache + retained
    return PerGpu(
        total_memory_bytes=deployment.gpus.gpu.total_memory_bytes,
        requested_memory_bytes=requested,
        parameter_bytes=deployment.shares[stage].parameter_bytes,
        weights_memory_bytes=term.weights_memory_bytes,
        weights_memory_bytes_interval=term.spreads.weights.around(term.weights_memory_bytes),
        peak_activation_bytes=term.peak_activation_bytes,
        peak_activation_bytes_interval=term.spreads.peak.around(term.peak_activation_bytes),
        non_torch_bytes=term.non_torch_bytes,
        non_torch_bytes_interval=term.spreads.non_torch.around(term.non_torch_bytes),
        cuda_graph_estimate_bytes=term.cuda_graph_estimate_bytes,
        cuda_graph_estimate_bytes_interval=term.spreads.graph_estimate.around(term.cuda_graph_estimate_bytes),
        also_counted_bytes=term.also_counted_bytes,
        available_kv_cache_bytes=available,
        available_kv_cache_bytes_interval=_available_spread(deployment.config, term).around(available),
        runner_state_bytes=term.runner_state_bytes,
        kv_cache_allocated_bytes=cache,
        cuda_graph_actual_bytes=term.cuda_graph_actual_bytes,
        cuda_graph_actual_bytes_interval=term.spreads.graph_actual.around(term.cuda_graph_actual_bytes),
        cuda_context_bytes=term.cuda_context_bytes,
        cuda_context_bytes_interval=term.spreads.context.around(term.cuda_context_bytes),
        allocator_retained_bytes=retained,
        used_after_startup_bytes=used,
        used_after_startup_bytes_interval=term.spreads.device.around(used),
        vision_encoder_runtime_peak_bytes=term.encoder_runtime_peak_bytes,
    )


def _engine(config: EngineConfig, pool: KVPool) -> EngineSummary:
    return EngineSummary(
        model_runner=config.model_runner,
        attention_backend=config.attention_backend,
        dtype=config.dtype,
        quantization=config.quantization,
        tensor_parallel_size=config.tensor_parallel_size,
        pipeline_parallel_size=config.pipeline_parallel_size,
        data_parallel_size=config.data_parallel_size,
        enable_expert_parallel=config.enable_expert_parallel,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        kv_cache_dtype=config.kv_cache_dtype,
        block_size=pool.block_size,
        gpu_memory_utilization=config.gpu_memory_utilization,
        enforce_eager=config.enforce_eager,
        cudagraph_capture_sizes=config.cudagraph_capture_sizes,
    )


def _cache(pool: KVPool, stage: int, blocks: int, config: EngineConfig) -> KVCacheSummary:
    length, batched = max(config.max_model_len, 1), config.max_num_batched_tokens
    return KVCacheSummary(
        bytes_per_block=pool.stages[stage].bytes_per_block,
        bytes_per_token=pool.bytes_per_token,
        num_gpu_blocks=blocks,
        capacity_tokens=capacity_tokens(pool, blocks, length, batched) if blocks else 0,
        max_concurrency=float(max_concurrency(pool, blocks, length, batched)) if blocks else 0.0,
        usable_tokens=usable_tokens(pool, blocks, length, batched) if blocks else 0,
        groups=tuple(
            GroupSummary(
                kind=group.kind,
                num_layers=group.num_layers,
                num_kv_heads=group.num_kv_heads,
                head_size=group.head_size,
                block_size=group.block_size,
                page_size_bytes=group.page_size_bytes,
            )
            for group in pool.stages[stage].groups
        ),
    )


def refused_estimate(model: str, gpus: GpuPool, vllm_version: str, rejection: Rejection) -> Estimate:
    """The answer where vLLM refuses before it touches the weights."""
    return Estimate(
        model=model, gpus=gpus.spelling, vllm_version=vllm_version, verdict="rejected", rejection=rejection,
        engine=None, per_gpu=None, kv_cache=None,
    )  # fmt: skip


def _gib(size_bytes: int) -> str:
    return format_gib(size_bytes).removesuffix(" GiB")
