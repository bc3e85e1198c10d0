"""What a search varies, and what the user wants from it."""

from __future__ import annotations

from typing import Literal

from planner.engine.args import EngineArgs
from planner.memory.intervals import Confidence
from planner.search.workload import RequestMix
from planner.values import Value

Objective = Literal["context", "concurrency", "balanced"]

SEQUENCES = (1, 4, 8, 16, 32, 64, 96, 128, 192, 256, 512, 1024)
BATCHED_TOKENS = (2048, 4096, 8192, 16384)
UTILIZATIONS = tuple(percent / 100 for percent in range(70, 99))
LENGTH_STEPS = 16

AXES = ("expert-parallel", "data-parallel", "eager", "block-size", "pixels")
"""What a search varies only when asked: whole experts per GPU, every number of replicas, no CUDA graphs, cache blocks
of other sizes, and lower bounds on the pixels of an image."""


class Workload(Value):
    """The load that a plan must hold.

    `concurrency` requests at once (None: what the objective asks for), of max_model_len tokens each or, with a `mix`,
    of its lengths. `request_rate`: requests per second, from which each layout's concurrency follows. `min_model_len`:
    the shortest length that will do. `images` and `videos` in each request, None where the user says nothing; sizes in
    pixels before the processor resizes them.
    """

    concurrency: int | None = None
    request_rate: float | None = None
    mix: RequestMix | None = None
    min_model_len: int = 1
    images: int | None = None
    image_size: tuple[int, int] = (1024, 1024)
    videos: int | None = None
    video_seconds: float = 30.0

    @property
    def states_media(self) -> bool:
        return self.images is not None or self.videos is not None


class SearchOptions(Value):
    """`given` are the flags that the user fixed: the search respects them. `safety_margin` is the share of what the
    device's ledger predicts that must stay free on top of it. `confidence`: whether plans hold at the unfavourable ends
    of the intervals, or by expected values. `vary`: which of AXES to search too."""

    objective: Objective = "balanced"
    workload: Workload = Workload()
    safety_margin: float = 0.10
    args: EngineArgs = EngineArgs()
    given: tuple[str, ...] = ()
    max_plans: int = 5
    confidence: Confidence = "safe"
    vary: tuple[str, ...] = ()


def ladder(low: int, high: int, steps: int, multiple: int) -> tuple[int, ...]:
    """Lengths from `low` to `high` in equal ratios, each a multiple of `multiple`; `high` itself is the last."""
    if high <= low:
        return (high,)
    ratio = (high / low) ** (1 / (steps - 1))
    inner = {round(low * ratio**step) // multiple * multiple for step in range(steps - 1)}
    return (*sorted(value for value in inner if low <= value < high), high)
