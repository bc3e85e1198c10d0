"""TurboQuant's packed cache: which layers of a dense model it leaves alone, down to the pool."""

from __future__ import annotations

from pathlib import Path

from planner.engine.args import EngineArgs
from planner.memory.assess import assess
from planner.model.build import build_model
from planner.sources.gpu_pool import parse_gpus
from planner.sources.model_folder import load_folder
from planner.units import GIB

FOLDER = Path(__file__).parent.parent / "data" / "measured_models" / "Qwen2.5-7B-Instruct"


def test_the_outer_layers_keep_the_models_dtype() -> None:
    """The figures are what vLLM 0.26.0's code gives this config on one GPU with 40 GiB for the cache."""
    args = EngineArgs(max_model_len=8192, kv_cache_dtype="turboquant_k8v4", kv_cache_memory_bytes=40 * GIB)
    found = assess(build_model(load_folder(FOLDER, name="Qwen2.5-7B")), parse_gpus("h200:1"), args, "0.26.0")
    assert found.deployment is not None
    layers = found.deployment.shares[0].kv_layers
    assert [index for index, layer in enumerate(layers) if layer.cache_dtype == "auto"] == [0, 1, 26, 27]
    cache = found.estimate.kv_cache
    assert cache is not None
    assert (cache.bytes_per_block, cache.num_gpu_blocks, cache.capacity_tokens) == (864256, 49695, 1590240)
