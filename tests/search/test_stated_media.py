"""What stated media mean for flags and sizes, rule by rule, on Qwen2.5-VL: cells of 28 pixels, one token each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.memory.assess import Deployment, deploy
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.search.media import (
    media_tokens,
    pixel_bounds,
    refused_media,
    served_pairs,
    with_media_limits,
    with_media_room,
)
from planner.search.search import search
from planner.search.space import SearchOptions, Workload
from planner.sources.gpu_pool import parse_gpus
from planner.sources.load import load_model

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
VIDEO = 30 * 26 * 46
"""Tokens of 30 s at two frames a second, in pairs, of 1280 x 720 made 1288 x 728."""
IMAGE = 37 * 37 + 2
"""Tokens of 1024 x 1024 made 1036 x 1036, with one before and one after."""


@pytest.fixture(scope="module")
def qwen() -> ModelSpec:
    return build_model(load_model(str(CONFIGS / "Qwen__Qwen2.5-VL-7B-Instruct")))


@pytest.fixture(scope="module")
def text() -> ModelSpec:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 1024,
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 1000,
        "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "hidden_act": "silu",
    }  # fmt: skip
    return build_model(ModelFiles(name="text", config=config))


def asked(given: dict[str, Any] | None = None, **load: Any) -> SearchOptions:
    given = given or {}
    return SearchOptions(args=EngineArgs(**given), given=tuple(given), workload=Workload(**load))


def deployed(model: ModelSpec, **flags: Any) -> Deployment:
    pool = parse_gpus("h200:1")
    args = EngineArgs(**{"max_model_len": 40960, **flags})
    return deploy(model, pool, resolve(model, pool.gpu, args, "0.26.0"))


@pytest.mark.parametrize(
    ("load", "limits"),
    [
        ({}, {"image": 1, "video": 0}), ({"images": 0}, {"image": 0, "video": 0}),
        ({"images": 3}, {"image": 3, "video": 0}), ({"videos": 2}, {"image": 0, "video": 2}),
        ({"images": 1, "videos": 1}, {"image": 1, "video": 1}),
    ],
)  # fmt: skip
def test_limits_are_what_the_workload_needs(qwen, load, limits):
    args, notes = with_media_limits(qwen, asked(**load))
    assert json.loads(args.limit_mm_per_prompt or "") == limits
    assert any("planned for one image a request" in note for note in notes) is (not load)
    assert (args.mm_processor_kwargs is not None) is any(load.values())
    kept, _ = with_media_limits(qwen, asked({"limit_mm_per_prompt": '{"image": 9}'}, **load))
    assert kept.limit_mm_per_prompt == '{"image": 9}'


def test_pixels_are_bounded_by_the_stated_media(qwen):
    args, notes = with_media_limits(qwen, asked(images=2, image_size=(1024, 1024)))
    assert json.loads(args.mm_processor_kwargs or "") == {"max_pixels": 1036 * 1036}
    assert notes[-1] == f"one image of this workload is {IMAGE:,} tokens"
    assert len(notes) == 2
    fixed = asked({"mm_processor_kwargs": '{"max_pixels": 784000}'}, images=2)
    kept, notes = with_media_limits(qwen, fixed)
    assert kept.mm_processor_kwargs == '{"max_pixels": 784000}'
    assert len(notes) == 1


def test_a_model_without_towers_takes_no_media(qwen, text):
    only = asked({"language_model_only": True}, images=2)
    for model, options in ((text, asked(images=2)), (qwen, only)):
        assert with_media_limits(model, options) == (options.args, ())
        assert media_tokens(model, options) == 0
        assert with_media_room(model, options) is options
        assert pixel_bounds(model, options) == ()
    assert refused_media(deployed(text, max_model_len=4096), asked(videos=1)) is None
    assert refused_media(deployed(qwen, language_model_only=True), asked(videos=1)) is None


def test_lengths_hold_the_media_and_a_token(qwen):
    options = asked(images=2, videos=1, video_seconds=30.0)
    tokens = media_tokens(qwen, options)
    assert tokens == 2 * IMAGE + VIDEO + 2
    assert with_media_room(qwen, options).workload.min_model_len == tokens + 1
    longer = asked(images=1, min_model_len=50_000)
    assert with_media_room(qwen, longer).workload.min_model_len == 50_000
    assert media_tokens(qwen, asked()) == 0


def test_smaller_images_are_halves_and_quarters(qwen):
    most = 12_845_056
    assert [json.loads(bound) for bound in pixel_bounds(qwen, asked())] == [
        {"max_pixels": most // 2}, {"max_pixels": most // 4},
    ]  # fmt: skip
    given = asked({"mm_processor_kwargs": '{"max_pixels": 1000000, "min_pixels": 3136}'})
    assert [json.loads(bound) for bound in pixel_bounds(qwen, given)] == [
        {"max_pixels": 500_000, "min_pixels": 3136}, {"max_pixels": 250_000, "min_pixels": 3136},
    ]  # fmt: skip


def test_a_batch_takes_the_largest_item_or_says_which_would(qwen):
    """The encoder's cache is no smaller than --max-num-batched-tokens: whole 1024s that hold the longest video."""
    options, tight, wide = asked(videos=1), deployed(qwen, max_num_batched_tokens=8192), 36 * 1024
    assert wide == -(-VIDEO // 1024) * 1024
    refused = refused_media(tight, options)
    assert refused is not None
    assert str(VIDEO) in refused[0]
    assert refused[1] == wide
    assert refused_media(deployed(qwen, max_num_batched_tokens=wide), options) is None
    by_item = refused_media(deployed(qwen, max_num_batched_tokens=wide), options, own=False)
    assert by_item is not None
    assert by_item[1] == wide
    assert refused_media(tight, asked()) is None
    assert refused_media(tight, asked(images=1)) is None


def test_images_that_are_too_long_at_first_may_fit_when_shrunk(qwen):
    """Of the bounds on pixels that a search tries, those count under which a request fits the length."""
    given = {"max_model_len": 1200, "max_num_seqs": 8, "max_num_batched_tokens": 2048, "kv_cache_dtype": "auto"}
    shrunk = asked(given, images=1).model_copy(update={"vary": ("pixels",)})
    pool = parse_gpus("l20:1")
    plans = search(qwen, pool, shrunk, "0.26.0").plans
    assert plans
    bounds = {json.loads(plan.args.mm_processor_kwargs or "{}")["max_pixels"] for plan in plans}
    assert bounds <= {1036 * 1036 // 2, 1036 * 1036 // 4}
    refused = search(qwen, pool, asked(given, images=1), "0.26.0")
    assert not refused.plans
    assert [count.reason for count in refused.rejected] == ["max_model_len"]


def test_sizes_that_serve_the_media(qwen):
    """Those whose cache takes each item; a larger one where none does and the flag is free; the refusal either way."""
    deployment, options = deployed(qwen), asked(videos=1)
    wide = 36 * 1024
    pairs = [(4, 8192), (4, wide), (16, wide), (16, wide - 1)]
    kept, refusal = served_pairs(deployment, options, pairs)
    assert kept == [(4, wide), (16, wide)]
    assert refusal is not None
    assert refusal.fix[0] == f"--max-num-batched-tokens {wide}"
    small = [(16, 8192), (4, 8192), (4, 4096)]
    assert served_pairs(deployment, options, small)[0] == [(4, wide), (16, wide)]
    fixed = asked({"max_num_batched_tokens": 8192}, videos=1)
    assert served_pairs(deployment, fixed, small)[0] == []
    assert served_pairs(deployment, asked(), small) == (small, None)
