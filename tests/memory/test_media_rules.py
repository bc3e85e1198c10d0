"""The arithmetic of processors against slower forms of it, and at its edges."""

from __future__ import annotations

from math import ceil, floor, sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from planner.errors import InputError
from planner.memory.multimodal.gemma4_tower import encoder_chunk
from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.kwargs import NO_KWARGS, ProcessorKwargs, processor_kwargs
from planner.memory.multimodal.patches import Bounds, PatchRule, most_features, smart_resize
from planner.memory.multimodal.shaped import GlmRule, PaddleRule
from planner.memory.multimodal.squares import FixedRule, PinpointRule, SliceRule, TileRule, best_pinpoint
from planner.memory.multimodal.styles import tower_of
from planner.memory.multimodal.views import WindowRule
from planner.model.vision_spec import DynamicPatches, Encoder, FixedSize, Pinpoints, Slices, Tiles
from tests.memory.pass_cases import set_up

SIDES = st.integers(1, 5000)


@given(st.integers(1, 700))
def test_the_most_features_are_those_of_the_largest_allowed_count(most: int) -> None:
    """The largest count of cells with a pair of divisors whose ratio is at most 200, as square as it can be."""
    pairs = [
        (short, count // short)
        for count in range(most, 0, -1)
        for short in range(1, count + 1)
        if count % short == 0 and short * short <= count <= 200 * short * short
    ]
    largest = max(short * long for short, long in pairs)
    best = max((pair for pair in pairs if pair[0] * pair[1] == largest), key=lambda pair: pair[0])
    assert most_features(28, most * 28 * 28 + 783) == (28 * best[0], 28 * best[1])


@given(st.integers(28, 3000), st.integers(28, 3000), st.sampled_from([(3136, 1_003_520), (200_000, 300_000)]))
def test_resized_areas_lie_within_the_bounds(height: int, width: int, bounds: tuple[int, int]) -> None:
    """image_processing_qwen2_vl.py:62: to the nearest multiples, shrunk downwards, enlarged upwards."""
    high, wide = smart_resize(height, width, 28, Bounds(*bounds))
    assert high % 28 == wide % 28 == 0
    near = round(height / 28) * 28 * (round(width / 28) * 28)
    if bounds[0] <= near <= bounds[1]:
        assert (high, wide) == (round(height / 28) * 28, round(width / 28) * 28)
    elif near > bounds[1]:
        scale = sqrt(height * width / bounds[1])
        assert (high, wide) == tuple(max(28, floor(side / scale / 28) * 28) for side in (height, width))
        assert high * wide <= bounds[1] or 28 in (high, wide)
    else:
        scale = sqrt(bounds[0] / (height * width))
        assert (high, wide) == tuple(ceil(side * scale / 28) * 28 for side in (height, width))
        assert high * wide >= bounds[0]


def test_shapes_up_to_200_to_1_are_taken() -> None:
    assert smart_resize(28, 28 * 200, 28, Bounds(1, 10**9)) == (28, 5600)
    with pytest.raises(InputError, match="aspect ratio"):
        smart_resize(28, 28 * 200 + 1, 28, Bounds(1, 10**9))


def patches(**changes: Any) -> PatchRule:
    values: dict[str, Any] = {
        "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 3136, "max_pixels": 1_003_520,
        "video_min_pixels": 3136, "video_max_pixels": 602_112, "max_video_frames": 768,
    }  # fmt: skip
    return PatchRule("Qwen2VL", DynamicPatches(**(values | changes)), NO_KWARGS)


def glm4v(**changes: Any) -> GlmRule:
    return GlmRule("Glm4v", patches(video_pixels="total", **changes).rule, NO_KWARGS)


@pytest.mark.parametrize(
    ("frames", "padded", "found"),
    [(1, 1, (280, 280)), (7, 8, (84, 84)), (8, 8, (84, 84)), (2, 2, (196, 196))],
)
def test_frames_of_a_video_share_its_pixels(frames: int, padded: int, found: tuple[int, int]) -> None:
    """qwen3_vl/video_processing_qwen3_vl.py:35: the bound is for all frames, as padded."""
    assert smart_resize(280, 280, 28, Bounds(1, 80_000), frames, padded) == found


@pytest.mark.parametrize(("frames", "qwen", "glm"), [(5, 6, 4), (6, 6, 6), (7, 8, 8)])
def test_odd_numbers_of_frames_are_padded_or_rounded(frames: int, qwen: int, glm: int) -> None:
    """Up by Qwen3-VL, to the nearest by GLM-4V, halves to even; seen where a frame is just small enough."""
    for rule, counted in ((patches(video_pixels="total"), qwen), (glm4v(), glm)):
        bound = counted * 280 * 280
        fits = replace(rule, rule=replace(rule.rule, video_max_pixels=bound)).video(280, 280, frames)
        over = replace(rule, rule=replace(rule.rule, video_max_pixels=bound - 1)).video(280, 280, frames)
        assert (fits.width, fits.height) == (280, 280)
        assert over.width < 280 or frames < counted


@pytest.mark.parametrize("length", [3000, 9000, 20_000, 40_000])
@pytest.mark.parametrize("beside", [True, False])
def test_the_fullest_video_of_glm_leaves_room_for_an_image(length: int, beside: bool) -> None:
    """glm4_1v.py: of 1 to the most frames, those with most tokens within the context; the dummy stands alone."""
    rule = glm4v(max_video_frames=40, video_max_pixels=20_000_000, max_pixels=2_000_000)
    wide, high = rule.largest_size()
    videos = [rule.video(wide, high, frames) for frames in range(1, 41)]
    image = rule.image(wide, high).tokens

    def fullest(room: int) -> int:
        return max([video.tokens for video in videos if video.tokens <= room], default=videos[0].tokens)

    found = rule.largest_video(length, beside, None, None, None)
    assert found.max_tokens == fullest(length - image if beside else length)
    assert found.item.tokens == fullest(length)
    few = rule.largest_video(length, beside, 2, 300, 200)
    assert (few.max_tokens, few.item) == (found.max_tokens, rule.video(300, 200, 2))
    assert rule.longest_video(length).tokens == fullest(length)
    short = glm4v(max_video_frames=4, video_max_pixels=10**8, max_pixels=200_000)
    assert (short.largest_video(10**6, beside, None, None, None).item.grid or (0,))[0] == 2


def test_a_video_of_less_than_a_cell_is_refused_or_enlarged() -> None:
    with pytest.raises(InputError, match="at least 28 pixels"):
        patches(video_pixels="total").video(300, 27, 8)
    assert patches(video_pixels="total").video(300, 28, 8).height == 28
    assert patches().video(300, 27, 8).height == 28
    assert glm4v().video(300, 27, 8).height == 28


@pytest.mark.parametrize(
    ("seconds", "each", "total"),
    [(0.1, 4, 4), (2.9, 4, 5), (5.8, 10, 11), (30, 60, 60), (383.9, 766, 767), (999, 768, 768)],
)
def test_sampled_frames(seconds: float, each: int, total: int) -> None:
    """Two a second, 4 to 768; an even number where pixels bound each frame (vLLM 0.26.0 multimodal/video.py:1178)."""
    assert patches().sampled_frames(seconds) == each
    assert patches(video_pixels="total").sampled_frames(seconds) == total
    assert patches(temporal_patch_size=5).sampled_frames(0.1) == 5


@given(SIDES, SIDES)
def test_the_best_pinpoint_keeps_most_and_wastes_least(width: int, height: int) -> None:
    """image_processing_utils.py:633 select_best_resolution, written as it is there."""
    places = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    best, most, least = None, 0, 10**18
    for high, wide in places:
        scale = min(wide / width, high / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        wasted = wide * high - used
        if used > most or (used == most and wasted < least):
            most, least, best = used, wasted, (high, wide)
    assert best_pinpoint(places, width, height) == best


def onevision() -> PinpointRule:
    places = tuple((384 * high, 384 * wide) for high in range(1, 7) for wide in range(1, 7))
    sizes: dict[str, Any] = {"image_size": 384, "patches": 729, "tokens": 729, "pinpoints": places}
    return PinpointRule("LlavaOnevision", Pinpoints(patch_size=14, max_tiles=9, video_frame_tokens=196, **sizes))


@pytest.mark.parametrize(
    ("size", "high", "wide"),
    [
        ((2304, 2304), 81, 81),  # 6 x 6 squares of 27 columns: 162 x 162 is four times nine squares' area
        ((1152, 1152), 81, 81),
        ((1536, 1152), 81, 108),
        ((2304, 384), 27, 162),
    ],
)
def test_onevision_shrinks_features_beyond_nine_squares(size: tuple[int, int], high: int, wide: int) -> None:
    scale = sqrt(high * wide / 9 / 729)
    if scale > 1.1:
        high, wide = int(high // scale), int(wide // scale)
    assert onevision().image(*size).tokens == 729 + high * wide + high


def test_videos_of_onevision_fill_the_context() -> None:
    """Sixteen frames of 196 tokens and one at most; one frame at least."""
    rule = onevision()
    found = [rule.largest_video(length, True, None, None, None).item.frames for length in (10, 393, 394, 3137, 99_999)]
    assert found == [1, 2, 2, 16, 16]
    assert rule.largest_video(99_999, True, 3, None, None).max_tokens == 3 * 196 + 1


def gemma3(text: str | None = '{"do_pan_and_scan": true}') -> FixedRule:
    square = FixedSize(image_size=896, patch_size=14, patches=4096, tokens=256, item_tokens=260)
    return FixedRule("Gemma3", square, processor_kwargs(text))


@pytest.mark.parametrize(
    ("size", "crops"),
    [
        ((1199, 1000), 0),  # below 1.2 to 1
        ((1200, 1000), 2),
        ((2499, 1000), 2),
        ((2500, 1000), 3),
        ((1000, 3600), 4),
        ((9000, 1000), 4),  # at most four
        ((600, 300), 2),
        ((500, 300), 0),  # two crops of 250 pixels are too small
        ((1000, 255), 0),
        ((1024, 256), 4),
        ((767, 256), 2),  # three by shape, two of 256 pixels at least
    ],
)
def test_gemma3_pans_over_long_images(size: tuple[int, int], crops: int) -> None:
    """gemma3_mm.py get_num_crops: as many as the shape is long, each of 256 pixels at least."""
    item = gemma3().image(*size)
    assert item.sequences == 1 + crops
    assert item.tokens == 256 * (1 + crops)
    assert item.prompt_tokens == (260 + 4) * (1 + crops)
    assert gemma3(None).image(*size).sequences == 1


def tiles(family: str, kwargs: ProcessorKwargs = NO_KWARGS, **changes: Any) -> TileRule:
    values: dict[str, Any] = {
        "image_size": 448, "patch_size": 14, "patches": 1024, "tokens": 256, "min_tiles": 1, "max_tiles": 12,
        "thumbnail": True, "extra_tokens": 2,
    }  # fmt: skip
    return TileRule(family, Tiles(**(values | changes)), kwargs)


@given(SIDES, SIDES, st.sampled_from([(1, 12), (1, 6), (3, 6), (2, 12)]))
def test_internvl_takes_the_closest_shape(width: int, height: int, bounds: tuple[int, int]) -> None:
    """transformers_utils/processors/internvl.py: the larger grid among equals where the image has half its area."""
    low, high = bounds
    shapes = ((i, j) for i in range(1, high + 1) for j in range(1, high + 1))
    grids = sorted((grid for grid in shapes if low <= grid[0] * grid[1] <= high), key=lambda grid: grid[0] * grid[1])
    best, closest = (1, 1), float("inf")
    for i, j in grids:
        distance = abs(width / height - i / j)
        if distance < closest:
            closest, best = distance, (i, j)
        elif distance == closest and width * height > 0.5 * 448 * 448 * i * j:
            best = (i, j)
    found = tiles("InternVL", min_tiles=low, max_tiles=high).closest(width, height)
    assert found[0] * found[1] == best[0] * best[1]
    assert found[0] / found[1] == pytest.approx(best[0] / best[1])


@pytest.mark.parametrize(
    ("family", "size", "extra"),
    [
        ("InternVL", (448, 448), 2),
        ("Mllama4", (336, 336), 3),
        ("Mllama4", (1344, 448), 3 + 3),
        ("Cohere2Vision", (448, 448), 2 + 1),
        ("Cohere2Vision", (1344, 448), 2 + 3 + 1),
        ("Idefics3", (448, 448), 3 + 2 * 9 + 3 + 1),
    ],
)
def test_markers_around_tiles(family: str, size: tuple[int, int], extra: int) -> None:
    item = tiles(family).image(*size)
    assert item.prompt_tokens - item.tokens == extra


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((448, 448), 1), ((449, 448), 2), ((896, 448), 2), ((896, 897), 6), ((4480, 4480), 9), ((448 * 12, 448), 12),
        ((448 * 20, 448), 12), ((1344, 896), 6),
    ],
)  # fmt: skip
def test_canvases_enlarge_least_or_shrink_least(size: tuple[int, int], grid: int) -> None:
    assert tiles("Mllama4", thumbnail=False).image(*size).sequences == grid


def minicpm(**changes: Any) -> SliceRule:
    values: dict[str, Any] = {
        "patch_size": 14, "scale_resolution": 448, "patches": 1024, "tokens": 64, "max_slices": 9, "wrapper_tokens": 2,
    }  # fmt: skip
    return SliceRule("MiniCPMV", Slices(**(values | changes)), NO_KWARGS)


@pytest.mark.parametrize(
    ("size", "slices"),
    [
        ((448, 448), 0),
        ((449, 448), 2),
        ((897, 448), 2),  # three by area, two by shape
        ((448 * 3, 448), 3),
        ((448, 448 * 4), 4),
        ((9000, 9000), 9),
        ((9000, 900), 9),  # never more than nine
        ((1800, 900), 8),
    ],
)
def test_slices_of_minicpm(size: tuple[int, int], slices: int) -> None:
    """As many as the area asks for, one less or one more by the closest shape; never more than allowed."""
    found = minicpm().image(*size)
    assert found.sequences == 1 + slices
    assert found.tokens == 64 * (1 + slices)
    assert found.prompt_tokens == found.tokens + 2 * (1 + slices)


def test_videos_of_minicpm_fill_the_context_beside_an_image() -> None:
    rule = minicpm(max_frame_slices=2)
    image, frame = 10 * 64, 3 * 64
    assert rule.largest_video(image + 5 * frame, True, None, None, None).max_tokens == 5 * frame
    assert rule.largest_video(image + 5 * frame, False, None, None, None).max_tokens == 8 * frame
    assert rule.largest_video(10, True, None, None, None).max_tokens == frame
    assert rule.largest_video(10**6, True, None, None, None).max_tokens == 16 * frame
    assert minicpm(max_frame_slices=1).video(896, 896, 3).sequences == 3
    assert rule.video(4000, 4000, 3).sequences == 9


def step3() -> WindowRule:
    values: dict[str, Any] = {"image_size": 728, "patch_size": 14, "patches": 2704, "tokens": 169}
    return WindowRule("Step3VL", Tiles(min_tiles=1, max_tiles=36, thumbnail=True, **values))


@pytest.mark.parametrize(
    ("size", "windows", "newlines"),
    [
        ((727, 727), 0, 0),  # smaller than a view, and not long
        ((600, 400), 0, 0),  # just 1.5 to 1
        ((700, 400), 2, 0),  # 1.75 to 1: windows as wide as the short side
        ((728, 728), 4, 1),
        ((3024, 756), 12, 1),  # just 4 to 1
        ((5000, 600), 9, 0),  # shrunk to 3024 x 362: windows of 362
        ((3025, 3025), 36, 5),
        ((2000, 31), 16, 3),  # too thin: padded to a square
        ((2000, 32), 63, 0),
    ],
)
def test_windows_of_step3(size: tuple[int, int], windows: int, newlines: int) -> None:
    """transformers_utils/processors/step3_vl.py:75 determine_window_size, :166 get_num_patches."""
    assert step3().largest_size() == (3024, 3024)
    item = step3().image(*size)
    assert item.sequences == 1 + windows
    assert item.tokens == 169 + 81 * windows
    assert item.prompt_tokens == item.tokens + 2 * (1 + windows) + newlines
    assert item.patches == 2704 + 36**2 * windows
    assert item.input_values == 3 * (728**2 + windows * 504**2)


ENCODER = Encoder(
    hidden_size=1280, num_heads=16, head_size=80, intermediate_size=3420, num_layers=32, output_size=3584, mlp_shards=2,
)  # fmt: skip


def item(count: int, sequences: int = 1) -> MediaItem:
    return MediaItem(
        modality="image",
        tokens=count // 4,
        prompt_tokens=count // 4,
        patches=count,
        sequences=sequences,
        input_values=1,
    )


@pytest.mark.parametrize(
    ("items", "splits"),
    [([item(1024)], 4), ([item(64), item(1024)], 4), ([item(64), item(64)], 1), ([item(1024, 16)], 1)],
)
def test_the_longest_sequence_decides_the_parts(items: list[MediaItem], splits: int) -> None:
    config = set_up("Qwen__Qwen3-8B")[2]
    assert tower_of(ENCODER, "qwen2_5", config, items, 1, quantized=False).splits == splits
    other = config.model_copy(update={"compute_capability": (8, 9)})
    assert tower_of(ENCODER, "qwen2_5", other, items, 1, quantized=False).splits == 1


@pytest.mark.parametrize(
    ("style", "changes", "flash"),
    [
        ("qwen2_5", {}, True),
        ("pixtral", {}, False),
        ("audio", {}, False),
        ("qwen2_5", {"compute_capability": (7, 5)}, False),
        ("qwen2_5", {"compute_capability": (8, 0)}, True),
        ("qwen2_5", {"dtype": "float32"}, False),
    ],
)
def test_where_flash_attention_serves_an_encoder(style: Any, changes: dict[str, Any], flash: bool) -> None:
    config = set_up("Qwen__Qwen3-8B")[2].model_copy(update=changes)
    found = tower_of(ENCODER, style, config, [item(64)], 2, quantized=True)
    assert (found.flash, found.transposes) == (flash, style != "qwen2_5")
    assert (found.tp, found.rotary_size, found.gated, found.quantized_inputs) == (2, 40, True, True)


def test_the_dummy_of_paddleocr_has_a_whole_cell_at_least() -> None:
    one = PaddleRule("PaddleOCRVL", patches(max_pixels=28 * 28).rule, NO_KWARGS)
    assert one.largest_size() == (28, 28)
    assert PaddleRule("PaddleOCRVL", patches(max_pixels=28 * 28 * 7).rule, NO_KWARGS).largest_size() == (84, 56)
    with pytest.raises(InputError, match="larger than the largest image"):
        PaddleRule("PaddleOCRVL", patches(max_pixels=28 * 28 - 1).rule, NO_KWARGS).largest_size()


def test_a_chunk_of_gemma4_is_one_image_at_least() -> None:
    assert encoder_chunk(630, 10240, 0, 10**9) == 1
    table = 630 * 4 * 10240 * 8
    assert encoder_chunk(630, 10240, 6 * table, 10**12) == 3
    assert encoder_chunk(630, 10240, 10**12, 25 * table) == 2
