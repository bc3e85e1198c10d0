"""Stated media shape the search: limits, lengths and an encoder cache that takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.engine.args import EngineArgs
from planner.model.build import build_model
from planner.model.spec import ModelSpec
from planner.search.search import search
from planner.search.space import SearchOptions, Workload
from planner.sources.gpu_pool import parse_gpus
from planner.sources.load import load_model

VERSION = "0.26.0"
VIDEO_TOKENS = 30 * 26 * 46
"""30 s at two frames a second are 30 pairs of frames; 1280 x 720 becomes 1288 x 728, 46 x 26 cells of 28 pixels."""


@pytest.fixture(scope="module")
def qwen() -> ModelSpec:
    return build_model(load_model(str(Path(__file__).parents[1] / "data" / "configs" / "Qwen__Qwen2.5-VL-7B-Instruct")))


def options(given: dict[str, object] | None = None, **workload: object) -> SearchOptions:
    given = given or {}
    return SearchOptions(workload=Workload.checked(**workload), args=EngineArgs(**given), given=tuple(given))  # type: ignore[arg-type]


def test_a_long_video_gets_a_cache_and_a_length_that_take_it(qwen: ModelSpec) -> None:
    found = search(qwen, parse_gpus("l20:1"), options(videos=1, video_seconds=30.0), VERSION)
    for plan in found.plans:
        assert plan.args.max_num_batched_tokens is not None
        assert plan.args.max_num_batched_tokens >= VIDEO_TOKENS
        assert plan.estimate.engine is not None
        assert plan.estimate.engine.max_model_len > VIDEO_TOKENS
        assert plan.args.mm_processor_kwargs == '{"max_pixels": 937664}'
    assert found.plans
    refused = next(count for count in found.rejected if count.reason == "batched_tokens")
    assert str(VIDEO_TOKENS) in refused.example.message
    assert "--max-num-batched-tokens 36864" in refused.example.fix


def test_a_given_cache_that_is_too_small_leaves_no_plan(qwen: ModelSpec) -> None:
    asked = options({"max_num_batched_tokens": 8192}, videos=1, video_seconds=30.0)
    found = search(qwen, parse_gpus("h200:1"), asked, VERSION)
    assert not found.plans
    assert [count.reason for count in found.rejected] == ["batched_tokens"]


def test_a_given_length_below_the_media_is_refused(qwen: ModelSpec) -> None:
    found = search(qwen, parse_gpus("h200:1"), options({"max_model_len": 8192}, videos=1, video_seconds=30.0), VERSION)
    assert [count.reason for count in found.rejected] == ["max_model_len"]


def test_a_short_video_passes_with_the_usual_sizes(qwen: ModelSpec) -> None:
    found = search(qwen, parse_gpus("h200:1"), options(videos=1, video_seconds=3.0), VERSION)
    assert found.plans[0].args.max_num_batched_tokens == 8192
    assert all(count.reason != "batched_tokens" for count in found.rejected)


def test_processor_settings_of_the_user_stay(qwen: ModelSpec) -> None:
    asked = options({"mm_processor_kwargs": '{"max_pixels": 401408}'}, images=1, image_size=(1920, 1080))
    found = search(qwen, parse_gpus("h200:1"), asked, VERSION)
    assert found.plans[0].args.mm_processor_kwargs == '{"max_pixels": 401408}'
