"""Llama-like decoders whose MLP has no gate, and Phi: Nemotron, Arcee, Apertus.

Source: vLLM 0.26.0 model_executor/models/{phi,nemotron,arcee,apertus}.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.assemble import LLAMA_NAMES, Names, Windows, assemble
from planner.model.architectures.blocks import Architecture, Heads, plain_mlp, read_heads, self_attention, text_dims
from planner.model.architectures.gpt import QKV_FUSED
from planner.model.architectures.llama import llama_biases
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module, Parameter
from planner.model.rope import rope_parameters


def phi(config: ConfigView, prefix: str = "") -> Architecture:
    """PhiForCausalLM: one norm a layer, biases everywhere, also on the head (phi.py:77)."""
    config.require("tie_word_embeddings", (False,), False)
    hidden, count = config.size("hidden_size"), config.size("num_attention_heads")
    inner = config.optional_size("n_inner") or 4 * hidden
    heads = Heads(hidden_size=hidden, num_heads=count, num_kv_heads=count, head_size=hidden // count)
    dims = text_dims(config, heads, inner)
    rope, position = rope_parameters(config), config.size("max_position_embeddings", 2048)
    return assemble(
        dims,
        prefix=prefix,
        norm_bias=True,
        every_stage=True,
        tied=False,
        head_bias=True,
        fused=QKV_FUSED,
        names=replace(LLAMA_NAMES, norms=("input_layernorm",), final_norm="final_layernorm"),
        attention=lambda at, layer: self_attention(
            at, layer, heads, qkv_bias=True, out_bias=True, rope=rope, max_position=position, out_name="dense"
        ),
        feed_forward=lambda at, layer: plain_mlp(at, layer, hidden, inner),
    )


def nemotron(config: ConfigView, prefix: str = "") -> Architecture:
    """NemotronForCausalLM: LayerNorm, an MLP of up and down only (nemotron.py:144)."""
    bias = config.flag("attention_bias") or config.flag("bias")
    return _up_down(config, prefix, read_heads(config), bias, bias, norm_bias=True)


def arcee(config: ConfigView, prefix: str = "") -> Architecture:
    """ArceeForCausalLM: Llama with a relu2 MLP of up and down only (arcee.py:52)."""
    qkv_bias, out_bias = llama_biases(config)
    return _up_down(
        config, prefix, read_heads(config), qkv_bias, out_bias, head_bias=config.flag("lm_head_bias"), per_layer=True
    )


def apertus(config: ConfigView, prefix: str = "") -> Architecture:
    """ApertusForCausalLM: q and k norms, and an xIELU activation with two weights and two buffers (apertus.py:77)."""
    config.require("hidden_act", ("xielu",), "xielu")
    qkv_bias, out_bias = llama_biases(config)
    names = replace(LLAMA_NAMES, norms=("attention_layernorm", "feedforward_layernorm"))
    return _up_down(
        config,
        prefix,
        read_heads(config),
        qkv_bias,
        out_bias,
        names=names,
        qk_norm=True,
        activation=True,
        per_layer=True,
    )


def _up_down(
    config: ConfigView,
    prefix: str,
    heads: Heads,
    qkv_bias: bool,
    out_bias: bool,
    *,
    norm_bias: bool = False,
    head_bias: bool = False,
    names: Names = LLAMA_NAMES,
    qk_norm: bool = False,
    activation: bool = False,
    per_layer: bool = False,
) -> Architecture:
    dims = text_dims(config, heads)
    rope, mlp_bias, windows = rope_parameters(config), config.flag("mlp_bias"), Windows(config, per_layer=per_layer)

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        return self_attention(
            at,
            layer,
            heads,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            rope=rope,
            max_position=dims.max_position_embeddings,
            qk_norm=qk_norm,
            kind=kind,
            window=window,
        )

    def feed_forward(at: str, layer: int) -> list[Module]:
        parts = plain_mlp(
            at, layer, dims.hidden_size, dims.intermediate_size, names=("up_proj", "down_proj"), bias=mlp_bias
        )
        if activation:
            parts += [
                Parameter(name=f"{at}.act_fn.{name}", placement=layer, shape=(1,)) for name in ("alpha_p", "alpha_n")
            ]
            parts += [Buffer(name=f"{at}.act_fn.{name}", placement=layer, shape=()) for name in ("beta", "eps")]
        return parts

    return assemble(
        dims,
        prefix=prefix,
        names=names,
        norm_bias=norm_bias,
        head_bias=head_bias,
        attention=attention,
        fused=QKV_FUSED,
        feed_forward=feed_forward,
        tied=config.flag("tie_word_embeddings"),
    )
