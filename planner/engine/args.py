"""EngineArgs: the vLLM flags that change memory, as the user gave them; None means vLLM's default."""

from __future__ import annotations

from typing import Literal

from planner.values import Value


class EngineArgs(Value):
    """Names and meanings are vLLM's EngineArgs. JSON-valued flags keep vLLM's JSON as parsed values."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    decode_context_parallel_size: int = 1
    enable_expert_parallel: bool = False
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float | None = None
    dtype: str = "auto"
    quantization: str | None = None
    enforce_eager: bool = False
    block_size: int | None = None
    limit_mm_per_prompt: str | None = None
    mm_processor_kwargs: str | None = None
    mm_encoder_tp_mode: Literal["weights", "data"] = "weights"
    skip_mm_profiling: bool = False
    language_model_only: bool = False
    max_cudagraph_capture_size: int | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    speculative_config: str | None = None
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    max_cpu_loras: int | None = None
    fully_sharded_loras: bool = False
    lora_dtype: str = "auto"
    lora_target_modules: tuple[str, ...] | None = None
    specialize_active_lora: bool = False
    enable_tower_connector_lora: bool = False
    hf_overrides: str | None = None
    trust_remote_code: bool = False
    env: tuple[tuple[str, str], ...] = ()
