"""The load by which `select` and `matrix` judge cards."""

from __future__ import annotations

from dataclasses import dataclass

from planner.api import Request
from planner.cli.launched import pixels
from planner.errors import InputError
from planner.search.space import SearchOptions, Workload


@dataclass(frozen=True, slots=True)
class Load:
    """The flags of both commands, as given."""

    concurrency: int
    images: int | None
    image_size: str | None
    videos: int | None
    video_seconds: float
    safety_margin: float
    max_gpus_per_node: int

    def options(self, request: Request) -> SearchOptions:
        """What the search is asked. Raises InputError for a value out of its range and for a missing length."""
        for name, value, low, high in (
            ("--concurrency", self.concurrency, 1, 10**6),
            ("--max-gpus-per-node", self.max_gpus_per_node, 1, 16),
            ("--images", self.images or 0, 0, 10**4),
            ("--videos", self.videos or 0, 0, 10**4),
            ("--video-seconds", self.video_seconds, 0.1, 86400),
        ):
            if not low <= value <= high:
                raise InputError(f"{name} must be from {low} to {high}, not {value}")
        if not 0 <= self.safety_margin < 1:
            raise InputError(f"--safety-margin must be at least 0 and below 1, not {self.safety_margin}")
        if "max_model_len" not in request.given:
            raise InputError("--max-model-len is missing: capacity is counted in requests of that length")
        return SearchOptions(
            args=request.args,
            given=request.given,
            workload=Workload(
                concurrency=self.concurrency,
                images=self.images,
                image_size=pixels(self.image_size),
                videos=self.videos,
                video_seconds=self.video_seconds,
            ),
            safety_margin=self.safety_margin,
            confidence=request.confidence,
        )
