"""What a workload's images and videos mean for the flags: limits per prompt, and the media that a plan reserves for."""

from __future__ import annotations

import json

from planner.engine.args import EngineArgs
from planner.memory.multimodal.workload import MediaWorkload
from planner.model.spec import ModelSpec
from planner.search.space import SearchOptions

ASSUMED_IMAGES = 1

_ASSUMED = (
    "planned for one image a request, at the largest size that the processor keeps, and no video: "
    "state --images, --image-size and --videos for another workload"
)


def with_media_limits(model: ModelSpec, options: SearchOptions) -> tuple[EngineArgs, tuple[str, ...]]:
    """The user's flags with --limit-mm-per-prompt for what the workload needs and no more, and notes about it.

    A limit that the user gave stays. Limits keep a request from bringing media that the plan has no memory for.
    """
    if model.vision is None or "limit_mm_per_prompt" in options.given or options.args.language_model_only:
        return options.args, ()
    workload = options.workload
    wanted = {"image": workload.images or 0, "video": workload.videos or 0}
    notes: tuple[str, ...] = ()
    if not workload.states_media:
        wanted, notes = {"image": ASSUMED_IMAGES, "video": 0}, (_ASSUMED,)
    limits = {modality: wanted[modality] for modality in ("image", "video") if modality in model.vision.modalities}
    if not limits:
        return options.args, ()
    return options.args.model_copy(update={"limit_mm_per_prompt": json.dumps(limits)}), notes


def media_of(options: SearchOptions) -> MediaWorkload | None:
    """The media of concurrent requests; None where the user states none: then the worst that the limits allow."""
    workload = options.workload
    if not workload.states_media:
        return None
    return MediaWorkload(
        requests=workload.concurrency or 1 << 20,
        images=workload.images or 0,
        image_size=workload.image_size,
        videos=workload.videos or 0,
        video_seconds=workload.video_seconds,
    )
