"""Isaac: SigLIP 2 over packed patches with pixel shuffling, a Qwen3 decoder with three-part positions.

Source: vLLM 0.26.0 model_executor/models/isaac.py, transformers_utils/configs/isaac.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures import llama
from planner.model.architectures.blocks import Architecture
from planner.model.architectures.lfm2_vl import siglip2
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, row, text_view
from planner.model.config_view import ConfigView
from planner.model.modules import Linear, Module
from planner.model.rope import rope_parameters
from planner.model.vision_spec import VisionSpec

_PREFIXES = (
    ("lm_head.", "language_model.lm_head."),
    ("model.text_model.lm_head.", "language_model.lm_head."),
    ("model.text_model.", "language_model.model."),
    ("model.vision_embedding.0", "vision_embedding.transformer"),
    ("model.vision_embedding.1", "vision_embedding.linear_fc1"),
    ("model.vision_embedding.2", "vision_embedding.act"),
    ("model.vision_embedding.3", "vision_embedding.linear_fc2"),
    ("model.vision_embedding.", "vision_embedding."),
    ("model.lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
_UNIT = 64


def isaac(config: ConfigView) -> Architecture:
    """IsaacForConditionalGeneration: the projector's hidden layer is four times as wide as the shuffled features."""
    section = text_view(config, "qwen3")
    size = section.optional_size("head_dim") or section.size("hidden_size") // section.size("num_attention_heads")
    rope = {**rope_parameters(section), "mrope_section": [size // 4, size // 8, size // 8]}
    view = ConfigView({**section.data, "rope_parameters": rope}, section.where, "qwen3", config.files)
    text = llama.qwen3(view, "language_model.")
    given = config.section("vision_config", "siglip2_vision_model")
    patches = given.size("num_patches", config.size("vision_max_num_patches", 256))
    vision = ConfigView({**given.data, "num_patches": patches}, given.where, "siglip2_vision_model", config.files)
    scale = vision.size("pixel_shuffle_scale_factor", config.size("pixel_shuffle_scale", 1))
    merged, output = vision.size("hidden_size") * scale**2, text.text.hidden_size
    modules = [_adapted(part, vision) for part in siglip2(vision, "vision_embedding")]
    modules += [
        column("vision_embedding.linear_fc1", merged, 4 * merged, bias=False),
        row("vision_embedding.linear_fc2", 4 * merged, output, bias=False),
    ]
    spec = VisionSpec(family="Isaac", modalities=("image",))
    return multimodal(text, (), after=as_tower(modules), vision=spec, prefixes=_PREFIXES, encoder_data=True)


def _adapted(part: Module, vision: ConfigView) -> Module:
    """LFM2-VL's SigLIP 2 under Isaac's names; its MLP is quantized only where both widths are multiples of 64."""
    name = part.name.replace("vision_embedding.vision_model.", "vision_embedding.transformer.")
    aligned = vision.size("hidden_size") % _UNIT == 0 and vision.size("intermediate_size") % _UNIT == 0
    if isinstance(part, Linear) and ".mlp." in name and not aligned:
        return replace(part, name=name, quantizable=False)
    return replace(part, name=name)
