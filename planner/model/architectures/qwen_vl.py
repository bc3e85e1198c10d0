"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: the vision towers, and the dense models around them.

Source: vLLM 0.26.0 model_executor/models/qwen2_vl.py, qwen2_5_vl.py, qwen3_vl.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.model.architectures import llama
from planner.model.architectures.blocks import Architecture, gated_mlp, norm, plain_mlp
from planner.model.architectures.vision_blocks import (
    NO_ARCHITECTURE,
    as_tower,
    column,
    fused_qkv,
    multimodal,
    row,
    text_view,
    weight,
)
from planner.model.config_view import ConfigView
from planner.model.modules import Module, TokenBuffer
from planner.model.rope import rotary_cache
from planner.model.vision_spec import DynamicPatches, Encoder, Modality, VisionSpec

_ROTARY_ROWS = 8192
_VISUAL: tuple[Modality, ...] = ("image", "video")
_FUSED = {"qkv": ("qkv",)}
_QWEN2_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "visual."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
QWEN3_PREFIXES = (
    ("model.visual.", "visual."),
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
)


def qwen2_vl(config: ConfigView) -> Architecture:
    """Qwen2VLForConditionalGeneration."""
    vision = config.section("vision_config", "qwen2_vl_vision")
    spec = VisionSpec(
        family="Qwen2VL", modalities=_VISUAL, encoder=qwen2_encoder(vision), image=frame_patches(config, vision)
    )
    text = llama.qwen2(text_view(config, "qwen2_vl_text"), "language_model.")
    return multimodal(text, qwen2_vision_tower(vision), vision=spec, prefixes=_QWEN2_PREFIXES, encoder_data=True)


def qwen2_5_vl(config: ConfigView) -> Architecture:
    """Qwen2_5_VLForConditionalGeneration."""
    vision = config.section("vision_config", "qwen2_5_vl_vision")
    spec = VisionSpec(
        family="Qwen2_5_VL", modalities=_VISUAL, encoder=qwen2_5_encoder(vision), image=frame_patches(config, vision)
    )
    text = llama.qwen2(text_view(config, "qwen2_5_vl_text"), "language_model.")
    return multimodal(
        text, qwen2_5_vision_tower(vision), vision=spec, prefixes=_QWEN2_PREFIXES, fused=_FUSED, encoder_data=True
    )


def qwen3_vl(config: ConfigView) -> Architecture:
    """Qwen3VLForConditionalGeneration: its text section names no class, so vLLM 0.26.0 refuses pipeline parallelism."""
    text = llama.qwen3(text_view(config, "qwen3_vl_text"), "language_model.")
    return with_qwen3_tower(config, text, family="Qwen3VL")


def cosmos3(config: ConfigView) -> Architecture:
    """Cosmos3ForConditionalGeneration: Qwen3-VL under another name (cosmos3.py:10)."""
    return qwen3_vl(ConfigView(config.data, config.where, "qwen3_vl", config.files))


def with_qwen3_tower(
    config: ConfigView,
    text: Architecture,
    *,
    family: str,
    vision_type: str = "qwen3_vl_vision",
    pipeline_refusal: str | None = NO_ARCHITECTURE,
) -> Architecture:
    """Any language model with Qwen3-VL's tower (Qwen3-VL, its MoE variant, Qwen3.5). Modules of `text` carry the
    prefix "language_model."."""
    vision = config.section("vision_config", vision_type)
    return multimodal(
        text,
        qwen3_vision_tower(vision) + deepstack_inputs(vision, text.text.hidden_size),
        vision=qwen3_spec(config, vision, family),
        prefixes=QWEN3_PREFIXES,
        fused=_FUSED,
        encoder_data=True,
        pipeline_refusal=pipeline_refusal,
    )


def qwen2_vision_tower(vision: ConfigView, prefix: str = "visual") -> list[Module]:
    """Qwen2VisionTransformer: LayerNorm, plain MLP, a merger to `hidden_size` (the language model's width)."""
    width, heads = vision.size("embed_dim"), vision.size("num_heads")
    modules = patch_embedding(vision, width, f"{prefix}.patch_embed") + vision_rotary(width, heads, prefix)
    inner = int(width * vision.number("mlp_ratio"))
    for layer in range(vision.layers("depth")):
        at = f"{prefix}.blocks.{layer}"
        modules += norm(f"{at}.norm1", width, "every", bias=True) + norm(f"{at}.norm2", width, "every", bias=True)
        modules += [column(f"{at}.attn.qkv", width, 3 * width, num_heads=heads), row(f"{at}.attn.proj", width, width)]
        modules += plain_mlp(f"{at}.mlp", "every", width, inner)
    # The merger is built with the default merge size of 2, whatever the config says (qwen2_vl.py).
    modules += patch_merger(f"{prefix}.merger", width, vision.size("hidden_size"), 2, norm_bias=True)
    return as_tower(modules)


