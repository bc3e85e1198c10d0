"""What requests with media bring: counts, budgets, refusals, and the limits that serve them."""

from __future__ import annotations

import json
from math import ceil
from typing import Any

import pytest

from planner.errors import InputError, UnsupportedError
from planner.memory.multimodal.budget import embedding_bytes, encoder_budget
from planner.memory.multimodal.encoder import encoder_peak_bytes, profiles_encoder, repeated_peak_bytes
from planner.memory.multimodal.kwargs import processor_kwargs
from planner.memory.multimodal.media import item_limit, media_item, visual_rule
from planner.memory.multimodal.recommend import limits_sentence, recommend_limits, tight_kwargs
from planner.memory.multimodal.workload import (
    MediaWorkload,
    encoder_runtime_peak_bytes,
    items_under,
    refused_items,
    workload_items,
)
from planner.memory.relief import MODEST_PIXELS, part_peaks, reliefs
from planner.model.spec import ModelSpec
from planner.model.vision_spec import VisionSpec
from planner.units import format_gib
from tests.memory.pass_cases import set_up

QWEN, NEWER = "Qwen__Qwen2.5-VL-7B-Instruct", "Qwen__Qwen3-VL-8B-Instruct"
LONG: dict[str, Any] = {"max_model_len": 32768, "max_num_batched_tokens": 8192}


def vision_of(source: str, **flags: Any) -> VisionSpec:
    vision = set_up(source, **flags)[0].vision
    assert vision is not None
    return vision


def test_a_workload_that_says_nothing_brings_nothing() -> None:
    """Images are squares of 1024 pixels and videos 720p where only their number is said."""
    plain = MediaWorkload()
    assert (plain.requests, plain.images, plain.videos, plain.sounds) == (1, 0, 0, 0)
    assert (plain.image_size, plain.video_size) == ((1024, 1024), (1280, 720))
    assert (plain.video_seconds, plain.sound_seconds) == (0.0, 0.0)
    assert items_under(vision_of(QWEN), None, plain) == ()


def test_items_of_a_request_with_their_counts() -> None:
    vision = vision_of(QWEN)
    work = MediaWorkload(images=3, image_size=(640, 480), videos=2, video_size=(320, 240), video_seconds=5)
    (image, images), (video, videos) = items_under(vision, None, work)
    assert (images, videos) == (3, 2)
    assert image == media_item(vision, "image", width=640, height=480)
    assert video == media_item(vision, "video", width=320, height=240, seconds=5)
    ((small, _),) = items_under(vision, '{"max_pixels": 100000}', MediaWorkload(images=1))
    assert small.width * small.height <= 100_000
    config = set_up(QWEN, **LONG)[2]
    assert workload_items(vision, config, work) == items_under(vision, config.mm_processor_kwargs, work)


def test_a_video_of_kimi_is_chunks_of_frames() -> None:
    vision = vision_of("moonshotai__Kimi-K2.6", gpus="h200:8", tensor_parallel_size=8)
    work = MediaWorkload(images=2, videos=3, video_seconds=60, video_size=(640, 480))
    (image, images), (chunk, chunks) = items_under(vision, None, work)
    most = vision.image.max_video_frames  # type: ignore[union-attr]
    assert (image.modality, chunk.modality, images) == ("vision_chunk", "vision_chunk", 2)
    assert chunk.frames == most
    assert chunks == 3 * ceil(32 / most)


def test_sounds_count_too() -> None:
    vision = vision_of("Qwen__Qwen2-Audio-7B-Instruct")
    ((sound, sounds),) = items_under(vision, None, MediaWorkload(sounds=4, sound_seconds=7))
    assert (sound, sounds) == (media_item(vision, "audio", seconds=7), 4)
    with pytest.raises(InputError, match="takes audio, not image"):
        items_under(vision, None, MediaWorkload(images=1))


