"""Granite 4 and Falcon-H1: Mamba-2 in place of attention, or beside it.

Source: vLLM 0.26.0 model_executor/models/{granitemoehybrid,falcon_h1}.py.
"""

from __future__ import annotations

from planner.errors import InputError
from planner.model.architectures.blocks import (
    LLAMA_FUSED,
    Architecture,
    Heads,
    gated_mlp,
    norm,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.experts import MIXTRAL_SHARDS, experts, router
from planner.model.architectures.mixers import Mamba2, mamba2_mixer
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Linear, LMHead, Module, PackedNames, VocabEmbedding
from planner.model.rope import rope_parameters

_GRANITE_FUSED = {
    "qkv_proj": LLAMA_FUSED["qkv_proj"],
    "conv1d": ("conv1d",),
    "in_proj": ("in_proj",),
    "input_linear": ("input_linear",),
}
_KINDS = {"mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention"}


def granite_moe_hybrid(config: ConfigView) -> Architecture:
    """GraniteMoeHybridForCausalLM: each layer has Mamba-2 or attention, then experts, a shared MLP or both. Embedding,
    final norm and head are built on each pipeline stage."""
    config.require("hidden_act", ("silu",), "silu")
    heads = read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))
    dims = text_dims(config, heads)
    hidden, count = dims.hidden_size, config.count("num_local_experts", 0)
    embed, tied = "model.embed_tokens", config.flag("tie_word_embeddings")
    modules: list[Module] = [
        VocabEmbedding(name=embed, num_embeddings=dims.vocab_size, hidden_size=hidden, quantizable=False)
    ]
    sizes = _mamba(config, config.size("mamba_expand") * hidden)
    for layer, kind in enumerate(_granite_kinds(config)):
        at = f"model.layers.{layer}"
        if kind == "mamba":
            modules += mamba2_mixer(f"{at}.mixer", layer, sizes)
        else:
            modules += _granite_attention(f"{at}.self_attn", layer, heads, config)
        if count:
            block, top_k = f"{at}.block_sparse_moe", config.size("num_experts_per_tok")
            inner = dims.intermediate_size
            modules.append(router(f"{block}.gate", layer, hidden, count))
            modules.append(
                experts(block, layer, count=count, top_k=top_k, hidden=hidden, inner=inner, shard_names=MIXTRAL_SHARDS)
            )
        shared = config.count("shared_intermediate_size", 0)
        modules += _shared_mlp(f"{at}.shared_mlp", layer, hidden, shared) if shared else []
        modules += norm(f"{at}.input_layernorm", hidden, layer) + norm(f"{at}.post_attention_layernorm", hidden, layer)
    modules += norm("model.norm", hidden, "every")
    modules.append(
        LMHead(
            name="lm_head",
            placement="every",
            num_embeddings=dims.vocab_size,
            hidden_size=hidden,
            tied_to=embed if tied else None,
        )
    )
    return Architecture(
        modules=tuple(modules),
        text=dims,
        names=PackedNames(fused=_GRANITE_FUSED),
        tie_word_embeddings=tied,
        is_moe=count > 0,
        is_hybrid=True,
        num_experts=count,
    )


def _granite_kinds(config: ConfigView) -> list[str]:
    """layer_types, or layers_block_type as older files call it; Mamba-2 throughout where there is neither."""
    count = config.layers()
    names = config.strings("layer_types") or config.strings("layers_block_type") or ("mamba",) * count
    if len(names) < count or not set(names) <= set(_KINDS):
        raise InputError(f"{config.where}: layer_types must name mamba or attention for {count} layers")
    return [_KINDS[name] for name in names[:count]]


def _granite_attention(at: str, layer: int, heads: Heads, config: ConfigView) -> list[Module]:
    bias, rotated = config.flag("attention_bias"), config.raw("position_embedding_type") == "rope"
    return self_attention(
        at,
        layer,
        heads,
        qkv_bias=bias,
        out_bias=bias,
        rope=rope_parameters(config) if rotated else None,
        max_position=config.size("max_position_embeddings"),
    )


