"""Estimate: the answer for one set of flags, in the names and units of the JSON contract (`vplan.estimate/1`)."""

from __future__ import annotations

from typing import Literal

import msgspec

from planner.values import Rejection, Value

Interval = tuple[int, int]


class EngineSummary(Value):
    """The flags as vLLM resolves them."""

    model_runner: str
    attention_backend: str
    dtype: str
    quantization: str | None
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    enable_expert_parallel: bool
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_dtype: str
    block_size: int
    gpu_memory_utilization: float
    enforce_eager: bool
    cudagraph_capture_sizes: tuple[int, ...]


class PerGpu(Value):
    """Both ledgers of the rank with least room, in bytes.

    The engine's: total_memory to available_kv_cache. `also_counted_bytes` belongs to it where the release counts more
    than weights, peak, non-torch and graphs: the runner's state, before 0.9.2 the CUDA context too.

    The device's: weights_memory + runner_state + kv_cache_allocated + non_torch + cuda_graph_actual + cuda_context +
    allocator_retained = used_after_startup.
    """

    total_memory_bytes: int
    requested_memory_bytes: int
    parameter_bytes: int
    weights_memory_bytes: int
    weights_memory_bytes_interval: Interval | None = None
    peak_activation_bytes: int
    peak_activation_bytes_interval: Interval | None = None
    non_torch_bytes: int
    non_torch_bytes_interval: Interval | None = None
    cuda_graph_estimate_bytes: int
    cuda_graph_estimate_bytes_interval: Interval | None = None
    also_counted_bytes: int = 0
    available_kv_cache_bytes: int
    available_kv_cache_bytes_interval: Interval | None = None
    runner_state_bytes: int
    kv_cache_allocated_bytes: int
    cuda_graph_actual_bytes: int
    cuda_graph_actual_bytes_interval: Interval | None = None
    cuda_context_bytes: int
    cuda_context_bytes_interval: Interval | None = None
    allocator_retained_bytes: int
    used_after_startup_bytes: int
    used_after_startup_bytes_interval: Interval | None = None
    vision_encoder_runtime_peak_bytes: int
    vision_encoder_runtime_peak_bytes_interval: Interval | None = None


class GroupSummary(Value):
    """One group of layers that share a block table."""

    kind: str
    num_layers: int
    num_kv_heads: int
    head_size: int
    block_size: int
    page_size_bytes: int


class KVCacheSummary(Value):
    """The cache as vLLM reports it. `usable_tokens`: tokens held when full of requests of max_model_len, which for
    models with windows or recurrent states is the capacity that `capacity_tokens` is not."""

    bytes_per_block: int
    bytes_per_token: int
    num_gpu_blocks: int
    capacity_tokens: int
    max_concurrency: float
    usable_tokens: int
    groups: tuple[GroupSummary, ...]


class Estimate(Value):
    """What vLLM will do with exactly these flags on these GPUs."""

    schema: Literal["vplan.estimate/1"] = "vplan.estimate/1"
    model: str
    gpus: str
    vllm_version: str
    verdict: Literal["starts", "rejected"]
    rejection: Rejection | None
    engine: EngineSummary | None
    per_gpu: PerGpu | None
    kv_cache: KVCacheSummary | None
    warnings: tuple[str, ...] = ()

    @property
    def starts(self) -> bool:
        return self.verdict == "starts"

    def to_json(self) -> str:
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode()
