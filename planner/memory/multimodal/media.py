"""From what a user sends to what the engine runs, for each modality and processor family."""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.errors import InputError, UnsupportedError
from planner.memory.multimodal.deepseek_ocr import OcrRule
from planner.memory.multimodal.item import LargestItem, MediaItem
from planner.memory.multimodal.kwargs import NO_KWARGS, ProcessorKwargs, processor_kwargs
from planner.memory.multimodal.patches import PatchRule
from planner.memory.multimodal.rule import MediaRule
from planner.memory.multimodal.shaped import (
    ChunkRule,
    EdgeRule,
    ErnieRule,
    Gemma4Rule,
    GlmRule,
    KimiRule,
    MiniMaxRule,
    PaddleRule,
)
from planner.memory.multimodal.sound import SoundRule
from planner.memory.multimodal.squares import FixedRule, PinpointRule, SliceRule, TileRule
from planner.memory.multimodal.views import PackedRule, ViewRule, WindowRule
from planner.model.vision_spec import (
    DynamicPatches,
    FixedSize,
    LongestEdge,
    Modality,
    PackedTiles,
    Pinpoints,
    Slices,
    Tiles,
    VisionSpec,
)

_MIDDLING = (24, 28, 32, 36, 40, 48, 56, 64)
"""Patches along a side of a square image between the smallest and the largest attention grids of Hopper cards."""
_PIXEL_KEYS = ("min_pixels", "max_pixels", "size")
_SHAPED: dict[str, tuple[type[PatchRule], tuple[str, ...]]] = {
    "Qwen2VL": (PatchRule, _PIXEL_KEYS),
    "Qwen2_5_VL": (PatchRule, _PIXEL_KEYS),
    "Qwen2_5Omni": (PatchRule, _PIXEL_KEYS),
    "Qwen3VL": (PatchRule, _PIXEL_KEYS),
    "Qwen3_5": (PatchRule, _PIXEL_KEYS),
    "Glm4v": (GlmRule, _PIXEL_KEYS),
    "DotsOCR": (PatchRule, _PIXEL_KEYS),
    "Ernie4_5_VL": (ErnieRule, _PIXEL_KEYS),
    "KimiK25": (ChunkRule, ()),
    "Qwen3OmniMoe": (PatchRule, _PIXEL_KEYS),
    "KimiVL": (KimiRule, ("in_token_limit",)),
    "PaddleOCRVL": (PaddleRule, _PIXEL_KEYS),
    "Gemma4": (Gemma4Rule, ("max_soft_tokens",)),
    "MiniMaxM3": (MiniMaxRule, ("max_pixels",)),
}
_TILED = {
    "InternVL": ("min_dynamic_patch", "max_dynamic_patch", "dynamic_image_size", "use_thumbnail"),
    "InternS1": ("max_patches",),
    "Idefics3": ("do_image_splitting", "size"),
    "Mllama4": ("max_patches",),
    "Cohere2Vision": ("max_patches",),
}
_FIXED = {
    "Llava": (),
    "PaliGemma": (),
    "Aria": (),
    "Gemma3n": (),
    "Gemma3": ("do_pan_and_scan", "pan_and_scan_max_num_crops"),
}


def media_item(
    vision: VisionSpec,
    modality: Modality,
    *,
    width: int = 0,
    height: int = 0,
    seconds: float | None = None,
    frames: int | None = None,
    kwargs: ProcessorKwargs = NO_KWARGS,
) -> MediaItem:
    """One item of `width` x `height` pixels, or of `seconds` (or sampled `frames`) of video or sound.

    Raises InputError for a modality that the model does not take and for sizes that its processor refuses,
    UnsupportedError for a family or a processor setting that is not known here.
    """
    if modality not in vision.modalities:
        raise InputError(f"the model takes {', '.join(vision.modalities)}, not {modality}")
    if modality == "audio":
        return sound_rule(vision).sound(seconds or 0)
    rule = visual_rule(vision, kwargs)
    if width < 1 or height < 1:
        raise InputError(f"a {modality} needs its width and height")
    if modality == "image" or (modality == "vision_chunk" and frames is None and seconds is None):
        return rule.image(width, height)
    if frames is None and seconds is None:
        raise InputError("a video needs its seconds or frames")
    return rule.video(width, height, rule.sampled_frames(seconds or 0) if frames is None else frames)


