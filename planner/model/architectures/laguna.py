"""Laguna: gated attention with head counts by layer, a separate gate and up projection.

Source: vLLM 0.26.0 model_executor/models/laguna.py.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.assemble import Windows, assemble
from planner.model.architectures.blocks import Architecture, Heads, read_heads, self_attention, text_dims
from planner.model.architectures.experts import by_layer, correction_bias, experts, router
from planner.model.architectures.moe import QKV_FUSED, is_sparse
from planner.model.config_view import ConfigView
from planner.model.modules import Linear, Module, Parameter
from planner.model.rope import rope_parameters


def laguna(config: ConfigView, prefix: str = "") -> Architecture:
    """LagunaForCausalLM (laguna.py:57, 112, 241, 458). A layer without a window of its own has none."""
    heads = read_heads(config)
    dims = text_dims(config, heads)
    windows = Windows(config)
    gating = config.raw("gating", False)
    sinks = config.flag("swa_attention_sink_enabled")
    ropes = {"sliding_window": _rope(config, True), "full_attention": _rope(config, False)}
    count = config.count("num_experts")
    shared = config.count("shared_expert_intermediate_size", 0)

    def attention(at: str, layer: int) -> list[Module]:
        own = replace(heads, num_heads=by_layer(config, "num_attention_heads_per_layer", layer, heads.num_heads))
        kind, window = windows.of(layer)
        has_sinks = sinks and kind == "sliding_window"
        parts = self_attention(
            at,
            layer,
            own,
            qkv_bias=config.flag("qkv_bias"),
            out_bias=config.flag("attention_bias"),
            rope=ropes[kind],
            max_position=dims.max_position_embeddings,
            qk_norm=True,
            kind=kind,
            window=window,
            has_sinks=has_sinks,
        )
        if gating:
            parts.append(_gate(at, layer, own, gating))
        if has_sinks:
            parts.append(Parameter(name=f"{at}.sink", placement=layer, shape=(own.num_heads,), shard_dim=0))
        return parts

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden = dims.hidden_size
        if not is_sparse(config, layer):
            return _mlp(at, layer, hidden, dims.intermediate_size)
        inner, top_k = config.size("moe_intermediate_size"), config.size("num_experts_per_tok")
        return [
            router(f"{at}.gate", layer, hidden, count),
            *(_mlp(f"{at}.shared_expert", layer, hidden, shared) if shared else []),
            experts(at, layer, count=count, top_k=top_k, hidden=hidden, inner=inner),
            correction_bias(f"{at}.experts.routed_experts.e_score_correction_bias", layer, count),
        ]

    return assemble(
        dims,
        prefix=prefix,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=feed_forward,
        fused=QKV_FUSED,
        num_experts=count,
    )


def _mlp(at: str, layer: int, hidden: int, inner: int) -> list[Module]:
    columns = [
        Linear(name=f"{at}.{name}", placement=layer, input_size=hidden, output_sizes=(inner,), parallelism="column")
        for name in ("gate_proj", "up_proj")
    ]
    down = Linear(name=f"{at}.down_proj", placement=layer, input_size=inner, output_sizes=(hidden,), parallelism="row")
    return [*columns, down]


def _gate(at: str, layer: int, heads: Heads, gating: Any) -> Linear:
    """The attention's output gate: one number a head, or one for each of its elements."""
    per_head = gating is True or gating == "per-head"
    width = heads.num_heads if per_head else heads.num_heads * heads.head_size
    return Linear(
        name=f"{at}.g_proj", placement=layer, input_size=heads.hidden_size, output_sizes=(width,), parallelism="column"
    )


def _rope(config: ConfigView, sliding: bool) -> dict[str, Any]:
    """Sliding layers use swa_rope_parameters, or the entry of their type, or the common settings (laguna.py:333)."""
    swa = config.raw("swa_rope_parameters")
    if sliding and swa is not None:
        if not isinstance(swa, dict):
            raise InputError(f"{config.where}: swa_rope_parameters must be an object")
        view = ConfigView({**config.data, "rope_parameters": swa}, config.where, config.model_type)
        return rope_parameters(view)
    return rope_parameters(config, "sliding_attention" if sliding else "full_attention")