def _shared_mlp(at: str, layer: int, hidden: int, inner: int) -> list[Module]:
    return [
        Linear(
            name=f"{at}.input_linear",
            placement=layer,
            input_size=hidden,
            output_sizes=(inner, inner),
            parallelism="column",
        ),
        Linear(
            name=f"{at}.output_linear", placement=layer, input_size=inner, output_sizes=(hidden,), parallelism="row"
        ),
    ]


def _mamba(config: ConfigView, inner: int, *, rms_norm: bool = True) -> Mamba2:
    """A head's size that is "auto" or absent follows from the inner width."""
    heads = config.size("mamba_n_heads")
    automatic = config.data.get("mamba_d_head") in (None, "auto")
    return Mamba2(
        hidden_size=config.size("hidden_size"),
        inner_size=inner,
        num_heads=heads,
        head_size=inner // heads if automatic else config.size("mamba_d_head"),
        num_groups=config.size("mamba_n_groups"),
        state_size=config.size("mamba_d_state"),
        kernel=config.size("mamba_d_conv"),
        conv_bias=config.flag("mamba_conv_bias"),
        bias=config.flag("mamba_proj_bias"),
        chunk_size=config.size("mamba_chunk_size"),
        rms_norm=rms_norm,
    )


def falcon_h1(config: ConfigView) -> Architecture:
    """FalconH1ForCausalLM: each layer runs attention and Mamba-2 side by side (falcon_h1.py:302). The mixer's layer
    number counts on after the attention layers."""
    config.require("hidden_act", ("silu",), "silu")
    heads = read_heads(config)
    dims = text_dims(config, heads)
    hidden, tied, embed = dims.hidden_size, config.flag("tie_word_embeddings"), "model.embed_tokens"
    rope = rope_parameters(config) | {
        "partial_rotary_factor": config.size("attn_rotary_emb", heads.head_size) / heads.head_size
    }
    width = config.explicit("mamba_d_ssm")
    inner = int(config.number("mamba_expand") * hidden) if width is None else config.size("mamba_d_ssm")
    sizes = _mamba(config, inner, rms_norm=config.flag("mamba_rms_norm"))
    modules: list[Module] = [
        VocabEmbedding(
            name=embed, placement="first", num_embeddings=dims.vocab_size, hidden_size=hidden, quantizable=False
        )
    ]
    for layer in range(dims.num_hidden_layers):
        at = f"model.layers.{layer}"
        modules += self_attention(at, layer, heads, rope=rope, max_position=dims.max_position_embeddings)
        modules += mamba2_mixer(f"model.{dims.num_hidden_layers + layer}.mixer", layer, sizes)
        modules.append(_multipliers(f"{at}.mamba.mup_vector", layer, sizes))
        modules += gated_mlp(f"{at}.feed_forward", layer, hidden, dims.intermediate_size)
        modules += norm(f"{at}.input_layernorm", hidden, layer) + norm(f"{at}.pre_ff_layernorm", hidden, layer)
    modules += norm("model.final_layernorm", hidden, "last")
    modules.append(
        LMHead(
            name="lm_head",
            placement="last",
            num_embeddings=dims.vocab_size,
            hidden_size=hidden,
            tied_to=embed if tied else None,
            quantizable=False,
        )
    )
    # The last stage has no embedding to tie its head to.
    refusal = "'PPMissingLayer' object has no attribute 'weight'" if tied else None
    return Architecture(
        modules=tuple(modules), text=dims, tie_word_embeddings=tied, is_hybrid=True, pipeline_refusal=refusal
    )


def _multipliers(name: str, layer: int, sizes: Mamba2) -> Buffer:
    """A factor for each output of in_proj (falcon_h1.py:144)."""
    groups = sum(sizes.group_sizes)
    return Buffer(
        name=name,
        placement=layer,
        shape=(1, 2 * sizes.inner_size + groups + sizes.num_heads),
        shard_dim=1,
        whole_size=groups if sizes.num_groups == 1 else 0,
    )
