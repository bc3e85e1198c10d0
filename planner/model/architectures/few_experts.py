"""Param-2's mixture of experts, and IQuest's looped decoder.

Source: vLLM 0.26.0 model_executor/models/{param2moe,iquest_loopcoder}.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.assemble import assemble
from planner.model.architectures.blocks import (
    Architecture,
    gated_mlp,
    norm,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.experts import correction_bias, experts, router
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, Linear, Module
from planner.model.rope import rope_parameters

_LOOP_WINDOW = 64


def param2_moe(config: ConfigView, prefix: str = "") -> Architecture:
    """Param2MoEForCausalLM: a shared expert's stated width is that of all shared experts together."""
    heads = read_heads(config)
    dims = text_dims(config, heads)
    share = config.number("partial_rotary_factor", 1.0)
    rope = {**rope_parameters(config), "partial_rotary_factor": 1.0}
    count = config.size("num_experts")
    rotated = int(heads.head_size * share)

    def attention(at: str, layer: int) -> list[Module]:
        parts = self_attention(
            at,
            layer,
            heads,
            qkv_bias=config.flag("use_qkv_bias"),
            out_bias=config.flag("use_bias"),
            rope={**rope, "rope_dim": rotated},
            max_position=dims.max_position_embeddings,
            shard_names=("query_key_value",),
        )
        if config.flag("use_qk_norm"):
            parts += norm(f"{at}.q_layernorm", heads.head_size, layer)
            parts += norm(f"{at}.k_layernorm", heads.head_size, layer)
        return parts

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden, inner = dims.hidden_size, config.size("moe_intermediate_size", 1)
        if layer < config.count("first_k_dense_replace", 1):
            return gated_mlp(at, layer, hidden, dims.intermediate_size)
        shared = config.count("num_shared_experts", 1)
        width = config.size("moe_shared_expert_intermediate_size", inner * max(shared, 1))
        corrected = config.flag("moe_router_enable_expert_bias", True)
        return [
            router(f"{at}.gate", layer, hidden, count),
            *([correction_bias(f"{at}.gate.e_score_correction_bias", layer, count)] if corrected else []),
            *(gated_mlp(f"{at}.shared_experts", layer, hidden, width) if shared else []),
            experts(at, layer, count=count, top_k=config.size("num_experts_per_tok"), hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=feed_forward,
        fused={"qkv_proj": ("query_key_value",), "gate_up_proj": ("gate_proj", "up_proj")},
        num_experts=count,
    )


def iquest_loop_coder(config: ConfigView, prefix: str = "") -> Architecture:
    """IQuestLoopCoderForCausalLM: the layers run loop_num times, each time with a cache of its own, windowed from the
    second on, and gated by a projection of each head (iquest_loopcoder.py:60, 279)."""
    config.require("dual_chunk_attention_config", (None,))
    config.require("is_causal", (True,), True)
    heads = read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))
    dims = text_dims(config, heads)
    rope, rounds = rope_parameters(config), config.size("loop_num", 2)
    window = config.size("loop_window_size", _LOOP_WINDOW)

    def attention(at: str, layer: int) -> list[Module]:
        spread: list[Module] = []
        for part in self_attention(at, layer, heads, rope=rope, max_position=dims.max_position_embeddings):
            if not isinstance(part, Attention):
                spread.append(part)
                continue
            spread.append(replace(part, name=f"{at}.attn.0"))
            spread += [
                replace(part, name=f"{at}.attn.{step}", kind="sliding_window", window=window)
                for step in range(1, rounds)
            ]
        gate = Linear(
            name=f"{prefix}model.gate_projections.{layer}.gate_proj",
            placement=layer,
            input_size=heads.head_size,
            output_sizes=(heads.num_heads,),
            parallelism="column",
            bias=True,
        )
        return [*spread, gate]

    return assemble(
        dims,
        prefix=prefix,
        every_stage=True,
        supports_pp=False,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=lambda at, layer: gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size),
    )
