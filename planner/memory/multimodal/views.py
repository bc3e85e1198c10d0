"""A whole view beside tiles: DeepSeek-VL2's squares, and LFM2-VL's, whose view keeps the image's shape.

Source: vLLM 0.26.0 model_executor/models/deepseek_vl2.py:170, lfm2_vl.py:120-300,
transformers_utils/processors/deepseek_vl2.py.
"""

from __future__ import annotations

from math import isqrt

from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.kwargs import NO_KWARGS
from planner.memory.multimodal.patches import Bounds, smart_resize
from planner.memory.multimodal.rule import CHANNELS, MediaRule
from planner.memory.multimodal.squares import TileRule, best_pinpoint, squares_item
from planner.model.vision_spec import PackedTiles, Pinpoints, Tiles

_MARKERS = 2


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
