"""Reads the golden rows of hybrid and state-space models and plans them again, as the command would."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.hardware.spec import GpuSpec
from planner.memory.kv_pool import build_pool
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard, shard_stages
from planner.units import GIB

TESTS = Path(__file__).parent.parent
MADE = "made/"


def card(capability: str = "9.0") -> GpuSpec:
    major, minor = capability.split(".")
    return GpuSpec(
        name="card",
        device_name="NVIDIA card",
        compute_capability=(int(major), int(minor)),
        total_memory_bytes=int((139.8 if major == "9" else 14.6) * GIB),
        memory_evidence="user",
    )


@cache
def _made() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = json.loads((TESTS / "data" / "hybrid_configs.json").read_text())
    return loaded


def config_of(name: str) -> dict[str, Any]:
    """A config of tests/data/configs by folder, or one of hybrid_configs.json as "made/NAME"."""
    if name.startswith(MADE):
        return dict(_made()[name.removeprefix(MADE)])
    loaded: dict[str, Any] = json.loads((TESTS / "data" / "configs" / name / "config.json").read_text())
    return loaded


def model_of(name: str, **changes: Any) -> ModelSpec:
    return build_model(ModelFiles(name=name, config=config_of(name) | changes))


def engine(model: ModelSpec, *, tp: int = 1, pp: int = 1, capability: str = "9.0", flags: str = "") -> EngineConfig:
    words = flags.split()
    args = EngineArgs(
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        max_model_len=4096 if "zamba2" in model.name else 8192,
        enable_expert_parallel="--enable-expert-parallel" in words,
        enable_prefix_caching=True if "--enable-prefix-caching" in words else None,
        kv_cache_dtype=words[words.index("--kv-cache-dtype") + 1] if "--kv-cache-dtype" in words else "auto",
        mm_encoder_tp_mode="data" if "--mm-encoder-tp-mode" in words else "weights",
        dtype=words[words.index("--dtype") + 1] if "--dtype" in words else "auto",
    )
    return resolve(model, card(capability), args, "0.26.0")


def share(model: ModelSpec, *, rank: int = 0, **settings: Any) -> RankShare:
    return shard(model, engine(model, **settings), rank)


def golden_rows() -> list[dict[str, str]]:
    with (TESTS / "golden" / "parameters_hybrid.csv").open() as handle:
        return list(csv.DictReader(handle))


def identity(row: dict[str, str]) -> str:
    return "-".join((row["config"], f"tp{row['tp']}pp{row['pp']}r{row['rank']}", row["capability"], row["flags"]))


def expected(row: dict[str, str]) -> tuple[int, ...]:
    """(parameter bytes, bytes per block, block size, groups)."""
    return tuple(int(row[key]) for key in ("parameter_bytes", "bytes_per_block", "block_size", "groups"))


def recompute(row: dict[str, str]) -> tuple[int, ...]:
    """The same of the row's rank as planned here."""
    model, rank = model_of(row["config"]), int(row["rank"])
    config = engine(model, tp=int(row["tp"]), pp=int(row["pp"]), capability=row["capability"], flags=row["flags"])
    shares = shard_stages(model, config)
    pool = build_pool([stage.kv_layers for stage in shares], config)
    return shares[rank].parameter_bytes, pool.stages[rank].bytes_per_block, pool.block_size, len(pool.groups)
