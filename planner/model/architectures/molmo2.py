"""Molmo 2: a SigLIP-like backbone cut at its deepest feature layer, attention pooling, a decoder of its own.

Source: vLLM 0.26.0 model_executor/models/molmo2.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from planner.errors import InputError, UnsupportedError
from planner.model.architectures.assemble import assemble
from planner.model.architectures.blocks import Architecture, gated_mlp, norm, read_heads, self_attention, text_dims
from planner.model.architectures.vision_blocks import as_tower, column, fused_qkv, multimodal, row, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Module, Parameter, VocabEmbedding
from planner.model.rope import rope_parameters
from planner.model.vision_spec import VisionSpec

_FUSED = {
    "qkv_proj": ("qkv_proj",),
    "up_gate_proj": ("up_gate_proj",),
    "merged_qkv": ("wq", "wk", "wv"),
    "merged_kv": ("k_proj", "v_proj"),
    "merged_linear": ("gate_proj", "up_proj"),
}


def molmo2(config: ConfigView) -> Architecture:
    """Molmo2ForConditionalGeneration: more embeddings than the head has rows, everything on each stage.

    Raises: UnsupportedError for a quantized checkpoint, whose decoder layers vLLM builds without names.
    """
    if config.data.get("quantization_config") is not None:
        raise UnsupportedError("quantization_config", "quantized checkpoints of Molmo 2 are not supported")
    section = config.section("text_config" if isinstance(config.data.get("text_config"), Mapping) else "llm_config")
    section.require("hidden_act", ("silu",), "silu")
    text = _decoder(section)
    embedding = text.modules[0]
    assert isinstance(embedding, VocabEmbedding)
    rows = embedding.num_embeddings + section.count("additional_vocab_size", 128)
    modules = (replace(embedding, num_embeddings=rows), *text.modules[1:])
    tower = _backbone(config.section("vit_config"), config.section("adapter_config"))
    spec = VisionSpec(family="Molmo2", modalities=("image", "video"), limits=(("video", 1),))
    return multimodal(replace(text, modules=modules), tower, vision=spec, fused=_FUSED)


def _decoder(config: ConfigView) -> Architecture:
    heads = read_heads(config)
    dims, rope = text_dims(config, heads), rope_parameters(config)
    scaled = config.raw("rope_scaling_layers")
    size = heads.head_size
    config.require("qk_norm_type", ("olmo", "qwen3"), "olmo")
    whole = config.text("qk_norm_type", "olmo") == "olmo"

    def attention(at: str, layer: int) -> list[Module]:
        table: Mapping[str, Any] = rope
        if scaled is not None and layer not in scaled:
            table = {"rope_type": "default", "rope_theta": rope.get("rope_theta")}
        parts = self_attention(
            at,
            layer,
            heads,
            qkv_bias=config.flag("qkv_bias", True),
            rope=table,
            max_position=dims.max_position_embeddings,
            shard_names=("qkv_proj",),
        )
        if config.flag("use_qk_norm"):
            parts += norm(f"{at}.k_norm", heads.num_kv_heads * size if whole else size, layer)
            parts += norm(f"{at}.q_norm", heads.num_heads * size if whole else size, layer)
        return parts

    def feed_forward(at: str, layer: int) -> list[Module]:
        up, down = gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size)
        return [replace(up, name=f"{at}.up_gate_proj"), down]

    return assemble(dims, attention=attention, feed_forward=feed_forward, tied=False, fused=_FUSED, every_stage=True)


def _backbone(vit: ConfigView, adapter: ConfigView, prefix: str = "vision_backbone") -> list[Module]:
    width, heads, kv_heads = vit.size("hidden_size"), vit.size("num_attention_heads"), vit.size("num_key_value_heads")
    base, features = f"{prefix}.image_vit", _feature_layers(vit, adapter)
    modules: list[Module] = [
        Parameter(name=f"{base}.positional_embedding", shape=(vit.size("image_num_pos"), width)),
        *weight(f"{base}.patch_embedding", width, 3 * vit.size("image_patch_size") ** 2, bias=True),
    ]
    for layer in range(min(max(features) + 1, vit.layers("num_hidden_layers"))):
        at = f"{base}.transformer.resblocks.{layer}"
        qkv = fused_qkv(
            f"{at}.attention.merged_qkv", width, heads, vit.size("head_dim"), shard_names=("wq", "wk", "wv")
        )
        modules += [
            replace(qkv, num_kv_heads=kv_heads),
            row(f"{at}.attention.wo", width, width),
            column(f"{at}.feed_forward.w1", width, vit.size("intermediate_size")),
            row(f"{at}.feed_forward.w2", vit.size("intermediate_size"), width),
            *norm(f"{at}.attention_norm", width, "every", bias=True),
            *norm(f"{at}.ffn_norm", width, "every", bias=True),
        ]
    inputs, output = len(features) * width, adapter.size("hidden_size")
    pooled, keys = (
        adapter.size(key) * adapter.size("head_dim") for key in ("num_attention_heads", "num_key_value_heads")
    )
    at, inner = f"{prefix}.image_pooling_2d", adapter.size("intermediate_size")
    modules += [
        column(f"{at}.q_proj", inputs, pooled),
        column(f"{at}.merged_kv", inputs, keys, keys, shard_names=("k_proj", "v_proj")),
        row(f"{at}.o_proj", pooled, output),
        column(
            f"{prefix}.image_projector.merged_linear",
            output,
            inner,
            inner,
            bias=False,
            shard_names=("gate_proj", "up_proj"),
        ),
        row(f"{prefix}.image_projector.down_proj", inner, adapter.size("text_hidden_size"), bias=False),
    ]
    return as_tower(modules)


def _feature_layers(vit: ConfigView, adapter: ConfigView) -> list[int]:
    """The layers whose states are pooled, counted from the end where negative (molmo2.py:735)."""
    given, count = adapter.raw("vit_layers", (-3, -9)), vit.layers("num_hidden_layers")
    if not isinstance(given, (list, tuple)) or not given or not all(type(layer) is int for layer in given):
        raise InputError(f"{adapter.where}: vit_layers must be a list of whole numbers")
    found = [layer if layer >= 0 else layer + count for layer in given]
    if not all(0 <= layer < count for layer in found):
        raise InputError(f"{adapter.where}: vit_layers {given!r} are outside the tower's {count} layers")
    return found
