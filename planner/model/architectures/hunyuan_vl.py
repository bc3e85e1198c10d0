"""HunYuan-VL: a tower of plain attention, a convolving merger, and a HunYuan decoder.

Source: vLLM 0.26.0 model_executor/models/hunyuan_vision.py, transformers_utils/configs/hunyuan_vl.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.shared_experts import hunyuan
from planner.model.architectures.vision_blocks import as_tower, column, fused_qkv, multimodal, row, text_view, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Module, Parameter
from planner.model.vision_spec import VisionSpec

_PREFIXES = (("vit.vit.", "visual."), ("vit.", "visual."), ("model.", "language_model.model."))
_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 27,
    "out_hidden_size": 4096,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "max_image_size": 2048,
}
"""What vLLM's own HunYuanVLVisionConfig fills in."""


def hunyuan_vl(config: ConfigView) -> Architecture:
    """HunYuanVLForConditionalGeneration. The decoder's names that ignore lists see have "model" twice."""
    text = hunyuan(text_view(config, "hunyuan_vl_text"), "language_model.model.")
    section = config.section("vision_config")
    vision = ConfigView({**_DEFAULTS, **section.data}, section.where, None, config.files)
    spec = VisionSpec(family="HunYuanVL", modalities=("image",))
    return multimodal(text, _tower(vision), vision=spec, prefixes=_PREFIXES, fused={}, encoder_data=True)


def _tower(vision: ConfigView, base: str = "visual") -> list[Module]:
    width, heads, patch = vision.size("hidden_size"), vision.size("num_attention_heads"), vision.size("patch_size")
    inner, output, merge = (
        vision.size("intermediate_size"),
        vision.size("out_hidden_size"),
        vision.size("spatial_merge_size"),
    )
    positions = (vision.size("max_image_size") // patch) ** 2 + 1
    modules = weight(f"{base}.embeddings.patch_embedding", width, vision.size("num_channels"), patch, patch, bias=True)
    modules += weight(f"{base}.embeddings.position_embedding", positions, width)
    for layer in range(vision.layers("num_hidden_layers")):
        at = f"{base}.layers.{layer}"
        modules += norm(f"{at}.input_layernorm", width, "every", bias=True)
        modules += norm(f"{at}.post_attention_layernorm", width, "every", bias=True)
        modules += [
            fused_qkv(f"{at}.self_attn.qkv", width, heads, width // heads),
            row(f"{at}.self_attn.o_proj", width, width),
            column(f"{at}.mlp.dense_h_to_4h", width, inner),
            row(f"{at}.mlp.dense_4h_to_h", inner, width),
        ]
    at = f"{base}.perceive"
    modules += weight(f"{at}.proj.0", 2 * width, width, merge, merge, bias=True)
    modules += weight(f"{at}.proj.2", 4 * width, 2 * width, 1, 1, bias=True)
    modules += weight(f"{at}.mlp", output, 4 * width, bias=True)
    modules.append(Parameter(name=f"{at}.image_newline", shape=(4 * width,)))
    modules += [Parameter(name=f"{at}.{name}", shape=(output,)) for name in ("image_begin", "image_end", "image_sep")]
    modules += norm(f"{at}.before_rms", width, "every") + norm(f"{at}.after_rms", output, "every")
    return as_tower(modules)
