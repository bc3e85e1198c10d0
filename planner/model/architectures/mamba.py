"""Mamba, Falcon-Mamba and Mamba-2, which have no attention, and Jamba, which has some.

Source: vLLM 0.26.0 model_executor/models/{mamba,mamba2,jamba}.py.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.model.architectures.blocks import LLAMA_FUSED, Architecture, Heads, gated_mlp, norm, read_heads, text_dims
from planner.model.architectures.experts import experts, router
from planner.model.architectures.mixers import Mamba1, Mamba2, mamba1_mixer, mamba2_mixer
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, Linear, LMHead, Module, PackedNames, QKVLinear, VocabEmbedding
from planner.model.spec import TextDims


def mamba(config: ConfigView) -> Architecture:
    """MambaForCausalLM; Falcon-Mamba normalizes dt, B and C without weights (mamba.py:59)."""
    sizes = Mamba1(
        hidden_size=config.size("hidden_size"),
        inner_size=_inner_size(config),
        state_size=config.size("state_size"),
        kernel=config.size("conv_kernel"),
        dt_rank=_dt_rank(config, "time_step_rank"),
        conv_bias=config.flag("use_conv_bias"),
        bias=config.flag("use_bias"),
    )
    return _attention_free(config, lambda at, layer: mamba1_mixer(at, layer, sizes), supports_pp=True)


def mamba2(config: ConfigView) -> Architecture:
    """Mamba2ForCausalLM, which does not implement SupportsPP (mamba2.py:138)."""
    sizes = Mamba2(
        hidden_size=config.size("hidden_size"),
        inner_size=_inner_size(config),
        num_heads=config.size("num_heads"),
        head_size=config.size("head_dim"),
        num_groups=config.size("n_groups"),
        state_size=config.size("state_size"),
        kernel=config.size("conv_kernel"),
        conv_bias=config.flag("use_conv_bias"),
        bias=config.flag("use_bias"),
        chunk_size=config.size("chunk_size"),
    )
    return _attention_free(config, lambda at, layer: mamba2_mixer(at, layer, sizes), supports_pp=False)


def _inner_size(config: ConfigView) -> int:
    """A stated intermediate_size wins over expand x hidden."""
    stated = config.optional_size("intermediate_size") if config.stated("intermediate_size") else None
    return stated or int(config.number("expand") * config.size("hidden_size"))


def _dt_rank(config: ConfigView, key: str) -> int:
    """ "auto" is a sixteenth of the width, rounded up."""
    return -(-config.size("hidden_size") // 16) if config.raw(key, "auto") == "auto" else config.size(key)


def _attention_free(
    config: ConfigView, mixer: Callable[[str, int], list[Module]], *, supports_pp: bool
) -> Architecture:
    """Embedding, final norm and head are built, unquantized, on each pipeline stage."""
    hidden, vocabulary = config.size("hidden_size"), config.size("vocab_size")
    tied, embed = config.flag("tie_word_embeddings"), "backbone.embeddings"
    dims = TextDims(
        hidden_size=hidden,
        num_hidden_layers=config.layers(),
        vocab_size=vocabulary,
        num_attention_heads=0,
        num_kv_heads=0,
        head_size=0,
        intermediate_size=_inner_size(config),
        max_position_embeddings=config.size("max_position_embeddings", 2048),
    )
    modules: list[Module] = [
        VocabEmbedding(name=embed, num_embeddings=vocabulary, hidden_size=hidden, quantizable=False)
    ]
    for layer in range(dims.num_hidden_layers):
        modules += mixer(f"backbone.layers.{layer}.mixer", layer)
        modules += norm(f"backbone.layers.{layer}.norm", hidden, layer)
    modules += [*norm("backbone.norm_f", hidden, "every"), _head(vocabulary, hidden, embed if tied else None)]
    return Architecture(
        modules=tuple(modules),
        text=dims,
        names=PackedNames(),
        tie_word_embeddings=tied,
        is_hybrid=True,
        supports_pp=supports_pp,
    )


def _head(vocabulary: int, hidden: int, tied_to: str | None) -> LMHead:
    return LMHead(
        name="lm_head",
        placement="every",
        num_embeddings=vocabulary,
        hidden_size=hidden,
        tied_to=tied_to,
        quantizable=False,
    )


def jamba(config: ConfigView) -> Architecture:
    """JambaForCausalLM: attention and experts at an offset in each period; its head is never tied (jamba.py:422)."""
    config.require("hidden_act", ("silu",), "silu")
    heads = read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))
    dims = text_dims(config, heads)
    hidden, count = dims.hidden_size, config.size("num_experts")
    sizes = Mamba1(
        hidden_size=hidden,
        inner_size=config.size("mamba_expand") * hidden,
        state_size=config.size("mamba_d_state"),
        kernel=config.size("mamba_d_conv"),
        dt_rank=_dt_rank(config, "mamba_dt_rank"),
        conv_bias=config.flag("mamba_conv_bias"),
        bias=config.flag("mamba_proj_bias"),
        norms=True,
    )
    modules: list[Module] = [
        VocabEmbedding(name="model.embed_tokens", num_embeddings=dims.vocab_size, hidden_size=hidden, quantizable=False)
    ]
    for layer in range(dims.num_hidden_layers):
        at = f"model.layers.{layer}"
        if layer % config.size("attn_layer_period") == config.count("attn_layer_offset"):
            modules += _jamba_attention(at, layer, heads)
        else:
            modules += mamba1_mixer(f"{at}.mixer", layer, sizes)
        sparse = layer % config.size("expert_layer_period") == config.count("expert_layer_offset")
        if sparse and count > 1:
            top_k, inner = config.size("num_experts_per_tok"), dims.intermediate_size
            modules += [
                router(f"{at}.feed_forward.router", layer, hidden, count),
                experts(f"{at}.feed_forward", layer, count=count, top_k=top_k, hidden=hidden, inner=inner),
            ]
        else:
            modules += gated_mlp(f"{at}.feed_forward", layer, hidden, dims.intermediate_size)
        modules += norm(f"{at}.input_layernorm", hidden, layer) + norm(f"{at}.pre_ff_layernorm", hidden, layer)
    modules += [*norm("model.final_layernorm", hidden, "every"), _head(dims.vocab_size, hidden, None)]
    return Architecture(
        modules=tuple(modules),
        text=dims,
        names=PackedNames(fused={**LLAMA_FUSED, "in_proj": ("in_proj",)}),
        is_moe=count > 1,
        is_hybrid=True,
        num_experts=count if count > 1 else 0,
    )


def _jamba_attention(at: str, layer: int, heads: Heads) -> list[Module]:
    """Without positions; its projections sit in the layer itself (jamba.py:206)."""
    return [
        QKVLinear(
            name=f"{at}.qkv_proj",
            placement=layer,
            hidden_size=heads.hidden_size,
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=heads.head_size,
        ),
        Linear(
            name=f"{at}.o_proj",
            placement=layer,
            input_size=heads.num_heads * heads.head_size,
            output_sizes=(heads.hidden_size,),
            parallelism="row",
        ),
        Attention(
            name=f"{at}.attn",
            placement=layer,
            kind="full_attention",
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=heads.head_size,
            has_rope=False,
            quantizable=False,
        ),
    ]