@pytest.mark.parametrize(
    ("flags", "images", "refused"),
    [
        ({"limit_mm_per_prompt": '{"image": 2}'}, 2, False),
        ({"limit_mm_per_prompt": '{"image": 2}'}, 3, True),
        ({"max_num_batched_tokens": 2048}, 1, False),
    ],
)
def test_what_a_prompt_may_bring(flags: dict[str, Any], images: int, refused: bool) -> None:
    model, share, config = set_up(QWEN, **LONG | flags)
    assert model.vision is not None
    work = MediaWorkload(images=images)
    found = refused_items(model.vision, config, encoder_budget(model, config), work)
    assert bool(found) is refused
    assert (encoder_runtime_peak_bytes(model, share, config, work) == 0) is refused


def test_an_item_as_large_as_the_cache_is_taken() -> None:
    model, share, config = set_up(QWEN, max_model_len=32768, max_num_batched_tokens=2048)
    assert model.vision is not None
    budget = encoder_budget(model, config)
    fits, over = (
        MediaWorkload(images=1, image_size=(28 * 128, 28 * 128)),
        MediaWorkload(videos=1, video_size=(28 * 100, 28 * 100), video_seconds=60),
    )
    assert not refused_items(model.vision, config, budget, fits)
    ((modality, why),) = refused_items(model.vision, config, budget, over)
    assert modality == "video"
    assert f"the cache {budget.tokens}" in why
    one = media_item(model.vision, "image", width=28 * 128, height=28 * 128)
    assert encoder_runtime_peak_bytes(model, share, config, fits) == encoder_peak_bytes(model, share, config, [one])


@pytest.mark.parametrize(("requests", "seqs", "taken"), [(1, 64, 2), (3, 64, 6), (3, 2, 4), (50, 64, 8192 // 529)])
def test_a_step_encodes_what_requests_bring_and_the_budget_takes(requests: int, seqs: int, taken: int) -> None:
    model, share, config = set_up(
        QWEN,
        max_model_len=4096,
        max_num_batched_tokens=8192,
        max_num_seqs=seqs,
        limit_mm_per_prompt='{"image": 5, "video": 0}',
        mm_processor_kwargs='{"max_pixels": 501760}',
    )
    assert model.vision is not None
    kwargs = processor_kwargs(config.mm_processor_kwargs)
    image = media_item(model.vision, "image", width=644, height=644, kwargs=kwargs)
    assert image.tokens == 529
    assert encoder_budget(model, config).tokens == 8192
    work = MediaWorkload(requests=requests, images=2, image_size=(644, 644))
    peak = encoder_runtime_peak_bytes(model, share, config, work)
    assert peak == encoder_peak_bytes(model, share, config, [image] * taken)
    assert peak == repeated_peak_bytes(model, share, config, image, taken)


@pytest.mark.parametrize(
    ("flags", "items"),
    [
        ({"max_num_seqs": 64}, {"image": 8}),
        ({"max_num_seqs": 2}, {"image": 4}),
        ({"max_num_seqs": 2, "limit_mm_per_prompt": '{"image": 1, "video": 0}'}, {"image": 2}),
        ({"max_num_seqs": 64, "enable_chunked_prefill": False, "max_num_batched_tokens": 4096}, {"image": 4}),
    ],
)
def test_items_of_one_profiled_batch(flags: dict[str, Any], items: dict[str, int]) -> None:
    """1024 tokens an image: what fits into the budget, and what requests of at most 2 of them in a prompt bring."""
    sizes: dict[str, Any] = {
        "max_model_len": 2048 + 1023, "max_num_batched_tokens": 8192, "mm_processor_kwargs": '{"max_pixels": 802816}',
        "limit_mm_per_prompt": '{"image": 5, "video": 0}',
    }  # fmt: skip
    model, _, config = set_up(QWEN, **{**sizes, **flags})
    budget = encoder_budget(model, config)
    assert budget.largest[0].max_tokens == 1024
    assert dict(budget.items) == items
    assert budget.profiled_batch == (budget.largest[0], items["image"])


def test_budgets_of_models_without_media_are_empty() -> None:
    text, _, config = set_up("Qwen__Qwen3-8B")
    budget = encoder_budget(text, config)
    assert (budget.tokens, budget.largest, budget.profiled_batch) == (0, (), None)
    assert embedding_bytes(text, config) == 0
    audio, _, config = set_up("Qwen__Qwen2-Audio-7B-Instruct")
    assert embedding_bytes(audio, config) == 4096 * 2


def test_a_prompt_takes_what_flag_and_class_allow() -> None:
    model, _, config = set_up("served_configs.json paligemma", limit_mm_per_prompt='{"image": 5}')
    assert model.vision is not None
    assert item_limit(model.vision, config, "image") == 1
    model, _, config = set_up(QWEN, limit_mm_per_prompt='{"image": 5}')
    assert model.vision is not None
    assert item_limit(model.vision, config, "image") == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0, "height": 5}, "needs its width and height"),
        ({"width": 5, "height": 0}, "needs its width and height"),
        ({"modality": "video", "width": 50, "height": 50}, "needs its seconds or frames"),
    ],
)
def test_media_without_sizes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        media_item(vision_of(QWEN), **{"modality": "image", **arguments})


