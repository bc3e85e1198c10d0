"""BLIP-2: a BLIP tower and a Q-Former in front of an OPT decoder; the Q-Former is Granite Speech's projector too.

Source: vLLM 0.26.0 model_executor/models/{blip2,blip}.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm, plain_mlp
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, fused_qkv, multimodal, row, text_view, weight
from planner.model.architectures.vit import patch_grid
from planner.model.config_view import ConfigView
from planner.model.modules import Module, Parameter
from planner.model.vision_spec import VisionSpec


def blip2(config: ConfigView) -> Architecture:
    """Blip2ForConditionalGeneration: one image a prompt."""
    text = language_model(text_view(config, "opt"))
    vision, former = (
        config.section("vision_config", "blip_2_vision_model"),
        config.section("qformer_config", "blip_2_qformer"),
    )
    width = former.size("hidden_size")
    modules = _blip_tower(vision, "vision_model")
    modules.append(Parameter(name="query_tokens", shape=(1, config.size("num_query_tokens"), width)))
    modules += qformer(former, "qformer")
    modules += weight("language_projection", text.text.hidden_size, width, bias=True)
    spec = VisionSpec(family="Blip2", modalities=("image",), limits=(("image", 1),))
    return multimodal(text, as_tower(modules), vision=spec)


def _blip_tower(vision: ConfigView, prefix: str) -> list[Module]:
    width, heads, patch = vision.size("hidden_size"), vision.size("num_attention_heads"), vision.size("patch_size")
    at = f"{prefix}.embeddings"
    modules: list[Module] = [
        Parameter(name=f"{at}.class_embedding", shape=(1, 1, width)),
        *weight(f"{at}.patch_embedding", width, 3, patch, patch, bias=True),
        Parameter(name=f"{at}.position_embedding", shape=(1, patch_grid(vision) ** 2 + 1, width)),
    ]
    for layer in range(vision.layers("num_hidden_layers")):
        at = f"{prefix}.encoder.layers.{layer}"
        modules += [
            fused_qkv(f"{at}.self_attn.qkv", width, heads, width // heads, bias=vision.flag("qkv_bias", True)),
            row(f"{at}.self_attn.projection", width, width),
            *norm(f"{at}.layer_norm1", width, "every", bias=True),
            *plain_mlp(f"{at}.mlp", "every", width, vision.size("intermediate_size")),
            *norm(f"{at}.layer_norm2", width, "every", bias=True),
        ]
    return [*modules, *norm(f"{prefix}.post_layernorm", width, "every", bias=True)]


def qformer(former: ConfigView, prefix: str) -> list[Module]:
    """Blip2QFormerModel: plain linears, cross attention in every cross_attention_frequency-th layer."""
    width, inner = former.size("hidden_size"), former.size("intermediate_size")
    modules = norm(f"{prefix}.layernorm", width, "every", bias=True)
    for layer in range(former.layers("num_hidden_layers")):
        at = f"{prefix}.encoder.layer.{layer}"
        modules += _attention(f"{at}.attention", width, width)
        if layer % former.size("cross_attention_frequency") == 0:
            modules += _attention(f"{at}.crossattention", width, former.size("encoder_hidden_size"))
        modules += weight(f"{at}.intermediate_query.dense", inner, width, bias=True)
        modules += weight(f"{at}.output_query.dense", width, inner, bias=True)
        modules += norm(f"{at}.output_query.LayerNorm", width, "every", bias=True)
    return modules


def _attention(at: str, width: int, inputs: int) -> list[Module]:
    return [
        *weight(f"{at}.attention.query", width, width, bias=True),
        *weight(f"{at}.attention.key", width, inputs, bias=True),
        *weight(f"{at}.attention.value", width, inputs, bias=True),
        *weight(f"{at}.output.dense", width, width, bias=True),
        *norm(f"{at}.output.LayerNorm", width, "every", bias=True),
    ]
