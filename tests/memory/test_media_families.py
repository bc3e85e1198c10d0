"""Tokens and patches of every processor family, by hand from the processors' own rules; budgets and advice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_cases import QWEN2_5_VL, first_share, media_config, media_model

from planner.errors import InputError, UnsupportedError
from planner.memory.multimodal.budget import encoder_budget
from planner.memory.multimodal.encoder import encoder_program, profiled_encoder
from planner.memory.multimodal.kwargs import NO_KWARGS, ProcessorKwargs, processor_kwargs
from planner.memory.multimodal.media import media_item, visual_rule
from planner.memory.multimodal.recommend import recommend_limits
from planner.memory.multimodal.rule import MediaRule
from planner.memory.multimodal.shaped import EdgeRule, Gemma4Rule, GlmRule, KimiRule
from planner.memory.multimodal.sound import SoundRule
from planner.memory.multimodal.squares import FixedRule, PinpointRule, SliceRule, TileRule
from planner.memory.multimodal.workload import MediaWorkload, encoder_runtime_peak_bytes
from planner.memory.program import Program
from planner.model.vision_spec import AudioFrames, DynamicPatches, FixedSize, LongestEdge, Pinpoints, Slices, Tiles

NEXT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
ONEVISION_PINPOINTS = tuple((384 * high, 384 * wide) for high in range(1, 7) for wide in range(1, 7))


def tiles(family: str, kwargs: ProcessorKwargs = NO_KWARGS, **changes: Any) -> TileRule:
    sizes: dict[str, dict[str, Any]] = {
        "InternVL": {"image_size": 448, "patches": 1024, "tokens": 256, "max_tiles": 12, "extra_tokens": 2},
        "InternS1": {"image_size": 448, "patches": 1024, "tokens": 256, "max_tiles": 12, "extra_tokens": 2},
        "Idefics3": {"image_size": 364, "patches": 676, "tokens": 169, "max_tiles": 16},
        "Mllama4": {"image_size": 336, "patches": 577, "tokens": 144, "max_tiles": 16},
    }
    return TileRule(family, Tiles(patch_size=14, min_tiles=1, thumbnail=True, **(sizes[family] | changes)), kwargs)


def pinpoints(family: str) -> PinpointRule:
    if family == "LlavaNext":
        sizes: dict[str, Any] = {"image_size": 336, "patches": 577, "tokens": 576, "pinpoints": NEXT_PINPOINTS}
    else:
        sizes = {"image_size": 384, "patches": 729, "tokens": 729, "pinpoints": ONEVISION_PINPOINTS}
        sizes |= {"max_tiles": 9, "video_frame_tokens": 196}
    return PinpointRule(family, Pinpoints(patch_size=14, **sizes))


def gemma3(kwargs: ProcessorKwargs = NO_KWARGS) -> FixedRule:
    square = FixedSize(image_size=896, patch_size=14, patches=4096, tokens=256, item_tokens=256)
    return FixedRule("Gemma3", square, kwargs)


MINICPM = SliceRule(
    "MiniCPMV", Slices(patch_size=14, scale_resolution=448, patches=1024, tokens=64, max_slices=9), NO_KWARGS
)
MISTRAL3 = EdgeRule("Mistral3", LongestEdge(image_size=1540, patch_size=14, merge_size=2), NO_KWARGS)
PIXTRAL = EdgeRule("Llava", LongestEdge(image_size=1024, patch_size=16, merge_size=1), NO_KWARGS)


def dynamic(**changes: Any) -> DynamicPatches:
    values: dict[str, Any] = {
        "patch_size": 14, "merge_size": 2, "temporal_patch_size": 1, "min_pixels": 784, "max_pixels": 802816,
        "video_min_pixels": 784, "video_max_pixels": 802816, "max_video_frames": 32,
    }  # fmt: skip
    return DynamicPatches(**(values | changes))


KIMI = KimiRule("KimiVL", dynamic(), NO_KWARGS)
GEMMA4 = Gemma4Rule(
    "Gemma4",
    dynamic(patch_size=16, merge_size=3, max_pixels=280 * 48**2, video_max_pixels=70 * 48**2),
    NO_KWARGS,
)
GLM = GlmRule(
    "Glm4v",
    dynamic(
        temporal_patch_size=2, max_pixels=9633792, min_pixels=12544, video_pixels="total", video_min_pixels=12544,
        video_max_pixels=47040000, max_video_frames=600,
    ),
    NO_KWARGS,
)  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "size", "tokens", "patches"),
    [
        (tiles("InternVL"), (448, 448), 256, 1024),
        (tiles("InternVL"), (800, 600), 13 * 256, 13 * 1024),
        (tiles("InternVL"), (1920, 1080), 9 * 256, 9 * 1024),
        (tiles("InternVL", processor_kwargs('{"max_dynamic_patch": 4}')), (800, 600), 5 * 256, 5 * 1024),
        (tiles("InternVL", processor_kwargs('{"dynamic_image_size": false}')), (800, 600), 256, 1024),
        (tiles("Idefics3"), (364, 364), 17 * 169, 17 * 676),
        (tiles("Idefics3"), (1920, 1080), 13 * 169, 13 * 676),
        (tiles("Idefics3", processor_kwargs('{"do_image_splitting": false}')), (1920, 1080), 169, 676),
        (tiles("Mllama4"), (336, 336), 144, 577),
        (tiles("Mllama4"), (1024, 1024), 17 * 144, 17 * 577),
        (pinpoints("LlavaNext"), (336, 336), 576 + 24 * 24 + 24, 3 * 577),
        (pinpoints("LlavaNext"), (672, 672), 576 + 48 * 48 + 48, 5 * 577),
        (pinpoints("LlavaNext"), (1024, 768), 576 + 36 * 48 + 36, 5 * 577),
        (pinpoints("LlavaOnevision"), (1153, 944), 729 + 81 * 98 + 81, 13 * 729),
        (gemma3(), (3000, 400), 256, 4096),
        (gemma3(processor_kwargs('{"do_pan_and_scan": true}')), (2000, 1000), 3 * 256, 3 * 4096),
        (gemma3(processor_kwargs('{"do_pan_and_scan": true}')), (1000, 1000), 256, 4096),
        (MINICPM, (448, 448), 64, 1024),
        (MINICPM, (1344, 1344), 640, 10240),
        (MISTRAL3, (1540, 1540), 55 * 55, 110 * 110),
        (MISTRAL3, (4000, 3000), 42 * 55, 84 * 110),
        (PIXTRAL, (2048, 2048), 64 * 64, 64 * 64),
        (KIMI, (1024, 1024), 33 * 33, 66 * 66),
        (GEMMA4, (1000, 1000), 16 * 16, 280 * 9),
        (GLM, (1000, 1000), 36 * 36, 72 * 72),
    ],
)  # fmt: skip
def test_tokens_and_patches_of_an_image(rule: MediaRule, size: tuple[int, int], tokens: int, patches: int) -> None:
    item = rule.image(*size)
    assert (item.tokens, item.patches) == (tokens, patches)


@pytest.mark.parametrize(
    ("rule", "tokens"),
    [
        (tiles("InternVL"), 13 * 256),
        (tiles("InternS1"), 13 * 256),
        (tiles("Idefics3"), 17 * 169),
        (tiles("Mllama4"), 17 * 144),
        (pinpoints("LlavaNext"), 2928),
        (pinpoints("LlavaOnevision"), 8748),
        (gemma3(), 256),
        (MINICPM, 640),
        (MISTRAL3, 3025),
        (KIMI, 1089),
        (GEMMA4, 280),
        (GLM, 78 * 78),
    ],
)
def test_tokens_of_the_largest_image(rule: MediaRule, tokens: int) -> None:
    assert rule.largest_image(None, None).max_tokens == tokens


RULES: list[MediaRule] = [tiles("InternVL"), tiles("Idefics3"), tiles("Mllama4"), gemma3(), MINICPM, MISTRAL3]
"""Not GLM-4V: rounding gives some shapes a few tokens more than its square dummy."""


@given(width=st.integers(20, 4000), height=st.integers(20, 4000), index=st.integers(0, len(RULES) - 1))
def test_no_image_has_more_tokens_than_the_largest(width: int, height: int, index: int) -> None:
    if max(width, height) < 200 * min(width, height):
        assert RULES[index].image(width, height).tokens <= RULES[index].largest_image(None, None).max_tokens


def test_videos_are_frames_of_fixed_tokens() -> None:
    assert pinpoints("LlavaOnevision").video(640, 480, 16).tokens == 16 * 196 + 1
    assert tiles("InternVL").video(640, 480, 8).tokens == 8 * 256
    assert tiles("InternVL").largest_video(32768, True, None, None, None).max_tokens == (32768 - 3328) // 256 * 256
    assert tiles("InternVL").largest_video(32768, True, None, None, None).item.tokens == 32768
    assert MINICPM.largest_video(32768, True, None, None, None).max_tokens == 16 * 64
    assert GEMMA4.largest_video(32768, True, None, None, None).max_tokens == 32 * 78
    assert tiles("InternVL").sampled_frames(600) == 32


def test_a_family_without_videos_says_so() -> None:
    with pytest.raises(UnsupportedError, match="videos of Idefics3"):
        tiles("Idefics3").video(640, 480, 8)


def test_thirty_seconds_of_sound_are_750_tokens_and_longer_is_refused() -> None:
    frames = AudioFrames(mel_bins=128, max_frames=3000, encoder_positions=1500, tokens=750)
    whisper, newer = SoundRule("Qwen2Audio", frames), SoundRule("Qwen3ASR", frames)
    assert (whisper.sound(30).tokens, whisper.sound(10).tokens) == (750, 250)
    assert whisper.sound(10).patches == whisper.sound(30).patches == 1500
    assert (newer.sound(30).tokens, newer.sound(10).tokens) == (390, 130)
    with pytest.raises(InputError, match="30 s at most"):
        whisper.sound(31)


@pytest.mark.parametrize(
    ("name", "modality", "peak"),
    [
        ("llava-hf__llava-1.5-7b-hf", "image", "encoder block"),
        ("google__gemma-3-4b-it", "image", "encoder block"),
        ("made__mistral3", "image", "encoder block"),
        ("made__kimi-vl", "image", "encoder block"),
        ("made__glm41v", "video", "vision block"),
        ("Qwen__Qwen2-Audio-7B-Instruct", "audio", "encoder block"),
    ],
)
def test_towers_peak_in_a_block_and_grow_with_the_batch(name: str, modality: str, peak: str) -> None:
    model = media_model(name)
    config = media_config(model, compute_capability=(8, 9))
    share, largest = first_share(model, config), encoder_budget(model, config).profiled
    assert largest is not None
    assert largest.modality == modality
    one, two = (
        max(
            encoder_program(model, share, config, [largest.item] * count).stages(),
            key=lambda stage: int(stage.bytes(0, 0)),
        )
        for count in (1, 2)
    )
    assert one.name.startswith(peak)
    assert int(two.bytes(0, 0)) >= 2 * int(one.bytes(0, 0))


def test_a_clip_block_holds_input_norm_and_both_halves_of_its_mlp() -> None:
    model = media_model("llava-hf__llava-1.5-7b-hf")
    config = media_config(model)
    share, item = first_share(model, config), encoder_budget(model, config).largest[0].item
    stages = encoder_program(model, share, config, [item]).stages()
    rows, width, inner, pixels = 577, 1024, 4096, 3 * 336 * 336
    expected = 2 * (pixels + rows * (4 * width + 2 * inner))
    assert max(int(stage.bytes(0, 0)) for stage in stages) == expected


def test_pixtral_masks_every_patch_of_the_batch() -> None:
    model = media_model("made__mistral3")
    config = media_config(model)
    share, item = first_share(model, config), encoder_budget(model, config).largest[0].item
    stages = encoder_program(model, share, config, [item] * 2).stages()
    top = max(stages, key=lambda stage: int(stage.bytes(0, 0)))
    masks = {tensor.name: tensor.constant_bytes for tensor in top.tensors if "mask" in tensor.name}
    assert masks["attention mask"] == 24200 * 24200 * 2
    assert masks["attention mask, padded"] == 24200 * 24208 * 2


def test_unknown_families_are_refused() -> None:
    vision = media_model("allenai__Molmo-7B-D-0924").vision
    assert vision is not None
    with pytest.raises(UnsupportedError, match="Molmo"):
        visual_rule(vision, NO_KWARGS)


def test_a_modality_that_the_model_has_not_is_refused() -> None:
    vision = media_model("llava-hf__llava-1.5-7b-hf").vision
    assert vision is not None
    with pytest.raises(InputError, match="takes image, not video"):
        media_item(vision, "video", width=640, height=480, seconds=10)


def test_advice_for_a_workload_serves_it_and_saves() -> None:
    model = media_model(QWEN2_5_VL)
    config = media_config(model, model_runner="v1")
    share, work = first_share(model, config), MediaWorkload(images=4, image_size=(1024, 1024), requests=8)
    advice = recommend_limits(model, share, config, work)
    assert json.loads(advice.limit_mm_per_prompt) == {"image": 4, "video": 0}
    assert json.loads(advice.mm_processor_kwargs or "{}") == {"max_pixels": 1036 * 1036}
    assert advice.saved_bytes > 0
    assert advice.profile_peak_bytes_after < advice.profile_peak_bytes / 4
    limited = config.model_copy(
        update={"mm_limits": (("image", 4), ("video", 0)), "mm_processor_kwargs": advice.mm_processor_kwargs}
    )
    kwargs = processor_kwargs(advice.mm_processor_kwargs)
    assert model.vision is not None
    assert media_item(model.vision, "image", width=1024, height=1024, kwargs=kwargs).tokens == 1369
    assert encoder_runtime_peak_bytes(model, share, limited, work) <= advice.worst_peak_bytes_after
    assert profiled_encoder(Program(), model, share, limited) is not None


def test_advice_keeps_what_was_given_and_tightens_nothing_needed() -> None:
    model = media_model(QWEN2_5_VL)
    config = media_config(model, mm_processor_kwargs='{"max_pixels": 200704, "min_pixels": 3136}')
    share = first_share(model, config)
    advice = recommend_limits(model, share, config, MediaWorkload(images=1, image_size=(4000, 4000)))
    assert advice.mm_processor_kwargs is None
    video = MediaWorkload(videos=1, video_seconds=30, video_size=(640, 480))
    wide = recommend_limits(model, share, media_config(model), video)
    assert json.loads(wide.limit_mm_per_prompt) == {"image": 0, "video": 1}
    assert json.loads(wide.mm_processor_kwargs or "{}") == {"max_pixels": 644 * 476}
