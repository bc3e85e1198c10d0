"""EngineConfig: the flags after vLLM has filled in its defaults for this model on this card."""

from __future__ import annotations

from typing import Literal

from planner.values import DType, Value


class EngineConfig(Value):
    """What VllmConfig holds after resolution, as far as memory depends on it. One candidate of a search.

    `kv_cache_dtype` is the flag after checkpoint defaults ("auto" stays "auto"); `kv_torch_dtype` the dtype of the
    cache tensors. `block_size` is the attention block size before hybrid enlargement (planner.memory.kv_blocks does
    that). `max_concurrent_batches`: 1 without asynchronous scheduling and pipeline parallelism, else as
    vllm/config/vllm.py max_concurrent_batches. `mm_limits`: items per prompt by modality, only those the model has.
    `quantization` is the method vLLM ends with (None: unquantized).
    `attention_backend` is that of the first attention layer, which decides the block size; `attention_backends` all
    in use. `kv_cache_dtype_skip_layers`: decoder layers whose cache keeps the model's dtype. `mm_limit_options`: the
    widths, heights and frames given with --limit-mm-per-prompt, as (modality, option, value).
    `gpu_memory_bytes`: the card's total, which some towers read. `lora_dtype` None: the model's.
    `lora_capture_cases`: how often each CUDA graph is captured, once without adapters and once or more with them.
    """

    vllm_version: str
    model_runner: Literal["v1", "v2"]
    model_runner_reason: str
    attention_backend: str
    dtype: DType
    quantization: str | None
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    decode_context_parallel_size: int
    enable_expert_parallel: bool
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_dtype: str
    kv_torch_dtype: DType
    block_size: int
    user_block_size: bool
    gpu_memory_utilization: float
    enforce_eager: bool
    cudagraph_mode: str
    cudagraph_capture_sizes: tuple[int, ...]
    max_concurrent_batches: int
    async_scheduling: bool
    enable_prefix_caching: bool
    mamba_cache_mode: Literal["none", "all", "align"]
    num_speculative_tokens: int
    speculative_method: str | None
    mm_limits: tuple[tuple[str, int], ...]
    mm_processor_kwargs: str | None
    mm_encoder_tp_mode: Literal["weights", "data"]
    skip_mm_profiling: bool
    language_model_only: bool
    kv_cache_memory_bytes: int | None
    num_gpu_blocks_override: int | None
    enable_lora: bool
    max_loras: int
    max_lora_rank: int
    compute_capability: tuple[int, int]
    sm_count: int | None
    env: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    attention_backends: tuple[str, ...] = ()
    kv_cache_dtype_skip_layers: tuple[int, ...] = ()
    conv_state_dtype: DType = "bfloat16"
    ssm_state_dtype: DType = "bfloat16"
    mm_limit_options: tuple[tuple[str, str, int], ...] = ()
    enable_chunked_prefill: bool = True
    gpu_memory_bytes: int = 0
    fully_sharded_loras: bool = False
    lora_dtype: DType | None = None
    lora_target_modules: tuple[str, ...] | None = None
    lora_capture_cases: int = 1
    calibrated: tuple[tuple[str, int], ...] = ()

    @property
    def world_size(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    def calibrated_bytes(self, term: str) -> int:
        """What this machine's own logs add to a term."""
        return dict(self.calibrated).get(term, 0)

    def environment(self, name: str, default: str) -> str:
        return dict(self.env).get(name, default)
