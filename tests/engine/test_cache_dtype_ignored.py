"""A class that does not hand the cache's configuration to its layers: MiMo-V2 in vLLM 0.26.0 (mimo_v2.py:377)."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.engine.args import EngineArgs
from planner.memory.assess import assess
from planner.memory.result import Estimate
from planner.model.build import build_model
from planner.sources.gpu_pool import parse_gpus
from planner.sources.model_folder import load_folder
from planner.units import GIB

FOLDER = Path(__file__).parent.parent / "data" / "configs" / "XiaomiMiMo__MiMo-V2-Flash"
BYTES_PER_BLOCK, TOKENS = 737280, 169165
"""What vLLM 0.26.0's code gives this config on one GPU with 40 GiB for the cache, under either dtype."""


def planned(cache_dtype: str, version: str) -> Estimate:
    args = EngineArgs(max_model_len=8192, kv_cache_dtype=cache_dtype, kv_cache_memory_bytes=40 * GIB)
    return assess(build_model(load_folder(FOLDER, name="MiMo-V2-Flash")), parse_gpus("h200:1"), args, version).estimate


@pytest.mark.parametrize("cache_dtype", ["auto", "fp8"])
def test_cache_keeps_the_dtype_of_the_model(cache_dtype: str) -> None:
    found = planned(cache_dtype, "0.26.0")
    assert found.kv_cache is not None
    assert found.kv_cache.bytes_per_block == BYTES_PER_BLOCK
    assert found.kv_cache.capacity_tokens == TOKENS
    said = [warning for warning in found.warnings if "--kv-cache-dtype fp8 has no effect" in warning]
    assert len(said) == (cache_dtype == "fp8")


def test_the_next_release_hands_it_over() -> None:
    plain, eighth = planned("auto", "0.33.0"), planned("fp8", "0.33.0")
    assert plain.kv_cache is not None
    assert eighth.kv_cache is not None
    assert eighth.kv_cache.bytes_per_block == plain.kv_cache.bytes_per_block // 2
