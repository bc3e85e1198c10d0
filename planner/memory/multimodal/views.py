"""A whole view beside tiles: DeepSeek-VL2's squares, Step3-VL's windows, LFM2-VL's packed patches.

Source: vLLM 0.26.0 model_executor/models/deepseek_vl2.py:170, step3_vl.py:97,
lfm2_vl.py:120-300, transformers_utils/processors/{deepseek_vl2,step3_vl}.py.
"""

from __future__ import annotations

from math import isqrt

from planner.memory.multimodal.item import LargestItem, MediaItem
from planner.memory.multimodal.kwargs import NO_KWARGS
from planner.memory.multimodal.patches import Bounds, smart_resize
from planner.memory.multimodal.rule import CHANNELS, MediaRule
from planner.memory.multimodal.squares import TileRule, best_pinpoint, squares_item
from planner.model.vision_spec import PackedTiles, Pinpoints, Tiles

_MARKERS = 2
_VIEW, _WINDOW, _WINDOW_TOKENS, _LONGEST, _THIN = 728, 504, 81, 3024, 32


class ViewRule(MediaRule, frozen=True):
    """DeepSeek-VL2: each row of features ends with a newline embedding, one separator between view and tiles."""

    family: str
    rule: Pinpoints

    def image(self, width: int, height: int) -> MediaItem:
        high, wide = best_pinpoint(self.rule.pinpoints, width, height)
        rows, columns = high // self.rule.image_size, wide // self.rule.image_size
        side = isqrt(self.rule.tokens)
        tokens = side * (side + 1) + rows * side * (columns * side + 1) + 1
        return squares_item(self.rule, "image", 1 + rows * columns, self.rule.image_size, tokens, 0)

    def largest_size(self) -> tuple[int, int]:
        sizes = [(width, height) for height, width in self.rule.pinpoints]
        return max(sizes, key=lambda size: self.image(*size).tokens)


class WindowRule(MediaRule, frozen=True):
    """Step3-VL: a view of the whole image and windows of 504 pixels, whose budget counts their markers too."""

    family: str
    rule: Tiles

    def image(self, width: int, height: int) -> MediaItem:
        windows, newlines = self._windows(width, height)
        tokens = self.rule.tokens + windows * _WINDOW_TOKENS
        return MediaItem(
            modality="image",
            tokens=tokens,
            prompt_tokens=tokens + _MARKERS * (1 + windows) + newlines,
            patches=self.rule.patches + windows * (_WINDOW // self.rule.patch_size) ** 2,
            sequences=1 + windows,
            input_values=CHANNELS * (self.rule.image_size**2 + windows * _WINDOW**2),
            width=self.rule.image_size,
            height=self.rule.image_size,
        )

    def largest_size(self) -> tuple[int, int]:
        return _LONGEST, _LONGEST

    def largest_image(self, width: int | None, height: int | None) -> LargestItem:
        most = self.image(_LONGEST, _LONGEST).prompt_tokens
        dummy = self.image(min(_LONGEST, width or _LONGEST), min(_LONGEST, height or _LONGEST))
        return LargestItem(modality="image", max_tokens=most, item=dummy)

    def _windows(self, width: int, height: int) -> tuple[int, int]:
        """Windows, and rows of them that end with a newline."""
        if min(width, height) < _THIN and max(width, height) > 4 * min(width, height):
            width = height = max(width, height)
        scale = min(1.0, _LONGEST / max(width, height))
        width, height = int(width * scale), int(height * scale)
        long, short = max(width, height), min(width, height)
        if long < _VIEW:
            side = short if long / short > 1.5 else 0
        else:
            side = min(short, _WINDOW) if long / short > 4 else _WINDOW
        if side == 0 or self.rule.max_tiles == 0:
            return 0, 0
        columns, rows = _cells(width, side), _cells(height, side)
        return columns * rows, rows - 1


def _cells(pixels: int, side: int) -> int:
    """Windows along a side: one more where more than a fifth of one is left."""
    return max(1, pixels // side + (1 if pixels / side - pixels // side > 0.2 else 0))


class PackedRule(MediaRule, frozen=True):
    """LFM2-VL: an image of few tokens is only resized; a large one becomes tiles and a view. The dummy is the largest
    square that is not cut, so that the budget knows only of that."""

    family: str
    rule: PackedTiles

    @property
    def _factor(self) -> int:
        return self.rule.patch_size * self.rule.merge_size

    def image(self, width: int, height: int) -> MediaItem:
        rule, cell = self.rule, self._factor
        bounds = Bounds(rule.min_tokens * cell**2, rule.max_tokens * cell**2)
        high, wide = smart_resize(height, width, cell, bounds)
        view, tiles = high * wide // cell**2, self._tiles(width, height)
        if tiles and not rule.thumbnail:
            view = 0
        tokens = view + tiles * (rule.tile_size // cell) ** 2
        pixels = view * cell**2 + tiles * rule.tile_size**2
        return MediaItem(
            modality="image",
            tokens=tokens,
            prompt_tokens=tokens + _MARKERS + (tiles + 1 if tiles else 0),
            patches=pixels // rule.patch_size**2,
            sequences=tiles + (1 if view else 0),
            input_values=pixels * CHANNELS,
            width=wide,
            height=high,
        )

    def _tiles(self, width: int, height: int) -> int:
        """0 for an image that stays whole."""
        rule, cell = self.rule, self._factor
        high, wide = (max(rule.patch_size, round(side / cell) * cell) for side in (height, width))
        if rule.max_tiles == 1 or high * wide <= rule.max_tokens * cell**2 * rule.tolerance:
            return 0
        grid = Tiles(
            image_size=rule.tile_size,
            patch_size=rule.patch_size,
            patches=0,
            tokens=0,
            min_tiles=rule.min_tiles,
            max_tiles=rule.max_tiles,
            thumbnail=rule.thumbnail,
        )
        columns, rows = TileRule(self.family, grid, NO_KWARGS).closest(width, height)
        return columns * rows

    def largest_size(self) -> tuple[int, int]:
        side = isqrt(self.rule.max_tokens * self._factor**2)
        return side, side

    def fullest(self) -> MediaItem:
        """The image with most tiles that a request can bring."""
        return self.image(self.rule.max_tiles * self.rule.tile_size, self.rule.tile_size)
