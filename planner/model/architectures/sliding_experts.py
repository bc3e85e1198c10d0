"""Mixtures whose layers slide in turn: Mellum, Cohere 2 MoE.

Source: vLLM 0.26.0 model_executor/models/{mellum,cohere2_moe}.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.assemble import LLAMA_NAMES, Windows, alternate, assemble
from planner.model.architectures.blocks import (
    LLAMA_FUSED,
    Architecture,
    gated_mlp,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.experts import experts, router
from planner.model.architectures.moe import QKV_FUSED
from planner.model.config_view import ConfigView
from planner.model.modules import Module
from planner.model.rope import rope_parameters
from planner.values import reject

_DENSE, _SPARSE = "dense", "sparse"


def mellum(config: ConfigView, prefix: str = "") -> Architecture:
    """MellumForCausalLM: Qwen3-MoE with a rotary table for each kind of layer (mellum.py:118). vLLM reads the file with
    Qwen3-MoE's configuration class, which drops the window unless use_sliding_window asks for it."""
    config = ConfigView(config.data, config.where, "qwen3_moe", config.files)
    config.require("dual_chunk_attention_config", (None,))
    heads = read_heads(config)
    dims = text_dims(config, heads)
    windows, kinds = Windows(config), config.strings("mlp_layer_types")
    count, bias = config.size("num_experts"), config.flag("attention_bias")

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        return self_attention(
            at,
            layer,
            heads,
            qkv_bias=bias,
            rope=rope_parameters(config, windows.types[layer]),
            max_position=dims.max_position_embeddings,
            qk_norm=True,
            kind=kind,
            window=window,
        )

    def feed_forward(at: str, layer: int) -> list[Module]:
        if kinds[layer] != _SPARSE:
            return gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size)
        inner, top_k = config.size("moe_intermediate_size"), config.size("num_experts_per_tok")
        return [
            router(f"{at}.gate", layer, dims.hidden_size, count, quantizable=True),
            experts(at, layer, count=count, top_k=top_k, hidden=dims.hidden_size, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        every_stage=True,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=feed_forward,
        fused=LLAMA_FUSED if _DENSE in kinds else QKV_FUSED,
        num_experts=count,
    )


def cohere2_moe(config: ConfigView, prefix: str = "") -> Architecture:
    """Cohere2MoeForCausalLM: one norm a layer, no head of its own, a shared expert beside the others; layers that see
    everything are not rotated (cohere2_moe.py:149, 248)."""
    if not config.flag("tie_word_embeddings", True):
        raise reject("flag", "assert getattr(config, 'tie_word_embeddings', True)")
    heads = read_heads(config)
    dims = text_dims(config, heads)
    layers, hidden = dims.num_hidden_layers, dims.hidden_size
    position = config.optional_size("model_max_length") or dims.max_position_embeddings
    windows = Windows(config, types=alternate(layers, config.size("sliding_window_pattern", 4)))
    kinds = _kinds(config, layers)
    count, inner, shared = config.size("num_experts"), dims.intermediate_size, config.count("num_shared_experts", 0)
    rope = rope_parameters(config)

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        return self_attention(
            at, layer, heads, rope=rope, max_position=position, kind=kind, window=window, interleaved=True
        )

    def feed_forward(at: str, layer: int) -> list[Module]:
        if kinds[layer] == _DENSE:
            return gated_mlp(at, layer, hidden, config.size("prefix_dense_intermediate_size", inner))
        top_k = config.size("num_experts_per_tok")
        return [
            router(f"{at}.gate", layer, hidden, count),
            *(gated_mlp(f"{at}.shared_experts", layer, hidden, inner * shared) if shared else []),
            experts(at, layer, count=count, top_k=top_k, hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        names=replace(LLAMA_NAMES, norms=("input_layernorm",)),
        every_stage=True,
        tied=True,
        attention=attention,
        feed_forward=feed_forward,
        num_experts=count,
    )


def _kinds(config: ConfigView, layers: int) -> tuple[str, ...]:
    """mlp_layer_types, or the first layers dense (cohere2_moe.py:404)."""
    given = config.strings("mlp_layer_types", ())
    if given:
        return tuple(given)
    dense = config.count("first_k_dense_replace", 0)
    return (_DENSE,) * dense + (_SPARSE,) * (layers - dense)