def qwen2_5_vision_tower(vision: ConfigView, prefix: str = "visual") -> list[Module]:
    """Qwen2_5_VisionTransformer: RMSNorm, gated MLP with biases, windowed attention (same weights)."""
    width, heads = vision.size("hidden_size"), vision.size("num_heads")
    modules = patch_embedding(vision, width, f"{prefix}.patch_embed") + vision_rotary(width, heads, prefix)
    for layer in range(vision.layers("depth")):
        at = f"{prefix}.blocks.{layer}"
        modules += norm(f"{at}.norm1", width, "every") + norm(f"{at}.norm2", width, "every")
        modules += vision_attention(f"{at}.attn", width, heads)
        modules += gated_mlp(f"{at}.mlp", "every", width, vision.size("intermediate_size"), bias=True)
    modules += patch_merger(
        f"{prefix}.merger", width, vision.size("out_hidden_size"), vision.size("spatial_merge_size")
    )
    return as_tower(modules)


def qwen3_vision_tower(
    vision: ConfigView,
    prefix: str = "visual",
    *,
    mergers: str = "deepstack_merger_list",
    positions: int | None = None,
) -> list[Module]:
    """Qwen3_VisionTransformer: LayerNorm, learned positions, and one more merger for each deepstack level.

    Qwen3-Omni names its mergers otherwise and counts positions from the image size.
    """
    width, heads = vision.size("hidden_size"), vision.size("num_heads")
    output, merge = vision.size("out_hidden_size"), vision.size("spatial_merge_size")
    modules = patch_embedding(vision, width, f"{prefix}.patch_embed", bias=True)
    modules += weight(f"{prefix}.pos_embed", positions or vision.size("num_position_embeddings"), width)
    modules += vision_rotary(width, heads, prefix)
    modules += _qwen3_merger(f"{prefix}.merger", width, output, merge, norm_size=width)
    for level in range(len(vision.sizes("deepstack_visual_indexes", ()))):
        modules += _qwen3_merger(f"{prefix}.{mergers}.{level}", width, output, merge, norm_size=width * merge**2)
    for layer in range(vision.layers("depth")):
        at = f"{prefix}.blocks.{layer}"
        modules += norm(f"{at}.norm1", width, "every", bias=True) + norm(f"{at}.norm2", width, "every", bias=True)
        modules += vision_attention(f"{at}.attn", width, heads)
        modules += plain_mlp(
            f"{at}.mlp", "every", width, vision.size("intermediate_size"), names=("linear_fc1", "linear_fc2")
        )
    return as_tower(modules)


def deepstack_inputs(vision: ConfigView, width: int) -> list[Module]:
    """One input batch of embeddings for each deepstack level, kept from loading on (qwen3_vl.py:1759).

    Plain tensors: no parameters, no buffers, but part of what loading takes, and the tower's: limits drop them.
    """
    levels = len(vision.sizes("deepstack_visual_indexes", ()))
    inputs: list[Module] = [
        TokenBuffer(name=f"deepstack_input_embeds.{level}", columns=width) for level in range(levels)
    ]
    return as_tower(inputs)


def patch_embedding(vision: ConfigView, width: int, name: str, *, bias: bool = False) -> list[Module]:
    """A 3-D convolution over temporal_patch_size frames."""
    patch = vision.size("patch_size")
    return weight(
        f"{name}.proj", width, vision.size("in_channels"), vision.size("temporal_patch_size"), patch, patch, bias=bias
    )


