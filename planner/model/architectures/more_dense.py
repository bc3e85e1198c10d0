"""More dense decoders: Jais 2, MPT, Ouro.

Source: vLLM 0.26.0 model_executor/models/{jais2,mpt,ouro}.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.assemble import LLAMA_NAMES, Names, Windows, assemble
from planner.model.architectures.blocks import (
    Architecture,
    Heads,
    gated_mlp,
    plain_mlp,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.gpt import QKV_FUSED
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, Linear, Module
from planner.model.rope import rope_parameters
from planner.model.spec import TextDims
from planner.values import reject


def jais2(config: ConfigView, prefix: str = "") -> Architecture:
    """Jais2ForCausalLM: LayerNorm, an MLP of up and down with relu2 (jais2.py:68)."""
    config.require("interleaved_sliding_window", (None,))
    heads = read_heads(config)
    dims = text_dims(config, heads)
    bias = config.flag("attention_bias") or config.flag("bias")
    rope, windows, mlp_bias = rope_parameters(config), Windows(config, per_layer=False), config.flag("mlp_bias")

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        position = dims.max_position_embeddings
        return self_attention(
            at, layer, heads, qkv_bias=bias, out_bias=bias, rope=rope, max_position=position, kind=kind, window=window
        )

    return assemble(
        dims,
        prefix=prefix,
        norm_bias=True,
        fused=QKV_FUSED,
        attention=attention,
        feed_forward=lambda at, layer: plain_mlp(
            at, layer, dims.hidden_size, dims.intermediate_size, names=("up_proj", "down_proj"), bias=mlp_bias
        ),
        tied=config.flag("tie_word_embeddings"),
    )


def mpt(config: ConfigView) -> Architecture:
    """MPTForCausalLM: ALiBi, no biases where no_bias says so, the head always tied (mpt.py:54)."""
    inner = config.section("attn_config", "mpt_attention")
    inner.require("alibi", (True,), True)
    inner.require("prefix_lm", (False,), False)
    inner.require("qk_ln", (False,), False)
    if not config.flag("tie_word_embeddings", True):
        raise reject("flag", "assert config.tie_word_embeddings")
    hidden, count = config.size("d_model"), config.size("n_heads")
    kv_heads = inner.size("kv_n_heads", count)
    heads = Heads(hidden_size=hidden, num_heads=count, num_kv_heads=kv_heads, head_size=hidden // count)
    bias = not config.flag("no_bias", True)
    dims = TextDims(
        hidden_size=hidden,
        num_hidden_layers=config.layers("n_layers"),
        vocab_size=config.size("vocab_size"),
        num_attention_heads=count,
        num_kv_heads=kv_heads,
        head_size=heads.head_size,
        intermediate_size=hidden * config.size("expansion_ratio"),
        max_position_embeddings=config.size("max_seq_len"),
    )
    return assemble(
        dims,
        names=Names(
            model="transformer",
            embed="wte",
            layers="blocks",
            attention="attn",
            mlp="ffn",
            norms=("norm_1", "norm_2"),
            final_norm="norm_f",
        ),
        norm_bias=bias,
        every_stage=True,
        fused={},
        tied=True,
        attention=lambda at, layer: self_attention(
            at, layer, heads, qkv_bias=bias, out_bias=bias, qkv_name="Wqkv", out_name="out_proj", shard_names=("Wqkv",)
        ),
        feed_forward=lambda at, layer: plain_mlp(
            at, layer, hidden, dims.intermediate_size, names=("up_proj", "down_proj"), bias=bias
        ),
    )


def ouro(config: ConfigView, prefix: str = "") -> Architecture:
    """OuroForCausalLM: the same layers run total_ut_steps times, each time with a cache of their own (ouro.py:105)."""
    heads = read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))
    dims = text_dims(config, heads)
    rope, rounds, windows = rope_parameters(config), config.size("total_ut_steps", 4), Windows(config, per_layer=False)

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        parts = self_attention(
            at, layer, heads, rope=rope, max_position=dims.max_position_embeddings, kind=kind, window=window
        )
        spread: list[Module] = []
        for part in parts:
            if isinstance(part, Attention):
                spread += [replace(part, name=f"{at}.attn.{step}") for step in range(rounds)]
            else:
                spread.append(part)
        return spread

    gate = Linear(
        name=f"{prefix}model.early_exit_gate", input_size=dims.hidden_size, output_sizes=(1,), parallelism="row",
        bias=True, quantizable=False,
    )  # fmt: skip
    return assemble(
        dims,
        prefix=prefix,
        names=replace(
            LLAMA_NAMES,
            norms=(
                "input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2",
            ),
        ),
        every_stage=True,
        supports_pp=False,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        extra=(gate,),
        feed_forward=lambda at, layer: gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size),
    )  # fmt: skip
