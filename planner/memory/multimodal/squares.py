"""Images cut into squares of one size, or resized to one: LLaVA, Gemma 3, InternVL, Idefics 3, Llama 4, MiniCPM-V.

Source: vLLM 0.26.0 model_executor/models/{llava,llava_next,llava_onevision,gemma3_mm,internvl,idefics3,mllama4,
minicpmv}.py and transformers_utils/processors/internvl.py; transformers 5.14.1 image_processing_utils.py:633 and
models/{got_ocr2,idefics3,llama4}/image_processing_*.py.
"""

from __future__ import annotations

from math import ceil, floor, isqrt, log, sqrt

from planner.errors import InputError
from planner.memory.multimodal.item import LargestItem, MediaItem
from planner.memory.multimodal.kwargs import ProcessorKwargs
from planner.memory.multimodal.rule import CHANNELS, MediaRule
from planner.model.vision_spec import FixedSize, Modality, Pinpoints, Slices, Tiles

_PAN_MIN_CROP, _PAN_MIN_RATIO, _PAN_MARKERS, _PAN_CROPS = 256, 1.2, 4, 4
_MOST_VIDEO_FRAMES = 16
_ONEVISION_SIZE = (1153, 944)
_IDEFICS_BOUND = 4096
_CANVAS = ("Mllama4", "Cohere2Vision")


def squares_item(
    rule: FixedSize | Tiles | Pinpoints | Slices, modality: Modality, count: int, side: int, tokens: int, extra: int,
    frames: int = 1,
) -> MediaItem:  # fmt: skip
    """An item of `count` squares of `side` pixels with `tokens` embeddings and `extra` prompt tokens beside them."""
    return MediaItem(
        modality=modality,
        tokens=tokens,
        prompt_tokens=tokens + extra,
        patches=count * rule.patches,
        sequences=count,
        input_values=count * CHANNELS * side**2,
        width=side,
        height=side,
        frames=frames,
    )


