"""Images that keep their shape in other ways than Qwen-VL's: GLM-4V, Kimi, PaddleOCR-VL, MiniMax, Gemma 4, Pixtral.

Source: vLLM 0.26.0 model_executor/models/{glm4_1v,kimi_vl,kimi_k25,paddleocr_vl,gemma4_mm,pixtral}.py,
models/minimax_m3/common/mm_preprocess.py; transformers 5.14.1 models/{glm4v,pixtral}/image_processing_*.py.
"""

from __future__ import annotations

from math import floor, isqrt, sqrt

from msgspec.structs import replace

from planner.errors import InputError
from planner.memory.multimodal.item import LargestItem, MediaItem
from planner.memory.multimodal.kwargs import ProcessorKwargs
from planner.memory.multimodal.patches import PatchRule, most_features, smart_resize
from planner.memory.multimodal.rule import CHANNELS, MediaRule
from planner.model.vision_spec import LongestEdge, Modality

_HUGE = 9_999_999
_KIMI_DUMMY = 1024
_CHUNK_DUMMY = 3000
_GEMMA4_FRAME_MARKERS = 8


class StillRule(PatchRule, frozen=True):
    """The dummy image is `largest_size`, as for media that are no patches, and not the one of most features."""

    def largest_image(self, width: int | None, height: int | None) -> LargestItem:
        return MediaRule.largest_image(self, width, height)


class HugeSquareRule(StillRule, frozen=True):
    """The dummy is whatever a huge square becomes."""

    def largest_size(self) -> tuple[int, int]:
        item = self.image(_HUGE, _HUGE)
        return item.width, item.height


class GlmRule(HugeSquareRule, frozen=True):
    """GLM-4V bounds an image as a video of one temporal patch."""

    def image(self, width: int, height: int) -> MediaItem:
        temporal = self.rule.temporal_patch_size
        high, wide = self._at_least_one_cell(width, height)
        high, wide = smart_resize(high, wide, self.factor, self.image_bounds, temporal, temporal)
        return self._item("image", 1, high, wide)

    def video(self, width: int, height: int, frames: int) -> MediaItem:
        high, wide = self._at_least_one_cell(width, height)
        return super().video(wide, high, max(frames, self.rule.temporal_patch_size))

    def _padded_frames(self, frames: int) -> int:
        """Halves go to the even side (glm4v/image_processing_glm4v.py:75)."""
        return round(frames / self.rule.temporal_patch_size) * self.rule.temporal_patch_size

    def largest_video(
        self, max_model_len: int, beside_image: bool, frames: int | None, width: int | None, height: int | None
    ) -> LargestItem:
        """The number of frames whose tokens are most without exceeding the context, beside an image if allowed."""
        wide, high = self.largest_size()
        room = max_model_len - (self.image(wide, high).tokens if beside_image else 0)
        budgeted = self._fullest(wide, high, room)
        alone = self._fullest(wide, high, max_model_len)
        wide, high = min(wide, width or wide), min(high, height or high)
        dummy = self.video(wide, high, min(alone.frames, frames or alone.frames))
        return LargestItem(modality="video", max_tokens=budgeted.tokens, item=dummy)

    def longest_video(self, max_tokens: int) -> MediaItem:
        return self._fullest(*self.largest_size(), max_tokens)

    def _fullest(self, width: int, height: int, max_tokens: int) -> MediaItem:
        videos = [self.video(width, height, frames) for frames in range(1, self.rule.max_video_frames + 1)]
        fitting = [video for video in videos if video.tokens <= max_tokens]
        return max(fitting, key=lambda video: video.tokens, default=videos[0])

    def _at_least_one_cell(self, width: int, height: int) -> tuple[int, int]:
        scale = max(1.0, self.factor / height, self.factor / width)
        return int(height * scale), int(width * scale)


