"""MiniMax-M3: grouped attention with an indexer in the same projection, experts after dense first layers.

Source: vLLM 0.26.0 models/minimax_m3/nvidia/model.py, models/minimax_m3/common/indexer.py,
model_executor/layers/linear.py MinimaxM3QKVParallelLinearWithIndexer.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.assemble import LLAMA_NAMES, assemble
from planner.model.architectures.blocks import Architecture, gated_mlp, norm, read_heads, self_attention, text_dims
from planner.model.architectures.experts import MIXTRAL_SHARDS, correction_bias, experts, router, sparse_layers
from planner.model.config_view import ConfigView
from planner.model.modules import IndexerCache, Module, QKVLinear, TokenBuffer


def minimax_m3(config: ConfigView, prefix: str = "") -> Architecture:
    """MiniMaxM3SparseForCausalLM (model.py:191, 288, 388, 768). The indexer's cache keeps the model's dtype unless an
    attention config says otherwise. Layers for multi-token prediction are not built."""
    heads = read_heads(config, config.size("head_dim"))
    dims = text_dims(config, heads)
    rope = {
        "rope_type": "default",
        "rope_theta": config.number("rope_theta"),
        "partial_rotary_factor": config.number("partial_rotary_factor", 1.0),
    }
    sparse = config.section("sparse_attention_config")
    indexed = _indexed_layers(sparse)
    routed = sparse_layers(config, "moe_layer_freq", dims.num_hidden_layers) if "moe_layer_freq" in config else None
    count = config.size("num_local_experts")
    if indexed and sparse.size("sparse_num_index_heads") != heads.num_kv_heads:
        raise InputError(f"{sparse.where}: sparse_num_index_heads must be the number of KV heads, {heads.num_kv_heads}")

    def attention(at: str, layer: int) -> list[Module]:
        parts = self_attention(at, layer, heads, rope=rope, max_position=dims.max_position_embeddings, qk_norm=True)
        if layer not in indexed:
            return parts
        size = sparse.size("sparse_index_dim")
        parts = [replace(part, index_head_size=size) if isinstance(part, QKVLinear) else part for part in parts]
        parts += norm(f"{at}.index_q_norm", size, layer) + norm(f"{at}.index_k_norm", size, layer)
        return [*parts, IndexerCache(name=f"{at}.attn.index_cache", placement=layer, head_size=size, dtype=None)]

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden, inner = dims.hidden_size, dims.intermediate_size
        if routed is not None and not routed[layer]:
            return gated_mlp(f"{at}.mlp", layer, hidden, config.size("dense_intermediate_size"))
        at = f"{at}.block_sparse_moe"
        corrected = config.flag("use_routing_bias")
        shared, top_k = config.count("n_shared_experts", 0), config.size("num_experts_per_tok")
        return [
            *([correction_bias(f"{at}.e_score_correction_bias", layer, count)] if corrected else []),
            router(f"{at}.gate", layer, hidden, count, dtype="float32"),
            *(gated_mlp(f"{at}.shared_experts", layer, hidden, inner * shared) if shared else []),
            experts(
                at,
                layer,
                count=count,
                top_k=top_k,
                hidden=hidden,
                inner=inner,
                shard_names=MIXTRAL_SHARDS,
                activation="swigluoai_uninterleave",
            ),
        ]

    base = assemble(
        dims,
        prefix=prefix,
        names=replace(LLAMA_NAMES, mlp=""),
        tied=False,
        attention=attention,
        feed_forward=lambda at, layer: feed_forward(at.removesuffix("."), layer),
        num_experts=count,
    )
    if not sparse.data:
        return base
    buffer = TokenBuffer(
        name=f"{prefix}model.topk_indices_buffer",
        columns=sparse.size("sparse_topk_blocks"),
        dtype="int32",
        heads=sparse.size("sparse_num_index_heads"),
    )
    return replace(base, modules=(*base.modules, buffer))


def _indexed_layers(sparse: ConfigView) -> frozenset[int]:
    """Layers whose attention has the indexer: those with a frequency other than zero (model.py:95)."""
    frequencies: Any = sparse.raw("sparse_attention_freq") or []
    if not isinstance(frequencies, list):
        raise InputError(f"{sparse.where}: sparse_attention_freq must be a list")
    return frozenset(layer for layer, frequency in enumerate(frequencies) if frequency)