def test_a_sound_of_no_length_is_one_frame() -> None:
    assert media_item(vision_of("Qwen__Qwen2-Audio-7B-Instruct"), "audio").frames == 1
    assert media_item(vision_of(QWEN), "video", width=300, height=300, seconds=0).frames == 4


def test_frames_may_be_given_instead_of_seconds() -> None:
    vision = vision_of(QWEN)
    assert media_item(vision, "video", width=300, height=300, frames=7).frames == 7
    assert media_item(vision, "video", width=1, height=1, seconds=30).frames == 60


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ('{"max_pixels": 1}', "max_pixels", 1),
        ('{"num_crops": 3, "fps": 2, "min_pixels": null}', "num_crops", 3),
        ("{}", "max_pixels", None),
    ],
)
def test_settings_are_read(text: str, key: str, value: int | None) -> None:
    found = processor_kwargs(text)
    assert found.count(key) == value
    assert found.flag("use_thumbnail", True) is True
    assert processor_kwargs('{"use_thumbnail": false}').flag("use_thumbnail", True) is False
    assert processor_kwargs('{"size": {"longest_edge": 5}}').edge("longest_edge") == 5


@pytest.mark.parametrize(
    "text",
    [
        '{"max_pixels": 0}',
        '{"max_pixels": true}',
        '{"max_pixels": 1.5}',
        '{"size": 5}',
        '{"size": {"height": 0}}',
        "[]",
    ],
)
def test_settings_of_wrong_kinds_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        processor_kwargs(text)


@pytest.mark.parametrize(
    "text", ['{"use_thumbnail": 1}', '{"do_resize": 1}', '{"do_sample_frames": 0}', '{"other": 1}']
)
def test_settings_that_are_not_known_are_unsupported(text: str) -> None:
    with pytest.raises(UnsupportedError):
        processor_kwargs(text)


def test_only_the_settings_of_a_family_are_taken() -> None:
    vision = vision_of(QWEN)
    visual_rule(vision, processor_kwargs('{"size": {"longest_edge": 50000}}'))
    kimi = vision_of("made__kimi-vl")
    with pytest.raises(UnsupportedError, match="size is not known for KimiVL"):
        visual_rule(kimi, processor_kwargs('{"size": {"longest_edge": 50000}}'))


@pytest.mark.parametrize(
    ("source", "given", "size", "found"),
    [
        (QWEN, None, (640, 480), {"max_pixels": 644 * 476}),
        (QWEN, '{"min_pixels": 4000}', (640, 480), {"min_pixels": 4000, "max_pixels": 644 * 476}),
        (QWEN, '{"max_pixels": 306544}', (640, 480), None),
        (QWEN, '{"max_pixels": 306545}', (640, 480), {"max_pixels": 306544}),
        ("made__kimi-vl", None, (640, 480), None),
        ("llava-hf__llava-1.5-7b-hf", None, (640, 480), None),
    ],
)
def test_pixels_are_bounded_by_the_largest_image(
    source: str, given: str | None, size: tuple[int, int], found: dict[str, int] | None
) -> None:
    vision = vision_of(source)
    image = media_item(vision, "image", width=size[0], height=size[1])
    text = tight_kwargs(vision, given, (image,))
    assert (None if text is None else json.loads(text)) == found
    assert tight_kwargs(vision, given, ()) is None
    small = media_item(vision, "image", width=100, height=100)
    assert tight_kwargs(vision, given, (small, image)) == text


