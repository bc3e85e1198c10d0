"""LFM2: short convolutions with attention in some layers, dense or with experts.

Source: vLLM 0.26.0 model_executor/models/{lfm2,lfm2_moe}.py.
"""

from __future__ import annotations

from planner.errors import InputError
from planner.model.architectures.blocks import Architecture, Heads, norm, read_heads, text_dims
from planner.model.architectures.experts import MIXTRAL_SHARDS, correction_bias, experts, router
from planner.model.architectures.mixers import short_conv
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, Linear, LMHead, Module, PackedNames, QKVLinear, VocabEmbedding
from planner.model.rope import rope_parameters, rotary_cache
from planner.values import reject

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "w13": ("w1", "w3"), "in_proj": ("in_proj",)}


def lfm2(config: ConfigView, prefix: str = "") -> Architecture:
    """Lfm2ForCausalLM. The convolution's and the MLP's widths come from the file alone: transformers' class has no
    default for them."""
    for key in ("conv_dim", "block_dim"):
        if not config.stated(key):
            raise reject("flag", f"'Lfm2Config' object has no attribute '{key}'")
    inner = _adjusted_width(config)
    return _stack(
        config, prefix, config.size("conv_dim"), config.size("block_dim"), [inner] * config.layers(), sparse_from=None
    )


def lfm2_moe(config: ConfigView, prefix: str = "") -> Architecture:
    """Lfm2MoeForCausalLM: experts after num_dense_layers dense ones (lfm2_moe.py:263)."""
    hidden, inner = config.size("hidden_size"), config.size("intermediate_size")
    sparse_from = config.count("num_dense_layers")
    return _stack(config, prefix, hidden, hidden, [inner] * config.layers(), sparse_from=sparse_from)


def _adjusted_width(config: ConfigView) -> int:
    """Two thirds of the stated width, times a factor, rounded up (lfm2.py:61)."""
    width = config.optional_size("block_ff_dim") or config.size("intermediate_size")
    if not config.flag("block_auto_adjust_ff_dim"):
        return width
    width = int(2 * width / 3)
    if not config.stated("block_ffn_dim_multiplier") or config.raw("block_ffn_dim_multiplier") is not None:
        width = int(config.number("block_ffn_dim_multiplier", 1.0) * width)
    multiple = config.size("block_multiple_of")
    return multiple * -(-width // multiple)


def _layer_types(config: ConfigView) -> list[bool]:
    """Whether each layer has attention: layer_types, else full_attn_idxs, else all."""
    count = config.layers()
    types = config.strings("layer_types")
    if types:
        if len(types) < count:
            raise InputError(f"{config.where}: layer_types has {len(types)} entries for {count} layers")
        return [kind == "full_attention" for kind in types[:count]]
    chosen = config.sizes("full_attn_idxs") if config.raw("full_attn_idxs") is not None else tuple(range(count))
    return [layer in chosen for layer in range(count)]


def _stack(
    config: ConfigView,
    prefix: str,
    conv_width: int,
    block_width: int,
    widths: list[int],
    *,
    sparse_from: int | None,
) -> Architecture:
    """The head is always tied to the embedding, which each pipeline stage builds (lfm2.py:479)."""
    heads = read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))
    dims = text_dims(config, heads)
    hidden, embed = dims.hidden_size, f"{prefix}model.embed_tokens"
    modules: list[Module] = [
        VocabEmbedding(name=embed, num_embeddings=dims.vocab_size, hidden_size=hidden, quantizable=False)
    ]
    kernel, bias = config.size("conv_L_cache"), config.flag("conv_bias")
    for layer, attends in enumerate(_layer_types(config)):
        at = f"{prefix}model.layers.{layer}"
        if attends:
            modules += _attention(f"{at}.self_attn", layer, heads, config)
        else:
            modules += short_conv(f"{at}.short_conv", layer, conv_width, kernel, bias=bias, name=f"{at}.conv")
        if sparse_from is not None and layer >= sparse_from:
            modules += _experts(f"{at}.feed_forward", layer, config)
        else:
            modules += _mlp(f"{at}.feed_forward", layer, block_width, widths[layer])
        modules += norm(f"{at}.operator_norm", hidden, layer) + norm(f"{at}.ffn_norm", hidden, layer)
    modules += norm(f"{prefix}model.embedding_norm", hidden, "last")
    head = LMHead(
        name=f"{prefix}lm_head", placement="every", num_embeddings=dims.vocab_size, hidden_size=hidden, tied_to=embed
    )
    modules.append(head)
    return Architecture(
        modules=tuple(modules),
        text=dims,
        names=PackedNames(fused=_FUSED),
        tie_word_embeddings=True,
        is_moe=sparse_from is not None,
        is_hybrid=True,
        num_experts=config.size("num_experts") if sparse_from is not None else 0,
    )


def _attention(at: str, layer: int, heads: Heads, config: ConfigView) -> list[Module]:
    size = heads.head_size
    return [
        QKVLinear(
            name=f"{at}.qkv_proj",
            placement=layer,
            hidden_size=heads.hidden_size,
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=size,
        ),
        Linear(
            name=f"{at}.out_proj",
            placement=layer,
            input_size=heads.num_heads * size,
            output_sizes=(heads.hidden_size,),
            parallelism="row",
        ),
        rotary_cache(
            f"{at}.rotary_emb",
            size,
            config.size("max_position_embeddings", 8192),
            rope_parameters(config),
            placement=layer,
        ),
        Attention(
            name=f"{at}.attn",
            placement=layer,
            kind="full_attention",
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=size,
            quantizable=False,
        ),
        *norm(f"{at}.q_layernorm", size, layer),
        *norm(f"{at}.k_layernorm", size, layer),
    ]


def _mlp(at: str, layer: int, width: int, inner: int) -> list[Module]:
    return [
        Linear(
            name=f"{at}.w13",
            placement=layer,
            input_size=width,
            output_sizes=(inner, inner),
            parallelism="column",
            shard_names=("w1", "w3"),
        ),
        Linear(name=f"{at}.w2", placement=layer, input_size=inner, output_sizes=(width,), parallelism="row"),
    ]


def _experts(at: str, layer: int, config: ConfigView) -> list[Module]:
    """Lfm2MoeSparseMoeBlock: its router may be quantized (lfm2_moe.py:124)."""
    hidden, count = config.size("hidden_size"), config.size("num_experts")
    corrected = config.flag("use_expert_bias")
    return [
        router(f"{at}.gate", layer, hidden, count, quantizable=True),
        *([correction_bias(f"{at}.gate.e_score_correction_bias", layer, count)] if corrected else []),
        experts(
            at,
            layer,
            count=count,
            top_k=config.size("num_experts_per_tok"),
            hidden=hidden,
            inner=config.size("moe_intermediate_size"),
            shard_names=MIXTRAL_SHARDS,
        ),
    ]
