"""What vLLM prints at startup, release by release, as data: the figures of a log and the sentences of a refusal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from planner.errors import UnsupportedError

Unit = Literal["gib", "bytes", "count", "ratio", "text"]
Pick = Literal["first", "last", "smallest", "largest"]


@dataclass(frozen=True, slots=True)
class LogPattern:
    """One figure of a startup log.

    `needed`: a log of an engine that started has it, so a log without it is not what this table describes. `pick`:
    which of several lines counts (each rank prints its own).
    """

    field: str
    expression: re.Pattern[str]
    unit: Unit
    needed: bool = False
    pick: Pick = "last"


def _pattern(field: str, expression: str, unit: Unit, *, needed: bool = False, pick: Pick = "last") -> LogPattern:
    return LogPattern(field, re.compile(expression), unit, needed, pick)


_GIB = r"(-?[0-9.]+) ?GiB"
_V1_ENGINE = (
    _pattern("vllm_version", r"Initializing a V1 LLM engine \(v([0-9][^)]*)\)", "text"),
    _pattern("model", r"Initializing a V1 LLM engine .*?with config: model='([^']*)'", "text"),
    _pattern("dtype", r"Initializing a V1 LLM engine .*?dtype=torch\.([a-z0-9]+)", "text"),
    _pattern("max_model_len", r"Initializing a V1 LLM engine .*?max_seq_len=([0-9]+)", "count"),
    _pattern("tensor_parallel_size", r"Initializing a V1 LLM engine .*?tensor_parallel_size=([0-9]+)", "count"),
    _pattern("pipeline_parallel_size", r"Initializing a V1 LLM engine .*?pipeline_parallel_size=([0-9]+)", "count"),
    _pattern("enforce_eager", r"Initializing a V1 LLM engine .*?enforce_eager=(True|False)", "text"),
    _pattern("weights_memory_bytes", rf"Model loading took {_GIB}", "gib", needed=True, pick="largest"),
    _pattern("available_kv_cache_bytes", rf"Available KV cache memory: {_GIB}", "gib", needed=True, pick="smallest"),
    _pattern(
        "cuda_graph_actual_bytes",
        rf"Graph capturing finished in [0-9]+ secs, took {_GIB}", "gib", pick="largest",
    ),
    _pattern("cuda_graph_estimate_bytes", rf"Estimated CUDA graph memory: {_GIB} total", "gib", pick="largest"),
    _pattern(
        "startup_free_bytes",
        r"Free memory on device \(([0-9.]+)/[0-9.]+ GiB\) on startup\.", "gib", pick="smallest",
    ),
    _pattern("total_memory_bytes", r"Free memory on device \([0-9.]+/([0-9.]+) GiB\) on startup\.", "gib"),
    _pattern("gpu_memory_utilization", r"Desired GPU memory utilization is \(([0-9.]+), [0-9.]+ GiB\)", "ratio"),
    _pattern("requested_memory_bytes", r"Desired GPU memory utilization is \([0-9.]+, ([0-9.]+) GiB\)", "gib"),
    _pattern("peak_activation_bytes", rf"Actual usage is .*?{_GIB} for peak activation", "gib", pick="largest"),
    _pattern("graph_memory_in_summary_bytes", rf"{_GIB} for CUDAGraph memory", "gib", pick="largest"),
    _pattern(
        "suggested_cache_bytes",
        r"Replace gpu_memory_utilization config with `--kv-cache-memory=(-?[0-9]+)`", "bytes", pick="smallest",
    ),
    _pattern("num_gpu_blocks", r"cache_config_info with initialization after num_gpu_blocks is: ([0-9]+)", "count"),
    _pattern(
        "attention_backend",
        r"Using ([A-Z0-9_]+) attention backend out of potential backends", "text", pick="first",
    ),
    _pattern("model_runner", r"Using (V2) Model Runner", "text"),
)  # fmt: skip
_TWO_CACHE_LINES = (
    _pattern("capacity_tokens", r"GPU KV cache size: ([0-9,]+) tokens", "count", needed=True),
    _pattern(
        "max_concurrency", r"Maximum concurrency for [0-9,]+ tokens per request: ([0-9.]+)x", "ratio", needed=True
    ),
)
_ONE_CACHE_LINE = (
    _pattern(
        "capacity_tokens",
        r"GPU(?: \+ host)? KV cache size: ([0-9,]+) tokens, Maximum concurrency", "count", needed=True,
    ),
    _pattern(
        "max_concurrency",
        r"Maximum concurrency for [0-9,]+ tokens per request: ([0-9.]+)x", "ratio", needed=True,
    ),
)  # fmt: skip
_SEPARATE_NON_TORCH = (_pattern("non_torch_bytes", rf"{_GIB} for non-torch memory", "gib", pick="largest"),)
_CONSUMED = (_pattern("consumed_bytes", rf"Actual usage is {_GIB} for consumed memory", "gib", pick="largest"),)

PATTERNS: tuple[tuple[tuple[int, int], tuple[LogPattern, ...]], ...] = (
    ((0, 8), (*_V1_ENGINE, *_TWO_CACHE_LINES, *_SEPARATE_NON_TORCH)),
    ((0, 33), (*_V1_ENGINE, *_ONE_CACHE_LINE, *_CONSUMED)),
)
"""From which release on, and its table. Sources: vLLM 0.26.0 v1/worker/gpu_worker.py:561,836,
v1/worker/gpu/model_runner.py:306,748, v1/worker/gpu_model_runner.py:5348,6738, v1/core/kv_cache_utils.py:2177,
v1/metrics/loggers.py:325; 0.33.0 v1/core/kv_cache_utils.py:1147, v1/worker/gpu_worker.py:1045."""

PROFILE_BUFFER_BYTES = 150 << 20
"""What vLLM keeps back in its `--kv-cache-memory` advice. Source: vLLM 0.26.0 v1/worker/gpu_worker.py:817."""


def patterns_for(vllm_version: str) -> tuple[LogPattern, ...]:
    """The table of a release. Raises UnsupportedError for a release older than every table."""
    match = re.match(r"([0-9]+)\.([0-9]+)", vllm_version)
    release = (int(match[1]), int(match[2])) if match else (0, 0)
    found = [table for first, table in PATTERNS if release >= first]
    if not found:
        raise UnsupportedError("vLLM log", f"the startup log of vLLM {vllm_version} is not known here")
    return found[-1]


@dataclass(frozen=True, slots=True)
class FailurePattern:
    """A sentence of vLLM's that tells why it did not start, and the bottleneck of the contract that it means."""

    bottleneck: str
    expression: re.Pattern[str]


