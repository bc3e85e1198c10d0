"""GLM-4.1V, GLM-4.5V and their kin: a windowless ViT with a downsampling convolution, a GLM-4 decoder, dense or MoE.

Source: vLLM 0.26.0 model_executor/models/glm4_1v.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.architectures.blocks import Architecture, gated_mlp, norm
from planner.model.architectures.qwen_vl import (
    QWEN3_PREFIXES,
    patch_embedding,
    pixel_bounds,
    vision_attention,
    vision_rotary,
)
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, text_view, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Linear, Module
from planner.model.vision_spec import DynamicPatches, Encoder, VisionSpec

_TEXT = {
    "glm4v": "Glm4ForCausalLM",
    "glm_ocr": "Glm4ForCausalLM",
    "glmga": "Glm4ForCausalLM",
    "glm4v_moe": "Glm4MoeForCausalLM",
}


def glm4v(config: ConfigView) -> Architecture:
    """Glm4vForConditionalGeneration and Glm4vMoeForConditionalGeneration; model_type decides the decoder."""
    if config.model_type not in _TEXT:
        raise UnsupportedError(
            "model_type", f"GLM-4V of model_type {config.model_type!r} is not supported by this planner"
        )
    moe = config.model_type == "glm4v_moe"
    kind = config.model_type if config.model_type in ("glm4v_moe", "glm_ocr") else "glm4v"
    view = text_view(config, f"{kind}_text")
    text = language_model(
        ConfigView({**view.data, "architectures": [_TEXT[config.model_type]]}, view.where, view.model_type, view.files)
    )
    vision = config.section("vision_config", f"{kind}_vision")
    low, high = pixel_bounds(config, "preprocessor", (112 * 112, 28 * 28 * 15000))
    video_low, video_high = pixel_bounds(config, "video_preprocessor", (112 * 112, 28 * 28 * 2 * 30000))
    image = DynamicPatches(
        patch_size=vision.size("patch_size"),
        merge_size=vision.size("spatial_merge_size"),
        temporal_patch_size=vision.size("temporal_patch_size"),
        min_pixels=low,
        max_pixels=high,
        video_pixels="total",
        video_min_pixels=video_low,
        video_max_pixels=video_high,
        max_video_frames=600,
    )
    spec = VisionSpec(
        family="Glm4v", modalities=("image", "video"), limits=(("video", 1),), encoder=_encoder(vision), image=image
    )
    fused = {"gate_up_proj": ("gate_proj", "up_proj") if moe else ("gate_up_proj",)}
    return multimodal(
        text, glm4v_vision_tower(vision), vision=spec, prefixes=QWEN3_PREFIXES, fused=fused, encoder_data=True
    )


def glm_ocr(config: ConfigView) -> Architecture:
    """GlmOcrForConditionalGeneration: no position table; q and k norms and biases in the tower; its MLPs are as wide as
    intermediate_size, the merger's as the decoder's (glm_ocr.py:89, 253). Multi-token prediction is not built."""
    whole = glm4v(config)
    vision, section = config.section("vision_config", "glm_ocr_vision"), text_view(config, "glm_ocr_text")
    assert whole.vision is not None
    encoder = replace(
        _encoder(vision),
        intermediate_size=vision.size("intermediate_size"),
        projector_size=section.size("intermediate_size"),
        max_positions=0,
    )
    text = [part for part in whole.modules if part.component == "language_model"]
    return replace(
        whole,
        modules=(*_glm_ocr_tower(vision, section.size("intermediate_size")), *text),
        vision=replace(whole.vision, encoder=encoder),
    )


def _glm_ocr_tower(vision: ConfigView, merger_width: int, prefix: str = "visual") -> list[Module]:
    width, heads, output = vision.size("hidden_size"), vision.size("num_heads"), vision.size("out_hidden_size")
    merge, inner = vision.size("spatial_merge_size"), vision.size("intermediate_size")
    modules = patch_embedding(vision, width, f"{prefix}.patch_embed", bias=True) + vision_rotary(width, heads, prefix)
    for layer in range(vision.layers("depth")):
        at = f"{prefix}.blocks.{layer}"
        modules += norm(f"{at}.norm1", width, "every") + norm(f"{at}.norm2", width, "every")
        modules += vision_attention(f"{at}.attn", width, heads)
        modules += norm(f"{at}.attn.q_norm", width // heads, "every")
        modules += norm(f"{at}.attn.k_norm", width // heads, "every")
        modules += gated_mlp(f"{at}.mlp", "every", width, inner, bias=True)
    modules.append(column(f"{prefix}.merger.proj", output, output, bias=False))
    modules += norm(f"{prefix}.merger.post_projection_norm", output, "every", bias=True)
    modules += gated_mlp(f"{prefix}.merger", "every", output, merger_width)
    modules += weight(f"{prefix}.downsample", output, width, merge, merge, bias=True)
    return as_tower([*modules, *norm(f"{prefix}.post_layernorm", width, "every")])


def glm4v_vision_tower(vision: ConfigView, prefix: str = "visual") -> list[Module]:
    """Glm4vVisionTransformer: the blocks' MLP is as wide as out_hidden_size, the merger's as intermediate_size."""
    width, heads, output = vision.size("hidden_size"), vision.size("num_heads"), vision.size("out_hidden_size")
    merge, positions = vision.size("spatial_merge_size"), (vision.size("image_size") // vision.size("patch_size")) ** 2
    modules = patch_embedding(vision, width, f"{prefix}.patch_embed", bias=True) + vision_rotary(width, heads, prefix)
    for layer in range(vision.layers("depth")):
        at = f"{prefix}.blocks.{layer}"
        modules += norm(f"{at}.norm1", width, "every") + norm(f"{at}.norm2", width, "every")
        modules += vision_attention(f"{at}.attn", width, heads, qkv_bias=False, out_bias=False)
        modules += gated_mlp(f"{at}.mlp", "every", width, output)
    modules.append(column(f"{prefix}.merger.proj", output, output, bias=False))
    modules += norm(f"{prefix}.merger.post_projection_norm", output, "every", bias=True)
    merger = gated_mlp(f"{prefix}.merger", "every", output, vision.size("intermediate_size"))
    modules += [part for part in merger if isinstance(part, Linear)]
    modules += weight(f"{prefix}.embeddings.position_embedding", positions, width)
    modules.append(Buffer(name=f"{prefix}.embeddings.position_ids", shape=(1, positions), dtype="int64"))
    modules += norm(f"{prefix}.post_conv_layernorm", width, "every")
    modules += weight(f"{prefix}.downsample", output, width, merge, merge, bias=True)
    return as_tower([*modules, *norm(f"{prefix}.post_layernorm", width, "every")])


def _encoder(vision: ConfigView) -> Encoder:
    width, heads, output = vision.size("hidden_size"), vision.size("num_heads"), vision.size("out_hidden_size")
    return Encoder(
        hidden_size=width,
        num_layers=vision.layers("depth"),
        num_heads=heads,
        head_size=width // heads,
        mlp_shards=2,
        intermediate_size=output,
        output_size=output,
        projector_size=vision.size("intermediate_size"),
        max_positions=(vision.size("image_size") // vision.size("patch_size")) ** 2,
    )
