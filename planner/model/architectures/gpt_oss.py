"""gpt-oss: attention sinks, alternate sliding windows, experts with biases, a float32 rotary table.

Source: vLLM 0.26.0 model_executor/models/gpt_oss.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.assemble import LLAMA_NAMES, assemble
from planner.model.architectures.blocks import Architecture, read_heads, self_attention, text_dims
from planner.model.architectures.experts import experts, router
from planner.model.config_view import ConfigView
from planner.model.modules import AttentionKind, Module, Parameter
from planner.model.rope import rope_parameters


def gpt_oss(config: ConfigView, prefix: str = "") -> Architecture:
    """GptOssForCausalLM: even layers slide, whatever layer_types says (gpt_oss.py:72, 182)."""
    heads = read_heads(config, config.size("head_dim"))
    dims = text_dims(config, heads)
    rope = rope_parameters(config) | {"rope_type": "yarn"}
    window, count = config.optional_size("sliding_window"), config.size("num_local_experts")

    def attention(at: str, layer: int) -> list[Module]:
        slides = window is not None and layer % 2 == 0
        kind: AttentionKind = "sliding_window" if slides else "full_attention"
        parts = self_attention(
            at,
            layer,
            heads,
            qkv_bias=True,
            out_bias=True,
            rope=rope,
            rope_dtype="float32",
            max_position=dims.max_position_embeddings,
            kind=kind,
            window=window if slides else None,
            has_sinks=True,
        )
        return [Parameter(name=f"{at}.sinks", placement=layer, shape=(heads.num_heads,), shard_dim=0), *parts]

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden, inner, top_k = dims.hidden_size, dims.intermediate_size, config.size("num_experts_per_tok")
        return [
            router(f"{at}.router", layer, hidden, count, bias=True),
            experts(at, layer, count=count, top_k=top_k, hidden=hidden, inner=inner, bias=True, activation="swigluoai"),
        ]

    return assemble(
        dims,
        prefix=prefix,
        names=replace(LLAMA_NAMES, embed="embedding", attention="attn"),
        every_stage=True,
        tied=False,
        attention=attention,
        feed_forward=feed_forward,
        head_quantizable=False,
        fused={"qkv_proj": ("q_proj", "k_proj", "v_proj")},
        num_experts=count,
    )
