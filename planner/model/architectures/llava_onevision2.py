"""LLaVA-OneVision 2: a tower with positions in time, height and width, Qwen2-VL's merger, a Qwen3 decoder.

Source: vLLM 0.26.0 model_executor/models/llava_onevision2.py.
"""

from __future__ import annotations

from planner.errors import InputError
from planner.model.architectures import llama
from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.vision_blocks import as_tower, column, fused_qkv, multimodal, row, text_view, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module
from planner.model.vision_spec import VisionSpec

_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "visual."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
_AXES = {"t": 4, "h": 6, "w": 6}
"""Sixteenths of half a head that each axis rotates."""


def llava_onevision2(config: ConfigView) -> Architecture:
    """LlavaOnevision2ForConditionalGeneration: the tower gets no quantization config."""
    text = llama.qwen3(text_view(config, "qwen3"), "language_model.")
    tower = _tower(config.section("vision_config"), text.text.hidden_size)
    spec = VisionSpec(family="LlavaOnevision2", modalities=("image", "video"))
    return multimodal(text, tower, vision=spec, prefixes=_PREFIXES)


def _tower(vision: ConfigView, output: int, base: str = "visual") -> list[Module]:
    width, heads, patch = vision.size("hidden_size"), vision.size("num_attention_heads"), vision.size("patch_size")
    head, inner = width // heads, vision.size("intermediate_size")
    merged = width * vision.size("spatial_merge_size") ** 2
    if head % 32:
        raise InputError(f"{vision.where}: a head of {head} cannot be rotated along three axes (a multiple of 32 can)")
    modules = weight(f"{base}.embeddings.patch_embedding", width, vision.size("num_channels", 3), patch, patch)
    modules += norm(f"{base}.layernorm_pre", width, "every", bias=True)
    modules += [
        Buffer(name=f"{base}.rotary_pos_emb.inv_freq_{axis}", shape=(share * (head // 32),), dtype="float32")
        for axis, share in _AXES.items()
    ]
    for layer in range(vision.layers("num_hidden_layers")):
        at = f"{base}.encoder.layers.{layer}"
        modules += norm(f"{at}.layer_norm1", width, "every", bias=True)
        modules += norm(f"{at}.layer_norm2", width, "every", bias=True)
        modules += [
            fused_qkv(f"{at}.self_attn.qkv", width, heads, head, quantizable=False),
            row(f"{at}.self_attn.proj", width, width, quantizable=False),
            column(f"{at}.mlp.fc1", width, inner, quantizable=False),
            row(f"{at}.mlp.fc2", inner, width, quantizable=False),
        ]
    modules += norm(f"{base}.merger.ln_q", width, "every", bias=True)
    modules += [
        column(f"{base}.merger.mlp.0", merged, merged, quantizable=False),
        row(f"{base}.merger.mlp.2", merged, output, quantizable=False),
    ]
    return as_tower(modules)
