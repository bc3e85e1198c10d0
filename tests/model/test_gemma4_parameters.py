"""Gemma 4, MiniMax-M3 with images and Muse-Glimmer against the parameters that vLLM 0.26.0's classes create."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path
from typing import Any

import pytest

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.model.build import build_model
from planner.model.spec import ModelSpec
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard, shard_stages
from planner.sources.gpu_pool import parse_gpus
from planner.sources.model_folder import load_folder
from planner.values import Rejected

TESTS = Path(__file__).parent.parent
CARDS = {"9.0": "h200", "8.9": "l20", "7.5": "t4"}
BFLOAT16 = 2


def golden() -> list[dict[str, str]]:
    with (TESTS / "golden" / "parameters_gemma4.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def load(directory: str, **overrides: Any) -> ModelSpec:
    return build_model(load_folder(TESTS / "data" / "configs" / directory, name=directory), overrides)


def configure(model: ModelSpec, capability: str = "9.0", **flags: Any) -> EngineConfig:
    gpu = parse_gpus(CARDS[capability]).gpu
    return resolve(model, gpu, EngineArgs(max_model_len=8192, **flags), "0.26.0")


def flags_of(row: dict[str, str]) -> dict[str, Any]:
    words = iter(shlex.split(row["flags"]))
    flags: dict[str, Any] = {"tensor_parallel_size": int(row["tp"]), "pipeline_parallel_size": int(row["pp"])}
    for word in words:
        name = word.removeprefix("--").replace("-", "_")
        value = True if name == "enable_expert_parallel" else next(words)
        flags[name] = int(value) if isinstance(value, str) and value.isdigit() else value
    return flags


def share(directory: str, **flags: Any) -> RankShare:
    model = load(directory)
    return shard(model, configure(model, **flags))


def name_of(row: dict[str, str]) -> str:
    return f"{row['config']} {row['flags']} sm{row['capability']} tp{row['tp']} pp{row['pp']} rank{row['rank']}"


@pytest.mark.parametrize("row", golden(), ids=name_of)
def test_rank_holds_what_vllm_creates(row: dict[str, str]) -> None:
    model = load(row["config"])
    found = shard(model, configure(model, row["capability"], **flags_of(row)), int(row["rank"]))
    buffers = sum(tensor.size_bytes for tensor in found.created if tensor.role == "buffer")
    assert (found.parameter_bytes, buffers) == (int(row["parameter_bytes"]), int(row["buffer_bytes"]))


def test_language_model_by_hand() -> None:
    """Gemma 4 E2B: 35 layers of 8 heads (one for keys) of 256, each fifth of 512; from layer 15 on a wide MLP."""
    hidden, layers, vocabulary, per_layer = 1536, 35, 262144, 256

    def layer(index: int) -> int:
        head = 512 if (index + 1) % 5 == 0 else 256
        attention = hidden * (8 + 2 * 1) * head + 8 * head * hidden + 2 * head
        inner = 6144 * (2 if index >= 15 else 1)
        return attention + 3 * hidden * inner + 2 * hidden * per_layer + 5 * hidden

    tables = vocabulary * hidden + vocabulary * layers * per_layer + hidden * layers * per_layer + per_layer
    expected = tables + sum(layer(index) for index in range(layers)) + hidden
    assert share("made__gemma4-e2b-text").parameter_bytes == expected * BFLOAT16


def test_shared_layers_have_no_cache() -> None:
    layers = share("google__gemma-4-E2B-it").kv_layers
    assert len(layers) == 15
    assert sorted({layer.head_size for layer in layers}) == [256, 512]
    assert {layer.window for layer in layers} == {512, None}


def test_keys_that_are_values_have_their_own_number_of_heads() -> None:
    kinds = {(layer.kind, layer.num_kv_heads, layer.head_size) for layer in share("google__gemma-4-26B-A4B").kv_layers}
    assert kinds == {("sliding_window", 8, 256), ("full_attention", 2, 512)}


def test_a_stage_cannot_share_the_cache_of_another() -> None:
    model = load("google__gemma-4-E2B-it")
    with pytest.raises(Rejected) as refused:
        shard_stages(model, configure(model, pipeline_parallel_size=2))
    assert refused.value.rejection.message == (
        "Specified KV sharing target layer for language_model.model.layers.18.self_attn.attn is not valid: target "
        "layer language_model.model.layers.13.self_attn.attn is not a valid Attention layer in the model."
    )


def test_a_stated_null_turns_per_layer_embeddings_off() -> None:
    with_table = load("made__gemma4-e2b-text")
    without = load("made__gemma4-e2b-text", hidden_size_per_layer_input=None)
    gone = shard(with_table, configure(with_table)).parameter_bytes - shard(without, configure(without)).parameter_bytes
    hidden, layers, width = 1536, 35, 256
    table = 262144 * layers * width + hidden * layers * width + width
    assert gone == (table + layers * (2 * hidden * width + hidden)) * BFLOAT16


@pytest.mark.parametrize(("ranks", "expected"), [(1, 1731134464), (2, 867333120), (4, 435432448), (8, 219482112)])
def test_minimax_m3_tower(ranks: int, expected: int) -> None:
    """The sum of the vision modules of nvidia/MiniMax-M3-NVFP4, which leaves its tower unquantized."""
    tensors = share("made__minimax-m3-vl", tensor_parallel_size=ranks).created
    tower = [t for t in tensors if t.component == "vision_tower" and t.role == "parameter"]
    assert sum(tensor.size_bytes for tensor in tower) == expected


def test_muse_glimmers_tower_has_heads_of_the_language_model() -> None:
    model = load("meta-models__Muse-Glimmer-30B")
    with pytest.raises(Rejected) as refused:
        shard(model, configure(model, tensor_parallel_size=8))
    assert refused.value.rejection.message.startswith("12 is not divisible by 8")
