"""Llama and the decoders that vLLM builds from its classes.

Source: vLLM 0.26.0 model_executor/models/{llama,mistral,phi3,qwen2,qwen3,mimo,glm,ernie45}.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from planner.model.architectures.assemble import LLAMA_NAMES, SLIDING, Names, Windows, assemble, window_in_use
from planner.model.architectures.blocks import (
    LLAMA_FUSED,
    Architecture,
    gated_mlp,
    plain_mlp,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.config_view import ConfigView
from planner.model.modules import Linear, Module
from planner.model.rope import rope_parameters
from planner.values import reject

PHI3_FUSED = {"qkv_proj": ("qkv_proj",), "gate_up_proj": ("gate_up_proj",)}


def llama(config: ConfigView, prefix: str = "") -> Architecture:
    """LlamaForCausalLM: biases by attention_bias / bias, mlp_bias, windows by layer_types (llama.py:181, 228)."""
    config.require("hidden_act", ("silu",), "silu")
    qkv_bias, out_bias = llama_biases(config)
    return decoder(config, prefix, qkv_bias=qkv_bias, out_bias=out_bias, mlp_bias=config.flag("mlp_bias"))


def mistral(config: ConfigView, prefix: str = "") -> Architecture:
    """MistralForCausalLM: Llama; where the layers are conditioned on time, two unquantized linears in each
    (mistral.py:161)."""
    built = llama(config, prefix)
    if not config.flag("ada_rms_norm_t_cond"):
        return built
    hidden, inner = built.text.hidden_size, config.size("ada_rms_norm_t_cond_dim")
    conditions: list[Module] = []
    for layer in range(built.text.num_hidden_layers):
        at = f"{prefix}model.layers.{layer}.ada_rms_norm_t_cond"
        parts = plain_mlp(at, layer, hidden, inner, names=("0", "2"), bias=False)
        conditions += [replace(part, quantizable=False) for part in parts if isinstance(part, Linear)]
    return replace(built, modules=(*built.modules, *conditions))


def phi3(config: ConfigView, prefix: str = "") -> Architecture:
    """Phi3ForCausalLM: Llama whose checkpoint is already fused (phi3.py)."""
    config.require("hidden_act", ("silu",), "silu")
    qkv_bias, out_bias = llama_biases(config)
    return decoder(config, prefix, qkv_bias=qkv_bias, out_bias=out_bias, fused=PHI3_FUSED)


def glm(config: ConfigView, prefix: str = "") -> Architecture:
    """GlmForCausalLM: half of each head is rotated, the output projection loses its bias (glm.py:11)."""
    rope = rope_parameters(config) | {"partial_rotary_factor": 0.5}
    return decoder(config, prefix, qkv_bias=llama_biases(config)[0], rope=rope, interleaved=True)


def ernie4_5(config: ConfigView, prefix: str = "") -> Architecture:
    """Ernie4_5ForCausalLM: Llama without a bias on the output projection (ernie45.py:42)."""
    bias = config.flag("use_bias") or llama_biases(config)[0]
    return decoder(config, prefix, qkv_bias=bias and not config.stated("use_bias"), mlp_bias=config.flag("mlp_bias"))


def llama_biases(config: ConfigView) -> tuple[bool, bool]:
    """(query-key-value, output): one switch for both, unless the config has qkv_bias (llama.py:266)."""
    bias = config.flag("attention_bias") or config.flag("bias")
    return (config.flag("qkv_bias") if config.stated("qkv_bias") else bias), bias


def qwen2(config: ConfigView, prefix: str = "") -> Architecture:
    """Qwen2ForCausalLM: q, k and v always have a bias (qwen2.py:151); head size is hidden / heads."""
    config.require("hidden_act", ("silu",), "silu")
    heads = config.size("hidden_size") // config.size("num_attention_heads")
    return decoder(config, prefix, qkv_bias=True, head_size=heads, types=qwen_types(config), per_layer=False)


def qwen3(config: ConfigView, prefix: str = "") -> Architecture:
    """Qwen3ForCausalLM: per-head q and k norms, bias by attention_bias (qwen3.py)."""
    config.require("hidden_act", ("silu",), "silu")
    bias = config.flag("attention_bias")
    return decoder(config, prefix, qkv_bias=bias, qk_norm=True, types=qwen_types(config), per_layer=False)


def qwen_types(config: ConfigView) -> list[str]:
    """Layer types as transformers derives them: sliding from max_window_layers on, where windows are in use.

    Raises: Rejected where that mixes both kinds, which vLLM's Qwen2 does not serve (qwen2.py:387).
    """
    layers = config.layers()
    window = config.explicit("sliding_window") if window_in_use(config) and config.flag("use_sliding_window") else None
    start = layers if window is None else config.count("max_window_layers", layers)
    if 0 < start < layers:
        raise reject(
            "flag",
            "Sliding window for some but all layers is not supported. This model uses sliding window but "
            f"`max_window_layers` = {start} is less than `num_hidden_layers` = {layers}. "
            "Please open an issue to discuss this feature.",
        )
    return [SLIDING if layer >= start else "full_attention" for layer in range(layers)]


def decoder(
    config: ConfigView,
    prefix: str = "",
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    head_size: int | None = None,
    rope: Mapping[str, Any] | None = None,
    interleaved: bool = False,
    types: Sequence[str] | None = None,
    per_layer: bool = True,
    names: Names = LLAMA_NAMES,
    fused: Mapping[str, tuple[str, ...]] = LLAMA_FUSED,
    every_stage: bool = False,
    tied: bool | None = None,
) -> Architecture:
    """A decoder with fused attention and gated MLP. `prefix` is "language_model." inside a multimodal model."""
    heads = read_heads(config, head_size)
    dims = text_dims(config, heads)
    table = rope_parameters(config) if rope is None else rope
    windows = Windows(config, types=types, per_layer=per_layer)

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        return self_attention(
            at,
            layer,
            heads,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            rope=table,
            qk_norm=qk_norm,
            kind=kind,
            max_position=dims.max_position_embeddings,
            window=window,
            interleaved=interleaved,
        )

    def feed_forward(at: str, layer: int) -> list[Module]:
        return gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size, bias=mlp_bias)

    return assemble(
        dims,
        prefix=prefix,
        attention=attention,
        feed_forward=feed_forward,
        names=names,
        fused=fused,
        every_stage=every_stage,
        tied=config.flag("tie_word_embeddings") if tied is None else tied,
    )
