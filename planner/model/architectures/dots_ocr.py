"""dots.ocr: a gated ViT of its own without biases, Qwen2-VL's merger and processor, a Qwen2 decoder.

Source: vLLM 0.26.0 model_executor/models/dots_ocr.py, transformers_utils/configs/dotsocr.py (the defaults below).
"""

from __future__ import annotations

from planner.model.architectures import llama
from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.qwen_vl import pixel_bounds
from planner.model.architectures.vision_blocks import as_tower, column, fused_qkv, multimodal, row, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module
from planner.model.vision_spec import DynamicPatches, Encoder, VisionSpec

_PREFIXES = (("lm_head.", "language_model.lm_head."), ("model.", "language_model.model."))
_LAYERS = 42
_FUSED = {"attn.qkv": ("attn.qkv",), "fc13": ("fc1", "fc3")}


def dots_ocr(config: ConfigView) -> Architecture:
    """DotsOCRForCausalLM: the decoder's keys are the config's own."""
    vision = config.section("vision_config")
    text = llama.qwen2(ConfigView(config.data, config.where, "qwen2", config.files), "language_model.")
    low, high = pixel_bounds(config, "preprocessor")
    image = DynamicPatches(
        patch_size=vision.size("patch_size", 14),
        merge_size=vision.size("spatial_merge_size", 2),
        temporal_patch_size=vision.size("temporal_patch_size", 1),
        min_pixels=low,
        max_pixels=high,
        video_min_pixels=low,
        video_max_pixels=high,
        max_video_frames=0,
    )
    spec = VisionSpec(family="DotsOCR", modalities=("image",), encoder=_encoder(vision), image=image)
    return multimodal(text, _tower(vision), vision=spec, prefixes=_PREFIXES, fused=_FUSED, encoder_data=True)


def _tower(vision: ConfigView, prefix: str = "vision_tower") -> list[Module]:
    width, heads = vision.size("embed_dim", 1536), vision.size("num_attention_heads", 12)
    inner, bias = vision.size("intermediate_size", 4224), vision.flag("use_bias")
    patch, merge = vision.size("patch_size", 14), vision.size("spatial_merge_size", 2)
    stem = f"{prefix}.patch_embed.patchifier"
    modules = weight(f"{stem}.proj", width, vision.size("num_channels", 3), patch, patch, bias=True)
    modules += norm(f"{stem}.norm", width, "every")
    modules.append(Buffer(name=f"{prefix}.rotary_pos_emb.inv_freq", shape=(width // heads // 4,), dtype="float32"))
    for layer in range(_depth(vision)):
        at = f"{prefix}.blocks.{layer}"
        modules += [
            fused_qkv(f"{at}.attn.qkv", width, heads, width // heads, bias=bias, shard_names=()),
            row(f"{at}.attn.proj", width, width, bias=bias),
            *norm(f"{at}.norm1", width, "every"),
            column(f"{at}.mlp.fc13", width, inner, inner, bias=bias, shard_names=("fc1", "fc3")),
            row(f"{at}.mlp.fc2", inner, width, bias=bias),
            *norm(f"{at}.norm2", width, "every"),
        ]
    if vision.flag("post_norm", True):
        modules += norm(f"{prefix}.post_trunk_norm", width, "every")
    merged = width * merge**2
    modules += norm(f"{prefix}.merger.ln_q", width, "every", bias=True)
    modules += [
        column(f"{prefix}.merger.mlp.0", merged, merged, quantizable=False),
        row(f"{prefix}.merger.mlp.2", merged, vision.size("hidden_size", 1536), quantizable=False),
    ]
    return as_tower(modules)


def _depth(vision: ConfigView) -> int:
    return vision.layers() if "num_hidden_layers" in vision else _LAYERS


def _encoder(vision: ConfigView) -> Encoder:
    width, heads = vision.size("embed_dim", 1536), vision.size("num_attention_heads", 12)
    return Encoder(
        hidden_size=width,
        num_layers=_depth(vision),
        num_heads=heads,
        head_size=width // heads,
        mlp_shards=2,
        intermediate_size=vision.size("intermediate_size", 4224),
        output_size=vision.size("hidden_size", 1536),
        projector_size=width * vision.size("spatial_merge_size", 2) ** 2,
    )
