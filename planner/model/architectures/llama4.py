"""Llama 4's language model: chunked local attention on most layers, experts on every n-th.

Source: vLLM 0.26.0 model_executor/models/llama4.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.assemble import LLAMA_NAMES, assemble
from planner.model.architectures.blocks import Architecture, gated_mlp, read_heads, self_attention, text_dims
from planner.model.architectures.experts import experts, router
from planner.model.architectures.mla import whole_in_sequence_parallel
from planner.model.config_view import ConfigView
from planner.model.modules import AttentionKind, Module
from planner.model.rope import rope_parameters


def llama4(config: ConfigView, prefix: str = "") -> Architecture:
    """Llama4ForCausalLM. `no_rope_layers` has 0 for layers without positions, which attend to everything
    (llama4.py:73, 169, 312); transformers fills it with every fourth layer."""
    heads = read_heads(config, config.size("head_dim"))
    dims = text_dims(config, heads)
    count, step = config.size("num_local_experts"), config.count("interleave_moe_layer_step", 1)
    rotary = _rotary_layers(config, dims.num_hidden_layers)
    chunk, rope = config.optional_size("attention_chunk_size"), rope_parameters(config)

    def attention(at: str, layer: int) -> list[Module]:
        local = rotary[layer] and chunk is not None
        kind: AttentionKind = "chunked_local_attention" if local else "full_attention"
        return self_attention(
            at,
            layer,
            heads,
            rope=rope if rotary[layer] else None,
            max_position=dims.max_position_embeddings,
            kind=kind,
            window=chunk if local else None,
        )

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden, inner = dims.hidden_size, dims.intermediate_size
        if not step or (layer + 1) % step:
            return gated_mlp(at, layer, hidden, config.size("intermediate_size_mlp"))
        return [
            router(f"{at}.router", layer, hidden, count),
            *whole_in_sequence_parallel(gated_mlp(f"{at}.shared_expert", layer, hidden, inner)),
            experts(at, layer, count=count, top_k=config.size("num_experts_per_tok"), hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        names=replace(LLAMA_NAMES, mlp="feed_forward"),
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=feed_forward,
        num_experts=count,
    )


def _rotary_layers(config: ConfigView, layers: int) -> list[bool]:
    given = config.sizes("no_rope_layers", ())
    if given:
        return [bool(value) for value in given]
    interval = config.size("no_rope_layer_interval", 4)
    return [bool((layer + 1) % interval) for layer in range(layers)]
