"""DeepSeek-OCR and DeepSeek-OCR-2: a whole view of 1024 x 1024 pixels and a grid of tiles, one image after the other.

Derived from the code, not measured. SAM's global attention adds a bias for each pair of patches: the highest moment.
The second encoder, which reads a sixteenth of the patches, stays below. Source: vLLM 0.26.0 model_executor/models/
deepseek_ocr.py, deepseek_ocr2.py, deepencoder.py; transformers_utils/processors/deepseek_ocr.py:21-80.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.kwargs import NO_KWARGS
from planner.memory.multimodal.rule import CHANNELS, MediaRule
from planner.memory.multimodal.squares import TileRule
from planner.memory.program import Program
from planner.model.vision_spec import Encoder, Tiles

_VIEW = 1024
_SAM_WIDTH, _SAM_HEADS, _SAM_PATCH, _DOWNSAMPLE = 768, 12, 16, 4


class OcrRule(MediaRule, frozen=True):
    """Tiles only where a side exceeds a tile. DeepSeek-OCR ends each row of features with a newline embedding."""

    family: str
    rule: Tiles

    def image(self, width: int, height: int) -> MediaItem:
        side = self.rule.image_size
        columns, rows = (0, 0)
        if max(width, height) > side:
            columns, rows = TileRule(self.family, self.rule, NO_KWARGS).closest(width, height)
        newline = 1 if self.family == "DeepseekOCR" else 0
        cells, whole = _cells(side), _cells(_VIEW)
        tokens = whole * (whole + newline) + (rows * cells * (columns * cells + newline) if columns else 0) + 1
        tiles = columns * rows
        return MediaItem(
            modality="image",
            tokens=tokens,
            prompt_tokens=tokens,
            patches=(_VIEW // _SAM_PATCH) ** 2 + tiles * (side // _SAM_PATCH) ** 2,
            sequences=1 + tiles,
            input_values=CHANNELS * (_VIEW**2 + tiles * side**2),
            width=side,
            height=side,
        )

    def largest_size(self) -> tuple[int, int]:
        return 2 * self.rule.image_size, 2 * self.rule.image_size

    def fullest(self) -> MediaItem:
        """The image with most tiles that a request can bring: long ones have more than the square dummy."""
        return self.image(self.rule.max_tiles * self.rule.image_size, self.rule.image_size)


def _cells(pixels: int) -> int:
    return -(-(pixels // _SAM_PATCH) // _DOWNSAMPLE)


def write_ocr(p: Program, encoder: Encoder, image: Tiles, items: Sequence[MediaItem], item_bytes: int) -> int:
    """Write the run over `items`; the handle of their embeddings. The fullest image is the last one here."""
    fullest = max(items, key=lambda entry: entry.sequences)
    before = (sum(entry.tokens for entry in items) - fullest.tokens) * encoder.output_size * item_bytes
    done = p.alloc("embeddings of other images", constant=before)
    _sam(p, "whole view", 1, (_VIEW // _SAM_PATCH) ** 2, item_bytes)
    view = p.alloc("features of the whole view", constant=_cells(_VIEW) ** 2 * encoder.output_size * item_bytes)
    if fullest.sequences > 1:
        _sam(p, "tiles", fullest.sequences - 1, (image.image_size // _SAM_PATCH) ** 2, item_bytes)
    out = p.alloc("embeddings", constant=before + fullest.tokens * encoder.output_size * item_bytes)
    p.free(view, done)
    return out


def _sam(p: Program, what: str, count: int, rows: int, item_bytes: int) -> None:
    """A block with global attention over `count` squares of `rows` patches."""
    p.stage(f"global attention over the {what}")
    hidden = count * rows * _SAM_WIDTH * item_bytes
    side = round(rows**0.5)
    held = [p.alloc(name, constant=hidden) for name in ("hidden states", "normalized input")]
    held.append(p.alloc("query, key and value by head", constant=3 * hidden))
    relative = count * _SAM_HEADS * rows * side * item_bytes
    held += [p.alloc(f"relative positions by {axis}", constant=relative) for axis in ("row", "column")]
    held.append(p.alloc("attention bias", constant=count * _SAM_HEADS * rows * rows * item_bytes))
    held.append(p.alloc("attention output", constant=hidden))
    p.free(*held)