def best_pinpoint(pinpoints: tuple[tuple[int, int], ...], width: int, height: int) -> tuple[int, int]:
    """The (height, width) that keeps most of the image, among equals the one that wastes least."""

    def fit(pinpoint: tuple[int, int]) -> tuple[int, int]:
        high, wide = pinpoint
        scale = min(wide / width, high / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, used - high * wide

    return max(pinpoints, key=fit)


class FixedRule(MediaRule, frozen=True):
    """One square an image; Gemma 3's pan and scan adds crops of long images."""

    family: str
    rule: FixedSize
    kwargs: ProcessorKwargs

    def image(self, width: int, height: int) -> MediaItem:
        squares = 1 + self._crops(width, height)
        extra = self.rule.item_tokens - self.rule.tokens + (_PAN_MARKERS if self.family == "Gemma3" else 0)
        tokens = squares * self.rule.tokens
        return squares_item(self.rule, "image", squares, self.rule.image_size, tokens, squares * extra)

    def largest_size(self) -> tuple[int, int]:
        side = self.rule.image_size
        return (side, side * self._most_crops()) if self.family == "Gemma3" else (side, side)

    def _most_crops(self) -> int:
        return self.kwargs.count("pan_and_scan_max_num_crops") or self.rule.max_crops or _PAN_CROPS

    def _crops(self, width: int, height: int) -> int:
        if not self.kwargs.flag("do_pan_and_scan", self.rule.max_crops > 0):
            return 0
        long, short = max(width, height), min(width, height)
        if long / short < _PAN_MIN_RATIO:
            return 0
        crops = min(self._most_crops(), max(2, min(long // _PAN_MIN_CROP, floor(long / short + 0.5))))
        return 0 if min(ceil(long / crops), short) < _PAN_MIN_CROP else crops


class PinpointRule(MediaRule, frozen=True):
    """LLaVA-NeXT and LLaVA-OneVision: a whole-image square and a grid of squares whose padding is cut off."""

    family: str
    rule: Pinpoints

    @property
    def side(self) -> int:
        return self.rule.image_size // self.rule.patch_size

    def image(self, width: int, height: int) -> MediaItem:
        rows, columns = self._grid(width, height)
        high, wide = self.side * rows, self.side * columns
        if not high or not wide:
            raise InputError("config.json: image_grid_pinpoints has a place smaller than the tower's image")
        if width / height > wide / high:
            high -= 2 * ((high - int(round(height * (wide / width), 7))) // 2)
        else:
            wide -= 2 * ((wide - int(round(width * (high / height), 7))) // 2)
        if self.rule.max_tiles:
            scale = sqrt(high * wide / (self.rule.max_tiles * self.side**2))
            if scale > 1.1:
                high, wide = int(high // scale), int(wide // scale)
        tokens = self.rule.tokens + high * wide + high
        return squares_item(self.rule, "image", rows * columns + 1, self.rule.image_size, tokens, 0)

    def video(self, width: int, height: int, frames: int) -> MediaItem:
        if not self.rule.video_frame_tokens:
            return super().video(width, height, frames)
        tokens = frames * self.rule.video_frame_tokens + 1
        return squares_item(self.rule, "video", frames, self.rule.image_size, tokens, 0, frames)

    def largest_size(self) -> tuple[int, int]:
        if self.rule.max_tiles:
            return _ONEVISION_SIZE
        sizes = [(width, height) for height, width in self.rule.pinpoints]
        return max(sizes, key=lambda size: self.image(*size).tokens)

    def largest_video(
        self, max_model_len: int, beside_image: bool, frames: int | None, width: int | None, height: int | None
    ) -> LargestItem:
        most = max(1, min((max_model_len - 1) // self.rule.video_frame_tokens, _MOST_VIDEO_FRAMES))
        item = self.video(self.rule.image_size, self.rule.image_size, min(most, frames or most))
        return LargestItem(modality="video", max_tokens=item.tokens, item=item)

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        high, wide = best_pinpoint(self.rule.pinpoints, width, height)
        return high // self.rule.image_size, wide // self.rule.image_size


class TileRule(MediaRule, frozen=True):
    """InternVL, Intern-S1, Idefics 3 and Llama 4: the grid of tiles closest to the image's shape, and a thumbnail."""

    family: str
    rule: Tiles
    kwargs: ProcessorKwargs

    def image(self, width: int, height: int) -> MediaItem:
        columns, rows = self._grid(width, height)
        count = columns * rows
        if self._thumbnail() and count > 1:
            count += 1
        extra = self._markers(columns, rows)
        return squares_item(self.rule, "image", count, self.rule.image_size, count * self.rule.tokens, extra)

    def video(self, width: int, height: int, frames: int) -> MediaItem:
        if self.family not in ("InternVL", "InternS1"):
            return super().video(width, height, frames)
        tokens = frames * self.rule.tokens
        extra = frames * self.rule.extra_tokens
        return squares_item(self.rule, "video", frames, self.rule.image_size, tokens, extra, frames)

    def largest_size(self) -> tuple[int, int]:
        side, most = self.rule.image_size, self._bounds()[1]
        if self.family in _CANVAS:
            return side, side * most
        return (side, side) if self.family == "Idefics3" else (side * most, side)

    def largest_video(
        self, max_model_len: int, beside_image: bool, frames: int | None, width: int | None, height: int | None
    ) -> LargestItem:
        """The budget leaves room for an image where images are allowed; the profiled dummy stands alone."""
        image = self.largest_image(None, None).max_tokens if beside_image else 0
        budgeted = max(1, (max_model_len - image) // self.rule.tokens)
        alone = max(1, max_model_len // self.rule.tokens)
        item = self.video(self.rule.image_size, self.rule.image_size, min(alone, frames or alone))
        return LargestItem(modality="video", max_tokens=min(budgeted, frames or budgeted) * self.rule.tokens, item=item)

    def _bounds(self) -> tuple[int, int]:
        if not self.kwargs.flag("dynamic_image_size", True):
            return 1, 1
        least = self.kwargs.count("min_dynamic_patch") or self.rule.min_tiles
        most = self.kwargs.count("max_dynamic_patch") or self.kwargs.count("max_patches") or self.rule.max_tiles
        return least, most

    def _thumbnail(self) -> bool:
        return self.kwargs.flag("use_thumbnail", self.rule.thumbnail)

    def _markers(self, columns: int, rows: int) -> int:
        if self.family == "Mllama4":
            return 3 + (columns * rows if columns * rows > 1 else 0)
        if self.family == "Cohere2Vision":
            return self.rule.extra_tokens + columns * rows + (1 if columns * rows > 1 else 0)
        if self.family == "Idefics3":
            return 3 + (2 * columns * rows + rows + 1 if columns * rows > 1 else 0)
        return self.rule.extra_tokens

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        if self.family == "Idefics3":
            return self._split(width, height)
        if self.family in _CANVAS:
            return self._canvas(width, height)
        return self.closest(width, height)

    def closest(self, width: int, height: int) -> tuple[int, int]:
        """Closest aspect ratio; among equals the larger grid, unless the image is below half its area."""
        least, most = self._bounds()
        sides = range(1, most + 1)
        grids = sorted(
            ((i, j) for i in sides for j in sides if least <= i * j <= most), key=lambda grid: grid[0] * grid[1]
        )
        best, closest = (1, 1), float("inf")
        for grid in grids:
            distance = abs(width / height - grid[0] / grid[1])
            covers = width * height > 0.5 * self.rule.image_size**2 * grid[0] * grid[1]
            if distance < closest or (distance == closest and covers):
                best, closest = grid, distance
        return best

    def _split(self, width: int, height: int) -> tuple[int, int]:
        """The longest side becomes as many tiles as the processor allows, whatever the image's size."""
        if not self.kwargs.flag("do_image_splitting", True):
            return 1, 1
        tile = self.rule.image_size
        edge = min(self.kwargs.edge("longest_edge") or isqrt(self.rule.max_tiles) * tile, _IDEFICS_BOUND)
        long, short = max(width, height), min(width, height)
        across = max(int(edge * short / long), 1)
        across += across % 2
        many, few = ceil(edge / tile), ceil(across / tile)
        return (many, few) if width >= height else (few, many)

    def _canvas(self, width: int, height: int) -> tuple[int, int]:
        """The canvas that enlarges least, else the one that shrinks least; among equals the smallest."""
        most, side = self._bounds()[1], self.rule.image_size
        sides = range(1, most + 1)
        canvases = [(i, j) for i in sides for j in sides if i * j <= most]
        scales = {grid: min(grid[0] * side / width, grid[1] * side / height) for grid in canvases}
        enlarging = [scale for scale in scales.values() if scale >= 1]
        chosen = min(enlarging) if enlarging else max(scales.values())
        return min((grid for grid in canvases if scales[grid] == chosen), key=lambda grid: grid[0] * grid[1])


class SliceRule(MediaRule, frozen=True):
    """MiniCPM-V: the whole image and slices of it. Every slice counts with the most patches that one can have."""

    family: str
    rule: Slices
    kwargs: ProcessorKwargs

    def image(self, width: int, height: int) -> MediaItem:
        most = self.kwargs.count("max_slice_nums") or self.rule.max_slices
        return self._item("image", 1, self._slices(width, height, most))

    def video(self, width: int, height: int, frames: int) -> MediaItem:
        return self._item("video", frames, self._slices(width, height, self._frame_slices()))

    def _frame_slices(self) -> int:
        return self.rule.max_frame_slices if self.rule.max_frame_slices > 1 else 0

    def largest_size(self) -> tuple[int, int]:
        return self.rule.scale_resolution, self.rule.scale_resolution * self.rule.max_slices

    def largest_video(
        self, max_model_len: int, beside_image: bool, frames: int | None, width: int | None, height: int | None
    ) -> LargestItem:
        image = self.largest_image(None, None).max_tokens if beside_image else 0
        slices = self._frame_slices()
        frame = (1 + slices) * self.rule.tokens
        budgeted = max(1, min((max_model_len - image) // frame, _MOST_VIDEO_FRAMES))
        alone = max(1, min(max_model_len // frame, _MOST_VIDEO_FRAMES))
        return LargestItem(modality="video", max_tokens=budgeted * frame, item=self._item("video", alone, slices))

    def _item(self, modality: Modality, frames: int, slices: int) -> MediaItem:
        count = frames * (1 + slices)
        tokens = count * self.rule.tokens
        side, extra = self.rule.scale_resolution, count * self.rule.wrapper_tokens
        return squares_item(self.rule, modality, count, side, tokens, extra, frames)

    def _slices(self, width: int, height: int, most: int) -> int:
        wanted = min(ceil(width * height / self.rule.scale_resolution**2), most)
        if wanted <= 1:
            return 0
        counts = [count for count in (wanted - 1, wanted, wanted + 1) if count != 1 and count <= most]
        grids = [(side, count // side) for count in counts for side in range(1, count + 1) if count % side == 0]
        best = min(grids, key=lambda grid: abs(log(width / height) - log(grid[0] / grid[1])))
        return best[0] * best[1]
