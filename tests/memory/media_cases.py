"""Builds models of tests/data with the processor files of their repositories, under a configuration by hand."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from kv_cases import engine

from planner.engine.config import EngineConfig
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard_stages

DATA = Path(__file__).parent.parent / "data"
QWEN2_5_VL = "Qwen__Qwen2.5-VL-7B-Instruct"
QWEN3_VL = "Qwen__Qwen3-VL-8B-Instruct"
_PIXELS = {"min_pixels": 3136, "max_pixels": 12845056}
_EDGES = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}
_VIDEO_EDGES = {"size": {"shortest_edge": 4096, "longest_edge": 25165824}}


@cache
def media_model(name: str) -> ModelSpec:
    """Qwen2-VL and Qwen2.5-VL repositories bound pixels by keys of their own, Qwen3-VL's by size."""
    config = json.loads((DATA / "configs" / name / "config.json").read_text())
    newer = "Qwen3-VL" in name
    files = ModelFiles(
        name=name,
        config=config,
        preprocessor=_EDGES if newer else _PIXELS,
        video_preprocessor=_VIDEO_EDGES if newer else {},
    )
    return build_model(files)


def media_config(model: ModelSpec, **changes: Any) -> EngineConfig:
    assert model.vision is not None
    limits = tuple((modality, 999) for modality in model.vision.modalities)
    return engine(**{"mm_limits": limits, "max_model_len": 32768, **changes})


def first_share(model: ModelSpec, config: EngineConfig) -> RankShare:
    return shard_stages(model, config)[0]
