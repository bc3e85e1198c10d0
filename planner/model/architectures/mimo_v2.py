"""MiMo-V2: sliding layers with their own head sizes and sinks, values narrower than keys, float32 routers.

Source: vLLM 0.26.0 model_executor/models/mimo_v2.py.
"""

from __future__ import annotations

from typing import Any

from planner.model.architectures.assemble import assemble
from planner.model.architectures.blocks import LLAMA_FUSED, Architecture, Heads, gated_mlp, self_attention, text_dims
from planner.model.architectures.experts import correction_bias, experts, router, sparse_layers
from planner.model.config_view import ConfigView
from planner.model.modules import AttentionKind, Module, Parameter
from planner.values import DType


def mimo_v2_flash(config: ConfigView, prefix: str = "") -> Architecture:
    """MiMoV2FlashForCausalLM (mimo_v2.py:114, 220, 360). Layers for multi-token prediction are not built."""
    return _mimo_v2(config, prefix, LLAMA_FUSED)


def mimo_v2(config: ConfigView, prefix: str = "") -> Architecture:
    """MiMoV2ForCausalLM: the same, from a checkpoint that is already fused (mimo_v2.py:902)."""
    return _mimo_v2(config, prefix, LLAMA_FUSED | {"qkv_proj": ("qkv_proj",)})


def _mimo_v2(config: ConfigView, prefix: str, fused: dict[str, tuple[str, ...]]) -> Architecture:
    config.require("tie_word_embeddings", (False,), False)
    full, swa = _heads(config, ""), _heads(config, "swa_")
    dims = text_dims(config, full[0])
    sliding = sparse_layers(config, "hybrid_layer_pattern", dims.num_hidden_layers)
    sparse = _moe_layers(config, dims.num_hidden_layers)
    theta = config.number("rope_theta", 1000000)
    window = config.integer("sliding_window_size", -1)
    sinks, bias = config.flag("add_swa_attention_sink_bias"), config.flag("attention_bias")
    config.require("moe_router_dtype", ("float32", "bfloat16", "float16"), "float32")
    gate: DType = config.raw("moe_router_dtype", "float32")
    position, count = config.size("max_position_embeddings", 32768), config.count("n_routed_experts", 0)

    def attention(at: str, layer: int) -> list[Module]:
        heads, head_size_v = swa if sliding[layer] else full
        slides = sliding[layer] and window > -1
        kind: AttentionKind = "sliding_window" if slides else "full_attention"
        rope: dict[str, Any] = {
            "rope_type": "default",
            "rope_theta": config.number("swa_rope_theta", theta) if sliding[layer] else theta,
            "partial_rotary_factor": config.number("partial_rotary_factor", 1.0),
        }
        parts = self_attention(
            at,
            layer,
            heads,
            qkv_bias=bias,
            rope=rope,
            max_position=position,
            kind=kind,
            window=window if slides else None,
            has_sinks=sinks and sliding[layer],
            head_size_v=head_size_v,
        )
        if sinks and sliding[layer]:
            shape = (heads.num_heads,)
            parts.append(Parameter(name=f"{at}.attention_sink_bias", placement=layer, shape=shape, shard_dim=0))
        return parts

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden = dims.hidden_size
        if not sparse[layer]:
            return gated_mlp(at, layer, hidden, dims.intermediate_size)
        inner, top_k = config.size("moe_intermediate_size"), config.size("num_experts_per_tok")
        return [
            router(f"{at}.gate", layer, hidden, count, dtype=gate),
            correction_bias(f"{at}.gate.e_score_correction_bias", layer, count, gate),
            experts(at, layer, count=count, top_k=top_k, hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        tied=False,
        attention=attention,
        feed_forward=feed_forward,
        fused=fused,
        num_experts=count,
    )


def _heads(config: ConfigView, prefix: str) -> tuple[Heads, int]:
    """Sizes of one kind of layer, and the width of its values."""
    heads = Heads(
        hidden_size=config.size("hidden_size"),
        num_heads=config.size(f"{prefix}num_attention_heads"),
        num_kv_heads=config.size(f"{prefix}num_key_value_heads"),
        head_size=config.size(f"{prefix}head_dim"),
    )
    return heads, config.optional_size(f"{prefix}v_head_dim") or heads.head_size


def _moe_layers(config: ConfigView, layers: int) -> list[bool]:
    """moe_layer_freq marks the layers with experts; a plain number there means none (mimo_v2.py:454)."""
    if isinstance(config.raw("moe_layer_freq"), list):
        return sparse_layers(config, "moe_layer_freq", layers)
    return [False] * layers
