"""Boots of the real engine on an H200, with the allocator's counters at each step (tests/data/memory/boots.json)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard
from planner.sources.gpu_pool import parse_gpus

DATA = json.loads((Path(__file__).resolve().parent.parent / "data" / "memory" / "boots.json").read_text())
BOOTS: list[dict[str, Any]] = DATA["boots"]
EAGER = [boot for boot in BOOTS if boot["args"]["enforce_eager"]]
COMPILED = [boot for boot in BOOTS if not boot["args"]["enforce_eager"]]


def named(name: str) -> dict[str, Any]:
    return next(boot for boot in BOOTS if boot["name"] == name)


def label(boot: dict[str, Any]) -> str:
    return str(boot["name"])


@cache
def _set_up(name: str) -> tuple[ModelSpec, RankShare, EngineConfig]:
    boot = named(name)
    model_name = boot["model"]
    files = ModelFiles(
        name=model_name, path=None, config=DATA["configs"][model_name],
        preprocessor=DATA["preprocessors"].get(model_name, {}),
    )  # fmt: skip
    model = build_model(files)
    arguments = EngineArgs(**boot["args"], env=tuple(boot["env"].items()))
    config = resolve(model, parse_gpus("h200:1").gpu, arguments, "0.26.0")
    return model, shard(model, config), config


def set_up(boot: dict[str, Any]) -> tuple[ModelSpec, RankShare, EngineConfig]:
    """The model, its only rank and the configuration of a boot."""
    return _set_up(boot["name"])
