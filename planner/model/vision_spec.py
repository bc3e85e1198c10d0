"""VisionSpec: from pixels or sound to patches to tokens, and the encoder that runs on them.

Every number is the processor's or the tower's own, whole model, before tensor parallelism. `planner.memory` turns them
into tokens per item, the encoder budget and the encoder's activation.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Modality = Literal["image", "video", "audio", "vision_chunk"]


class Encoder(Struct, frozen=True, kw_only=True):
    """One encoder tower's sizes.

    `mlp_shards`: 2 for a gated MLP (gate and up fused), else 1. `output_size`: width of one embedding that the tower
    and its projector hand to the language model, deepstack levels included (Qwen3-VL concatenates `deepstack_levels`
    more embeddings to each token). `projector_size`: width of the projector's or merger's hidden layer.
    `window_pixels`: side of a local-attention window, None where every layer attends to the whole image;
    `full_attention_layers`: the layers that do so all the same. `prefix_tokens`: class and register tokens in each
    sequence. `max_positions`: rows of a learned position table, 0 where there is none. `keeps_hidden_states`: all
    layers' outputs are kept for a projector that reads several of them (models/vision.py).
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    head_size: int
    intermediate_size: int
    output_size: int
    mlp_shards: int = 1
    projector_size: int = 0
    deepstack_levels: int = 0
    window_pixels: int | None = None
    full_attention_layers: tuple[int, ...] = ()
    prefix_tokens: int = 0
    max_positions: int = 0
    keeps_hidden_states: bool = False


class DynamicPatches(Struct, frozen=True, kw_only=True):
    """The image keeps its aspect ratio; its pixels are bounded (Qwen2-VL's smart_resize and its descendants).

    Sides become multiples of patch_size * merge_size, height * width stays within [min_pixels, max_pixels];
    patches = (height / patch_size) * (width / patch_size), tokens = patches / merge_size**2. A video has
    frames / temporal_patch_size such grids. `video_min_pixels`, `video_max_pixels`: bounds of a video's frame where
    `video_pixels` is "frame", of all its frames together where it is "total". `max_video_frames`: the most frames that
    vLLM's dummy video has. `max_side_patches`: the most patches along a side, 0 without a bound; `video_sum_pixels`: a
    bound of all frames together beside the frame's, 0 for none (Kimi-K2.5).
    """

    kind: Literal["dynamic_patches"] = "dynamic_patches"
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    video_pixels: Literal["frame", "total"] = "frame"
    video_min_pixels: int
    video_max_pixels: int
    max_video_frames: int
    max_side_patches: int = 0
    video_sum_pixels: int = 0


class FixedSize(Struct, frozen=True, kw_only=True):
    """Every image is resized to one square: `patches` enter the encoder, `tokens` leave the projector, once per crop.

    `max_crops`: extra crops of one image beside the whole (Gemma3 pan and scan), 0 for none. `item_tokens`: all
    placeholder tokens of one image without crops, separators included.
    """

    kind: Literal["fixed_size"] = "fixed_size"
    image_size: int
    patch_size: int
    patches: int
    tokens: int
    item_tokens: int
    max_crops: int = 0


class Tiles(Struct, frozen=True, kw_only=True):
    """The image is cut into min_tiles..max_tiles squares of `image_size`, plus a thumbnail when there are several.

    `patches` enter the encoder for each tile, `tokens` leave it. `extra_tokens`: begin and end markers of an item.
    """

    kind: Literal["tiles"] = "tiles"
    image_size: int
    patch_size: int
    patches: int
    tokens: int
    min_tiles: int
    max_tiles: int
    thumbnail: bool
    extra_tokens: int = 0


class Pinpoints(Struct, frozen=True, kw_only=True):
    """LLaVA-NeXT's grid: the image is fitted to one of `pinpoints` (height, width), cut into squares of `image_size`,
    and the squares' features are unpadded, with a newline embedding for each row; a whole-image base is added.

    `patches` enter the encoder for each square and `tokens` are its features. `max_tiles`: LLaVA-OneVision's
    "anyres_max_N" bound on the squares whose features are kept at full size, 0 for none. `video_frame_tokens`: tokens
    of one video frame, 0 where videos are not accepted.
    """

    kind: Literal["pinpoints"] = "pinpoints"
    image_size: int
    patch_size: int
    patches: int
    tokens: int
    pinpoints: tuple[tuple[int, int], ...]
    max_tiles: int = 0
    video_frame_tokens: int = 0


class PackedTiles(Struct, frozen=True, kw_only=True):
    """LFM2-VL: an image of at most max_tokens * tolerance is resized to between min_tokens and max_tokens; a larger one
    is cut into min_tiles..max_tiles squares of `tile_size`, with the resized image as `thumbnail`. One token for
    merge_size**2 patches."""

    kind: Literal["packed_tiles"] = "packed_tiles"
    patch_size: int
    merge_size: int
    tile_size: int
    min_tiles: int
    max_tiles: int
    min_tokens: int
    max_tokens: int
    tolerance: float
    thumbnail: bool


class LongestEdge(Struct, frozen=True, kw_only=True):
    """The longest side is bounded by `image_size`; the other follows (Pixtral, Mistral3).

    Sides become multiples of patch_size * merge_size; one token for merge_size**2 patches, and one break or end token
    for each row of tokens.
    """

    kind: Literal["longest_edge"] = "longest_edge"
    image_size: int
    patch_size: int
    merge_size: int


class Slices(Struct, frozen=True, kw_only=True):
    """MiniCPM-V: the image and up to `max_slices` slices of about scale_resolution**2 pixels, each resampled to
    `tokens` tokens; `patches` is the most that one slice feeds to the encoder. `max_frame_slices`: slices of a video
    frame. `wrapper_tokens`: the begin and end token around each."""

    kind: Literal["slices"] = "slices"
    patch_size: int
    scale_resolution: int
    patches: int
    tokens: int
    max_slices: int
    max_frame_slices: int = 1
    wrapper_tokens: int = 2


class AudioFrames(Struct, frozen=True, kw_only=True):
    """Sound as mel frames: `max_frames` is the longest chunk's, `tokens` what that chunk becomes.

    `encoder_positions`: sequence length inside the encoder for that chunk. `stem_channels`: of the strided 2-D
    convolutions before it, 0 where there are none; `stem_window`: frames that they convolve together (0: the whole
    sound), `stem_batch`: such windows at once.
    """

    kind: Literal["audio_frames"] = "audio_frames"
    mel_bins: int
    max_frames: int
    encoder_positions: int
    tokens: int
    stem_channels: int = 0
    stem_window: int = 0
    stem_batch: int = 1


ImageRule = DynamicPatches | FixedSize | Tiles | Pinpoints | PackedTiles | LongestEdge | Slices


class VisionSpec(Struct, frozen=True, kw_only=True):
    """What a multimodal model accepts and the encoders that it runs.

    `family` is the name of vLLM's processing class without its suffix ("Qwen2VL", "Gemma3", ...): rules that only one
    class has are chosen by it. `modalities` are those that vLLM accepts (get_supported_mm_limits), `limits` the most
    items of one that the class itself allows, where it does. `dropped_with`: the vision tower is not built where each
    of these is limited to zero (models/interfaces.py:257); None: all visual ones, empty: it is always built.
    """

    family: str
    modalities: tuple[Modality, ...]
    limits: tuple[tuple[Modality, int], ...] = ()
    dropped_with: tuple[Modality, ...] | None = None
    encoder: Encoder | None = None
    image: ImageRule | None = None
    audio_encoder: Encoder | None = None
    audio: AudioFrames | None = None
