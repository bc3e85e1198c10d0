"""From flags to EngineConfig: what vLLM does between its command line and VllmConfig, in vLLM's order of refusals."""

from __future__ import annotations

from planner.engine.adapters import NO_ADAPTERS, resolve_adapters
from planner.engine.architecture import refuse_architecture
from planner.engine.args import EngineArgs
from planner.engine.attention import AttentionChoice, AttentionSettings, choose_attention
from planner.engine.batching import resolve_batch_sizes
from planner.engine.cache_dtype import (
    cache_dtype_warnings,
    cache_tensor_dtype,
    refuse_e5m2,
    resolve_cache_dtype,
    skipped_layers,
)
from planner.engine.calibrated import resolve_calibration
from planner.engine.config import EngineConfig
from planner.engine.graphs import resolve_graphs, runs_eager
from planner.engine.length import AUTO, default_length, resolve_max_model_len
from planner.engine.media import resolve_encoder_mode, resolve_media
from planner.engine.parallel import refuse_parallel, refuse_sizes
from planner.engine.precision import refuse_dtype_of_card, resolve_dtype
from planner.engine.quantization import refuse_quantization, resolve_quantization
from planner.engine.recurrent import resolve_mamba_cache_mode, resolve_prefix_caching, state_dtypes
from planner.engine.runner import max_concurrent_batches, refuse_drafting, resolve_runner
from planner.engine.speculative import resolve_speculation
from planner.errors import InputError, UnsupportedError
from planner.hardware.spec import GpuSpec
from planner.model.spec import ModelSpec
from planner.releases.choose import release_for
from planner.releases.release import Release
from planner.values import DType

_UNMODELLED_VARIABLES = ("VLLM_MLA_DISABLE", "VLLM_BATCH_INVARIANT", "VLLM_USE_BREAKABLE_CUDAGRAPH")


