"""Layers that are neither plain nor latent attention, counted by hand: Gemma 3n, MiniCPM3, Step3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planner.engine.args import EngineArgs
from planner.memory.activation import activation_stages
from planner.memory.assess import Assessment, assess
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.sharding.shard import shard
from planner.sources.gpu_pool import parse_gpus

DATA = Path(__file__).parent.parent / "data"
ITEM = 2
INDICES = {"request indices", "positions within a request", "logits indices", "cumulated logits"}


def config_of(file: str, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DATA / file).read_text())[name]
    return loaded


def planned(config: dict[str, Any]) -> tuple[ModelSpec, Assessment]:
    model = build_model(ModelFiles(name="test", config=config))
    args = EngineArgs(max_model_len=2048, enforce_eager=True, trust_remote_code=True)
    return model, assess(model, parse_gpus("h200:1"), args, "0.26.0")


def numbers_per_token(config: dict[str, Any], stage: str) -> float:
    """Numbers in the model's dtype that live for each token at that moment, indices left out."""
    model, found = planned(config)
    assert found.config is not None
    stages = activation_stages(model, shard(model, found.config, 0), found.config)
    tensors = next(entry.tensors for entry in stages if entry.name == stage)
    return sum(tensor.bytes_per_token for tensor in tensors if tensor.name not in INDICES) / ITEM


def test_gemma_3n_holds_its_streams_twice_beside_the_mlp() -> None:
    config = config_of("served_configs.json", "gemma3n_text")
    hidden, inner, streams = config["hidden_size"], config["intermediate_size"], config["altup_num_inputs"]
    each_layer = config["num_hidden_layers"] * config["hidden_size_per_layer_input"]
    beside = 2 * streams * hidden + 7 * hidden + each_layer
    assert numbers_per_token(config, "layer 0: MLP") == beside + (2 + 3 + 1) * inner


def test_minicpm3_pads_its_values_to_the_key() -> None:
    config = json.loads((DATA / "configs" / "openbmb__MiniCPM3-4B" / "config.json").read_text())
    hidden, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rotary = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    value = config.get("v_head_dim", hidden // heads)
    by_head = 4 * (nope + rotary) + rotary + (nope + value) + value
    expected = 2 * hidden + heads * by_head + (latent + rotary) + latent
    assert numbers_per_token(config, "layer 0: attention") == expected


def test_step3_has_a_rule_for_its_shared_query() -> None:
    _, found = planned(config_of("small_configs.json", "step3"))
    assert found.estimate.starts
