"""What requests with media cost: tokens of their prompts, and the encoder's peak while they are served."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from msgspec import Struct

from planner.engine.config import EngineConfig
from planner.memory.multimodal.budget import EncoderBudget, encoder_budget
from planner.memory.multimodal.encoder import repeated_peak_bytes
from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.kwargs import ProcessorKwargs, processor_kwargs
from planner.memory.multimodal.media import active_modalities, item_limit, media_item, visual_rule, worst_items
from planner.model.spec import ModelSpec
from planner.model.vision_spec import DynamicPatches, Modality, VisionSpec
from planner.sharding.rank import RankShare


class MediaWorkload(Struct, frozen=True, kw_only=True):
    """What each of `requests` concurrent requests brings. Sizes are (width, height) in pixels before resizing."""

    requests: int = 1
    images: int = 0
    image_size: tuple[int, int] = (1024, 1024)
    videos: int = 0
    video_seconds: float = 0.0
    video_size: tuple[int, int] = (1280, 720)
    sounds: int = 0
    sound_seconds: float = 0.0


def workload_items(
    vision: VisionSpec, config: EngineConfig, workload: MediaWorkload
) -> tuple[tuple[MediaItem, int], ...]:
    """The kinds of items of one request with their counts. Raises InputError for what the model does not take."""
    return items_under(vision, config.mm_processor_kwargs, workload)


def items_under(
    vision: VisionSpec, mm_processor_kwargs: str | None, workload: MediaWorkload
) -> tuple[tuple[MediaItem, int], ...]:
    """The same, for processor settings of their own."""
    kwargs = processor_kwargs(mm_processor_kwargs)
    found: list[tuple[MediaItem, int]] = []
    chunked = "vision_chunk" in vision.modalities
    if workload.images:
        width, height = workload.image_size
        kind: Modality = "vision_chunk" if chunked else "image"
        found.append((media_item(vision, kind, width=width, height=height, kwargs=kwargs), workload.images))
    if workload.videos and chunked:
        found += _chunks(vision, workload, kwargs)
        return tuple(found)
    if workload.videos:
        width, height = workload.video_size
        seconds = workload.video_seconds
        video = media_item(vision, "video", width=width, height=height, seconds=seconds, kwargs=kwargs)
        found.append((video, workload.videos))
    if workload.sounds:
        sound = media_item(vision, "audio", seconds=workload.sound_seconds, kwargs=kwargs)
        found.append((sound, workload.sounds))
    return tuple(found)


def _chunks(vision: VisionSpec, workload: MediaWorkload, kwargs: ProcessorKwargs) -> list[tuple[MediaItem, int]]:
    """A video as chunks of frames, each an item of its own (Kimi-K2.5)."""
    rule, image = visual_rule(vision, kwargs), vision.image
    assert isinstance(image, DynamicPatches)
    width, height = workload.video_size
    chunk = rule.video(width, height, image.max_video_frames)
    return [(chunk, workload.videos * ceil(rule.sampled_frames(workload.video_seconds) / image.max_video_frames))]


def encoder_runtime_peak_bytes(
    model: ModelSpec, share: RankShare, config: EngineConfig, workload: MediaWorkload | None = None
) -> int:
    """The encoder's peak in the fullest step that the scheduler can form, input included.

    With a workload: as many items of its concurrent requests as the encoder budget takes, those left out that
    `refused_items` names. Without: the worst batch
    that limits and budget allow. Items of one modality are encoded together. Source: vLLM 0.26.0
    v1/core/sched/scheduler.py:1388 _try_schedule_encoder_inputs, v1/worker/gpu/mm/encoder_runner.py:55.
    """
    if model.vision is None or not active_modalities(model.vision, config):
        return 0
    budget = encoder_budget(model, config)
    batches = _batches(model.vision, config, budget, workload)
    return max((repeated_peak_bytes(model, share, config, *batch) for batch in batches), default=0)


def _batches(
    vision: VisionSpec, config: EngineConfig, budget: EncoderBudget, workload: MediaWorkload | None
) -> Iterator[tuple[MediaItem, int]]:
    if workload is None:
        for item in worst_items(vision, config, budget.tokens):
            limit = config.max_num_seqs * item_limit(vision, config, item.modality)
            yield _batch(item, limit, budget.tokens)
        return
    refused = {modality for modality, _ in refused_items(vision, config, budget, workload)}
    for item, count in workload_items(vision, config, workload):
        if item.modality not in refused:
            requests = min(workload.requests, config.max_num_seqs)
            yield _batch(item, count * requests, budget.tokens)


def _batch(item: MediaItem, limit: int, budget_tokens: int) -> tuple[MediaItem, int]:
    return item, max(1, min(limit, budget_tokens // max(item.tokens, 1)))


def refused_items(
    vision: VisionSpec, config: EngineConfig, budget: EncoderBudget, workload: MediaWorkload
) -> tuple[tuple[Modality, str], ...]:
    """Why vLLM would refuse a request of this workload, by modality: a count above the limit, or an item above the
    encoder cache (vLLM 0.26.0 multimodal/processing/context.py:409, v1/engine/input_processor.py:459)."""
    refused: list[tuple[Modality, str]] = []
    for item, count in workload_items(vision, config, workload):
        limit = item_limit(vision, config, item.modality)
        if count > limit:
            refused.append((item.modality, f"At most {limit} {item.modality}(s) may be provided in one prompt."))
        elif item.tokens > budget.tokens:
            refused.append(
                (item.modality, f"one {item.modality} has {item.tokens} embeddings, the cache {budget.tokens}")
            )
    return tuple(refused)
