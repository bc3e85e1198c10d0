"""Keye-VL and Keye-VL 1.5: a SigLIP with rotary positions and a second position table, a merger, a Qwen3 decoder.

Source: vLLM 0.26.0 model_executor/models/keye.py, keye_vl1_5.py.
"""

from __future__ import annotations

from planner.model.architectures import llama
from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.qwen_vl import pixel_bounds
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, row, weight
from planner.model.architectures.vit import siglip
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module
from planner.model.vision_spec import DynamicPatches, Encoder, Modality, VisionSpec

_MERGE, _PACKED_POSITIONS = 2, 32768
_PREFIXES = (("lm_head.", "language_model.lm_head."), ("model.", "language_model.model."))


def keye(config: ConfigView) -> Architecture:
    """KeyeForConditionalGeneration: the projector normalizes each patch."""
    return _keye(config, "Keye", merges_first=False)


def keye_vl1_5(config: ConfigView) -> Architecture:
    """KeyeVL1_5ForConditionalGeneration: the projector normalizes four patches together."""
    return _keye(config, "KeyeVL1_5", merges_first=True)


def _keye(config: ConfigView, family: str, *, merges_first: bool) -> Architecture:
    text = llama.qwen3(ConfigView(config.data, config.where, "qwen3", config.files), "language_model.")
    section = config.section("vision_config")
    vision = ConfigView(section.data, section.where, "siglip_vision_model", config.files)
    width, heads, layers = (
        vision.size("hidden_size"),
        vision.size("num_attention_heads"),
        vision.layers("num_hidden_layers"),
    )
    merged, base = width * _MERGE**2, "visual.vision_model"
    tower = siglip(vision, "visual", layers, True)
    extra: list[Module] = [
        *weight(f"{base}.embeddings.packing_position_embedding", _PACKED_POSITIONS, width),
        Buffer(name=f"{base}.encoder.rotary_pos_emb.inv_freq", shape=(width // heads // 4,), dtype="float32"),
    ]
    extra += norm("mlp_AR.pre_norm", merged if merges_first else width, "every", bias=True)
    extra += [column("mlp_AR.linear_1", merged, merged), row("mlp_AR.linear_2", merged, text.text.hidden_size)]
    low, high = pixel_bounds(config, "preprocessor")
    image = DynamicPatches(
        patch_size=vision.size("patch_size"),
        merge_size=_MERGE,
        temporal_patch_size=1,
        min_pixels=low,
        max_pixels=high,
        video_min_pixels=low,
        video_max_pixels=high,
        max_video_frames=16 if family == "Keye" else 2048,
    )
    encoder = Encoder(
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        head_size=width // heads,
        intermediate_size=vision.size("intermediate_size"),
        output_size=text.text.hidden_size,
        projector_size=merged,
    )
    limits: tuple[tuple[Modality, int], ...] = () if family == "Keye" else (("video", 1),)
    spec = VisionSpec(family=family, modalities=("image", "video"), limits=limits, encoder=encoder, image=image)
    return multimodal(text, [*tower, *as_tower(extra)], vision=spec, prefixes=_PREFIXES)
