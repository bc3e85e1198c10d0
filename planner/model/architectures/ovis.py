"""Ovis 1.6, Ovis 2, Ovis 2.5 and 2.6: visual tokens are mixtures of a learned visual vocabulary.

Source: vLLM 0.26.0 model_executor/models/{ovis,ovis2_5,aimv2,siglip2navit}.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm, plain_mlp
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import (
    as_tower,
    column,
    fused_qkv,
    multimodal,
    replicated,
    row,
    text_view,
    weight,
)
from planner.model.architectures.vit import patch_grid, siglip
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module, Parameter
from planner.model.vision_spec import VisionSpec
from planner.values import reject

_INDICATORS = 5
_NEW_INDICATORS = 4
_FUSED = {"fc13": ("fc1", "fc3")}


def ovis(config: ConfigView) -> Architecture:
    """Ovis: AIMv2 or SigLIP; the processor's partitions are not modelled, so media are limited to 0."""
    section = config.section("visual_tokenizer_config")
    backbone = section.section("backbone_config")
    stride, vocabulary = section.size("hidden_stride", 1), section.size("vocab_size")
    base = "visual_tokenizer.backbone"
    if backbone.model_type == "aimv2":
        tower = _aimv2(backbone, base)
    elif backbone.model_type == "siglip_vision_model":
        tower = siglip(backbone, base, backbone.layers(), True)
    else:
        raise reject("flag", f"Unsupported visual tokenizer model_type: {backbone.model_type}")
    tower += _head(backbone.size("hidden_size") * stride**2, vocabulary, _INDICATORS, config.size("hidden_size"))
    return _around(config, tower, VisionSpec(family="Ovis", modalities=("image",)))


def ovis2_5(config: ConfigView) -> Architecture:
    """Ovis2_5 and Ovis 2.6: SigLIP 2 at the image's own resolution; media are limited to 0."""
    vision = config.section("vit_config", "siglip2_vision_model")
    if vision.model_type != "siglip2_navit":
        raise reject("flag", f"Unsupported visual tokenizer model_type: {vision.model_type}")
    vocabulary, stride = config.size("visual_vocab_size"), vision.size("hidden_stride")
    tower = _siglip2_navit(vision, "visual_tokenizer.vit.vision_model")
    tower += _head(vision.size("hidden_size") * stride**2, vocabulary, _NEW_INDICATORS, config.size("hidden_size"))
    spec = VisionSpec(family="Ovis2_5", modalities=("image", "video"), limits=(("video", 1),))
    return _around(config, tower, spec)


def _around(config: ConfigView, tower: list[Module], spec: VisionSpec) -> Architecture:
    key = "llm_config" if isinstance(config.data.get("llm_config"), dict) else "text_config"
    text = language_model(text_view(config, "", key), "llm.")
    return multimodal(text, (), after=as_tower(tower), vision=spec, fused=_FUSED)


def _head(inputs: int, vocabulary: int, indicators: int, hidden: int) -> list[Module]:
    """Features to a distribution over the vocabulary, whose table is a plain embedding."""
    tokens = vocabulary - indicators
    modules: list[Module] = [replicated("visual_tokenizer.head.0", inputs, tokens, bias=False, quantizable=False)]
    return [*modules, *norm("visual_tokenizer.head.1", tokens, "every", bias=True), *weight("vte", vocabulary, hidden)]


def _aimv2(vision: ConfigView, prefix: str) -> list[Module]:
    """AIMv2Model without the norm behind it."""
    width, heads, patch = vision.size("hidden_size"), vision.size("num_attention_heads"), vision.size("patch_size")
    inner, bias, grid = vision.size("intermediate_size"), vision.flag("use_bias"), patch_grid(vision)
    stem = f"{prefix}.preprocessor"
    modules: list[Module] = [Parameter(name=f"{stem}.pos_embed", shape=(1, grid**2, width))]
    modules += weight(f"{stem}.patchifier.proj", width, vision.size("num_channels", 3), patch, patch, bias=True)
    modules += norm(f"{stem}.patchifier.norm", width, "every")
    for layer in range(vision.layers()):
        at = f"{prefix}.trunk.blocks.{layer}"
        modules += [
            fused_qkv(f"{at}.attn.qkv", width, heads, width // heads, bias=vision.flag("qkv_bias"), shard_names=()),
            row(f"{at}.attn.proj", width, width, bias=bias),
            *norm(f"{at}.norm_1", width, "every"),
            column(f"{at}.mlp.fc13", width, inner, inner, bias=bias, shard_names=("fc1", "fc3")),
            row(f"{at}.mlp.fc2", inner, width, bias=bias),
            *norm(f"{at}.norm_2", width, "every"),
        ]
    return modules


def _siglip2_navit(vision: ConfigView, base: str) -> list[Module]:
    width, heads, patch = vision.size("hidden_size"), vision.size("num_attention_heads"), vision.size("patch_size")
    channels, stated = vision.size("num_channels", 3), vision.raw("num_patches", -1)
    at = f"{base}.embeddings"
    if stated > 0:
        linear = replicated(f"{at}.patch_embedding", channels * patch**2, width, quantizable=False)
        modules: list[Module] = [linear]
        positions = stated
    else:
        modules = weight(f"{at}.patch_embedding", width, channels, patch, patch, bias=True)
        positions = patch_grid(vision) ** 2
    if vision.flag("preserve_original_pe", True):
        modules += weight(f"{at}.position_embedding", positions, width)
    modules.append(
        Buffer(name=f"{base}.encoder.rotary_pos_emb.inv_freq", shape=(width // heads // 4,), dtype="float32")
    )
    for layer in range(vision.layers()):
        block = f"{base}.encoder.layers.{layer}"
        modules += norm(f"{block}.layer_norm1", width, "every", bias=True)
        modules += [
            fused_qkv(f"{block}.self_attn.qkv_proj", width, heads, width // heads),
            row(f"{block}.self_attn.out_proj", width, width),
        ]
        modules += norm(f"{block}.layer_norm2", width, "every", bias=True)
        modules += plain_mlp(f"{block}.mlp", "every", width, vision.size("intermediate_size"))
    return [*modules, *norm(f"{base}.post_layernorm", width, "every", bias=True)]