def test_frames_of_one_bound_count_together() -> None:
    vision = vision_of(NEWER)
    video = media_item(vision, "video", width=640, height=480, seconds=4)
    text = tight_kwargs(vision, '{"max_pixels": 99999999}', (video,))
    assert json.loads(text or "{}") == {"max_pixels": 8 * video.width * video.height}


def test_advice_is_given_where_it_saves() -> None:
    model, share, config = set_up(QWEN, **LONG)
    work = MediaWorkload(images=1, image_size=(640, 480))
    advice = recommend_limits(model, share, config, work)
    assert json.loads(advice.limit_mm_per_prompt) == {"image": 1, "video": 0}
    assert advice.saved_bytes == advice.worst_peak_bytes - advice.worst_peak_bytes_after > 0
    assert (advice.profile_peak_bytes, advice.profile_peak_bytes_after) == (0, 0)
    sentence = limits_sentence(model, share, config, work)
    assert sentence is not None
    assert sentence.startswith("for the stated media, --limit-mm-per-prompt")
    assert f"{format_gib(advice.saved_bytes)} less" in sentence
    text, share, config = set_up("Qwen__Qwen3-8B")
    assert limits_sentence(text, share, config, None) is None


@pytest.mark.parametrize(
    ("source", "flags", "profiles"),
    [
        (QWEN, {}, False),
        (QWEN, {"env": (("VLLM_USE_V2_MODEL_RUNNER", "0"),)}, True),
        (QWEN, {"env": (("VLLM_USE_V2_MODEL_RUNNER", "0"),), "skip_mm_profiling": True}, False),
        (QWEN, {"version": "0.33.0"}, True),
        (QWEN, {"version": "0.33.0", "gpus": "h200:2", "pipeline_parallel_size": 2, "stage": 1}, False),
        ("Qwen__Qwen3-8B", {"env": (("VLLM_USE_V2_MODEL_RUNNER", "0"),)}, False),
    ],
)
def test_which_ranks_profile_the_encoder(source: str, flags: dict[str, Any], profiles: bool) -> None:
    assert profiles_encoder(*set_up(source, **flags)) is profiles


def peaks(source: str, **flags: Any) -> tuple[ModelSpec, dict[str, int], dict[str, int]]:
    model, share, config = set_up(source, **flags)
    freed = {item.flags: item.freed_bytes for item in reliefs(model, share, config)}
    return model, part_peaks(model, share, config), freed


def test_parts_of_a_profile_run_and_what_takes_bytes_off_it() -> None:
    v1: dict[str, Any] = {"env": (("VLLM_USE_V2_MODEL_RUNNER", "0"),), "enforce_eager": True}
    _, parts, freed = peaks(QWEN, **LONG | v1 | {"max_num_seqs": 512, "mm_processor_kwargs": '{"min_pixels": 3136}'})
    assert set(parts) == {"vision encoder", "language model", "sampler"}
    pixels = json.dumps({"min_pixels": 3136, "max_pixels": MODEST_PIXELS})
    seqs = "--max-num-seqs 256"
    assert list(freed) == [seqs, f"--mm-processor-kwargs '{pixels}'", f"{seqs} --mm-processor-kwargs '{pixels}'"]
    assert all(size >= 0 for size in freed.values())
    assert max(freed.values()) == freed[f"{seqs} --mm-processor-kwargs '{pixels}'"] > 0
    _, parts, freed = peaks("Qwen__Qwen3-8B", max_num_seqs=256, enforce_eager=True)
    assert set(parts) == {"language model", "sampler"}
    assert freed == {}
    assert list(peaks("Qwen__Qwen3-8B", max_num_seqs=257, enforce_eager=True)[2]) == [seqs]
    draft = {"speculative_config": '{"method": "eagle", "model": "head", "num_speculative_tokens": 3}'}
    assert set(peaks("llama", **draft)[1]) == {"language model", "draft model", "sampler"}
    assert "vision encoder" not in peaks(QWEN, **LONG)[1]
