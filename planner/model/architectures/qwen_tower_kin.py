"""Qwen2.5-VL's tower in front of other decoders: EXAONE 4.5, OpenCUA and HyperCLOVA X.

Source: vLLM 0.26.0 model_executor/models/{exaone4_5,opencua,hyperclovax_vision_v2}.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures import dense, llama
from planner.model.architectures.blocks import Architecture
from planner.model.architectures.qwen_vl import frame_patches, qwen2_5_encoder, qwen2_5_vision_tower
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, multimodal, text_view, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Module, QKVLinear
from planner.model.vision_spec import VisionSpec

_FUSED = {"qkv": ("qkv",)}
_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "visual."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)


def exaone4_5(config: ConfigView) -> Architecture:
    """Exaone4_5_ForConditionalGeneration: the tower's attention has fewer key-value heads (exaone4_5.py:63)."""
    vision = config.section("vision_config", "exaone4_5_vision")
    kv_heads = vision.size("num_key_value_heads")

    def grouped(part: Module) -> Module:
        return replace(part, num_kv_heads=kv_heads) if isinstance(part, QKVLinear) else part

    tower = [grouped(part) for part in qwen2_5_vision_tower(vision)]
    spec = VisionSpec(
        family="Qwen2_5_VL",
        modalities=("image", "video"),
        encoder=qwen2_5_encoder(vision),
        image=frame_patches(config, vision),
    )
    text = dense.exaone4(text_view(config, "exaone4_5_text"), "language_model.")
    return multimodal(text, tower, vision=spec, prefixes=_PREFIXES, fused=_FUSED, encoder_data=True)


def opencua(config: ConfigView) -> Architecture:
    """OpenCUAForConditionalGeneration: images only."""
    vision = config.section("vision_config", "qwen2_5_vl_vision")
    spec = VisionSpec(
        family="Qwen2_5_VL",
        modalities=("image",),
        encoder=qwen2_5_encoder(vision),
        image=frame_patches(config, vision),
    )
    text = llama.qwen2(text_view(config, "qwen2"), "language_model.")
    prefixes = (("vision_tower.", "visual."), *_PREFIXES)
    return multimodal(
        text, qwen2_5_vision_tower(vision), vision=spec, prefixes=prefixes, fused=_FUSED, encoder_data=True
    )


def hcx_vision_v2(config: ConfigView) -> Architecture:
    """HCXVisionV2ForCausalLM: a plain linear behind the tower, HyperCLOVA X (hyperclovax_vision_v2.py:418)."""
    vision = config.section("vision_config", "qwen2_5_vl_vision")
    text = language_model(text_view(config, "hyperclovax"))
    tower = qwen2_5_vision_tower(vision)
    tower += as_tower(weight("mm_projector", text.text.hidden_size, vision.size("out_hidden_size"), bias=True))
    spec = VisionSpec(family="HCXVisionV2", modalities=("image", "video"))
    return multimodal(text, tower, vision=spec, prefixes=(("model.", ""), ("vision_model.", "visual.")), fused=_FUSED)
