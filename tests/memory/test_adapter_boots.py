"""Boots with LoRA slots, n-gram drafting or a draft model on an H200 (tests/data/memory/adapter_boots.json)."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.api import Request, estimate
from planner.engine.args import EngineArgs

DATA = Path(__file__).resolve().parent.parent / "data"
ALL: list[dict[str, Any]] = json.loads((DATA / "memory" / "adapter_boots.json").read_text())["boots"]
BOOTS = [boot for boot in ALL if "draft" not in boot]
EAGER = [boot for boot in BOOTS if boot["args"]["enforce_eager"]]


@pytest.mark.parametrize("boot", BOOTS, ids=[boot["name"] for boot in BOOTS])
def test_boot(boot: dict[str, Any]) -> None:
    """Weights with their slots to the byte; the peak within 16.5 KiB in eager mode (small tensors of V1's sampler) and
    within its interval when compiled; the device's use within its interval."""
    args = EngineArgs(**boot["args"], env=tuple(boot["env"].items()))
    found = estimate(Request(model=str(DATA / "measured_models" / boot["model"]), gpus="h200:1", args=args))
    gpu, config = found.estimate.per_gpu, found.config
    assert gpu is not None
    assert config is not None
    assert config.model_runner == boot["runner"]
    assert gpu.weights_memory_bytes == boot["weights_memory_bytes"]
    assert gpu.non_torch_bytes == boot["non_torch_bytes"]
    assert 0 <= boot["peak_activation_bytes"] - gpu.peak_activation_bytes <= 20 * 1024
    assert gpu.peak_activation_bytes_interval is not None or boot in EAGER
    assert found.estimate.kv_cache is not None
    assert abs(found.estimate.kv_cache.num_gpu_blocks - boot["num_gpu_blocks"]) <= 1
    assert gpu.used_after_startup_bytes_interval is not None
    low, high = gpu.used_after_startup_bytes_interval
    assert low <= boot["used_bytes"] <= high


def test_dense_slots_in_eager_mode_are_exact() -> None:
    """Both runners, every term of the engine's ledger."""
    exact = [boot for boot in EAGER if boot["args"].get("enable_lora") and boot["model"] == "q25-7b-l4"]
    assert {boot["runner"] for boot in exact} == {"v1", "v2"}
    for boot in exact:
        args = EngineArgs(**boot["args"], env=tuple(boot["env"].items()))
        found = estimate(Request(model=str(DATA / "measured_models" / boot["model"]), gpus="h200:1", args=args))
        assert found.estimate.per_gpu is not None
        assert found.estimate.per_gpu.available_kv_cache_bytes == boot["available_kv_cache_bytes"]


def test_a_model_of_its_own_that_drafts() -> None:
    """Its weights, embedding and 24 cache layers of half the target's size lie beside the target's 4."""
    boot = next(boot for boot in ALL if "draft" in boot)
    draft = {**boot["draft"], "model": str(DATA / "measured_models" / boot["draft"]["model"])}
    args = EngineArgs(**boot["args"], speculative_config=json.dumps(draft))
    found = estimate(Request(model=str(DATA / "measured_models" / boot["model"]), gpus="h200:1", args=args))
    gpu, cache = found.estimate.per_gpu, found.estimate.kv_cache
    assert gpu is not None
    assert cache is not None
    assert found.config is not None
    assert found.config.model_runner == boot["runner"]
    assert cache.bytes_per_block == 4 * 2 * 16 * 2 * 128 * 2 + 24 * 2 * 16 * 2 * 64 * 2
    assert gpu.weights_memory_bytes_interval is not None
    low, high = gpu.weights_memory_bytes_interval
    assert low <= boot["weights_memory_bytes"] <= high
    assert 0 <= boot["peak_activation_bytes"] - gpu.peak_activation_bytes <= 20 * 1024
    assert abs(cache.num_gpu_blocks - boot["num_gpu_blocks"]) <= 8
    assert gpu.used_after_startup_bytes_interval is not None
    assert gpu.used_after_startup_bytes_interval[0] <= boot["used_bytes"] <= gpu.used_after_startup_bytes_interval[1]
