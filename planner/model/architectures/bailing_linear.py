"""Ling 2.5 and Ring 2.5: linear attention, each last layer of a group with latent attention, experts.

Source: vLLM 0.26.0 model_executor/models/bailing_moe_linear.py, layers/mamba/linear/bailing_linear_attn.py.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from planner.model.architectures.assemble import LLAMA_NAMES, assemble
from planner.model.architectures.blocks import Architecture, gated_mlp, norm
from planner.model.architectures.experts import correction_bias, experts, router
from planner.model.architectures.mla import Latent, latent_attention, latent_dims
from planner.model.config_view import ConfigView
from planner.model.modules import Linear, Module, Parameter, QKVLinear, State, StateSpace
from planner.model.rope import rope_parameters, rotary_cache
from planner.values import DType


def bailing_moe_v2_5(config: ConfigView) -> Architecture:
    """BailingMoeV2_5ForCausalLM: layer i has latent attention where (i + 1) is a multiple of layer_group_size."""
    sizes = Latent(
        hidden_size=config.size("hidden_size"),
        num_heads=config.size("num_attention_heads"),
        q_lora_rank=config.optional_size("q_lora_rank"),
        kv_lora_rank=config.size("kv_lora_rank", 512),
        qk_nope_head_dim=config.size("qk_nope_head_dim", 128),
        qk_rope_head_dim=config.size("qk_rope_head_dim", 64),
        v_head_dim=config.size("v_head_dim", 128),
    )
    dims = latent_dims(config, sizes)
    period = config.count("layer_group_size", 1)
    rope = rope_parameters(config)
    latent_rope = {key: value for key, value in rope.items() if key != "partial_rotary_factor"}
    count, bias = config.size("num_experts"), config.flag("use_bias")

    def attention(at: str, layer: int) -> list[Module]:
        if period and (layer + 1) % period:
            return _linear_attention(at, layer, config, rope, dims.max_position_embeddings)
        return latent_attention(at, layer, sizes, latent_rope, dims.max_position_embeddings)

    def feed_forward(at: str, layer: int) -> list[Module]:
        if count == 1 or layer < config.count("first_k_dense_replace", 0):
            return gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size, bias=bias)
        return _experts(at, layer, config, count, bias=bias)

    built = assemble(
        dims,
        names=replace(LLAMA_NAMES, embed="word_embeddings"),
        attention=attention,
        feed_forward=feed_forward,
        tied=False,
        fused={"gate_up_proj": ("gate_proj", "up_proj")},
        num_experts=count,
        use_mla=True,
    )
    return replace(built, is_hybrid=True)


def _linear_attention(at: str, layer: int, config: ConfigView, rope: dict[str, Any], max_position: int) -> list[Module]:
    """One state of head size squared for each head; the gated norm's groups are divided among the ranks."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    size = config.optional_size("head_dim") or hidden // heads
    bias, inner = config.flag("use_bias"), heads * size
    parts: list[Module] = [
        StateSpace(
            name=at,
            placement=layer,
            kind="linear_attention",
            states=(State(role="conv", shape=(heads, size, size), shard_dim=0),),
            num_heads=heads,
        ),
        QKVLinear(
            name=f"{at}.query_key_value",
            placement=layer,
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=heads,
            head_size=size,
            bias=bias or config.flag("use_qkv_bias"),
            shard_names=("query_key_value",),
        ),
    ]
    if config.flag("use_qk_norm"):
        parts += norm(f"{at}.query_layernorm", size, layer) + norm(f"{at}.key_layernorm", size, layer)
    parts += [
        Linear(name=f"{at}.g_proj", placement=layer, input_size=hidden, output_sizes=(inner,), parallelism="column"),
        Linear(
            name=f"{at}.dense",
            placement=layer,
            input_size=inner,
            output_sizes=(hidden,),
            parallelism="row",
            bias=bias,
        ),
        Parameter(
            name=f"{at}.g_norm.weight",
            placement=layer,
            shape=(inner,),
            shard_dim=0,
            norm_groups=config.size("group_norm_size", 1),
        ),
        rotary_cache(f"{at}.rotary_emb", size, max_position, rope, placement=layer),
    ]
    return parts


def _experts(at: str, layer: int, config: ConfigView, count: int, *, bias: bool) -> list[Module]:
    hidden, inner = config.size("hidden_size"), config.size("moe_intermediate_size")
    shared = config.count("num_shared_experts")
    width = config.size("moe_shared_expert_intermediate_size", inner) * shared
    gate: DType = "float32" if config.raw("router_dtype") in (None, "fp32") else "bfloat16"
    corrected = config.flag("moe_router_enable_expert_bias")
    return [
        router(f"{at}.gate", layer, hidden, count, dtype=gate),
        *([correction_bias(f"{at}.gate.expert_bias", layer, count)] if corrected else []),
        *(gated_mlp(f"{at}.shared_experts", layer, hidden, width, bias=bias) if shared else []),
        experts(at, layer, count=count, top_k=config.size("num_experts_per_tok"), hidden=hidden, inner=inner),
    ]
