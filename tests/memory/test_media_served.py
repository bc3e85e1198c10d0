"""Media of the models in served_configs.json, each number worked out by hand from the processor's own arithmetic."""

from __future__ import annotations

from functools import cache

import pytest

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.errors import UnsupportedError
from planner.memory.multimodal.budget import encoder_budget
from planner.memory.multimodal.media import largest_items, media_item
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from tests.served import CONFIGS, H200


@cache
def model_of(name: str) -> ModelSpec:
    return build_model(ModelFiles(name=name, config=CONFIGS[name]))


def configured(name: str) -> EngineConfig:
    return resolve(model_of(name), H200, EngineArgs(max_model_len=2048, trust_remote_code=True), "0.26.0")


@pytest.mark.parametrize(
    ("name", "width", "height", "tokens", "prompt_tokens"),
    [
        ("paligemma", 640, 480, 16**2, 16**2),
        ("gemma3n", 640, 480, 256, 260),
        ("aria", 640, 480, 256, 256),
        ("cohere2vision", 1024, 512, 3 * 16**2, 3 * 16**2 + 5),
        ("deepseekvl2", 384, 384, 14 * 15 + 14 * 15 + 1, 421),
        ("deepseekvl2", 768, 384, 14 * 15 + 14 * 29 + 1, 617),
        ("lighton", 1540, 1540, 55**2, 55**2),
        ("dotsocr", 1024, 1024, 35**2, 35**2 + 2),
        ("ernie45vl", 1024, 1024, 37**2, 37**2 + 2),
        ("lfm2vl", 512, 512, 16**2, 16**2 + 2),
        ("lfm2vl", 1024, 1024, 5 * 16**2, 5 * 16**2 + 2 + 5),
        ("pixtral", 512, 512, 32 * 32, 32 * 33),
        ("pixtral", 1537, 512, 32 * 11, 11 * 33),
        ("pixtral", 5000, 3, 32, 33),
        ("smallmm", 448, 224, 16 * 8, 17 * 8),
        ("step3vl", 600, 500, 169, 171),
        ("step3vl", 728, 728, 169 + 4 * 81, 169 + 2 + 4 * 83 + 1),
    ],
)
def test_an_image_has_so_many_tokens(name: str, width: int, height: int, tokens: int, prompt_tokens: int) -> None:
    vision = model_of(name).vision
    assert vision is not None
    item = media_item(vision, "image", width=width, height=height)
    assert (item.tokens, item.prompt_tokens) == (tokens, prompt_tokens)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("pixtral", {"image": 32 * 32}),
        ("smallmm", {"image": 16 * 16}),
        ("step3vl", {"image": 169 + 2 + 36 * 83 + 5}),
        ("cohere2vision", {"image": 13 * 256}),
        ("deepseekvl2", {"image": 14 * 15 + 3 * 14 * 15 + 1}),
        ("lfm2vl", {"image": 256}),
        ("gemma3n", {"image": 256, "audio": 188}),
        ("paligemma", {"image": 256}),
    ],
)
def test_the_largest_item_of_each_modality(name: str, most: dict[str, int]) -> None:
    vision = model_of(name).vision
    assert vision is not None
    assert {item.modality: item.max_tokens for item in largest_items(vision, configured(name))} == most


def test_a_prompt_of_paligemma_takes_one_image() -> None:
    budget = encoder_budget(model_of("paligemma"), configured("paligemma"))
    assert dict(budget.items)["image"] == 8192 // 256


@pytest.mark.parametrize("name", ["ovis2", "phi4mm", "keye", "keye15"])
def test_media_not_read_are_refused_by_name(name: str) -> None:
    vision = model_of(name).vision
    assert vision is not None
    with pytest.raises(UnsupportedError, match=vision.family):
        media_item(vision, "image", width=640, height=480)
