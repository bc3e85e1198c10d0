"""Qwen-VL media: from pixels to tokens, the encoder budget, and the encoder's peak against an H200."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_cases import DATA, QWEN2_5_VL, QWEN3_VL, first_share, media_config, media_model

from planner.errors import InputError, UnsupportedError
from planner.memory.multimodal.budget import embedding_bytes, encoder_budget
from planner.memory.multimodal.encoder import encoder_peak_bytes, encoder_program, profiled_encoder
from planner.memory.multimodal.flash_splits import flash_splits
from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.kwargs import NO_KWARGS, processor_kwargs
from planner.memory.multimodal.media import media_item
from planner.memory.multimodal.workload import (
    MediaWorkload,
    encoder_runtime_peak_bytes,
    refused_items,
)
from planner.memory.program import Program
from planner.units import MIB

MEASURED: dict[str, Any] = json.loads((DATA / "media_measured.json").read_text())
PEAKS = [(name, *row) for name, rows in MEASURED["runtime"].items() for row in rows]
V1 = {"model_runner": "v1"}


@pytest.mark.parametrize(
    ("name", "size", "tokens", "grid"),
    [
        (QWEN2_5_VL, (1024, 1024), 1369, (1, 74, 74)),
        (QWEN2_5_VL, (28, 28), 4, (1, 4, 4)),
        (QWEN2_5_VL, (1920, 1080), 2691, (1, 78, 138)),
        (QWEN2_5_VL, (8000, 8000), 16384, (1, 256, 256)),
        (QWEN3_VL, (1024, 1024), 1024, (1, 64, 64)),
        (QWEN3_VL, (100, 100), 64, (1, 16, 16)),
    ],
)
def test_tokens_of_an_image(name: str, size: tuple[int, int], tokens: int, grid: tuple[int, int, int]) -> None:
    vision = media_model(name).vision
    assert vision is not None
    item = media_item(vision, "image", width=size[0], height=size[1])
    assert (item.tokens, item.grid) == (tokens, grid)
    assert item.prompt_tokens == tokens + 2


@given(width=st.integers(30, 5000), height=st.integers(30, 5000))
def test_patches_are_tokens_times_the_merged_cell_within_the_bounds(width: int, height: int) -> None:
    vision = media_model(QWEN2_5_VL).vision
    assert vision is not None
    item = media_item(vision, "image", width=width, height=height)
    assert item.patches == 4 * item.tokens
    assert item.tokens <= 16384
    assert item.width % 28 == item.height % 28 == 0


@given(side=st.integers(60, 4000), more=st.integers(0, 500))
def test_a_larger_square_never_has_fewer_tokens(side: int, more: int) -> None:
    vision = media_model(QWEN3_VL).vision
    assert vision is not None
    small = media_item(vision, "image", width=side, height=side)
    assert media_item(vision, "image", width=side + more, height=side + more).tokens >= small.tokens


def test_an_extreme_shape_is_refused() -> None:
    vision = media_model(QWEN2_5_VL).vision
    assert vision is not None
    with pytest.raises(InputError, match="aspect ratio must be smaller than 200"):
        media_item(vision, "image", width=30000, height=100)


def test_thirty_seconds_of_video_are_sixty_frames_in_pairs() -> None:
    vision, newer = media_model(QWEN2_5_VL).vision, media_model(QWEN3_VL).vision
    assert vision is not None
    assert newer is not None
    video = media_item(vision, "video", width=1280, height=720, seconds=30)
    assert (video.frames, video.grid, video.tokens) == (60, (30, 52, 92), 35880)
    bounded = media_item(newer, "video", width=1280, height=720, seconds=30)
    assert bounded.frames == 60
    assert 60 * bounded.width * bounded.height <= 25165824
    assert bounded.prompt_tokens > bounded.tokens + 30 * 2


def test_max_pixels_bounds_the_image_and_size_does_too() -> None:
    vision = media_model(QWEN2_5_VL).vision
    assert vision is not None
    for text in ('{"max_pixels": 1003520}', '{"size": {"longest_edge": 1003520}}'):
        item = media_item(vision, "image", width=4000, height=3000, kwargs=processor_kwargs(text))
        assert item.tokens <= 1280


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("max_pixels=3", InputError),
        ('{"max_pixels": "many"}', InputError),
        ('{"patch_size": 28}', UnsupportedError),
        ('{"do_resize": false}', UnsupportedError),
        ('{"do_sample_frames": true}', UnsupportedError),
    ],
)
def test_processor_kwargs_that_are_not_understood_are_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        processor_kwargs(text)


def test_settings_that_cannot_change_sizes_are_dropped() -> None:
    assert processor_kwargs('{"use_fast": true, "do_normalize": false, "do_sample_frames": false}') == NO_KWARGS


def test_a_setting_of_another_family_is_refused() -> None:
    model = media_model(QWEN2_5_VL)
    config = media_config(model, mm_processor_kwargs='{"max_dynamic_patch": 4}')
    with pytest.raises(UnsupportedError, match="max_dynamic_patch"):
        encoder_budget(model, config)


def test_default_limits_are_budgeted_by_the_video_and_limits_by_the_image() -> None:
    model = media_model(QWEN2_5_VL)
    budget = encoder_budget(model, media_config(model))
    assert budget.tokens == 32768
    largest, count = budget.profiled_batch or pytest.fail("nothing is profiled")
    assert (largest.modality, largest.max_tokens, largest.item.patches, count) == ("video", 32768, 131072, 1)
    limited = media_config(model, mm_limits=(("image", 2), ("video", 0)), mm_processor_kwargs='{"max_pixels": 1003520}')
    budget = encoder_budget(model, limited)
    assert (budget.tokens, budget.items) == (8192, (("image", 6),))
    assert embedding_bytes(model, limited) == 3584 * 2


def test_the_dummy_video_of_a_long_context_has_fourteen_frames() -> None:
    model = media_model(QWEN2_5_VL)
    budget = encoder_budget(model, media_config(model, max_model_len=128000))
    assert budget.tokens == 114688


def test_limit_options_shrink_the_dummy_but_not_the_budget() -> None:
    model = media_model(QWEN2_5_VL)
    config = media_config(
        model,
        mm_limits=(("image", 1), ("video", 0)),
        mm_limit_options=(("image", "width", 448), ("image", "height", 448)),
    )
    largest = encoder_budget(model, config).largest[0]
    assert (largest.max_tokens, largest.item.tokens) == (16384, 256)


def test_no_media_no_budget() -> None:
    model = media_model(QWEN2_5_VL)
    config = media_config(model, mm_limits=(("image", 0), ("video", 0)), **V1)
    assert encoder_budget(model, config).tokens == 0
    share = first_share(model, config)
    assert encoder_runtime_peak_bytes(model, share, config) == 0
    assert profiled_encoder(Program(), model, share, config) is None


@given(batched=st.integers(1024, 32768), length=st.integers(2048, 128000))
def test_the_budget_takes_the_largest_item(batched: int, length: int) -> None:
    model = media_model(QWEN2_5_VL)
    budget = encoder_budget(model, media_config(model, max_num_batched_tokens=batched, max_model_len=length))
    assert budget.tokens >= max(batched, *(item.max_tokens for item in budget.largest))
    assert all(
        count * item.max_tokens <= budget.tokens for item, (_, count) in zip(budget.largest, budget.items, strict=True)
    )


@pytest.mark.parametrize(("name", "patches", "images", "measured"), PEAKS)
def test_peak_of_one_encoder_call_as_measured(name: str, patches: int, images: int, measured: int) -> None:
    """Within 3 percent and 1 MiB for each of the handful of live tensors, which the allocator may round by as much."""
    model = media_model(name)
    config = media_config(model, **_quantized(name))
    item = _flat_image(model.vision.image.patch_size, patches // images)  # type: ignore[union-attr]
    peak = encoder_peak_bytes(model, first_share(model, config), config, [item] * images)
    assert peak == pytest.approx(measured, rel=0.03, abs=4 * MIB)


@pytest.mark.parametrize("name", sorted(MEASURED["profile_peak_bytes"]))
def test_profile_peak_of_the_v1_runner_to_16_kib(name: str) -> None:
    model = media_model(name)
    config = media_config(model, **V1)
    program = Program()
    assert profiled_encoder(program, model, first_share(model, config), config) is not None
    peak = max(int(stage.bytes(0, 0)) for stage in program.stages())
    assert abs(peak - MEASURED["profile_peak_bytes"][name]) < 16384


def test_the_v2_runner_profiles_no_encoder_before_0_33() -> None:
    model = media_model(QWEN2_5_VL)
    for version, profiles in (("0.26.0", False), ("0.33.0", True)):
        config = media_config(model, model_runner="v2", vllm_version=version)
        written = profiled_encoder(Program(), model, first_share(model, config), config)
        assert (written is not None) is profiles
    skipped = media_config(model, skip_mm_profiling=True, **V1)
    assert profiled_encoder(Program(), model, first_share(model, skipped), skipped) is None


def test_tensor_parallel_towers_peak_lower_and_data_parallel_ones_hold_every_rank() -> None:
    model = media_model(QWEN2_5_VL)
    image = [_flat_image(14, 16384)] * 2
    peaks = {}
    for tp, mode in ((1, "weights"), (2, "weights"), (2, "data")):
        config = media_config(model, tensor_parallel_size=tp, mm_encoder_tp_mode=mode)
        peaks[tp, mode] = encoder_peak_bytes(model, first_share(model, config), config, image)
    assert peaks[2, "weights"] < peaks[1, "weights"]
    pixels, own_pixels = 2 * 16384 * 1176 * 2, 16384 * 1176 * 2
    config = media_config(model)
    one = encoder_peak_bytes(model, first_share(model, config), config, image[:1])
    assert peaks[2, "data"] == one - own_pixels + pixels + own_pixels


def test_every_stage_names_its_live_tensors() -> None:
    model = media_model(QWEN3_VL)
    config = media_config(model)
    program = encoder_program(model, first_share(model, config), config, [_flat_image(16, 4096)])
    top = max(program.stages(), key=lambda stage: int(stage.bytes(0, 0)))
    assert top.name.startswith("vision block")
    assert {"pixel values", "fused query, key and value", "merged tokens"} <= {tensor.name for tensor in top.tensors}


@pytest.mark.parametrize(
    ("heads", "size", "longest", "sequences", "splits"),
    [(16, 72, 1024, 1, 4), (16, 72, 1024, 8, 4), (16, 72, 4096, 1, 1), (16, 80, 64, 100, 1), (16, 80, 1296, 1, 1)],
)
def test_flash_attention_splits_seen_on_an_h200(
    heads: int, size: int, longest: int, sequences: int, splits: int
) -> None:
    assert flash_splits(heads, size, longest, sequences, 132) == splits


def test_a_workload_peaks_at_what_one_step_can_take() -> None:
    model = media_model(QWEN2_5_VL)
    config = media_config(model)
    share = first_share(model, config)
    one = MediaWorkload(images=1)
    image = media_item(model.vision, "image", width=1024, height=1024)  # type: ignore[arg-type]
    assert image.prompt_tokens == 1371
    assert encoder_runtime_peak_bytes(model, share, config, one) == encoder_peak_bytes(model, share, config, [image])
    crowd = MediaWorkload(images=4, requests=500)
    full = encoder_peak_bytes(model, share, config, [image] * (32768 // 1369))
    assert encoder_runtime_peak_bytes(model, share, config, crowd) == full
    assert encoder_runtime_peak_bytes(model, share, config) >= full


def test_what_the_engine_refuses_is_named_and_not_encoded() -> None:
    model = media_model(QWEN2_5_VL)
    config = media_config(model, mm_limits=(("image", 2), ("video", 999)))
    share, budget = first_share(model, config), encoder_budget(model, config)
    work = MediaWorkload(images=3, videos=1, video_seconds=60)
    refused = dict(refused_items(model.vision, config, budget, work))  # type: ignore[arg-type]
    assert refused["image"] == "At most 2 image(s) may be provided in one prompt."
    assert "video" in refused
    assert encoder_runtime_peak_bytes(model, share, config, work) == 0


def test_deepstack_embeddings_are_four_wide() -> None:
    model = media_model(QWEN3_VL)
    assert embedding_bytes(model, media_config(model)) == 4 * 4096 * 2


def _flat_image(patch_size: int, patches: int) -> MediaItem:
    return MediaItem(
        modality="image", tokens=patches // 4, prompt_tokens=patches // 4 + 2, patches=patches, sequences=1,
        input_values=patches * 6 * patch_size**2, grid=(1, 1, patches),
    )  # fmt: skip


def _quantized(name: str) -> dict[str, Any]:
    if "AWQ" not in name:
        return {}
    return {"dtype": "float16", "quantization": "auto_awq"}
