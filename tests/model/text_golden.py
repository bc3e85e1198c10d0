"""Reads the golden parameter bytes of text decoders and recomputes them from the configs beside them."""

from __future__ import annotations

import csv
import json
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from planner.engine.config import EngineConfig
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard

TESTS = Path(__file__).parent.parent
SMALL = "small/"

_DEFAULTS: dict[str, Any] = {
    "vllm_version": "0.26.0",
    "model_runner": "v1",
    "model_runner_reason": "",
    "attention_backend": "FLASH_ATTN",
    "dtype": "bfloat16",
    "data_parallel_size": 1,
    "decode_context_parallel_size": 1,
    "max_model_len": 1024,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "block_size": 16,
    "user_block_size": False,
    "gpu_memory_utilization": 0.9,
    "enforce_eager": True,
    "cudagraph_mode": "NONE",
    "cudagraph_capture_sizes": (),
    "max_concurrent_batches": 2,
    "async_scheduling": True,
    "enable_prefix_caching": True,
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
    "sm_count": 132,
    "env": (),
    "warnings": (),
}


@cache
def _small() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = json.loads((TESTS / "data" / "small_configs.json").read_text())
    return loaded


def config_of(name: str) -> dict[str, Any]:
    """A config of tests/data/configs by folder, or one of small_configs.json as "small/NAME"."""
    if name.startswith(SMALL):
        return _small()[name.removeprefix(SMALL)]
    loaded: dict[str, Any] = json.loads((TESTS / "data" / "configs" / name / "config.json").read_text())
    return loaded


def model_of(config: dict[str, Any]) -> ModelSpec:
    return build_model(ModelFiles(name="test", config=config))


def share(
    model: ModelSpec,
    *,
    tp: int = 1,
    pp: int = 1,
    rank: int = 0,
    flags: str = "",
    capability: str = "9.0",
    **changes: Any,
) -> RankShare:
    """One rank of the model under the flags that a golden row may carry."""
    return shard(model, config_under(model, tp=tp, pp=pp, flags=flags, capability=capability, **changes), rank)


def config_under(
    model: ModelSpec, *, tp: int = 1, pp: int = 1, flags: str = "", capability: str = "9.0", **changes: Any
) -> EngineConfig:
    """The configuration of those flags."""
    fp8 = "--kv-cache-dtype fp8" in flags
    major, minor = capability.split(".")
    fields: dict[str, Any] = _DEFAULTS | {
        "tensor_parallel_size": tp,
        "pipeline_parallel_size": pp,
        "quantization": None if model.quantization is None else model.quantization.method,
        "enable_expert_parallel": "--enable-expert-parallel" in flags,
        "kv_cache_dtype": "fp8" if fp8 else "auto",
        "kv_torch_dtype": "uint8" if fp8 else "bfloat16",
        "compute_capability": (int(major), int(minor)),
    }
    return EngineConfig(**(fields | changes))


def small_share(name: str, **kwargs: Any) -> RankShare:
    return share(model_of(config_of(SMALL + name)), **kwargs)


def golden_rows(*configs: str) -> list[dict[str, str]]:
    """The rows of these configs; a name that ends in "__" stands for every folder of that publisher."""
    with (TESTS / "golden" / "parameters_text.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    publishers = tuple(name for name in configs if name.endswith("__"))
    return [row for row in rows if row["config"] in configs or row["config"].startswith(publishers)]


def identity(row: dict[str, str]) -> str:
    return "-".join(
        (row["config"], f"tp{row['tp']}pp{row['pp']}r{row['rank']}", row["capability"], row["flags"].replace(" ", ""))
    )


def expected(row: dict[str, str]) -> tuple[int, int | None]:
    """(parameter bytes, buffer bytes); None where the row leaves buffers out."""
    return int(row["parameter_bytes"]), int(row["buffer_bytes"]) if row["buffer_bytes"] else None


def recompute(row: dict[str, str]) -> tuple[int, int | None]:
    """The same of the row's rank as planned here."""
    result = share(
        model_of(config_of(row["config"])),
        tp=int(row["tp"]),
        pp=int(row["pp"]),
        rank=int(row["rank"]),
        flags=row["flags"],
        capability=row["capability"],
    )
    buffers = sum(tensor.size_bytes for tensor in result.created if tensor.role == "buffer")
    return result.parameter_bytes, buffers if row["buffer_bytes"] else None


def parameters(result: RankShare) -> int:
    """How many numbers the rank's parameters hold."""
    return sum(prod(tensor.shape) for tensor in result.created if tensor.role == "parameter")
