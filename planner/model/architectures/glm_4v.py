"""GLM-4V in its first form: an EVA-2 CLIP tower inside ChatGLM.

Source: vLLM 0.26.0 model_executor/models/glm4v.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm, plain_mlp
from planner.model.architectures.chatglm import chatglm
from planner.model.architectures.vision_blocks import (
    as_tower,
    column,
    fused_qkv,
    multimodal,
    replicated,
    row,
    weight,
)
from planner.model.config_view import ConfigView
from planner.model.modules import Module, Parameter
from planner.model.vision_spec import VisionSpec


def glm_4v(config: ConfigView) -> Architecture:
    """GLM4VForCausalLM: one image a prompt, its tower after the decoder."""
    data = {key: value for key, value in config.data.items() if key != "vision_config"}
    text = chatglm(ConfigView(data, config.where, config.model_type, config.files))
    tower = _tower(config.section("vision_config"), text.text.hidden_size, text.text.intermediate_size)
    spec = VisionSpec(family="GLM4V", modalities=("image",), limits=(("image", 1),))
    fused = {
        "query_key_value": ("query_key_value",),
        "dense_h_to_4h": ("dense_h_to_4h",),
        "merged_proj": ("gate_proj", "dense_h_to_4h"),
    }
    return multimodal(text, (), after=tower, vision=spec, fused=fused)


def _tower(vision: ConfigView, hidden: int, inner: int, base: str = "transformer.vision") -> list[Module]:
    width, heads, patch = vision.size("hidden_size"), vision.size("num_heads"), vision.size("patch_size")
    at = f"{base}.patch_embedding"
    modules = weight(f"{at}.proj", width, vision.size("in_channels"), patch, patch, bias=True)
    modules.append(Parameter(name=f"{at}.cls_embedding", shape=(1, width)))
    modules += weight(f"{at}.position_embedding", vision.size("num_positions"), width)
    for layer in range(vision.layers("num_hidden_layers")):
        at = f"{base}.transformer.layers.{layer}"
        modules += norm(f"{at}.input_layernorm", width, "every", bias=True)
        modules += [
            fused_qkv(f"{at}.attention.query_key_value", width, heads, width // heads, shard_names=()),
            row(f"{at}.attention.dense", width, width),
            *plain_mlp(f"{at}.mlp", "every", width, vision.size("intermediate_size")),
        ]
        modules += norm(f"{at}.post_attention_layernorm", width, "every", bias=True)
    at = f"{base}.linear_proj"
    modules.append(replicated(f"{at}.linear_proj", hidden, hidden, bias=False))
    modules += norm(f"{at}.norm1", hidden, "every", bias=True)
    modules.append(
        column(f"{at}.merged_proj", hidden, inner, inner, bias=False, shard_names=("gate_proj", "dense_h_to_4h"))
    )
    modules.append(row(f"{at}.dense_4h_to_h", inner, hidden, bias=False))
    modules += weight(f"{base}.conv", hidden, width, 2, 2, bias=True)
    modules += [Parameter(name=f"{base}.{name}", shape=(1, 1, hidden)) for name in ("boi", "eoi")]
    return as_tower(modules)
