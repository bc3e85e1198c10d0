"""The figures of an assessed deployment, entered into an estimate's records."""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.memory.intervals import Spread
from planner.memory.kv_capacity import capacity_tokens, max_concurrency, usable_tokens
from planner.memory.kv_pool import KVPool
from planner.memory.result import EngineSummary, GroupSummary, KVCacheSummary, PerGpu
from planner.memory.runtime import RuntimeTerms


def available_spread(config: EngineConfig, term: RuntimeTerms) -> Spread:
    """What the engine leaves for the cache is off by what it subtracts, the other way round."""
    if config.kv_cache_memory_bytes is not None:
        return Spread()
    return Spread(term.spreads.engine.up, term.spreads.engine.down)


def book(
    term: RuntimeTerms, config: EngineConfig, parameter_bytes: int, total: int, requested: int, available: int,
    cache: int, retained: int,
) -> PerGpu:  # fmt: skip
    """One GPU's two ledgers. All in bytes; `total` and `requested` of the card, `available` for the cache and `cache`
    taken by whole blocks, `retained` by the allocator."""
    used = term.device_bytes_beside_cache + cache + retained
    return PerGpu(
        total_memory_bytes=total,
        requested_memory_bytes=requested,
        parameter_bytes=parameter_bytes,
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
        available_kv_cache_bytes_interval=available_spread(config, term).around(available),
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


def engine_summary(config: EngineConfig, pool: KVPool) -> EngineSummary:
    """The flags as the engine resolves them."""
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


def cache_summary(pool: KVPool, stage: int, blocks: int, config: EngineConfig) -> KVCacheSummary:
    """The cache of `blocks` blocks, with the groups of one stage."""
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
