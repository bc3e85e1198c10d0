"""Towers derived from the code, against sums of their own: Gemma 4, Kimi-K2.5, Qwen3-Omni, DeepSeek-OCR."""

from __future__ import annotations

import json
from typing import Any

import pytest
from media_cases import DATA, first_share, media_config, media_model
from msgspec.structs import replace

from planner.memory.multimodal.budget import encoder_budget
from planner.memory.multimodal.deepseek_ocr import OcrRule
from planner.memory.multimodal.encoder import encoder_peak_bytes, encoder_program, profiled_encoder
from planner.memory.multimodal.gemma4_tower import encoder_chunk
from planner.memory.multimodal.kwargs import NO_KWARGS
from planner.memory.multimodal.media import media_item
from planner.memory.multimodal.recommend import limits_sentence
from planner.memory.multimodal.shaped import ChunkRule
from planner.memory.multimodal.workload import encoder_runtime_peak_bytes
from planner.memory.program import Program
from planner.model.build import build_model
from planner.model.spec import ModelFiles
from planner.model.vision_spec import DynamicPatches, Tiles
from planner.units import GIB, MIB, format_gib

GEMMA4 = "google__gemma-4-26B-A4B"
OMNI = "made__q3omni"
TOTAL = 140 * GIB


def profile_peak(name: str, **changes: Any) -> int:
    model = media_model(name)
    config = media_config(model, **{"model_runner": "v1", "gpu_memory_bytes": TOTAL, **changes})
    program = Program()
    assert profiled_encoder(program, model, first_share(model, config), config) is not None
    return max(int(stage.bytes(0, 0)) for stage in program.stages())


def test_gemma4_profiles_frames_of_its_largest_video_in_chunks() -> None:
    """3 videos of 32 frames are 96 frames of 630 patches, in two chunks; the MLP's product is the highest moment."""
    chunk = encoder_chunk(630, 10240, TOTAL, TOTAL)
    assert chunk == TOTAL // 10 // (630 * 4 * 10240 * 8)
    assert 48 < chunk < 96
    rows, hidden, inner = chunk * 630, 1152, 4304
    pixels = 96 * 630 * (3 * 16**2 * 2 + 2 * 8)
    tables = rows * (2 * 72 * 2 + 630)
    workspaces = 33 * MIB
    block = rows * 2 * (3 * hidden + 3 * inner)
    assert profile_peak(GEMMA4, max_num_batched_tokens=8192) == pixels + tables + workspaces + block


def test_gemma4_tokens_of_a_video_and_the_budget() -> None:
    model = media_model(GEMMA4)
    budget = encoder_budget(model, media_config(model, max_num_batched_tokens=2048))
    assert {item.modality: item.max_tokens for item in budget.largest} == {"image": 280, "video": 32 * 78}
    assert budget.tokens == 32 * 78


def test_gemma4_audio_is_highest_in_its_first_convolution() -> None:
    model = media_model("google__gemma-4-E2B-it")
    assert model.vision is not None
    sound = media_item(model.vision, "audio", seconds=30)
    assert sound.tokens == 750
    config = media_config(model, gpu_memory_bytes=TOTAL)
    stem = 3 * 128 * 1500 * 64 * 2
    assert encoder_peak_bytes(model, first_share(model, config), config, [sound]) == 3000 * 128 * 2 + stem


@pytest.mark.parametrize(("seconds", "tokens"), [(30, 390), (1, 13), (0.5, 7), (10.25, 134)])
def test_omni_sound_has_thirteen_tokens_a_second(seconds: float, tokens: int) -> None:
    vision = media_model(OMNI).vision
    assert vision is not None
    assert media_item(vision, "audio", seconds=seconds).tokens == tokens


def test_omni_convolves_at_most_500_windows_at_once() -> None:
    model = media_model(OMNI)
    assert model.vision is not None
    config = media_config(model)
    sound = media_item(model.vision, "audio", seconds=30)
    peaks = [encoder_peak_bytes(model, first_share(model, config), config, [sound] * count) for count in (1, 16)]
    window = 480 * 64 * 50 * 2
    assert peaks[0] == 2 * 3000 * 128 * 2 + 2 * 30 * window
    assert peaks[1] == 16 * 2 * 3000 * 128 * 2 + 2 * 480 * window


def test_omni_keeps_deepstack_states_until_the_last_block() -> None:
    """Three kept levels cost more than three merged ones: 1152 columns a patch against 2048 for each four."""
    model = media_model(OMNI)
    assert model.vision is not None
    assert model.vision.encoder is not None
    config = media_config(model)
    image = media_item(model.vision, "image", width=1024, height=1024)
    merged_early = replace(model, vision=replace(model.vision, family="Qwen3VL"))
    late, early = (encoder_peak_bytes(one, first_share(one, config), config, [image]) for one in (model, merged_early))
    assert late > early