def largest_items(vision: VisionSpec, config: EngineConfig) -> tuple[LargestItem, ...]:
    """The largest item of each modality that the limits leave, as vLLM's budget and profile run take it.

    Source: vLLM 0.26.0 multimodal/encoder_budget.py:16 get_mm_max_toks_per_item.
    """
    options = {(modality, name): value for modality, name, value in config.mm_limit_options}
    kwargs = processor_kwargs(config.mm_processor_kwargs)
    active = active_modalities(vision, config)
    found = []
    for modality in active:
        width, height = options.get((modality, "width")), options.get((modality, "height"))
        if modality == "audio":
            found.append(sound_rule(vision).largest())
        elif modality in ("image", "vision_chunk"):
            found.append(visual_rule(vision, kwargs).largest_image(width, height))
        else:
            frames = options.get((modality, "num_frames"))
            rule = visual_rule(vision, kwargs)
            found.append(rule.largest_video(config.max_model_len, "image" in active, frames, width, height))
    return tuple(found)


def worst_items(vision: VisionSpec, config: EngineConfig, budget_tokens: int) -> tuple[MediaItem, ...]:
    """Items of which a full step can cost most: the largest that a request can bring of each modality, and images of
    the sizes at which attention keeps partial results (planner.memory.multimodal.flash_splits)."""
    kwargs = processor_kwargs(config.mm_processor_kwargs)
    found = []
    for modality in active_modalities(vision, config):
        if modality == "audio":
            found.append(sound_rule(vision).longest())
            continue
        rule = visual_rule(vision, kwargs)
        if modality == "vision_chunk":
            found.append(rule.longest_video(budget_tokens))
        if modality in ("image", "vision_chunk"):
            largest = rule.largest_image(None, None).item
            found.append(largest)
            if isinstance(rule, OcrRule | PackedRule):
                found.append(rule.fullest())
            found += [item for item in rule.squares(_MIDDLING) if item.patches < largest.patches]
        else:
            found.append(rule.longest_video(min(budget_tokens, config.max_model_len)))
    return tuple(found)


def item_limit(vision: VisionSpec, config: EngineConfig, modality: Modality) -> int:
    """Items of one prompt: the flag's count, at most what the class itself allows."""
    allowed = dict(vision.limits).get(modality)
    given = dict(config.mm_limits).get(modality, 0)
    return given if allowed is None else min(given, allowed)


def active_modalities(vision: VisionSpec, config: EngineConfig) -> tuple[Modality, ...]:
    return tuple(modality for modality in vision.modalities if item_limit(vision, config, modality) > 0)


def visual_rule(vision: VisionSpec, kwargs: ProcessorKwargs) -> MediaRule:
    """The rule of the model's images and videos. UnsupportedError for a family that is not known here."""
    image, family = vision.image, vision.family
    if isinstance(image, DynamicPatches) and family in _SHAPED:
        rule, known = _SHAPED[family]
        kwargs.refuse_all_but(family, *known)
        return rule(family, image, kwargs)
    if isinstance(image, Tiles) and family in ("DeepseekOCR", "DeepseekOCR2"):
        kwargs.refuse_all_but(family)
        return OcrRule(family, image)
    if isinstance(image, Tiles) and family == "Step3VL":
        kwargs.refuse_all_but(family)
        return WindowRule(family, image)
    if isinstance(image, Tiles) and family in _TILED:
        kwargs.refuse_all_but(family, *_TILED[family])
        return TileRule(family, image, kwargs)
    if isinstance(image, FixedSize) and family in _FIXED:
        kwargs.refuse_all_but(family, *_FIXED[family])
        return FixedRule(family, image, kwargs)
    if isinstance(image, PackedTiles):
        kwargs.refuse_all_but(family)
        return PackedRule(family, image)
    if isinstance(image, Pinpoints) and family == "DeepseekVL2":
        kwargs.refuse_all_but(family)
        return ViewRule(family, image)
    if isinstance(image, Pinpoints):
        kwargs.refuse_all_but(family)
        return PinpointRule(family, image)
    if isinstance(image, LongestEdge):
        kwargs.refuse_all_but(family, *(() if family == "Pixtral" else ("size",)))
        return EdgeRule(family, image, kwargs)
    if isinstance(image, Slices):
        kwargs.refuse_all_but(family, "max_slice_nums")
        return SliceRule(family, image, kwargs)
    raise UnsupportedError("media", f"media of {family} models are not supported by this planner")


def processed_within(vision: VisionSpec, key: str) -> bool:
    """Whether a key of --mm-processor-kwargs changes the sizes of this family's images."""
    return key in _SHAPED.get(vision.family, (PatchRule, ()))[1]


def sound_rule(vision: VisionSpec) -> SoundRule:
    if vision.audio is None:
        raise UnsupportedError("media", f"sound of {vision.family} models is not supported by this planner")
    return SoundRule(vision.family, vision.audio)
