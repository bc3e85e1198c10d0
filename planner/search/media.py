"""What a workload's images and videos mean for the flags: limits per prompt, room for their tokens, and the media that
a plan reserves for."""

from __future__ import annotations

import json
from math import ceil

from planner.engine.args import EngineArgs
from planner.errors import UnsupportedError
from planner.memory.assess import Deployment
from planner.memory.multimodal.budget import encoder_budget
from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.media import processed_within
from planner.memory.multimodal.recommend import tight_kwargs
from planner.memory.multimodal.workload import MediaWorkload, items_under, refused_items
from planner.model.spec import ModelSpec
from planner.model.vision_spec import DynamicPatches, VisionSpec
from planner.search.space import SearchOptions
from planner.values import Rejection

ASSUMED_IMAGES = 1

_ASSUMED = (
    "planned for one image a request, at the largest size that the processor keeps, and no video: "
    "state --images, --image-size and --videos for another workload"
)
_TOKEN_STEP = 1024


def with_media_limits(model: ModelSpec, options: SearchOptions) -> tuple[EngineArgs, tuple[str, ...]]:
    """The user's flags with --limit-mm-per-prompt and max_pixels for what the workload needs and no more, and notes.

    A flag that the user gave stays. Limits keep a request from bringing media that the plan has no memory for.
    """
    if model.vision is None or options.args.language_model_only:
        return options.args, ()
    update: dict[str, object] = {}
    notes: tuple[str, ...] = ()
    if "limit_mm_per_prompt" not in options.given:
        limits, notes = _limits(model.vision, options)
        update = {"limit_mm_per_prompt": json.dumps(limits)} if limits else {}
    items = _items(model.vision, options)
    if "mm_processor_kwargs" not in options.given:
        bound = tight_kwargs(model.vision, None, tuple(item for item, _ in items))
        if bound is not None:
            update["mm_processor_kwargs"] = bound
            notes += (f"--mm-processor-kwargs '{bound}' keeps the stated media as they are and shrinks larger ones",)
    notes += tuple(f"one {item.modality} of this workload is {item.prompt_tokens:,} tokens" for item, _ in items)
    return options.args.model_copy(update=update), notes


def with_media_room(model: ModelSpec, options: SearchOptions) -> SearchOptions:
    """The options with lengths that hold the stated media of a request and one token of text."""
    tokens = media_tokens(model, options)
    if not tokens:
        return options
    workload = options.workload
    longer = workload.model_copy(update={"min_model_len": max(workload.min_model_len, tokens + 1)})
    return options.model_copy(update={"workload": longer})


def pixel_bounds(model: ModelSpec, options: SearchOptions) -> tuple[str, ...]:
    """--mm-processor-kwargs with a half and a quarter of the pixels that an image may have now; empty where the
    processor takes no such bound."""
    if model.vision is None or options.args.language_model_only or not processed_within(model.vision, "max_pixels"):
        return ()
    given = json.loads(options.args.mm_processor_kwargs or "{}")
    rule = model.vision.image
    if not isinstance(rule, DynamicPatches):
        return ()
    most = int(given.get("max_pixels") or rule.max_pixels)
    return tuple(json.dumps({**given, "max_pixels": most // part}) for part in (2, 4))


def media_tokens(model: ModelSpec, options: SearchOptions) -> int:
    """Prompt tokens of the stated media of one request; 0 for a model without towers or a request without media."""
    if model.vision is None or options.args.language_model_only:
        return 0
    return sum(item.prompt_tokens * count for item, count in _items(model.vision, options))


def _limits(vision: VisionSpec, options: SearchOptions) -> tuple[dict[str, int], tuple[str, ...]]:
    workload = options.workload
    wanted = {"image": workload.images or 0, "video": workload.videos or 0}
    notes: tuple[str, ...] = ()
    if not workload.states_media:
        wanted, notes = {"image": ASSUMED_IMAGES, "video": 0}, (_ASSUMED,)
    return {modality: wanted[modality] for modality in ("image", "video") if modality in vision.modalities}, notes


def _items(vision: VisionSpec, options: SearchOptions) -> tuple[tuple[MediaItem, int], ...]:
    """The stated media of one request; none where their arithmetic is not known, which the estimate warns of."""
    media = media_of(options)
    if media is None:
        return ()
    try:
        return items_under(vision, options.args.mm_processor_kwargs, media)
    except UnsupportedError:
        return ()


def too_long(model: ModelSpec, options: SearchOptions) -> Rejection | None:
    """vLLM's refusal of the workload's requests where the user fixed a length below them, or the model's own is."""
    length, need = options.args.max_model_len, options.workload.min_model_len
    if "max_model_len" not in options.given or length is None or length == -1:
        length = model.derived_max_model_len
    if need <= length:
        return None
    fixed = length < min(need, model.derived_max_model_len)
    return Rejection(
        bottleneck="max_model_len",
        message=(
            f"The prompt (at least {need} tokens with the stated media) is too long to fit into the model "
            f"(context length {length})."
        ),
        fix=(
            *((f"--max-model-len {need}",) if fixed else ()),
            "smaller or fewer images and videos",
            "shorter requests",
        ),
    )


def served_pairs(
    deployment: Deployment, options: SearchOptions, pairs: list[tuple[int, int]]
) -> tuple[list[tuple[int, int]], Rejection | None]:
    """The (max_num_seqs, max_num_batched_tokens) whose encoder cache takes each stated item, larger ones added where
    none does and the user left the flag open; and why others fell, if some did."""
    refusal = refused_media(deployment, options, own=False)
    if refusal is None:
        return pairs, None
    kept = [pair for pair in pairs if pair[1] >= refusal[1]]
    if not kept and "max_num_batched_tokens" not in options.given:
        kept = [(seqs, refusal[1]) for seqs in sorted({seqs for seqs, _ in pairs})]
    rejection = Rejection(
        bottleneck="batched_tokens",
        message=refusal[0],
        fix=(
            f"--max-num-batched-tokens {refusal[1]}",
            "a lower max_pixels in --mm-processor-kwargs, or shorter videos",
        ),
    )
    return kept, rejection


def refused_media(deployment: Deployment, options: SearchOptions, *, own: bool = True) -> tuple[str, int] | None:
    """Why vLLM would refuse the stated media, and the max_num_batched_tokens, in whole steps, that would take them.
    None where it serves them, or none are stated.

    `own`: under the deployment's max_num_batched_tokens, else with an encoder cache of its largest item alone.
    """
    media, vision, config = media_of(options), deployment.model.vision, deployment.config
    if media is None or vision is None or config.language_model_only:
        return None
    items = _items(vision, options)
    if not items:
        return None
    smallest = config if own else config.model_copy(update={"max_num_batched_tokens": 1})
    refused = refused_items(vision, smallest, encoder_budget(deployment.model, smallest), media)
    if not refused:
        return None
    return refused[0][1], ceil(max(item.tokens for item, _ in items) / _TOKEN_STEP) * _TOKEN_STEP


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
