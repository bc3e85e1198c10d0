"""Step-3 and Step-3.5: shared query projections, head-wise gates, experts beside a shared one.

Source: vLLM 0.26.0 model_executor/models/{step3_text,step3p5}.py.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.assemble import LLAMA_NAMES, assemble
from planner.model.architectures.blocks import (
    LLAMA_FUSED,
    Architecture,
    Heads,
    gated_mlp,
    norm,
    self_attention,
    text_dims,
)
from planner.model.architectures.experts import correction_bias, experts, layer_list, router
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, AttentionKind, Linear, Module
from planner.model.rope import rope_parameters, rotary_cache


def step3_text(config: ConfigView, prefix: str = "") -> Architecture:
    """Step3TextForCausalLM: one KV head, replicated with a shared query that wq spreads over the heads
    (step3_text.py:140, 224)."""
    hidden, count = config.size("hidden_size"), config.size("num_attention_heads")
    heads = Heads(hidden_size=hidden, num_heads=count, num_kv_heads=1, head_size=config.size("head_dim"))
    dims = text_dims(config, heads)
    size, query = heads.head_size, config.optional_size("share_q_dim") or heads.head_size
    rope, position = rope_parameters(config), config.size("max_position_embedding", 8192)
    num_experts = config.size("moe_num_experts")
    sparse = layer_list(config, "moe_layers_enum") or frozenset(range(1, dims.num_hidden_layers))

    def attention(at: str, layer: int) -> list[Module]:
        return [
            Linear(name=f"{at}.qkv_proj", placement=layer, input_size=hidden, output_sizes=(query + 2 * size,)),
            Linear(
                name=f"{at}.o_proj", placement=layer, input_size=count * size, output_sizes=(hidden,), parallelism="row"
            ),
            *norm(f"{at}.inter_norm", query, layer),
            Linear(
                name=f"{at}.wq", placement=layer, input_size=query, output_sizes=(size * count,), parallelism="column"
            ),
            rotary_cache(f"{at}.rotary_emb", size, position, rope, placement=layer),
            Attention(
                name=f"{at}.attn",
                placement=layer,
                kind="full_attention",
                num_heads=count,
                num_kv_heads=1,
                head_size=size,
            ),
        ]

    def feed_forward(at: str, layer: int) -> list[Module]:
        if layer not in sparse:
            return gated_mlp(f"{at}.mlp", layer, hidden, dims.intermediate_size)
        inner, top_k = config.size("moe_intermediate_size"), config.size("moe_top_k")
        return [
            experts(f"{at}.moe", layer, count=num_experts, top_k=top_k, hidden=hidden, inner=inner),
            router(f"{at}.moe.gate", layer, hidden, num_experts),
            *gated_mlp(f"{at}.share_expert", layer, hidden, config.size("share_expert_dim")),
        ]

    return assemble(
        dims,
        prefix=prefix,
        names=replace(LLAMA_NAMES, mlp=""),
        tied=False,
        attention=attention,
        feed_forward=lambda at, layer: feed_forward(at.removesuffix("."), layer),
        fused=LLAMA_FUSED,
        head_quantizable=False,
        num_experts=num_experts,
    )


def step3p5(config: ConfigView, prefix: str = "") -> Architecture:
    """Step3p5ForCausalLM (step3p5.py:131, 294, 416). Layers for multi-token prediction are not built."""
    config.require("att_impl_type", ("GQA",), "GQA")
    full = _heads(config)
    dims = text_dims(config, full)
    types = config.strings("layer_types", ())
    count = config.size("moe_num_experts")
    sparse = layer_list(config, "moe_layers_enum") or frozenset(range(1, dims.num_hidden_layers))
    window = config.optional_size("sliding_window")

    def attention(at: str, layer: int) -> list[Module]:
        slides = window is not None and (types[layer] == "sliding_attention" if types else layer % 2 == 0)
        heads = _layer_heads(config, full, types, layer)
        kind: AttentionKind = "sliding_window" if slides else "full_attention"
        parts = self_attention(
            at,
            layer,
            heads,
            rope=_rope(config, types, layer),
            max_position=dims.max_position_embeddings,
            qk_norm=True,
            kind=kind,
            window=window if slides else None,
            qkv_bias=config.flag("attention_bias"),
        )
        if config.flag("use_head_wise_attn_gate"):
            parts.append(
                Linear(
                    name=f"{at}.g_proj",
                    placement=layer,
                    input_size=dims.hidden_size,
                    output_sizes=(heads.num_heads,),
                    parallelism="column",
                )
            )
        return parts

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden = dims.hidden_size
        if layer not in sparse:
            return gated_mlp(f"{at}.mlp", layer, hidden, dims.intermediate_size)
        inner, top_k = config.size("moe_intermediate_size"), config.size("moe_top_k")
        return [
            router(f"{at}.moe.gate", layer, hidden, count, dtype="float32"),
            correction_bias(f"{at}.moe.router_bias", layer, count),
            *gated_mlp(f"{at}.moe.share_expert", layer, hidden, config.size("share_expert_dim")),
            experts(f"{at}.moe", layer, count=count, top_k=top_k, hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        names=replace(LLAMA_NAMES, mlp=""),
        tied=False,
        attention=attention,
        feed_forward=lambda at, layer: feed_forward(at.removesuffix("."), layer),
        num_experts=count,
    )


def _heads(config: ConfigView) -> Heads:
    hidden, count = config.size("hidden_size"), config.size("num_attention_heads")
    groups = config.size("num_attention_groups", config.size("num_key_value_heads", count))
    size = config.optional_size("head_dim") or hidden // count
    return Heads(hidden_size=hidden, num_heads=count, num_kv_heads=groups, head_size=size)


def _layer_heads(config: ConfigView, full: Heads, types: tuple[str, ...], layer: int) -> Heads:
    """Layers of the type that attention_other_setting names have its head counts (step3p5.py:437)."""
    other = config.raw("attention_other_setting")
    if not other or not types:
        return full
    section = config.section("attention_other_setting")
    if types[layer] != section.text("attention_type"):
        return full
    return replace(
        full,
        num_heads=section.size("num_attention_heads"),
        num_kv_heads=section.size("num_attention_groups"),
        head_size=section.size("head_dim"),
    )


def _rope(config: ConfigView, types: tuple[str, ...], layer: int) -> dict[str, Any]:
    """Theta and the rotated share may be lists by layer; yarn counts only for the types it is named for."""
    result = rope_parameters(config)
    only = config.raw("yarn_only_types")
    if only and types and types[layer] not in only:
        result = {"rope_type": "default"}
    theta = config.raw("rope_theta", 10000.0)
    shares = config.raw("partial_rotary_factors") or []
    for name, value in (("rope_theta", theta), ("partial_rotary_factors", shares)):
        if isinstance(value, list) and value and layer >= len(value):
            raise InputError(f"{config.where}: {name} has {len(value)} entries, none for layer {layer}")
    result["rope_theta"] = theta[layer] if isinstance(theta, list) else theta
    result["partial_rotary_factor"] = shares[layer] if shares else 1.0
    return result
