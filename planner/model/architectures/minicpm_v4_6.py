"""MiniCPM-V 4.6: MiniCPM-V's SigLIP, a window-attention merger, and a Qwen3.5 decoder.

Source: vLLM 0.26.0 model_executor/models/minicpmv4_6.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.minicpm_v import idefics2_tower
from planner.model.architectures.qwen_hybrid import qwen3_5_language
from planner.model.architectures.vision_blocks import as_tower, fused_qkv, multimodal, row, weight
from planner.model.architectures.vit import encoder_of
from planner.model.config_view import ConfigView
from planner.model.modules import Module
from planner.model.vision_spec import Slices, VisionSpec

_WINDOW = 4
_PREFIXES = (
    ("model.vision_tower.vit_merger.", "vit_merger."),
    ("model.vision_tower.", "vpm."),
    ("model.vpm.", "vpm."),
    ("model.vit_merger.", "vit_merger."),
    ("model.merger.", "merger."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)


def minicpm_v4_6(config: ConfigView) -> Architecture:
    """MiniCPMV4_6ForConditionalGeneration: 16 patches become one token (two by two, twice)."""
    text = qwen3_5_language(config.section("text_config", "qwen3_5_text"))
    vision = config.section("vision_config", "siglip_vision_model")
    vision = ConfigView(vision.data, vision.where, "siglip_vision_model", config.files)
    layers = vision.layers("num_hidden_layers") - (1 if config.flag("drop_vision_last_layer") else 0)
    width, output = vision.size("hidden_size"), text.text.hidden_size
    tower = [*idefics2_tower(vision, "vpm", layers), *_window_merger(vision), *_merger(width, output)]
    settings = _processor(config)
    side, patch = settings.size("scale_resolution", 448), vision.size("patch_size")
    slices = settings.size("max_slice_nums", 9)
    patches = (side // patch) ** 2
    image = Slices(
        patch_size=patch, scale_resolution=side, patches=patches, tokens=patches // _WINDOW**2,
        max_slices=slices, max_frame_slices=slices,
    )  # fmt: skip
    encoder = encoder_of(vision, layers, output, projector_size=_WINDOW * vision.size("intermediate_size"))
    spec = VisionSpec(
        family="MiniCPMV4_6", modalities=("image", "video"), dropped_with=("image",), encoder=encoder, image=image
    )
    fused = {"in_proj_qkvz": ("in_proj_qkv", "in_proj_z"), "in_proj_ba": ("in_proj_b", "in_proj_a")}
    return multimodal(text, tower, vision=spec, prefixes=_PREFIXES, fused=fused, encoder_data=True)


def _processor(config: ConfigView) -> ConfigView:
    files = config.files
    data = {} if files is None else files.preprocessor or files.processor.get("image_processor") or {}
    return ConfigView(data, "preprocessor config")


def _window_merger(vision: ConfigView, prefix: str = "vit_merger") -> list[Module]:
    """Attention within windows of two by two patches, then an nn.Linear pair that makes one of four."""
    width, heads, inner = (
        vision.size("hidden_size"),
        vision.size("num_attention_heads"),
        vision.size("intermediate_size"),
    )
    modules: list[Module] = [
        fused_qkv(f"{prefix}.self_attn.qkv_proj", width, heads, width // heads),
        row(f"{prefix}.self_attn.out_proj", width, width),
        *norm(f"{prefix}.layer_norm1", width, "every", bias=True),
        *norm(f"{prefix}.pre_norm", _WINDOW * width, "every", bias=True),
        *weight(f"{prefix}.linear_1", _WINDOW * inner, _WINDOW * width, bias=True),
        *weight(f"{prefix}.linear_2", width, _WINDOW * inner, bias=True),
    ]
    return as_tower(modules)


def _merger(width: int, output: int, prefix: str = "merger.mlp.0") -> list[Module]:
    merged = _WINDOW * width
    return as_tower(
        [
            *norm(f"{prefix}.pre_norm", merged, "every", bias=True),
            *weight(f"{prefix}.linear_1", merged, merged, bias=True),
            *weight(f"{prefix}.linear_2", output, merged, bias=True),
        ]
    )
