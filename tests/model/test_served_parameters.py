"""Architectures with a small config each: parameters, buffers and caches as vLLM 0.26.0's own classes create them."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from planner.engine.args import EngineArgs
from planner.memory.assess import Assessment, assess
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.sharding.shard import shard
from planner.sources.gpu_pool import parse_gpus
from planner.units import GIB

TESTS = Path(__file__).parent.parent
LENGTH, CACHE_BYTES = 2048, 40 * GIB
"""Of every row: --max-model-len where the model allows so much, and what the cache gets of each GPU."""


@cache
def configs() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = json.loads((TESTS / "data" / "served_configs.json").read_text())
    return loaded


def golden() -> list[dict[str, str]]:
    with (TESTS / "golden" / "parameters_served.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


@cache
def model_of(name: str) -> ModelSpec:
    return build_model(ModelFiles(name=name, config=configs()[name]))


def assessed(row: dict[str, str]) -> Assessment:
    tp, pp = int(row["tp"]), int(row["pp"])
    model = model_of(row["config"].removeprefix("served/"))
    args = EngineArgs(
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        max_model_len=min(LENGTH, model.derived_max_model_len),
        kv_cache_memory_bytes=CACHE_BYTES,
        trust_remote_code=True,
        skip_mm_profiling=row.get("flags") == "--skip-mm-profiling",
        enforce_eager=row.get("flags") == "--enforce-eager",
    )
    return assess(model, parse_gpus(f"h200:{tp * pp}"), args, "0.26.0")


@pytest.mark.parametrize("row", golden(), ids=lambda row: f"{row['config']}-tp{row['tp']}pp{row['pp']}r{row['rank']}")
def test_rank_equals_the_class(row: dict[str, str]) -> None:
    found = assessed(row)
    assert found.config is not None
    rank = shard(model_of(row["config"].removeprefix("served/")), found.config, int(row["rank"]))
    buffers = sum(tensor.size_bytes for tensor in rank.created if tensor.role == "buffer")
    assert rank.parameter_bytes == int(row["parameter_bytes"])
    assert buffers == int(row["buffer_bytes"])
    if row["bytes_per_block"]:
        cache, engine = found.estimate.kv_cache, found.estimate.engine
        assert cache is not None
        assert engine is not None
        assert cache.bytes_per_block == int(row["bytes_per_block"])
        assert engine.block_size == int(row["block_size"])
        assert len(cache.groups) == int(row["groups"])
        assert cache.capacity_tokens == int(row["kv_tokens"])


def test_every_config_has_rows() -> None:
    assert {f"served/{name}" for name in configs()} == {row["config"] for row in golden()}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ernie45vl", "'PPMissingLayer' object has no attribute 'weight'"),
        ("step3vl", "'Step3TextConfig' object has no attribute 'tie_word_embeddings'"),
    ],
)
def test_pipeline_stages_that_the_class_cannot_build_are_refused(name: str, sentence: str) -> None:
    found = assessed({"config": f"served/{name}", "tp": "1", "pp": "2"})
    assert found.estimate.rejection is not None
    assert found.estimate.rejection.message == sentence
