"""Images that keep their shape: Qwen-VL's smart_resize and its relatives, from pixels to patches to tokens.

Source: transformers 5.14.1 models/qwen2_vl/image_processing_qwen2_vl.py:62, qwen3_vl/video_processing_qwen3_vl.py:35;
vLLM 0.26.0 model_executor/models/qwen2_vl.py:840-1070, qwen3_vl.py:867-960, multimodal/video.py:1178-1270.
"""

from __future__ import annotations

from math import ceil, floor, isqrt, sqrt

from msgspec import Struct
from msgspec.structs import replace

from planner.errors import InputError
from planner.memory.multimodal.item import LargestItem, MediaItem
from planner.memory.multimodal.kwargs import ProcessorKwargs
from planner.memory.multimodal.rule import CHANNELS, MediaRule
from planner.model.vision_spec import DynamicPatches, Modality

MAX_ASPECT_RATIO = 200
_LOADER_FPS = 2
_LOADER_FRAMES = (4, 768)
_MARKERS = 2


class Bounds(Struct, frozen=True):
    """Least and most pixels of an image or a frame, or of all frames together."""

    low: int
    high: int


def smart_resize(
    height: int, width: int, factor: int, bounds: Bounds, frames: int = 1, padded: int = 1
) -> tuple[int, int]:
    """Height and width as multiples of `factor` whose area (times the frames) lies within the bounds. `padded`: the
    frames that the area counts with.

    InputError for an aspect ratio above 200, which the processor refuses. Halves round to even, as there.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise InputError(f"a {width}x{height} image: the absolute aspect ratio must be smaller than 200")
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if padded * high * wide > bounds.high:
        scale = sqrt((frames * height * width) / bounds.high)
        return max(factor, floor(height / scale / factor) * factor), max(factor, floor(width / scale / factor) * factor)
    if padded * high * wide < bounds.low:
        scale = sqrt(bounds.low / (frames * height * width))
        return ceil(height * scale / factor) * factor, ceil(width * scale / factor) * factor
    return high, wide


def most_features(factor: int, max_pixels: int) -> tuple[int, int]:
    """Height and width of the image with most patches: the largest count of factor x factor cells that has a shape
    with an aspect ratio of at most 200 (vLLM qwen2_vl.py:948 get_image_size_with_most_features)."""
    most = max_pixels // factor**2
    short, long = 1, most
    for cells in range(most, 0, -1):
        short = next((d for d in range(isqrt(cells), 0, -1) if cells % d == 0), 1)
        long = cells // short
        if long <= MAX_ASPECT_RATIO * short:
            break
    return factor * short, factor * long


class PatchRule(MediaRule, frozen=True):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL and models with their processors."""

    family: str
    rule: DynamicPatches
    kwargs: ProcessorKwargs

    @property
    def factor(self) -> int:
        return self.rule.patch_size * self.rule.merge_size

    @property
    def image_bounds(self) -> Bounds:
        return self._override(Bounds(self.rule.min_pixels, self.rule.max_pixels))

    @property
    def video_bounds(self) -> Bounds:
        return self._override(Bounds(self.rule.video_min_pixels, self.rule.video_max_pixels))

    def image(self, width: int, height: int) -> MediaItem:
        high, wide = smart_resize(height, width, self.factor, self.image_bounds)
        return self._item("image", 1, high, wide)

    def squares(self, sides: tuple[int, ...]) -> tuple[MediaItem, ...]:
        """Square images of so many patches a side, as far as the bounds allow them."""
        bounds, size = self.image_bounds, self.rule.patch_size
        allowed = (side * size for side in sides if bounds.low <= (side * size) ** 2 <= bounds.high)
        return tuple(self.image(pixels, pixels) for pixels in allowed)

    def video(self, width: int, height: int, frames: int) -> MediaItem:
        """A video of `frames` sampled frames."""
        high, wide = self._frame(width, height, frames, self.video_bounds)
        return self._item("video", frames, high, wide)

    def sampled_frames(self, seconds: float) -> int:
        """Frames that vLLM's loader picks: two a second, 4 to 768, an even number for Qwen2-VL's processor."""
        low, high = _LOADER_FRAMES
        if self.rule.video_pixels == "total":
            return min(max(int(seconds * _LOADER_FPS), low), high)
        temporal = self.rule.temporal_patch_size
        return max(floor(min(max(seconds * _LOADER_FPS, low), high) / temporal) * temporal, temporal)

    def largest_image(self, width: int | None, height: int | None) -> LargestItem:
        """`width`, `height`: caps on the dummy from --limit-mm-per-prompt; the budget's tokens ignore them."""
        high, wide = most_features(self.factor, self.image_bounds.high)
        full = self.image(wide, high)
        dummy = self.image(min(wide, width or wide), min(high, height or high))
        return LargestItem(modality="image", max_tokens=full.tokens, item=dummy)

    def largest_video(
        self, max_model_len: int, beside_image: bool, frames: int | None, width: int | None, height: int | None
    ) -> LargestItem:
        if self.rule.video_pixels == "total":
            return self._largest_total_video(frames, width, height)
        high, wide = most_features(self.factor, self.image_bounds.high)
        most = min(self._frames_within(max_model_len, wide, high), self.rule.max_video_frames)
        tokens = self._accounted(most, high, wide, self.image_bounds)
        dummy = self.video(min(wide, width or wide), min(high, height or high), min(most, frames or most))
        return LargestItem(modality="video", max_tokens=tokens, item=dummy)

    def longest_video(self, max_tokens: int) -> MediaItem:
        """The longest video of the largest frames that has at most `max_tokens`: what a request can really bring."""
        if self.rule.video_pixels == "total":
            return self._largest_total_video(None, None, None).item
        high, wide = most_features(self.factor, self.video_bounds.high)
        return self.video(wide, high, min(self._frames_within(max_tokens, wide, high), _LOADER_FRAMES[1]))

    def _largest_total_video(self, frames: int | None, width: int | None, height: int | None) -> LargestItem:
        temporal = self.rule.temporal_patch_size
        whole = self.kwargs.edge("longest_edge") or self.rule.video_max_pixels
        high, wide = most_features(self.factor, whole // temporal)
        count = max(min(self.rule.max_video_frames, frames or self.rule.max_video_frames), 2)
        high, wide = self._frame(wide, high, count, self.video_bounds)
        tokens = self._accounted(count, high, wide, self.video_bounds)
        dummy = self.video(min(wide, width or wide), min(high, height or high), count)
        return LargestItem(modality="video", max_tokens=tokens, item=dummy)

    def _frames_within(self, max_tokens: int, width: int, height: int) -> int:
        """The most frames of the largest size whose tokens fit (vLLM qwen2_vl.py:1005 _get_max_video_frames)."""
        frame = self._accounted(1, height, width, self.image_bounds)
        temporal = self.rule.temporal_patch_size
        return max(temporal * (max_tokens // frame), 1)

    def _accounted(self, frames: int, height: int, width: int, bounds: Bounds) -> int:
        high, wide = self._frame(width, height, frames, bounds)
        return self._item("video", frames, high, wide).tokens

    def _frame(self, width: int, height: int, frames: int, bounds: Bounds) -> tuple[int, int]:
        if self.rule.video_pixels == "total":
            self._refuse_small(width, height)
            return smart_resize(height, width, self.factor, bounds, frames, self._padded_frames(frames))
        return smart_resize(height, width, self.factor, bounds)

    def _refuse_small(self, width: int, height: int) -> None:
        """qwen3_vl/video_processing_qwen3_vl.py:44."""
        if min(width, height) < self.factor:
            raise InputError(f"a {width}x{height} video: each side must have at least {self.factor} pixels")

    def _padded_frames(self, frames: int) -> int:
        return ceil(frames / self.rule.temporal_patch_size) * self.rule.temporal_patch_size

    def _item(self, modality: Modality, frames: int, height: int, width: int) -> MediaItem:
        rule = self.rule
        times = ceil(frames / rule.temporal_patch_size) if modality == "video" else 1
        grid = (times, height // rule.patch_size, width // rule.patch_size)
        patches = grid[0] * grid[1] * grid[2]
        tokens = patches // rule.merge_size**2
        stamped = modality == "video" and rule.video_pixels == "total"
        return MediaItem(
            modality=modality,
            tokens=tokens,
            prompt_tokens=tokens + (self._stamps(frames, times) if stamped else _MARKERS),
            patches=patches,
            sequences=times,
            input_values=patches * CHANNELS * rule.temporal_patch_size * rule.patch_size**2,
            width=width,
            height=height,
            grid=grid,
            frames=frames,
        )

    def _stamps(self, frames: int, times: int) -> int:
        """Markers around each group of frames and its time, "<12.3 seconds>", a token for each digit and sign."""
        step = frames / _LOADER_FPS / times
        return sum(_MARKERS + len(f"{(group + 0.5) * step:.1f}") + 3 for group in range(times))

    def _override(self, bounds: Bounds) -> Bounds:
        low = self.kwargs.count("min_pixels") or self.kwargs.edge("shortest_edge") or bounds.low
        high = self.kwargs.count("max_pixels") or self.kwargs.edge("longest_edge") or bounds.high
        return replace(bounds, low=low, high=high)
