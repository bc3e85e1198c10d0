"""MiniMax-M3 with images and videos: a CLIP-like tower with 3-D rotation, a projector and a patch merger.

Source: vLLM 0.26.0 models/minimax_m3/common/vision_tower.py, common/mm_preprocess.py, nvidia/model.py:1052,
transformers_utils/configs/minimax_m3.py, transformers_utils/processors/minimax_m3.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.model.architectures.blocks import LLAMA_FUSED, Architecture, norm
from planner.model.architectures.minimax_m3 import minimax_m3
from planner.model.architectures.vision_blocks import as_tower, column, fused_qkv, multimodal, row, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module
from planner.model.vision_spec import DynamicPatches, Encoder, VisionSpec

_PREFIXES = (
    ("multi_modal_projector.", "vision_tower.multi_modal_projector."),
    ("patch_merge_mlp.", "vision_tower.patch_merge_mlp."),
)
_CELL = 28 * 28
_MAX_FRAMES = 500
_MIXED = [0] * 3 + [1] * 57
_TEXT_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 200064,
    "hidden_size": 6144,
    "intermediate_size": 3072,
    "dense_intermediate_size": 12288,
    "num_hidden_layers": 60,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 524288,
    "rope_theta": 5000000,
    "partial_rotary_factor": 0.5,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "use_routing_bias": True,
    "moe_layer_freq": _MIXED,
    "sparse_attention_config": {
        "sparse_index_dim": 128,
        "sparse_num_index_heads": 4,
        "sparse_topk_blocks": 16,
        "sparse_attention_freq": _MIXED,
    },
}
"""What vLLM's MiniMaxM3TextConfig fills in."""


def minimax_m3_vl(config: ConfigView) -> Architecture:
    """MiniMaxM3SparseForConditionalGeneration. vLLM's own configuration class gives the projector no default width."""
    section = config.section("text_config").data
    text = ConfigView({**_TEXT_DEFAULTS, **section}, f"{config.where}: text_config", "minimax_m3_text", config.files)
    language = minimax_m3(text, "language_model.")
    vision = config.section("vision_config")
    width = language.text.hidden_size
    middle = config.data.get("projector_hidden_size") or width
    tower = minimax_m3_tower(vision, width, middle)
    spec = VisionSpec(
        family="MiniMaxM3",
        modalities=("image", "video"),
        encoder=Encoder(
            hidden_size=vision.size("hidden_size"),
            num_layers=vision.layers(),
            num_heads=vision.size("num_attention_heads"),
            head_size=vision.size("hidden_size") // vision.size("num_attention_heads"),
            intermediate_size=vision.size("intermediate_size"),
            output_size=width,
            projector_size=middle,
        ),
        image=_patches(config, vision),
    )
    return multimodal(language, tower, vision=spec, prefixes=_PREFIXES, fused=LLAMA_FUSED, encoder_data=True)


def minimax_m3_tower(vision: ConfigView, output: int, middle: int, prefix: str = "vision_tower") -> list[Module]:
    """MiniMaxVLVisionModel: no norm behind the last layer; every patch is projected, then four become one token."""
    width, inner = vision.size("hidden_size"), vision.size("intermediate_size")
    heads = vision.size("num_attention_heads")
    merge, temporal = _compression(vision)
    patch = vision.size("patch_size")
    model = f"{prefix}.vision_model"
    modules: list[Module] = [
        Buffer(name=f"{model}.inv_freq_{axis}", shape=(2 * (width // heads // 2) // 3 // 2,), dtype="float32")
        for axis in ("t", "h", "w")
    ]
    modules += weight(f"{model}.embeddings.patch_embedding", width, vision.size("num_channels"), temporal, patch, patch)
    modules += norm(f"{model}.pre_layrnorm", width, "every", bias=True)
    for layer in range(vision.layers()):
        at = f"{model}.encoder.layers.{layer}"
        modules += norm(f"{at}.layer_norm1", width, "every", bias=True)
        modules += [
            fused_qkv(f"{at}.self_attn.qkv_proj", width, heads, width // heads),
            row(f"{at}.self_attn.out_proj", width, width),
        ]
        modules += norm(f"{at}.layer_norm2", width, "every", bias=True)
        modules += [column(f"{at}.fc1", width, inner), row(f"{at}.fc2", inner, width)]
    projector, merger = f"{prefix}.multi_modal_projector", f"{prefix}.patch_merge_mlp"
    projected, merged = vision.flag("multimodal_projector_bias", True), vision.flag("patch_merge_bias", True)
    modules += [
        column(f"{projector}.linear_1", width, middle, bias=projected),
        row(f"{projector}.linear_2", middle, output, bias=projected),
        column(f"{merger}.linear_1", output * merge**2, middle, bias=merged),
        row(f"{merger}.linear_2", middle, output, bias=merged),
    ]
    return as_tower(modules)


def _compression(vision: ConfigView) -> tuple[int, int]:
    """(spatial merge, temporal patch)."""
    section = vision.section("img_token_compression_config")
    return section.size("spatial_merge_size", 2), section.size("temporal_patch_size", 2)


def _patches(config: ConfigView, vision: ConfigView) -> DynamicPatches:
    """Pixels bounded by area; a processor that bounds the long side instead is refused."""
    files = config.files
    image = ConfigView(files.preprocessor if files is not None else {}, "preprocessor_config.json")
    video = ConfigView(files.video_preprocessor if files is not None else {}, "video_preprocessor_config.json")
    for settings in (image, video):
        settings.require("max_long_side_pixel", (None,))
    merge, temporal = _compression(vision)
    return DynamicPatches(
        patch_size=image.size("patch_size", 14),
        merge_size=image.size("merge_size", merge),
        temporal_patch_size=image.size("temporal_patch_size", temporal),
        min_pixels=4 * _CELL,
        max_pixels=image.size("max_pixels", 24 * 24 * _CELL),
        video_min_pixels=video.size("min_pixels", 4 * _CELL),
        video_max_pixels=video.size("max_pixels", 768 * _CELL),
        max_video_frames=_MAX_FRAMES,
    )
