"""Decoders that vLLM runs through transformers' own classes: OLMo, OLMo 2, SmolLM3, StarCoder2.

The backend fuses query, key and value, and gate and up, and puts its own embedding, linear and head classes in place.
Its attention layers are no submodules: a listing of the model's buffers lacks their scales, the GPU does not.
Source: vLLM 0.26.0 model_executor/models/registry.py _TRANSFORMERS_SUPPORTED_MODELS, models/transformers/base.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.architectures.assemble import LLAMA_NAMES, LayerPart, Names, Windows, alternate, assemble
from planner.model.architectures.blocks import (
    LLAMA_FUSED,
    Architecture,
    Heads,
    gated_mlp,
    norm,
    plain_mlp,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.dense import POST_NORMS
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module
from planner.model.rope import rope_parameters
from planner.model.spec import TextDims


def olmo(config: ConfigView) -> Architecture:
    """OlmoForCausalLM: norms without weights."""
    heads, dims = _sizes(config)
    bias = config.flag("attention_bias")
    names = replace(LLAMA_NAMES, norms=(), final_norm="")
    return _assemble(config, heads, dims, _attention(config, heads, bias, bias), _gated(dims), names)


def olmo2(config: ConfigView) -> Architecture:
    """Olmo2ForCausalLM: whole-width q and k norms on each rank, norms behind the parts."""
    heads, dims = _sizes(config)
    bias = config.flag("attention_bias")
    base = _attention(config, heads, bias, bias)

    def attention(at: str, layer: int) -> list[Module]:
        parts = base(at, layer) + norm(f"{at}.q_norm", heads.num_heads * heads.head_size, layer)
        return parts + norm(f"{at}.k_norm", heads.num_kv_heads * heads.head_size, layer)

    return _assemble(config, heads, dims, attention, _gated(dims), POST_NORMS)


def smollm3(config: ConfigView) -> Architecture:
    """SmolLM3ForCausalLM: Llama, some of whose layers skip the rotation."""
    heads, dims = _sizes(config)
    bias, types = config.flag("attention_bias"), None
    if config.flag("use_sliding_window") and config.explicit("sliding_window") is not None:
        types = alternate(dims.num_hidden_layers, config.size("no_rope_layer_interval", 4))
    attention = _attention(config, heads, bias, bias, Windows(config, types=types))
    return _assemble(config, heads, dims, attention, _gated(dims, bias=config.flag("mlp_bias")))


def starcoder2(config: ConfigView) -> Architecture:
    """Starcoder2ForCausalLM: LayerNorm, biases by use_bias, an MLP without a gate."""
    heads, dims = _sizes(config)
    bias = config.flag("use_bias", True)

    def feed_forward(at: str, layer: int) -> list[Module]:
        return plain_mlp(at, layer, dims.hidden_size, dims.intermediate_size, names=("c_fc", "c_proj"), bias=bias)

    fused = {"qkv_proj": LLAMA_FUSED["qkv_proj"]}
    attention = _attention(config, heads, bias, bias)
    return _assemble(config, heads, dims, attention, feed_forward, norm_bias=True, fused=fused)


def _sizes(config: ConfigView) -> tuple[Heads, TextDims]:
    heads = read_heads(config)
    return heads, text_dims(config, heads)


def _attention(
    config: ConfigView, heads: Heads, qkv_bias: bool, out_bias: bool, windows: Windows | None = None
) -> LayerPart:
    layers = Windows(config) if windows is None else windows

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = layers.of(layer)
        return self_attention(at, layer, heads, qkv_bias=qkv_bias, out_bias=out_bias, kind=kind, window=window)

    return attention


def _gated(dims: TextDims, *, bias: bool = False) -> LayerPart:
    return lambda at, layer: gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size, bias=bias)


def _assemble(
    config: ConfigView,
    heads: Heads,
    dims: TextDims,
    attention: LayerPart,
    feed_forward: LayerPart,
    names: Names = LLAMA_NAMES,
    *,
    norm_bias: bool = False,
    fused: Mapping[str, tuple[str, ...]] = LLAMA_FUSED,
) -> Architecture:
    """The rotary frequencies are float32 and kept twice; each stage has them."""
    rope = rope_parameters(config)
    if rope["rope_type"] not in ("default", "linear", "yarn", "llama3"):
        raise UnsupportedError("rope_scaling", f"rope type {rope['rope_type']!r} under transformers is not supported")
    rotated = int(heads.head_size * rope.get("partial_rotary_factor", 1.0)) // 2
    frequencies = [
        Buffer(name=f"model.rotary_emb.{name}", placement="every", shape=(rotated,), dtype="float32")
        for name in ("inv_freq", "original_inv_freq")
    ]
    return assemble(
        dims,
        names=names,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=feed_forward,
        norm_bias=norm_bias,
        fused=fused,
        extra=frequencies,
    )
