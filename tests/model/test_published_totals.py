"""A second way to the same number: totals of parameters that publishers state for their checkpoints.

The totals are those of the safetensors files as the models' own pages show them. With one rank, without tied copies and
without adapters the classes hold exactly these numbers: nothing padded, nothing left out.
"""

from __future__ import annotations

from math import prod

import pytest

from planner.engine.args import EngineArgs
from planner.memory.assess import assess
from planner.model.build import build_model
from planner.sharding.shard import shard
from planner.sources.gpu_pool import parse_gpus
from planner.sources.model_catalog import load_model_catalog

TOTALS = {
    "google/gemma-3n-E2B-it": 5_439_438_272,
    "google/gemma-3n-E4B-it": 7_849_978_192,
    "google/paligemma-3b-pt-224": 2_923_466_480,
    "rednote-hilab/dots.ocr": 3_039_179_264,
    "LiquidAI/LFM2-VL-1.6B": 1_584_804_000,
}


@pytest.mark.parametrize("identity", TOTALS)
def test_one_rank_holds_the_published_parameters(identity: str) -> None:
    files = load_model_catalog().find(identity)
    assert files is not None
    model = build_model(files)
    found = assess(model, parse_gpus("h200:1"), EngineArgs(max_model_len=4096), "0.26.0")
    assert found.config is not None
    rank = shard(model, found.config, 0)
    assert sum(prod(tensor.shape) for tensor in rank.created if tensor.role == "parameter") == TOTALS[identity]
    assert found.estimate.starts


@pytest.mark.parametrize(
    ("identity", "published", "attentions"),
    [("openai/whisper-large-v3", 1_543_490_560, 96), ("openai/whisper-large-v3-turbo", 808_878_080, 40)],
)
def test_whisper_has_a_bias_on_its_keys_beside_the_published_parameters(
    identity: str, published: int, attentions: int
) -> None:
    """vLLM's fused projections have one bias for queries, keys and values; the checkpoint has none for the keys."""
    files = load_model_catalog().find(identity)
    assert files is not None
    model = build_model(files)
    found = assess(model, parse_gpus("h200:1"), EngineArgs(), "0.26.0")
    assert found.config is not None
    held = sum(prod(tensor.shape) for tensor in shard(model, found.config, 0).created if tensor.role == "parameter")
    assert held == published + attentions * model.text.hidden_size
    assert found.estimate.starts


def test_streams_and_embeddings_of_gemma_3n() -> None:
    """What E4B has beyond E2B: five layers with their per-layer embeddings, and twice the width of every MLP."""
    layers, narrow, wide, hidden, heads, keys, size = 30, 8192, 16384, 2048, 8, 2, 256
    per_layer, vocabulary, rank, streams = 256, 262_144, 64, 4
    attention = hidden * size * (heads + 2 * keys) + heads * size * hidden + 2 * size
    low_rank = 2 * hidden * rank + hidden
    altup = streams**2 + streams**3 + hidden * streams + 2 * hidden
    gate = 2 * hidden * per_layer + hidden
    layer = attention + 3 * hidden * wide + low_rank + altup + gate + 4 * hidden
    tables = per_layer * (vocabulary + hidden)
    difference = 5 * (layer + tables) + layers * 3 * hidden * (wide - narrow)
    assert TOTALS["google/gemma-3n-E4B-it"] - TOTALS["google/gemma-3n-E2B-it"] == difference
