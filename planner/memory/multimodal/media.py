"""From what a user sends to what the engine runs, for each modality and processor family."""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.errors import InputError, UnsupportedError
from planner.memory.multimodal.item import LargestItem, MediaItem
from planner.memory.multimodal.kwargs import NO_KWARGS, ProcessorKwargs, processor_kwargs
from planner.memory.multimodal.patches import PatchRule
from planner.model.vision_spec import DynamicPatches, Modality, VisionSpec

_MIDDLING = (24, 28, 32, 36, 40, 48, 56, 64)
"""Patches along a side of a square image between the smallest and the largest attention grids of Hopper cards."""
_PIXEL_KEYS = ("min_pixels", "max_pixels", "size")


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
    rule = patch_rule(vision, kwargs)
    if modality == "image":
        return rule.image(width, height)
    if frames is None and seconds is None:
        raise InputError(f"a {modality} needs its seconds or frames")
    return rule.video(width, height, rule.sampled_frames(seconds or 0) if frames is None else frames)


def largest_items(vision: VisionSpec, config: EngineConfig) -> tuple[LargestItem, ...]:
    """The largest item of each modality that the limits leave, as vLLM's budget and profile run take it.

    Source: vLLM 0.26.0 multimodal/encoder_budget.py:16 get_mm_max_toks_per_item.
    """
    options = {(modality, name): value for modality, name, value in config.mm_limit_options}
    rule = patch_rule(vision, processor_kwargs(config.mm_processor_kwargs))
    found = []
    for modality in active_modalities(vision, config):
        width, height = options.get((modality, "width")), options.get((modality, "height"))
        if modality == "image":
            found.append(rule.largest_image(width, height))
        else:
            found.append(rule.largest_video(config.max_model_len, options.get((modality, "num_frames")), width, height))
    return tuple(found)


def worst_items(vision: VisionSpec, config: EngineConfig, budget_tokens: int) -> tuple[MediaItem, ...]:
    """Items of which a full step can cost most: the largest that a request can bring of each modality, and images of
    the sizes at which attention keeps partial results (planner.memory.multimodal.flash_splits)."""
    rule = patch_rule(vision, processor_kwargs(config.mm_processor_kwargs))
    found = []
    for modality in active_modalities(vision, config):
        if modality == "image":
            largest = rule.largest_image(None, None).item
            found.append(largest)
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


def patch_rule(vision: VisionSpec, kwargs: ProcessorKwargs) -> PatchRule:
    if not isinstance(vision.image, DynamicPatches):
        raise UnsupportedError("media", f"media of {vision.family} models are not supported by this planner")
    kwargs.refuse_all_but(vision.family, *_PIXEL_KEYS)
    return PatchRule(vision.image, kwargs)