class ErnieRule(HugeSquareRule, frozen=True):
    """ERNIE 4.5 VL: two frames of a video share their tokens, but each goes through the tower; a patch is of one
    frame (transformers 5.14.1 models/ernie4_5_vl_moe/image_processing_ernie4_5_vl_moe.py:181)."""

    def _item(self, modality: Modality, frames: int, height: int, width: int) -> MediaItem:
        item, size = super()._item(modality, frames, height, width), self.rule.patch_size
        high, wide = height // size, width // size
        count = frames if modality == "video" else 1
        patches = count * high * wide
        values = patches * CHANNELS * size**2
        return replace(item, patches=patches, sequences=count, input_values=values, grid=(count, high, wide))

    def largest_video(
        self, max_model_len: int, beside_image: bool, frames: int | None, width: int | None, height: int | None
    ) -> LargestItem:
        """As many frames as the context holds beside an image; the profiled dummy stands alone."""
        wide, high = self.largest_size()
        image = self.image(wide, high).tokens
        budgeted = self._most_frames(max_model_len - (image if beside_image else 0), image)
        alone = self._most_frames(max_model_len, image)
        dummy = self.video(min(wide, width or wide), min(high, height or high), min(alone, frames or alone))
        return LargestItem(modality="video", max_tokens=self.video(wide, high, budgeted).tokens, item=dummy)

    def longest_video(self, max_tokens: int) -> MediaItem:
        wide, high = self.largest_size()
        return self.video(wide, high, self._most_frames(max_tokens, self.image(wide, high).tokens))

    def _most_frames(self, room: int, pair_tokens: int) -> int:
        return self.rule.temporal_patch_size * max(1, room // pair_tokens)


class KimiRule(StillRule, frozen=True):
    """Kimi-VL shrinks to a number of patches and pads to whole cells; its dummy is 1024 x 1024."""

    def image(self, width: int, height: int) -> MediaItem:
        patch, limit = self.rule.patch_size, self.kwargs.count("in_token_limit")
        most = limit or self.rule.max_pixels // patch**2
        cells = (width // patch) * (height // patch)
        if cells > most:
            scale = sqrt(most / cells)
            width, height = int(width * scale), int(height * scale)
        return self._item("image", 1, -(-height // self.factor) * self.factor, -(-width // self.factor) * self.factor)

    def largest_size(self) -> tuple[int, int]:
        return _KIMI_DUMMY, _KIMI_DUMMY


class ChunkRule(KimiRule, frozen=True):
    """Kimi-K2.5: an image, or a chunk of frames whose features are averaged over time; the dummy is whichever of
    3000 x 3000 pixels has more tokens (vLLM kimi_k25.py:140, kimi_k25_vision_fused.py:60)."""

    def image(self, width: int, height: int) -> MediaItem:
        return self._chunk(width, height, 1, self.rule.max_pixels)

    def video(self, width: int, height: int, frames: int) -> MediaItem:
        """One chunk of `frames` frames."""
        bound, whole = self.rule.video_max_pixels, self.rule.video_sum_pixels
        return self._chunk(width, height, frames, min(bound, round(whole / frames)) if whole else bound)

    def sampled_frames(self, seconds: float) -> int:
        return MediaRule.sampled_frames(self, seconds)

    def squares(self, sides: tuple[int, ...]) -> tuple[MediaItem, ...]:
        return tuple(replace(item, modality="vision_chunk") for item in super().squares(sides))

    def largest_image(self, width: int | None, height: int | None) -> LargestItem:
        chunk, image = self.video(_CHUNK_DUMMY, _CHUNK_DUMMY, self.rule.max_video_frames), self._largest_still()
        dummy = chunk if chunk.tokens >= image.tokens else image
        return LargestItem(modality="vision_chunk", max_tokens=dummy.tokens, item=dummy)

    def longest_video(self, max_tokens: int) -> MediaItem:
        return self.video(_CHUNK_DUMMY, _CHUNK_DUMMY, self.rule.max_video_frames)

    def _largest_still(self) -> MediaItem:
        return self.image(_CHUNK_DUMMY, _CHUNK_DUMMY)

    def _chunk(self, width: int, height: int, frames: int, max_pixels: int) -> MediaItem:
        patch, side, cell = self.rule.patch_size, self.rule.max_side_patches * self.rule.patch_size, self.factor
        cells = max(1, width // patch) * max(1, height // patch)
        scale = min(1.0, sqrt(max_pixels // patch**2 / cells), side / width, side / height)
        wide, high = (min(max(1, int(length * scale)), side) for length in (width, height))
        item = self._item("image", 1, -(-high // cell) * cell, -(-wide // cell) * cell)
        return replace(
            item,
            modality="vision_chunk",
            patches=frames * item.patches,
            input_values=frames * item.patches * CHANNELS * patch**2,
            frames=frames,
        )


class PaddleRule(StillRule, frozen=True):
    """PaddleOCR-VL's dummy is the squarest image of the most whole cells."""

    def largest_size(self) -> tuple[int, int]:
        cells = self.image_bounds.high // self.factor**2
        if cells < 1:
            raise InputError("config.json: the vision section's patches are larger than the largest image")
        high = int(sqrt(cells))
        return cells // high * self.factor, high * self.factor


class MiniMaxRule(PatchRule, frozen=True):
    """MiniMax-M3's dummy image is the largest square, its dummy video as many of the largest frames as the context
    takes; a video is attended to as a whole (models/minimax_m3/common/mm_preprocess.py:176-262)."""

    def video(self, width: int, height: int, frames: int) -> MediaItem:
        return replace(super().video(width, height, frames), sequences=1)

    def largest_size(self) -> tuple[int, int]:
        side = max(isqrt(self.image_bounds.high) // self.factor, 1) * self.factor
        return side, side

    def largest_image(self, width: int | None, height: int | None) -> LargestItem:
        side, _ = self.largest_size()
        dummy = self.image(min(side, width or side), min(side, height or side))
        return LargestItem(modality="image", max_tokens=self.image(side, side).tokens, item=dummy)

    def largest_video(
        self, max_model_len: int, beside_image: bool, frames: int | None, width: int | None, height: int | None
    ) -> LargestItem:
        high, wide = most_features(self.factor, self.video_bounds.high)
        most = min(self._frames_within(max_model_len, wide, high), self.rule.max_video_frames)
        dummy = self.video(min(wide, width or wide), min(high, height or high), min(most, frames or most))
        return LargestItem(modality="video", max_tokens=self.video(wide, high, most).tokens, item=dummy)

    def _frames_within(self, max_tokens: int, width: int, height: int) -> int:
        temporal = self.rule.temporal_patch_size
        return max(temporal * (max_tokens // self.video(width, height, 1).tokens), 1)


class Gemma4Rule(PatchRule, frozen=True):
    """Gemma 4 enlarges or shrinks each image to its number of tokens, and pads its patches to the most there can be."""

    @property
    def most_tokens(self) -> int:
        return self.kwargs.count("max_soft_tokens") or self.rule.max_pixels // self.factor**2

    def image(self, width: int, height: int) -> MediaItem:
        return self._padded(width, height, self.most_tokens)

    def video(self, width: int, height: int, frames: int) -> MediaItem:
        frame = self._padded(width, height, self.rule.video_max_pixels // self.factor**2)
        return replace(
            frame,
            modality="video",
            tokens=frames * frame.tokens,
            prompt_tokens=frames * (frame.tokens + _GEMMA4_FRAME_MARKERS),
            patches=frames * frame.patches,
            sequences=frames,
            input_values=frames * frame.input_values,
            frames=frames,
        )

    def sampled_frames(self, seconds: float) -> int:
        return self.rule.max_video_frames

    def largest_image(self, width: int | None, height: int | None) -> LargestItem:
        item = self._padded(self.factor * self.most_tokens, self.factor, self.most_tokens)
        return LargestItem(modality="image", max_tokens=self.most_tokens, item=item)

    def largest_video(
        self, max_model_len: int, beside_image: bool, frames: int | None, width: int | None, height: int | None
    ) -> LargestItem:
        most = min(self.rule.max_video_frames, frames or self.rule.max_video_frames)
        tokens = self.rule.video_max_pixels // self.factor**2
        item = self.video(self.factor * tokens, self.factor, most)
        return LargestItem(modality="video", max_tokens=most * (tokens + _GEMMA4_FRAME_MARKERS), item=item)

    def longest_video(self, max_tokens: int) -> MediaItem:
        return self.largest_video(max_tokens, False, None, None, None).item

    def squares(self, sides: tuple[int, ...]) -> tuple[MediaItem, ...]:
        return ()

    def _padded(self, width: int, height: int, most: int) -> MediaItem:
        patch, cell = self.rule.patch_size, self.factor
        scale = sqrt(most * self.rule.merge_size**2 / (height / patch * (width / patch)))
        high, wide = (max(cell, floor(side * scale / cell) * cell) for side in (height, width))
        tokens = min(high * wide // cell**2, most)
        patches = most * self.rule.merge_size**2
        return MediaItem(
            modality="image", tokens=tokens, prompt_tokens=tokens + 2, patches=patches, sequences=1,
            input_values=patches * CHANNELS * patch**2, width=wide, height=high,
        )  # fmt: skip


class EdgeRule(MediaRule, frozen=True):
    """Pixtral and Mistral 3: the longest side is bounded; each row of tokens ends with one more, but LightOnOCR's.
    Mistral's own processor rounds where transformers' cuts (mistral_common 1.13.1 tokens/tokenizers/image.py:260)."""

    family: str
    rule: LongestEdge
    kwargs: ProcessorKwargs

    def image(self, width: int, height: int) -> MediaItem:
        most = self.kwargs.edge("longest_edge") or self.rule.image_size
        scale = max(width / most, height / most)
        if scale > 1 and self.family == "Pixtral":
            width, height = max(round(width / scale), 1), max(round(height / scale), 1)
        elif scale > 1:
            width, height = floor(width / scale), floor(height / scale)
        cell = self.rule.patch_size * self.rule.merge_size
        rows, columns = (height - 1) // cell + 1, (width - 1) // cell + 1
        tokens, patches = rows * columns, rows * columns * self.rule.merge_size**2
        return MediaItem(
            modality="image", tokens=tokens, prompt_tokens=tokens + self._breaks(rows), patches=patches, sequences=1,
            input_values=patches * CHANNELS * self.rule.patch_size**2, width=columns * cell, height=rows * cell,
        )  # fmt: skip

    def _breaks(self, rows: int) -> int:
        return 0 if self.family == "LightOnOCR" else rows

    def largest_size(self) -> tuple[int, int]:
        return self.rule.image_size, self.rule.image_size
