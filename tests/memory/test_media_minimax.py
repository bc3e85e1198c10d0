"""MiniMax-M3's images, videos and tower, against its processor's rules and sizes worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.memory.multimodal.budget import encoder_budget
from planner.memory.multimodal.encoder import encoder_peak_bytes
from planner.memory.multimodal.media import media_item
from planner.model.build import build_model
from planner.model.spec import ModelSpec
from planner.sharding.shard import shard
from planner.sources.gpu_pool import parse_gpus
from planner.sources.model_folder import load_folder

FOLDER = Path(__file__).parent.parent / "data" / "configs" / "made__minimax-m3-vl"


@pytest.fixture(scope="module")
def model() -> ModelSpec:
    return build_model(load_folder(FOLDER, name="m3"))


def configure(model: ModelSpec, **flags: Any) -> EngineConfig:
    return resolve(model, parse_gpus("h200:8").gpu, EngineArgs(max_model_len=8192, **flags), "0.26.0")


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((672, 672), (1, 48, 48)),
        ((2000, 2000), (1, 48, 48)),  # at most 672 x 672 pixels
        ((100, 100), (1, 8, 8)),  # to the nearest multiple of 28
        ((1344, 672), (1, 32, 66)),  # the larger side falls to 950.4, then to 33 cells of 28
    ],
)
def test_images_are_bounded_by_area(model: ModelSpec, size: tuple[int, int], grid: tuple[int, int, int]) -> None:
    assert model.vision is not None
    item = media_item(model.vision, "image", width=size[0], height=size[1])
    assert item.grid == grid
    assert item.tokens == grid[1] * grid[2] // 4


def test_largest_items(model: ModelSpec) -> None:
    """672 x 672 is 24 x 24 cells; a frame of 768 cells, two frames to a token, 10 times in 8192 tokens."""
    image, video = encoder_budget(model, configure(model)).largest
    assert (image.max_tokens, image.item.grid) == (576, (1, 48, 48))
    assert (video.max_tokens, video.item.frames, video.item.sequences) == (10 * 768, 20, 1)


def test_peak_is_the_rotation_in_float32(model: ModelSpec) -> None:
    """One rank, in the second block: embedded and hidden states, their norm, query-key-value, query and key copied, in
    float32, rotated in float32, rotated; three tables of 3 x 13 angles."""
    config = configure(model)
    item = encoder_budget(model, config).largest[1].item
    width, patches = 1280, 10 * 48 * 64
    half = 2 * (3 * width + 3 * width + 2 * width + 2 * width)
    single = 4 * (2 * width + 2 * width + 3 * 3 * 13)
    pixels = patches * 2 * 3 * 14 * 14 * 2
    peak = encoder_peak_bytes(model, shard(model, config), config, [item])
    assert peak == patches * (half + single) + pixels
