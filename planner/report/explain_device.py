"""The cache's blocks, and the device's ledger after startup, figure by figure."""

from __future__ import annotations

from planner.memory.assess import Deployment
from planner.memory.kv_pool import KVGroup
from planner.memory.result import Estimate, PerGpu
from planner.memory.runner_state import runner_buffers, sampler_buffers
from planner.report.explained import Figure, Part, live_part


def cache_figures(deployment: Deployment, stage: int, estimate: Estimate) -> list[Figure]:
    """The bytes of a block, their number, and what they hold at once."""
    cache, per_gpu, config = estimate.kv_cache, estimate.per_gpu, deployment.config
    assert cache is not None
    assert per_gpu is not None
    assert estimate.engine is not None
    pool = deployment.pool.stages[stage]
    parts = tuple(
        Part(
            f"group of {group.num_layers} {group.kind} layers",
            _page(group, config.kv_torch_dtype),
            group.page_size_bytes,
        )
        for group in pool.groups
    )
    length = estimate.engine.max_model_len
    figures = [
        Figure(
            "bytes_per_block",
            cache.bytes_per_block,
            "bytes",
            "page size x layers of the largest group",
            f"{pool.groups[0].page_size_bytes if pool.groups else 0:,} x "
            f"{max((group.num_layers for group in pool.groups), default=0)}",
            "vLLM 0.26.0 v1/core/kv_cache_utils.py:990, v1/kv_cache_interface.py:176",
            parts,
        ),
        Figure(
            "num_gpu_blocks",
            cache.num_gpu_blocks,
            "blocks",
            "floor(available_kv_cache / bytes_per_block), least over the ranks",
            f"floor({per_gpu.available_kv_cache_bytes:,} / {cache.bytes_per_block:,})",
            "vLLM 0.26.0 v1/core/kv_cache_utils.py:990",
        ),
    ]
    if cache.num_gpu_blocks and cache.max_concurrency:
        needed = cache.num_gpu_blocks / cache.max_concurrency
        figures.append(
            Figure(
                "max_concurrency",
                round(cache.max_concurrency, 4),
                "requests",
                "num_gpu_blocks / blocks of one request of max_model_len",
                f"{cache.num_gpu_blocks:,} / {needed:,.0f}",
                "vLLM 0.26.0 v1/core/kv_cache_utils.py:937",
            )
        )
        figures.append(
            Figure(
                "capacity_tokens",
                cache.capacity_tokens,
                "tokens",
                "floor(max_concurrency x max_model_len)",
                f"floor({cache.max_concurrency:.4f} x {length:,})",
                "vLLM 0.26.0 v1/core/kv_cache_utils.py:1819",
            )
        )
    return figures


def _page(group: KVGroup, dtype: str) -> str:
    if not group.num_kv_heads or group.kind == "mamba":
        return "sum of the layer's state tensors, padded to the pool's page"
    heads = f"{group.num_kv_heads} KV heads x head size {group.head_size} (keys and values)"
    return f"block {group.block_size} x {heads}, {dtype}"


def device_figures(deployment: Deployment, stage: int, per_gpu: PerGpu) -> list[Figure]:
    """What the device holds that the engine does not count, and the sum of all that it holds."""
    config, model = deployment.config, deployment.model
    tokens, seqs = config.max_num_batched_tokens, config.max_num_seqs
    last = stage == len(deployment.shares) - 1
    kept = sampler_buffers(model, config, last_stage=last, first_stage=stage == 0)
    buffers = [*runner_buffers(model, config), *kept]
    large = sorted((live_part(tensor, tokens, seqs) for tensor in buffers), key=lambda part: -part.bytes)[:12]
    lines = (
        ("cuda_context_bytes", per_gpu.cuda_context_bytes),
        ("non_torch_bytes", per_gpu.non_torch_bytes),
        ("weights_memory_bytes", per_gpu.weights_memory_bytes),
        ("runner_state_bytes", per_gpu.runner_state_bytes),
        ("kv_cache_allocated_bytes", per_gpu.kv_cache_allocated_bytes),
        ("cuda_graph_actual_bytes", per_gpu.cuda_graph_actual_bytes),
        ("allocator_retained_bytes", per_gpu.allocator_retained_bytes),
    )
    return [
        Figure(
            "runner_state_bytes",
            per_gpu.runner_state_bytes,
            "bytes",
            "buffers of the runner and the sampler, in no term of the engine's formula",
            f"T = {tokens:,}, S = {seqs:,} (max_num_seqs); the largest below",
            "vLLM 0.26.0 v1/worker/gpu/sample/penalties.py:32, states.py, input_batch.py",
            tuple(large),
        ),
        Figure(
            "allocator_retained_bytes",
            per_gpu.allocator_retained_bytes,
            "bytes",
            "reserved after startup beyond weights, runner state and cache",
            "startup replayed on the caching allocator: what warming up the kernels and the sampler leaves cached",
            "vLLM 0.26.0 v1/worker/gpu_worker.py:746, v1/worker/gpu/warmup.py",
        ),
        Figure(
            "used_after_startup_bytes",
            per_gpu.used_after_startup_bytes,
            "bytes",
            "sum of the device's lines",
            " + ".join(f"{value:,}" for _, value in lines),
            "cudaMemGetInfo: total - free",
            tuple(Part(name, "", value) for name, value in lines),
        ),
        Figure(
            "vision_encoder_runtime_peak_bytes",
            per_gpu.vision_encoder_runtime_peak_bytes,
            "bytes",
            "tensors alive in one call of the vision encoder, beside everything above",
            "the largest batch of media that one step can take",
            "the tower's forward; not reserved by the V2 model runner of 0.26.0",
        ),
    ]