KIMI = ChunkRule(
    "KimiK25",
    DynamicPatches(
        patch_size=14, merge_size=2, temporal_patch_size=4, min_pixels=784, max_pixels=16384 * 196,
        video_min_pixels=784, video_max_pixels=4096 * 196, max_video_frames=4, max_side_patches=512,
    ),
    NO_KWARGS,
)  # fmt: skip


def test_kimi_averages_a_chunk_over_time() -> None:
    image, chunk = KIMI.image(3000, 3000), KIMI.video(3000, 3000, 4)
    assert (image.tokens, image.patches) == (65 * 65, 130 * 130)
    assert (chunk.tokens, chunk.patches) == (33 * 33, 4 * 66 * 66)
    assert KIMI.largest_image(None, None).item == image


def test_kimi_k25_profiles_a_still_image() -> None:
    config = json.loads((DATA / "configs" / "moonshotai__Kimi-K2.6" / "config.json").read_text())
    limits = {"in_patch_limit": 16384, "in_patch_limit_each_frame": 4096, "patch_limit_on_one_side": 512}
    model = build_model(ModelFiles(name="kimi", config=config, preprocessor={"media_proc_cfg": limits}))
    budget = encoder_budget(model, media_config(model, max_num_batched_tokens=8192))
    assert budget.profiled_batch is not None
    assert (budget.profiled_batch[0].item.patches, budget.profiled_batch[1]) == (130 * 130, 1)


def ocr(family: str, side: int) -> OcrRule:
    tiles = Tiles(
        image_size=side, patch_size=16, patches=4096, tokens=(side // 64) ** 2, min_tiles=2, max_tiles=6, thumbnail=True
    )
    return OcrRule(family, tiles)


@pytest.mark.parametrize(
    ("rule", "size", "tokens", "tiles"),
    [
        (ocr("DeepseekOCR", 640), (640, 480), 16 * 17 + 1, 0),
        (ocr("DeepseekOCR", 640), (1280, 1280), 16 * 17 + 20 * 21 + 1, 4),
        (ocr("DeepseekOCR", 640), (1920, 640), 16 * 17 + 10 * 31 + 1, 3),
        (ocr("DeepseekOCR2", 768), (1536, 1536), 256 + 4 * 144 + 1, 4),
    ],
)
def test_tokens_of_a_document(rule: OcrRule, size: tuple[int, int], tokens: int, tiles: int) -> None:
    item = rule.image(*size)
    assert (item.tokens, item.sequences - 1) == (tokens, tiles)
    assert rule.fullest().sequences == 7


def test_sam_adds_a_bias_for_each_pair_of_patches() -> None:
    model = media_model("deepseek-ai__DeepSeek-OCR-2")
    assert model.vision is not None
    config = media_config(model)
    page = media_item(model.vision, "image", width=600, height=600)
    peak = encoder_peak_bytes(model, first_share(model, config), config, [page])
    bias = 12 * 4096**2 * 2
    relative = 2 * 12 * 4096 * 64 * 2
    assert peak == 3 * 1024**2 * 2 + bias + relative + 6 * 4096 * 768 * 2


def test_attention_of_pytorch_joins_its_sequences() -> None:
    """A T4 has no FlashAttention for encoders: one output for each sequence, and their concatenation."""
    model = media_model("Qwen__Qwen2.5-VL-7B-Instruct")
    assert model.vision is not None
    image = media_item(model.vision, "image", width=1024, height=1024)
    names = []
    for capability in ((7, 5), (8, 9)):
        config = media_config(model, compute_capability=capability, dtype="float16")
        program = encoder_program(model, first_share(model, config), config, [image])
        names.append({event.tensor.name for event in program.events})
    assert "attention output of each sequence" in names[0] - names[1]
    assert "softmax log-sum-exp" in names[1] - names[0]
    assert "partial attention outputs" not in names[1]


def test_advice_names_the_flags_and_the_bytes_they_save() -> None:
    model = media_model("Qwen__Qwen2.5-VL-7B-Instruct")
    config = media_config(model)
    share = first_share(model, config)
    sentence = limits_sentence(model, share, config, None)
    assert sentence is not None
    flags = """--limit-mm-per-prompt '{"image": 1, "video": 0}' --mm-processor-kwargs '{"max_pixels": 1073296}'"""
    assert flags in sentence
    after = config.model_copy(
        update={"mm_limits": (("image", 1), ("video", 0)), "mm_processor_kwargs": '{"max_pixels": 1073296}'}
    )
    saved = encoder_runtime_peak_bytes(model, share, config) - encoder_runtime_peak_bytes(model, share, after)
    assert format_gib(saved) in sentence
    assert limits_sentence(model, share, after, None) is None