def _failure(bottleneck: str, expression: str) -> FailurePattern:
    return FailurePattern(bottleneck, re.compile(expression))


FAILURES: tuple[FailurePattern, ...] = (
    _failure("startup_memory", r"Free memory on device .*is less than desired GPU memory utilization.*"),
    _failure("kv_cache", r"To serve at least one request with the model'?s? ?.*max seq len.*"),
    _failure("kv_cache", r"No available memory for the cache blocks.*"),
    _failure("kv_cache", r"Cannot auto-fit max_model_len: not enough GPU memory.*"),
    _failure("weights", r"Failed to load model - not enough GPU memory.*"),
    _failure("device_memory", r"CUDA out of memory occurred when warming up sampler.*"),
    _failure("port", r"(?:\[Errno 98\] )?(?:error while attempting to bind on address.*|[Aa]ddress already in use.*)"),
    _failure(
        "flag",
        r"(?:unrecognized arguments|invalid choice|expected one argument|the following arguments are required)\b.*",
    ),
    _failure(
        "heads_divisibility",
        r"Total number of attention heads \([0-9]+\) must be divisible by tensor parallel size.*",
    ),
    _failure("max_model_len", r"User-specified max_model_len \([0-9]+\) is greater than the derived max_model_len.*"),
    _failure("batched_tokens", r"max_num_batched_tokens \([0-9]+\) (?:must be greater than|is smaller than).*"),
    _failure("dtype_capability", r"Bfloat16 is only supported on GPUs with compute capability.*"),
    _failure("kv_cache_dtype", r"FP8 KV cache is not supported by.*"),
    _failure("quantization_capability", r"The quantization method \S+ is not supported for the current GPU.*"),
    _failure("quantization_alignment", r"The input size is not aligned with the quantized weight shape.*"),
    _failure("vocab_divisibility", r"[0-9]+ is not divisible by [0-9]+.*"),
    _failure("attention_backend", r"No valid attention backend found.*"),
    _failure("parallelism", r"World size \([0-9]+\) is larger than the number of available GPUs.*"),
    _failure("device_memory", r"(?:torch\.)?OutOfMemoryError.*|CUDA out of memory\..*|CUDA error: out of memory.*"),
)  # fmt: skip
"""In order of telling: the first that occurs anywhere in the log names the reason."""
