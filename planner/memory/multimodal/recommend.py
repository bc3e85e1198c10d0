"""Which limits on media a workload needs, and what they save."""

from __future__ import annotations

import json

from msgspec import Struct

from planner.engine.config import EngineConfig
from planner.memory.multimodal.encoder import profiled_encoder
from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.media import processed_within
from planner.memory.multimodal.workload import MediaWorkload, encoder_runtime_peak_bytes, workload_items
from planner.memory.program import Program
from planner.model.spec import ModelSpec
from planner.model.vision_spec import DynamicPatches, Modality, VisionSpec
from planner.sharding.rank import RankShare
from planner.units import format_gib


class MediaLimitsAdvice(Struct, frozen=True, kw_only=True):
    """Values for --limit-mm-per-prompt and --mm-processor-kwargs (None: leave as it is), and the bytes of one GPU that
    the worst batch and the profile run need before and after."""

    limit_mm_per_prompt: str
    mm_processor_kwargs: str | None
    worst_peak_bytes: int
    worst_peak_bytes_after: int
    profile_peak_bytes: int
    profile_peak_bytes_after: int

    @property
    def saved_bytes(self) -> int:
        """Encoder memory that no request can ask for any more."""
        return self.worst_peak_bytes - self.worst_peak_bytes_after


def recommend_limits(
    model: ModelSpec, share: RankShare, config: EngineConfig, workload: MediaWorkload
) -> MediaLimitsAdvice:
    """The tightest limits under which the workload is served as it is: counts of each modality, and the pixels or
    tiles of its largest image. Raises InputError for a model without media or media that it does not take."""
    vision = model.vision
    counts = {"image": workload.images, "video": workload.videos, "audio": workload.sounds}
    given = dict(config.mm_limits)
    limits = tuple((modality, counts.get(modality, 0)) for modality in given)
    items = () if vision is None else workload_items(vision, config, workload)
    kwargs = (
        None if vision is None else tight_kwargs(vision, config.mm_processor_kwargs, tuple(item for item, _ in items))
    )
    after = config.model_copy(update={"mm_limits": limits, "mm_processor_kwargs": kwargs or config.mm_processor_kwargs})
    return MediaLimitsAdvice(
        limit_mm_per_prompt=json.dumps(dict(limits)),
        mm_processor_kwargs=kwargs,
        worst_peak_bytes=encoder_runtime_peak_bytes(model, share, config),
        worst_peak_bytes_after=encoder_runtime_peak_bytes(model, share, after),
        profile_peak_bytes=_profile_peak(model, share, config),
        profile_peak_bytes_after=_profile_peak(model, share, after),
    )


_MODEST = MediaWorkload(images=1, image_size=(1024, 1024))


def limits_sentence(
    model: ModelSpec, share: RankShare, config: EngineConfig, workload: MediaWorkload | None
) -> str | None:
    """The flags that keep the encoder at the workload (None: one image of 1024 x 1024 pixels a request), and the bytes
    they save. None where they save nothing or the model takes no images."""
    if workload is None and (model.vision is None or "image" not in model.vision.modalities):
        return None
    advice = recommend_limits(model, share, config, workload or _MODEST)
    if advice.saved_bytes <= 0:
        return None
    kwargs = f" --mm-processor-kwargs '{advice.mm_processor_kwargs}'" if advice.mm_processor_kwargs else ""
    what = "the stated media" if workload else "one image of 1024x1024 a request"
    return (
        f"for {what}, --limit-mm-per-prompt '{advice.limit_mm_per_prompt}'{kwargs} makes that "
        f"{format_gib(advice.worst_peak_bytes_after)}, {format_gib(advice.saved_bytes)} less than requests can ask now"
    )


def tight_kwargs(vision: VisionSpec, mm_processor_kwargs: str | None, items: tuple[MediaItem, ...]) -> str | None:
    """max_pixels for processors that bound pixels, where it lowers the bound; what was given stays beside it."""
    given = json.loads(mm_processor_kwargs or "{}")
    rule = vision.image
    pixels = max((_pixels(rule, item.modality, item) for item in items if item.modality != "audio"), default=0)
    if not isinstance(rule, DynamicPatches) or not pixels or not processed_within(vision, "max_pixels"):
        return None
    bound = given.get("max_pixels") or rule.max_pixels
    return json.dumps({**given, "max_pixels": pixels}) if pixels < bound else None


def _pixels(rule: object, modality: Modality, item: MediaItem) -> int:
    """Pixels that max_pixels bounds: an image's or a frame's, or those of all frames together."""
    whole = isinstance(rule, DynamicPatches) and rule.video_pixels == "total" and modality == "video"
    return item.width * item.height * (item.frames if whole else 1)


def _profile_peak(model: ModelSpec, share: RankShare, config: EngineConfig) -> int:
    program = Program()
    if profiled_encoder(program, model, share, config) is None:
        return 0
    return max(int(stage.bytes(0, 0)) for stage in program.stages())
