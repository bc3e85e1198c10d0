"""MediaItem: one image, video or sound as the engine sees it after its processor."""

from __future__ import annotations

from msgspec import Struct

from planner.model.vision_spec import Modality


class MediaItem(Struct, frozen=True, kw_only=True):
    """`tokens`: embeddings that the encoder makes of it, which its budget and cache count. `prompt_tokens`: what it
    adds to a prompt, markers and timestamps included. `patches`: rows that enter the encoder. `sequences`: attention
    sequences among them (frames, tiles). `input_values`: numbers in the processed tensor. `width`, `height`: pixels
    after resizing (of one frame or tile); `grid`: patches as (time, height, width) where the encoder takes one."""

    modality: Modality
    tokens: int
    prompt_tokens: int
    patches: int
    sequences: int
    input_values: int
    width: int = 0
    height: int = 0
    grid: tuple[int, int, int] | None = None
    frames: int = 1


class LargestItem(Struct, frozen=True, kw_only=True):
    """The largest item of a modality. `max_tokens` is what vLLM's budget counts; `item` is the dummy that a profile
    run feeds to the encoder, which sizes given with --limit-mm-per-prompt can make smaller."""

    modality: Modality
    max_tokens: int
    item: MediaItem