def resolve(model: ModelSpec, gpu: GpuSpec, args: EngineArgs, vllm_version: str) -> EngineConfig:
    """What `vllm serve` ends with for these flags on this card, as far as memory depends on it.

    Raises Rejected where vLLM itself would refuse (before it has touched the weights), InputError for values that are
    none, UnsupportedError for what this planner does not model. Source: vLLM 0.26.0 engine/arg_utils.py:1850
    create_engine_config, config/vllm.py __post_init__, platforms/cuda.py; each module here names its own lines.
    """
    choice = release_for(vllm_version)
    release = choice.release
    refuse_architecture(model.architecture, vllm_version)
    _refuse_values(args)
    media = resolve_media(args, model)
    cache_dtype, per_head_scales = resolve_cache_dtype(args.kv_cache_dtype, model, release)
    dtype, dtype_warnings = resolve_dtype(args.dtype, model, gpu)
    max_model_len, length_warnings = resolve_max_model_len(args, model)
    encoder_mode, encoder_warnings = resolve_encoder_mode(args, model)
    method = resolve_quantization(args.quantization, model.quantization, release)
    refuse_sizes(args)
    speculation = resolve_speculation(args, model)
    length = default_length(model) if max_model_len == AUTO else max_model_len
    sizes = resolve_batch_sizes(args, model, gpu, release, length)
    adapters = resolve_adapters(args, model, release, speculation, sizes) if args.enable_lora else NO_ADAPTERS
    prefix_caching = resolve_prefix_caching(args, model, release)
    mamba_mode = resolve_mamba_cache_mode(
        model, release, prefix_caching=prefix_caching, chunked_prefill=sizes.enable_chunked_prefill
    )
    refuse_parallel(model, args, release)
    refuse_quantization(method, dtype, gpu, model.quantization)
    runner = resolve_runner(args, model, release, speculation)
    refuse_drafting(speculation, release)
    refuse_dtype_of_card(dtype, gpu)
    skip_layers = skipped_layers(cache_dtype, model)
    attention = _attention(model, gpu, args, release, dtype, cache_dtype, per_head_scales, skip_layers)
    refuse_e5m2(cache_dtype, method, model)
    graphs = resolve_graphs(
        args, model, release, speculation,
        max_num_seqs=sizes.max_num_seqs, max_num_batched_tokens=sizes.max_num_batched_tokens,
        capability=gpu.compute_capability, uniform_decode=attention.uniform_decode_graphs, is_v2=runner.name == "v2",
    )  # fmt: skip
    async_scheduling = speculation.allows_async
    conv_dtype, ssm_dtype = state_dtypes(model, dtype)
    notes = (choice.warning,) if choice.warning else ()
    calibrated, calibration_warnings = resolve_calibration(gpu, model.name, vllm_version)
    return EngineConfig(
        vllm_version=release.version,
        model_runner=runner.name,
        model_runner_reason=runner.reason,
        attention_backend=attention.primary,
        attention_backends=attention.backends,
        dtype=dtype,
        quantization=method,
        tensor_parallel_size=args.tensor_parallel_size,
        pipeline_parallel_size=args.pipeline_parallel_size,
        data_parallel_size=args.data_parallel_size,
        decode_context_parallel_size=args.decode_context_parallel_size,
        enable_expert_parallel=args.enable_expert_parallel,
        max_model_len=max_model_len,
        max_num_seqs=sizes.max_num_seqs,
        max_num_batched_tokens=sizes.max_num_batched_tokens,
        enable_chunked_prefill=sizes.enable_chunked_prefill,
        kv_cache_dtype=attention.kv_cache_dtype,
        kv_torch_dtype=cache_tensor_dtype(attention.kv_cache_dtype, dtype),
        kv_cache_dtype_skip_layers=skip_layers,
        block_size=attention.block_size,
        user_block_size=args.block_size is not None,
        gpu_memory_utilization=_utilization(args, release),
        enforce_eager=runs_eager(args, model),
        cudagraph_mode=graphs.mode,
        cudagraph_capture_sizes=graphs.capture_sizes,
        max_concurrent_batches=max_concurrent_batches(
            runner, async_scheduling=async_scheduling, pipeline_parallel_size=args.pipeline_parallel_size
        ),
        async_scheduling=async_scheduling,
        enable_prefix_caching=prefix_caching,
        mamba_cache_mode=mamba_mode,
        conv_state_dtype=conv_dtype,
        ssm_state_dtype=ssm_dtype,
        num_speculative_tokens=speculation.num_speculative_tokens,
        speculative_method=speculation.method,
        mm_limits=media.limits,
        mm_limit_options=media.options,
        mm_processor_kwargs=args.mm_processor_kwargs,
        mm_encoder_tp_mode=encoder_mode,
        skip_mm_profiling=args.skip_mm_profiling,
        language_model_only=args.language_model_only,
        kv_cache_memory_bytes=args.kv_cache_memory_bytes,
        num_gpu_blocks_override=args.num_gpu_blocks_override,
        enable_lora=args.enable_lora,
        max_loras=args.max_loras,
        max_lora_rank=args.max_lora_rank,
        fully_sharded_loras=args.fully_sharded_loras,
        lora_dtype=adapters.dtype,
        lora_target_modules=args.lora_target_modules,
        lora_capture_cases=adapters.capture_cases,
        compute_capability=gpu.compute_capability,
        sm_count=gpu.sm_count,
        gpu_memory_bytes=gpu.total_memory_bytes,
        env=args.env,
        warnings=(*notes, *dtype_warnings, *length_warnings, *encoder_warnings, *sizes.warnings, *attention.warnings,
                  *adapters.warnings, *cache_dtype_warnings(args.kv_cache_dtype, model, release),
                  *calibration_warnings),
        calibrated=calibrated,
    )  # fmt: skip


def _refuse_values(args: EngineArgs) -> None:
    """Values out of their range, and environment variables whose effect is not modelled."""
    if args.gpu_memory_utilization is not None and not 0 < args.gpu_memory_utilization <= 1:
        raise InputError(f"--gpu-memory-utilization must be above 0 and at most 1, found {args.gpu_memory_utilization}")
    if args.block_size is not None and args.block_size < 1:
        raise InputError(f"--block-size must be at least 1, found {args.block_size}")
    for name, value in args.env:
        if name in _UNMODELLED_VARIABLES and value not in ("", "0"):
            raise UnsupportedError(name, f"--env {name}={value} is not supported by this planner")


def _attention(
    model: ModelSpec, gpu: GpuSpec, args: EngineArgs, release: Release, dtype: DType, cache_dtype: str,
    per_head_scales: bool, skip_layers: tuple[int, ...],
) -> AttentionChoice:  # fmt: skip
    settings = AttentionSettings(
        dtype=dtype,
        kv_cache_dtype=cache_dtype,
        block_size=args.block_size,
        default_block_size=release.default_block_size,
        tensor_parallel_size=args.tensor_parallel_size,
        decode_context_parallel_size=args.decode_context_parallel_size,
        per_head_scales=per_head_scales,
        skip_layers=skip_layers,
    )
    return choose_attention(model, gpu, settings)


def _utilization(args: EngineArgs, release: Release) -> float:
    return (
        release.default_gpu_memory_utilization if args.gpu_memory_utilization is None else args.gpu_memory_utilization
    )
