"""Mixtures with shared experts, dense first layers or a corrected router around Llama-like attention.

Source: vLLM 0.26.0 model_executor/models/{glm4_moe,minimax_m2,ernie45_moe,exaone_moe,hunyuan_v1,bailing_moe}.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.architectures.assemble import Windows, assemble
from planner.model.architectures.blocks import (
    Architecture,
    gated_mlp,
    norm,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.experts import (
    MIXTRAL_SHARDS,
    by_layer,
    correction_bias,
    experts,
    router,
    sparse_layers,
)
from planner.model.architectures.moe import QKV_FUSED
from planner.model.config_view import ConfigView
from planner.model.modules import Module, Parameter
from planner.model.rope import rope_parameters


def glm4_moe(config: ConfigView, prefix: str = "") -> Architecture:
    """Glm4MoeForCausalLM: float32 gate, dense layers first, half of each head rotated (glm4_moe.py:115, 226).

    Layers for multi-token prediction are not built unless speculative decoding asks for them.
    """
    heads = read_heads(config)
    dims = text_dims(config, heads)
    count, dense = config.size("n_routed_experts"), config.count("first_k_dense_replace")
    rope = {"partial_rotary_factor": 0.5} | rope_parameters(config)
    position = config.size("max_position_embeddings", 131072)
    qkv_bias, qk_norm = config.flag("attention_bias"), config.flag("use_qk_norm")

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden, inner = dims.hidden_size, config.size("moe_intermediate_size")
        if layer < dense:
            return gated_mlp(at, layer, hidden, dims.intermediate_size)
        shared = config.count("n_shared_experts", 0)
        return [
            router(f"{at}.gate", layer, hidden, count, dtype="float32"),
            correction_bias(f"{at}.gate.e_score_correction_bias", layer, count),
            *(gated_mlp(f"{at}.shared_experts", layer, hidden, inner * shared) if shared else []),
            experts(at, layer, count=count, top_k=config.size("num_experts_per_tok"), hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        tied=False,
        feed_forward=feed_forward,
        num_experts=count,
        attention=lambda at, layer: self_attention(
            at, layer, heads, qkv_bias=qkv_bias, rope=rope, max_position=position, qk_norm=qk_norm
        ),
    )


def minimax_m2(config: ConfigView, prefix: str = "") -> Architecture:
    """MiniMaxM2ForCausalLM: float32 gate; q and k norms over all heads of the rank (minimax_m2.py:72, 139)."""
    heads = read_heads(config)
    dims = text_dims(config, heads)
    count = config.size("num_local_experts")
    rope = {"partial_rotary_factor": config.size("rotary_dim") / heads.head_size} | rope_parameters(config)
    qkv_bias, corrected = config.flag("attention_bias"), config.flag("use_routing_bias")

    def attention(at: str, layer: int) -> list[Module]:
        parts = self_attention(
            at, layer, heads, qkv_bias=qkv_bias, rope=rope, max_position=dims.max_position_embeddings
        )
        query = Parameter(
            name=f"{at}.q_norm.weight", placement=layer, shape=(heads.num_heads, heads.head_size), shard_dim=0
        )
        key = Parameter(
            name=f"{at}.k_norm.weight",
            placement=layer,
            shape=(heads.num_kv_heads, heads.head_size),
            shard_dim=0,
            replicate_when_short=True,
        )
        return [*parts, query, key]

    def feed_forward(at: str, layer: int) -> list[Module]:
        inner, top_k = dims.intermediate_size, config.size("num_experts_per_tok")
        return [
            *([correction_bias(f"{at}.e_score_correction_bias", layer, count)] if corrected else []),
            experts(
                at, layer, count=count, top_k=top_k, hidden=dims.hidden_size, inner=inner, shard_names=MIXTRAL_SHARDS
            ),
            router(f"{at}.gate", layer, dims.hidden_size, count, dtype="float32"),
        ]

    return assemble(
        dims,
        prefix=prefix,
        tied=False,
        attention=attention,
        feed_forward=feed_forward,
        fused=QKV_FUSED,
        num_experts=count,
    )


def ernie4_5_moe(config: ConfigView, prefix: str = "") -> Architecture:
    """Ernie4_5_MoeForCausalLM: float32 gate, experts in a range of layers at an interval (ernie45_moe.py:116, 307)."""
    heads = read_heads(config)
    dims = text_dims(config, heads)
    count, bias = config.count("moe_num_experts", 0), config.flag("use_bias")
    first, last = (
        config.count("moe_layer_start_index", 0),
        config.raw("moe_layer_end_index", dims.num_hidden_layers - 1),
    )
    interval, rope = config.size("moe_layer_interval", 1), rope_parameters(config)
    if not isinstance(last, int) or last < 0:
        last = dims.num_hidden_layers - 1
    sparse = config.flag("use_moe", count > 0)
    position = config.size("max_position_embeddings", 131072)

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden = dims.hidden_size
        if not sparse or (layer + 1) % interval or not first <= layer <= last:
            return gated_mlp(at, layer, hidden, dims.intermediate_size, bias=bias)
        inner, shared = config.size("moe_intermediate_size"), config.count("moe_num_shared_experts", 0)
        return [
            router(f"{at}.gate", layer, hidden, count, dtype="float32"),
            correction_bias(f"{at}.gate.e_score_correction_bias", layer, count),
            *(gated_mlp(f"{at}.shared_experts", layer, hidden, inner * shared) if shared else []),
            experts(at, layer, count=count, top_k=config.size("moe_k"), hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        tied=config.flag("tie_word_embeddings"),
        feed_forward=feed_forward,
        num_experts=count,
        attention=lambda at, layer: self_attention(
            at, layer, heads, qkv_bias=bias, rope=rope, max_position=position, interleaved=True
        ),
    )


def exaone_moe(config: ConfigView, prefix: str = "") -> Architecture:
    """ExaoneMoEForCausalLM: Exaone-4's attention, experts where is_moe_layer says (exaone_moe.py:60, 162)."""
    heads = read_heads(config)
    dims = text_dims(config, heads)
    bias = config.flag("attention_bias") or config.flag("bias")
    windows, rope = Windows(config), rope_parameters(config)
    sparse, count = sparse_layers(config, "is_moe_layer", dims.num_hidden_layers), config.size("num_experts")

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        position = dims.max_position_embeddings
        return self_attention(
            at, layer, heads, qkv_bias=bias, out_bias=bias, rope=rope, max_position=position, qk_norm=True, kind=kind,
            window=window,
        )  # fmt: skip

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden = dims.hidden_size
        if not sparse[layer]:
            return gated_mlp(at, layer, hidden, dims.intermediate_size, bias=config.flag("mlp_bias"))
        inner, shared = config.size("moe_intermediate_size"), config.count("num_shared_experts", 0)
        return [
            router(f"{at}.gate", layer, hidden, count),
            correction_bias(f"{at}.e_score_correction_bias", layer, count),
            *(gated_mlp(f"{at}.shared_experts", layer, hidden, inner * shared) if shared else []),
            experts(at, layer, count=count, top_k=config.size("num_experts_per_tok"), hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=feed_forward,
        num_experts=count,
    )


def hunyuan(config: ConfigView, prefix: str = "") -> Architecture:
    """HunYuanDenseV1ForCausalLM and HunYuanMoEV1ForCausalLM (hunyuan_v1.py:107, 362, 472)."""
    if config.flag("use_cla") and config.size("cla_share_factor", 1) > 1:
        raise UnsupportedError(
            "use_cla", f"{config.where}: attention shared across layers is not supported by this planner"
        )
    heads = read_heads(config, config.optional_size("head_dim") or config.optional_size("attention_head_dim"))
    width = by_layer(config, "intermediate_size", 0)
    dims = text_dims(config, heads, width)
    bias, rope = config.flag("attention_bias") or config.flag("bias"), rope_parameters(config)
    count = (
        max(config.sizes("num_experts"))
        if isinstance(config.raw("num_experts"), list)
        else config.count("num_experts", 1)
    )

    def attention(at: str, layer: int) -> list[Module]:
        parts = self_attention(
            at, layer, heads, qkv_bias=bias, out_bias=bias, rope=rope, max_position=dims.max_position_embeddings
        )
        if config.flag("use_qk_norm"):
            parts += norm(f"{at}.query_layernorm", heads.head_size, layer)
            parts += norm(f"{at}.key_layernorm", heads.head_size, layer)
        return parts

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden = dims.hidden_size
        if count <= 1:
            inner = by_layer(config, "intermediate_size", layer)
            return gated_mlp(at, layer, hidden, inner, bias=config.flag("mlp_bias"))
        inner = by_layer(config, "moe_intermediate_size", layer, width)
        shared = by_layer(config, "num_shared_expert", layer, 0) if config.raw("use_mixed_mlp_moe") else 0
        return [
            router(f"{at}.gate", layer, hidden, count),
            *(gated_mlp(f"{at}.shared_mlp", layer, hidden, width * shared) if shared else []),
            experts(at, layer, count=count, top_k=by_layer(config, "moe_topk", layer), hidden=hidden, inner=inner),
        ]

    built = assemble(
        dims,
        prefix=prefix,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=feed_forward,
        num_experts=count if count > 1 else 0,
    )
    # A single expert is no mixture here, and one to the engine (config/model.py is_moe).
    return replace(built, is_moe=config.raw("num_experts") is not None and count > 0)
