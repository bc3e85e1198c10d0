"""Decoders of the GPT family: GPT-2, GPT-J, GPT-NeoX, OPT, Bloom, Falcon.

Source: vLLM 0.26.0 model_executor/models/{gpt2,gpt_j,gpt_neox,opt,bloom,falcon}.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from planner.model.architectures.assemble import Names, assemble
from planner.model.architectures.blocks import (
    Architecture,
    Heads,
    norm,
    plain_mlp,
    self_attention,
)
from planner.model.config_view import ConfigView
from planner.model.modules import Linear, Module, Parameter
from planner.model.rope import rope_parameters
from planner.model.spec import TextDims

QKV_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}


def _gpt(
    config: ConfigView,
    dims: TextDims,
    names: Names,
    *,
    heads: Heads,
    qkv_name: str,
    out_name: str,
    mlp: tuple[str, str],
    attention_bias: bool = True,
    mlp_bias: bool = True,
    tied: bool,
    rope: Mapping[str, Any] | None = None,
    interleaved: bool = False,
    head_bias: bool = False,
    extra: tuple[Module, ...] = (),
) -> Architecture:
    """What these families share: everything on each stage, biased norms, an MLP of two layers."""
    return assemble(
        dims,
        names=names,
        norm_bias=True,
        every_stage=True,
        tied=tied,
        head_bias=head_bias,
        extra=extra,
        fused={qkv_name: (qkv_name,)} if qkv_name != "qkv_proj" else QKV_FUSED,
        attention=lambda at, layer: self_attention(
            at,
            layer,
            heads,
            qkv_bias=attention_bias,
            out_bias=attention_bias,
            rope=rope,
            interleaved=interleaved,
            max_position=dims.max_position_embeddings,
            qkv_name=qkv_name,
            out_name=out_name,
            shard_names=(qkv_name,) if qkv_name != "qkv_proj" else ("q_proj", "k_proj", "v_proj"),
        ),
        feed_forward=lambda at, layer: plain_mlp(
            at, layer, dims.hidden_size, dims.intermediate_size, names=mlp, bias=mlp_bias
        ),
    )


def _sizes(
    config: ConfigView, hidden: int, layers: int, count: int, inner: int, position: int, kv_heads: int | None = None
) -> tuple[Heads, TextDims]:
    heads = Heads(hidden_size=hidden, num_heads=count, num_kv_heads=kv_heads or count, head_size=hidden // count)
    dims = TextDims(
        hidden_size=hidden,
        num_hidden_layers=layers,
        vocab_size=config.size("vocab_size"),
        num_attention_heads=count,
        num_kv_heads=kv_heads or count,
        head_size=hidden // count,
        intermediate_size=inner,
        max_position_embeddings=position,
    )
    return heads, dims


def gpt2(config: ConfigView) -> Architecture:
    """GPT2LMHeadModel: learned positions, tied (gpt2.py:61)."""
    config.require("add_cross_attention", (False,), False)
    hidden = config.size("n_embd", aliases=("hidden_size",))
    position = config.size("n_positions", aliases=("max_position_embeddings",))
    heads, dims = _sizes(
        config,
        hidden,
        config.layers("n_layer", aliases=("num_hidden_layers",)),
        config.size("n_head", aliases=("num_attention_heads",)),
        config.optional_size("n_inner") or 4 * hidden,
        position,
    )
    names = Names(
        model="transformer", embed="wte", layers="h", attention="attn", norms=("ln_1", "ln_2"), final_norm="ln_f"
    )
    positions = Parameter(name="transformer.wpe.weight", placement="every", shape=(position, hidden))
    return _gpt(
        config,
        dims,
        names,
        heads=heads,
        qkv_name="c_attn",
        out_name="c_proj",
        mlp=("c_fc", "c_proj"),
        tied=config.flag("tie_word_embeddings", True),
        extra=(positions,),
    )


def gpt_j(config: ConfigView) -> Architecture:
    """GPTJForCausalLM: one norm a layer, rotary_dim of each head rotated, a bias on the head (gpt_j.py:58)."""
    config.require("tie_word_embeddings", (False,), False)
    hidden = config.size("n_embd", aliases=("hidden_size",))
    heads, dims = _sizes(
        config,
        hidden,
        config.layers("n_layer", aliases=("num_hidden_layers",)),
        config.size("n_head", aliases=("num_attention_heads",)),
        config.optional_size("n_inner") or 4 * hidden,
        config.size("n_positions", aliases=("max_position_embeddings",)),
    )
    names = Names(model="transformer", embed="wte", layers="h", attention="attn", norms=("ln_1",), final_norm="ln_f")
    rope = rope_parameters(config) | {"partial_rotary_factor": config.size("rotary_dim") / heads.head_size}
    return _gpt(
        config,
        dims,
        names,
        heads=heads,
        qkv_name="qkv_proj",
        out_name="out_proj",
        mlp=("fc_in", "fc_out"),
        tied=False,
        attention_bias=False,
        rope=rope,
        interleaved=True,
        head_bias=True,
    )


def gpt_neox(config: ConfigView) -> Architecture:
    """GPTNeoXForCausalLM (gpt_neox.py:57)."""
    hidden = config.size("hidden_size")
    heads, dims = _sizes(
        config,
        hidden,
        config.layers(),
        config.size("num_attention_heads"),
        config.size("intermediate_size"),
        config.size("max_position_embeddings", 8192),
    )
    names = Names(
        model="gpt_neox", embed="embed_in", attention="attention", final_norm="final_layer_norm", head="embed_out"
    )
    rope = rope_parameters(config)
    share = config.raw("rotary_pct")
    if share is not None:
        rope["partial_rotary_factor"] = config.number("rotary_pct")
    return _gpt(
        config,
        dims,
        names,
        heads=heads,
        qkv_name="query_key_value",
        out_name="dense",
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
        attention_bias=config.flag("attention_bias", True),
        tied=config.flag("tie_word_embeddings"),
        rope=rope,
    )


def bloom(config: ConfigView) -> Architecture:
    """BloomForCausalLM: no position table, a norm after the embedding, tied (bloom.py:85)."""
    hidden = config.size("hidden_size", aliases=("n_embed",))
    heads, dims = _sizes(
        config,
        hidden,
        config.layers("n_layer", aliases=("num_hidden_layers",)),
        config.size("n_head", aliases=("num_attention_heads",)),
        4 * hidden,
        config.size("seq_length", 2048),
    )
    names = Names(
        model="transformer", embed="word_embeddings", layers="h", attention="self_attention", final_norm="ln_f"
    )
    first = norm("transformer.word_embeddings_layernorm", hidden, "every", bias=True)
    return _gpt(
        config,
        dims,
        names,
        heads=heads,
        qkv_name="query_key_value",
        out_name="dense",
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
        tied=config.flag("tie_word_embeddings", True),
        extra=tuple(first),
    )


def falcon(config: ConfigView) -> Architecture:
    """FalconForCausalLM: KV heads and norms follow the generation of the architecture (falcon.py:94, 268)."""
    hidden, count = config.size("hidden_size"), config.size("num_attention_heads", aliases=("n_head",))
    new = config.flag("new_decoder_architecture")
    kv_heads = config.size("num_kv_heads", count) if new else 1 if config.flag("multi_query", True) else count
    heads, dims = _sizes(
        config,
        hidden,
        config.layers("num_hidden_layers", aliases=("n_layer",)),
        count,
        4 * hidden,
        config.size("max_position_embeddings", 8192),
        kv_heads,
    )
    bias = config.flag("bias")
    if not config.flag("parallel_attn", True):
        norms: tuple[str, ...] = ("post_attention_layernorm", "input_layernorm")
    elif config.raw("num_ln_in_parallel_attn", 2 if new else 1) == 2:
        norms = ("ln_attn", "ln_mlp")
    else:
        norms = ("input_layernorm",)
    names = Names(
        model="transformer",
        embed="word_embeddings",
        layers="h",
        attention="self_attention",
        norms=norms,
        final_norm="ln_f",
    )
    return _gpt(
        config,
        dims,
        names,
        heads=heads,
        qkv_name="query_key_value",
        out_name="dense",
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
        attention_bias=bias,
        mlp_bias=bias,
        tied=config.flag("tie_word_embeddings", True),
        rope=None if config.flag("alibi") else rope_parameters(config),
    )


def opt(config: ConfigView, prefix: str = "") -> Architecture:
    """OPTForCausalLM: learned positions (two more than the length), projections to a narrower embedding (opt.py:59)."""
    config.require("layer_norm_elementwise_affine", (True,), True)
    hidden, width = config.size("hidden_size"), config.size("word_embed_proj_dim")
    heads, dims = _sizes(
        config,
        hidden,
        config.layers(),
        config.size("num_attention_heads"),
        config.size("ffn_dim"),
        config.size("max_position_embeddings"),
    )
    bias = config.flag("enable_bias", True)
    extra: list[Module] = [
        Parameter(
            name=f"{prefix}model.decoder.embed_positions.weight",
            placement="every",
            shape=(dims.max_position_embeddings + 2, hidden),
        )
    ]
    if width != hidden:
        extra.append(
            Linear(
                name=f"{prefix}model.decoder.project_out", placement="every", input_size=hidden, output_sizes=(width,)
            )
        )
        extra.append(
            Linear(
                name=f"{prefix}model.decoder.project_in", placement="every", input_size=width, output_sizes=(hidden,)
            )
        )
    final = config.flag("do_layer_norm_before", True) and not config.flag("_remove_final_layer_norm")
    names = Names(
        model="model.decoder",
        norms=("self_attn_layer_norm", "final_layer_norm"),
        mlp="",
        final_norm="final_layer_norm" if final else "",
    )

    def feed_forward(at: str, layer: int) -> list[Module]:
        return plain_mlp(at.removesuffix("."), layer, hidden, dims.intermediate_size, bias=bias)

    base = assemble(
        dims,
        prefix=prefix,
        names=names,
        norm_bias=True,
        every_stage=True,
        tied=config.flag("tie_word_embeddings", True),
        extra=extra,
        fused=QKV_FUSED,
        feed_forward=feed_forward,
        head_quantizable=False,
        attention=lambda at, layer: self_attention(at, layer, heads, qkv_bias=bias, out_bias=bias, out_name="out_proj"),
    )
    return replace(base, modules=tuple(_narrow(module, width) for module in base.modules))


def _narrow(module: Module, width: int) -> Module:
    return replace(module, hidden_size=width) if hasattr(module, "num_embeddings") else module
