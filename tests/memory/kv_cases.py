"""Reads the KV cache cases of tests/data and builds the values that the memory room takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.engine.config import EngineConfig
from planner.memory.kv_pool import KVPool, build_pool
from planner.sharding.rank import LayerKVSpec

DATA = Path(__file__).parent.parent / "data"

_DEFAULTS: dict[str, Any] = {
    "vllm_version": "0.26.0",
    "model_runner": "v1",
    "model_runner_reason": "",
    "attention_backend": "FLASH_ATTN",
    "dtype": "bfloat16",
    "quantization": None,
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "decode_context_parallel_size": 1,
    "enable_expert_parallel": False,
    "max_model_len": 8192,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "kv_cache_dtype": "auto",
    "kv_torch_dtype": "bfloat16",
    "block_size": 16,
    "user_block_size": False,
    "gpu_memory_utilization": 0.9,
    "enforce_eager": True,
    "cudagraph_mode": "NONE",
    "cudagraph_capture_sizes": (),
    "max_concurrent_batches": 2,
    "async_scheduling": True,
    "enable_prefix_caching": False,
    "mamba_cache_mode": "none",
    "num_speculative_tokens": 0,
    "speculative_method": None,
    "mm_limits": (),
    "mm_processor_kwargs": None,
    "mm_encoder_tp_mode": "weights",
    "skip_mm_profiling": False,
    "language_model_only": False,
    "kv_cache_memory_bytes": None,
    "num_gpu_blocks_override": None,
    "enable_lora": False,
    "max_loras": 1,
    "max_lora_rank": 16,
    "compute_capability": (9, 0),
    "sm_count": 132,
    "env": (),
    "warnings": (),
}


def engine(**changes: Any) -> EngineConfig:
    """An EngineConfig of one H200 with the given fields changed."""
    return EngineConfig(**(_DEFAULTS | changes))


def full(num_kv_heads: int = 8, head_size: int = 128, **changes: Any) -> dict[str, Any]:
    """The fields of a full-attention layer."""
    return {"kind": "full_attention", "num_kv_heads": num_kv_heads, "head_size": head_size} | changes


def sliding(window: int, num_kv_heads: int = 8, head_size: int = 128, **changes: Any) -> dict[str, Any]:
    """The fields of a sliding-window layer."""
    return full(num_kv_heads, head_size, kind="sliding_window", window=window) | changes


def recurrent(state_bytes: int, **changes: Any) -> dict[str, Any]:
    """The fields of a recurrent layer whose state has so many bytes."""
    return {"kind": "mamba", "state_shapes": ((state_bytes,),), "state_dtypes": ("uint8",)} | changes


def stage(*layers: dict[str, Any], number: int = 0) -> tuple[LayerKVSpec, ...]:
    """One pipeline stage's layers, named by stage and position."""
    return tuple(LayerKVSpec(layer_name=f"layers.{number}.{i}", **layer) for i, layer in enumerate(layers))


def pool_of(*layers: dict[str, Any], **config: Any) -> KVPool:
    """The pool of a single stage."""
    return build_pool([stage(*layers)], engine(**config))


@dataclass(frozen=True)
class Case:
    """One recorded answer of vLLM."""

    name: str
    config: EngineConfig
    stages: list[tuple[LayerKVSpec, ...]]
    available_bytes: int
    expected: dict[str, Any]

    def __str__(self) -> str:
        return self.name


def read_cases(file_name: str) -> list[Case]:
    """The cases of tests/data/`file_name`."""
    return [_case(raw) for raw in json.loads((DATA / file_name).read_text())["cases"]]


def _case(raw: dict[str, Any]) -> Case:
    config = dict(raw["config"])
    config["env"] = tuple(tuple(pair) for pair in config.get("env", ()))
    stages = [
        stage(*(_frozen(layer) for count, layer in runs for _ in range(count)), number=number)
        for number, runs in enumerate(raw["stages"])
    ]
    return Case(raw["name"], engine(**config), stages, raw["available_bytes"], raw["expected"])


def _frozen(layer: dict[str, Any]) -> dict[str, Any]:
    if "state_shapes" not in layer:
        return layer
    shapes = tuple(tuple(shape) for shape in layer["state_shapes"])
    return layer | {"state_shapes": shapes, "state_dtypes": tuple(layer["state_dtypes"])}