def vision_rotary(width: int, heads: int, prefix: str) -> list[Module]:
    """Half of each head is rotated; one table of 8192 rows for the tower."""
    return [rotary_cache(f"{prefix}.rotary_pos_emb", width // heads, _ROTARY_ROWS, {"partial_rotary_factor": 0.5})]


def vision_attention(
    prefix: str, width: int, heads: int, *, qkv_bias: bool = True, out_bias: bool = True
) -> list[Module]:
    """Qwen2_5_VisionAttention."""
    return [
        fused_qkv(f"{prefix}.qkv", width, heads, width // heads, bias=qkv_bias, shard_names=()),
        row(f"{prefix}.proj", width, width, bias=out_bias),
    ]


def patch_merger(prefix: str, width: int, output: int, merge: int, *, norm_bias: bool = False) -> list[Module]:
    """merge x merge patches become one token: norm, linear, GELU, linear."""
    merged = width * merge**2
    return [
        *norm(f"{prefix}.ln_q", width, "every", bias=norm_bias),
        column(f"{prefix}.mlp.0", merged, merged),
        row(f"{prefix}.mlp.2", merged, output),
    ]


def _qwen3_merger(prefix: str, width: int, output: int, merge: int, *, norm_size: int) -> list[Module]:
    merged = width * merge**2
    return [
        *norm(f"{prefix}.norm", norm_size, "every", bias=True),
        column(f"{prefix}.linear_fc1", merged, merged),
        row(f"{prefix}.linear_fc2", merged, output),
    ]


def qwen2_encoder(vision: ConfigView) -> Encoder:
    width, heads = vision.size("embed_dim"), vision.size("num_heads")
    return Encoder(
        hidden_size=width,
        num_layers=vision.layers("depth"),
        num_heads=heads,
        head_size=width // heads,
        intermediate_size=int(width * vision.number("mlp_ratio")),
        output_size=vision.size("hidden_size"),
        projector_size=width * 4,
    )


def qwen2_5_encoder(vision: ConfigView) -> Encoder:
    width, heads = vision.size("hidden_size"), vision.size("num_heads")
    return Encoder(
        hidden_size=width,
        num_layers=vision.layers("depth"),
        num_heads=heads,
        head_size=width // heads,
        mlp_shards=2,
        intermediate_size=vision.size("intermediate_size"),
        output_size=vision.size("out_hidden_size"),
        projector_size=width * vision.size("spatial_merge_size") ** 2,
        window_pixels=vision.size("window_size"),
        full_attention_layers=vision.sizes("fullatt_block_indexes"),
    )


def qwen3_encoder(vision: ConfigView, positions: int | None = None) -> Encoder:
    width, heads = vision.size("hidden_size"), vision.size("num_heads")
    levels = len(vision.sizes("deepstack_visual_indexes", ()))
    return Encoder(
        hidden_size=width,
        num_layers=vision.layers("depth"),
        num_heads=heads,
        head_size=width // heads,
        intermediate_size=vision.size("intermediate_size"),
        output_size=vision.size("out_hidden_size") * (1 + levels),
        projector_size=width * vision.size("spatial_merge_size") ** 2,
        deepstack_levels=levels,
        max_positions=positions or vision.size("num_position_embeddings"),
    )


def qwen3_spec(config: ConfigView, vision: ConfigView, family: str, positions: int | None = None) -> VisionSpec:
    """A video's pixel bounds are its own and count all frames (Qwen3VLVideoProcessor); the dummy video has 2 frames."""
    low, high = pixel_bounds(config, "preprocessor")
    video_low, video_high = pixel_bounds(config, "video_preprocessor", (128 * 32 * 32, 32 * 32 * 768))
    image = DynamicPatches(
        patch_size=vision.size("patch_size"),
        merge_size=vision.size("spatial_merge_size"),
        temporal_patch_size=vision.size("temporal_patch_size"),
        min_pixels=low,
        max_pixels=high,
        video_pixels="total",
        video_min_pixels=video_low,
        video_max_pixels=video_high,
        max_video_frames=2,
    )
    return VisionSpec(family=family, modalities=_VISUAL, encoder=qwen3_encoder(vision, positions), image=image)


def frame_patches(config: ConfigView, vision: ConfigView) -> DynamicPatches:
    """Each frame of a video is bounded as an image; the dummy video has at most 14 (qwen2_vl.py:114)."""
    low, high = pixel_bounds(config, "preprocessor")
    return DynamicPatches(
        patch_size=vision.size("patch_size"),
        merge_size=vision.size("spatial_merge_size"),
        temporal_patch_size=vision.size("temporal_patch_size"),
        min_pixels=low,
        max_pixels=high,
        video_min_pixels=low,
        video_max_pixels=high,
        max_video_frames=14,
    )


def pixel_bounds(
    config: ConfigView, file: str, default: tuple[int, int] = (56 * 56, 28 * 28 * 1280)
) -> tuple[int, int]:
    """size.shortest_edge and size.longest_edge of a processor file; min_pixels and max_pixels win over them.

    Source: transformers 5.14.1 models/qwen2_vl/image_processing_qwen2_vl.py:95-115.
    """
    settings: Mapping[str, Any] = getattr(config.files, file) if config.files is not None else {}
    view = ConfigView(settings, f"{file} config")
    size = view.section("size")
    low = view.optional_size("min_pixels") or size.optional_size("shortest_edge") or default[0]
    high = view.optional_size("max_pixels") or size.optional_size("longest_edge") or default[1]
    return low, high
