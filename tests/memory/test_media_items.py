"""What every processor family makes of images, videos and sounds of many shapes, as a table (tests/golden/passes).

The rules and their sources are in the modules; they agree with the processors' own functions (transformers 5.14.1, vLLM
0.26.0) on random shapes. Single figures are worked out by hand in test_media_families.py and test_media_served.py. Each
family's whole arithmetic is held here, row by row, so that a changed rounding shows.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from planner.errors import InputError, UnsupportedError
from planner.memory.multimodal.budget import embedding_bytes, encoder_budget
from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.kwargs import NO_KWARGS, ProcessorKwargs, processor_kwargs
from planner.memory.multimodal.media import media_item, sound_rule, visual_rule, worst_items
from planner.model.vision_spec import VisionSpec
from tests.memory.pass_cases import check_text, set_up

SERVED = "served_configs.json "
EIGHT = {"gpus": "h200:8", "tensor_parallel_size": 8}
SHAPES = (
    (28, 28), (100, 80), (300, 300), (336, 337), (448, 448), (640, 480), (480, 640), (1000, 700), (1024, 1024),
    (1920, 1080), (1080, 1920), (3000, 400), (400, 3000), (2000, 30), (4000, 3000), (8000, 8000),
)  # fmt: skip
CLIPS = ((320, 240, 0.3), (320, 240, 5.8), (1280, 720, 30), (720, 1280, 1000))
SOUNDS = (0.004, 0.5, 1, 10.25, 29.99, 30)

FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "qwen2 vl": ("Qwen__Qwen2-VL-7B-Instruct", {}, ('{"max_pixels": 100000}', '{"min_pixels": 500000}')),
    "qwen3 vl": ("Qwen__Qwen3-VL-8B-Instruct", {}, ('{"size": {"shortest_edge": 1000000, "longest_edge": 2000000}}',)),
    "qwen3 omni": ("made__q3omni", {"gpus": "h200:2", "tensor_parallel_size": 2}, ()),
    "qwen3 asr": ("Qwen__Qwen3-ASR", {}, ()),
    "qwen2 audio": ("Qwen__Qwen2-Audio-7B-Instruct", {}, ()),
    "glm 4.1v": ("made__glm41v", {}, ()),
    "ernie": (SERVED + "ernie45vl", {}, ()),
    "dots ocr": (SERVED + "dotsocr", {}, ()),
    "paddleocr": ("PaddlePaddle__PaddleOCR-VL", {}, ()),
    "kimi vl": ("made__kimi-vl", {}, ('{"in_token_limit": 1000}',)),
    "kimi k2.6": ("moonshotai__Kimi-K2.6", EIGHT, ()),
    "minimax m3": ("made__minimax-m3-vl", {}, ('{"max_pixels": 100352}',)),
    "gemma 3": (
        "google__gemma-3-4b-it", {},
        ('{"do_pan_and_scan": true}', '{"do_pan_and_scan": true, "pan_and_scan_max_num_crops": 2}'),
    ),
    "gemma 3n": (SERVED + "gemma3n", {}, ()),
    "gemma 4": ("google__gemma-4-E2B-it", {}, ('{"max_soft_tokens": 70}',)),
    "llava": ("llava-hf__llava-1.5-7b-hf", {}, ()),
    "llava next": ("made__llava-next-mistral", {}, ()),
    "llava onevision": ("made__llava-onevision-05", {}, ()),
    "granite vision": ("made__granite-vision", {}, ()),
    "internvl": (
        "OpenGVLab__InternVL2-2B", {"max_model_len": 1024},
        ('{"max_dynamic_patch": 4, "use_thumbnail": false}', '{"min_dynamic_patch": 3}'),
    ),
    "interns1": ("made__internvl3-hf", {}, ('{"max_patches": 3}',)),
    "idefics3": ("made__smolvlm-256", {}, ('{"size": {"longest_edge": 1024}}',)),
    "llama 4": ("meta-llama__Llama-4-Scout-17B-16E-Instruct", EIGHT, ()),
    "cohere2 vision": (SERVED + "cohere2vision", {}, ('{"max_patches": 4}',)),
    "minicpm-v": ("openbmb__MiniCPM-V-2_6", {}, ('{"max_slice_nums": 4}',)),
    "minicpm-v 4.6": ("made__mcpm46", {}, ()),
    "mistral 3": ("made__mistral3", {}, ('{"size": {"longest_edge": 700}}',)),
    "pixtral": ("made__pixtral-hf", {}, ()),
    "lighton": (SERVED + "lighton", {}, ()),
    "deepseek ocr": ("deepseek-ai__DeepSeek-OCR", {}, ()),
    "deepseek vl2": (SERVED + "deepseekvl2", {}, ()),
    "lfm2 vl": (SERVED + "lfm2vl", {}, ()),
    "step3 vl": (SERVED + "step3vl", EIGHT, ()),
    "aria": (SERVED + "aria", {}, ()),
    "paligemma": (SERVED + "paligemma", {}, ()),
}  # fmt: skip


def _row(what: str, item: MediaItem) -> str:
    size = f"{item.width}x{item.height}" + (f" grid {item.grid}" if item.grid else "")
    return (
        f"{what}: {item.tokens} tokens, {item.prompt_tokens} of the prompt, {item.patches} patches in "
        f"{item.sequences}, {item.input_values} values, {item.frames} frames, {size}"
    )


def _rows(vision: VisionSpec, kwargs: ProcessorKwargs) -> list[str]:
    rows: list[str] = []
    for modality in vision.modalities:
        shapes: Any = [(seconds,) for seconds in SOUNDS] if modality == "audio" else SHAPES
        if modality == "video":
            shapes = CLIPS
        for shape in shapes:
            width, height = shape[:2] if len(shape) > 1 else (0, 0)
            seconds = None if len(shape) == 2 else shape[-1]
            what = f"{modality} {' '.join(map(str, shape))}"
            try:
                item = media_item(vision, modality, width=width, height=height, seconds=seconds, kwargs=kwargs)
                rows.append(_row(what, item))
            except (InputError, UnsupportedError) as refused:
                rows.append(f"{what}: {refused}")
    return rows


@pytest.mark.parametrize("name", FAMILIES)
def test_items_of_a_family(name: str, request: pytest.FixtureRequest) -> None:
    source, flags, settings = FAMILIES[name]
    vision = set_up(source, **flags)[0].vision
    assert vision is not None
    lines = _rows(vision, NO_KWARGS)
    for text in settings:
        lines += [f"== {text}", *_rows(vision, processor_kwargs(text))]
    check_text(f"items of {name}", lines, request)


@pytest.mark.parametrize("name", FAMILIES)
def test_largest_items_and_budget_of_a_family(name: str, request: pytest.FixtureRequest) -> None:
    """With default limits, with two requests, and with sizes in the limits."""
    source, flags, _ = FAMILIES[name]
    lines: list[str] = []
    image, video = {"count": 1, "width": 500, "height": 400}, {"count": 1, "num_frames": 3, "width": 300, "height": 200}
    modalities = set_up(source, **flags)[0].vision.modalities  # type: ignore[union-attr]
    asked: list[dict[str, Any]] = [{}, {"max_num_batched_tokens": 16384, "max_num_seqs": 2}]
    if "image" in modalities:
        asked.append({"limit_mm_per_prompt": json.dumps({"image": image, "video": video})})
        asked.append({"limit_mm_per_prompt": json.dumps({"image": {"count": 1, "width": 9000, "height": 9000}})})
    if "video" in modalities:
        asked.append({"limit_mm_per_prompt": json.dumps({"image": 0, "video": 2}), "max_model_len": 600})
        asked.append({"limit_mm_per_prompt": json.dumps({"image": 1, "video": 1}), "max_model_len": 600})
    for more in asked:
        model, _, config = set_up(source, **{**flags, **more})
        budget = encoder_budget(model, config)
        lines.append(f"== {more}: {budget.tokens} tokens, {dict(budget.items)}, {embedding_bytes(model, config)} bytes")
        lines += [_row(f"{found.modality} up to {found.max_tokens}", found.item) for found in budget.largest]
        assert model.vision is not None
        worst = worst_items(model.vision, config, budget.tokens)
        lines += [_row(f"worst {item.modality}", item) for item in worst]
    check_text(f"largest of {name}", lines, request)


def test_each_family_has_one_rule() -> None:
    """Settings of processors that a family does not have are refused by name."""
    for source, flags, _ in FAMILIES.values():
        vision = set_up(source, **flags)[0].vision
        assert vision is not None
        if vision.image is not None:
            with pytest.raises(UnsupportedError, match="num_crops"):
                visual_rule(vision, processor_kwargs('{"num_crops": 3}'))
        if vision.audio is None:
            with pytest.raises(UnsupportedError, match="sound of"):
                sound_rule(vision)
