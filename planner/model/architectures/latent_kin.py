"""Latent attention outside DeepSeek's own class: A.X K1, Sarvam and openPangu.

Source: vLLM 0.26.0 model_executor/models/{AXK1,sarvam,openpangu}.py.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.architectures.assemble import LLAMA_NAMES, assemble
from planner.model.architectures.blocks import (
    LLAMA_FUSED,
    Architecture,
    gated_mlp,
    norm,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.experts import correction_bias, experts, router
from planner.model.architectures.llama import llama_biases
from planner.model.architectures.mla import (
    GATED,
    QKV_A,
    deepseek,
    latent_attention,
    latent_dims,
    read_latent,
    whole_in_sequence_parallel,
)
from planner.model.config_view import ConfigView
from planner.model.modules import Module
from planner.model.rope import rope_parameters
from planner.values import DType

_AXK1_DEFAULTS = {
    "vocab_size": 163840,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 64,
    "n_shared_experts": 1,
    "n_routed_experts": 192,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "topk_method": "noaux_tc",
    "num_experts_per_tok": 8,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "rope_theta": 10000.0,
}
"""What vLLM's own AXK1Config fills in (transformers_utils/configs/AXK1.py:120)."""
_PANGU_NORMS = (*LLAMA_NAMES.norms, "pre_mlp_layernorm", "post_mlp_layernorm")


def axk1(config: ConfigView, prefix: str = "") -> Architecture:
    """AXK1ForCausalLM: DeepSeek-V3 with one more norm behind each MLP (AXK1.py:634)."""
    config.require("index_topk", (None,))
    built = deepseek(ConfigView({**_AXK1_DEFAULTS, **config.data}, config.where, config.model_type), prefix)
    hidden, layers = built.text.hidden_size, built.text.num_hidden_layers
    norms = [
        part
        for layer in range(layers)
        for part in norm(f"{prefix}model.layers.{layer}.post_mlp_layernorm", hidden, layer)
    ]
    return replace(built, modules=(*built.modules, *norms))


def sarvam_mla(config: ConfigView, prefix: str = "") -> Architecture:
    """SarvamMLAForCausalLM: nothing is fused before the latent; a float32 gate unless the file says otherwise."""
    sizes = read_latent(ConfigView({"q_lora_rank": None, **config.data}, config.where, config.model_type))
    dims = latent_dims(config, sizes)
    rope = rope_parameters(config)
    config.require("router_dtype", ("fp32", "bf16"), "fp32")
    gate: DType = "float32" if config.text("router_dtype", "fp32") == "fp32" else "bfloat16"
    count = config.count("num_experts", 0)
    dense, step = config.count("first_k_dense_replace", 1), config.size("moe_layer_freq", 1)

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden = dims.hidden_size
        if not count or layer < dense or (layer - dense) % step:
            return gated_mlp(at, layer, hidden, dims.intermediate_size)
        inner, shared = config.size("moe_intermediate_size"), config.count("num_shared_experts", 1)
        width = config.size("moe_shared_expert_intermediate_size", inner) * shared
        corrected = config.flag("moe_router_enable_expert_bias", True)
        return [
            router(f"{at}.gate", layer, hidden, count, dtype=gate),
            *([correction_bias(f"{at}.gate.e_score_correction_bias", layer, count)] if corrected else []),
            *(gated_mlp(f"{at}.shared_experts", layer, hidden, width) if shared else []),
            experts(at, layer, count=count, top_k=config.size("num_experts_per_tok"), hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        tied=config.flag("tie_word_embeddings"),
        attention=lambda at, layer: latent_attention(at, layer, sizes, rope, dims.max_position_embeddings, fused=False),
        feed_forward=feed_forward,
        fused=GATED,
        num_experts=count,
        use_mla=True,
    )


def pangu(config: ConfigView, prefix: str = "") -> Architecture:
    """PanguEmbedded-, PanguUltraMoE- and PanguProMoEV2ForCausalLM: latent attention where the config has its sizes,
    a norm before and behind each part where sandwich_norm asks for them (openpangu.py:770)."""
    if config.count("param_sink_number", 0):
        raise UnsupportedError("param_sink_number", "openPangu's attention with sinks is not supported by this planner")
    config.require("interleaved_sliding_window", (None,))
    config.require("hidden_act", ("silu",), "silu")
    latent = all(
        config.raw(key) is not None for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
    )
    count = config.count("n_routed_experts", 0)
    dims, attention = _pangu_latent(config) if latent else _pangu_plain(config)

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden = dims.hidden_size
        if not count or layer < config.count("first_k_dense_replace"):
            return gated_mlp(at, layer, hidden, dims.intermediate_size, bias=config.flag("mlp_bias"))
        inner, shared = config.size("moe_intermediate_size"), config.count("n_shared_experts", 0)
        corrected = config.flag("router_enable_expert_bias")
        beside = gated_mlp(f"{at}.shared_experts", layer, hidden, inner * shared) if shared else []
        return [
            router(f"{at}.gate", layer, hidden, count),
            *([correction_bias(f"{at}.gate.e_score_correction_bias", layer, count)] if corrected else []),
            *whole_in_sequence_parallel(beside),
            experts(at, layer, count=count, top_k=config.size("num_experts_per_tok"), hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        names=replace(LLAMA_NAMES, norms=_PANGU_NORMS) if config.flag("sandwich_norm") else LLAMA_NAMES,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=feed_forward,
        fused=LLAMA_FUSED | (QKV_A if latent and config.raw("q_lora_rank") is not None else {}),
        num_experts=count,
        use_mla=latent,
    )


def _pangu_latent(config: ConfigView) -> tuple[Any, Any]:
    """DeepSeek's yarn with factor 1, whatever the config says of scaling (openpangu.py:345)."""
    sizes = read_latent(config)
    dims = latent_dims(config, sizes)
    position = dims.max_position_embeddings
    rope = {
        "rope_type": "deepseek_yarn",
        "rope_theta": rope_parameters(config).get("rope_theta", 10_000),
        "factor": 1,
        "original_max_position_embeddings": position,
    }
    return dims, lambda at, layer: latent_attention(at, layer, sizes, rope, position)


def _pangu_plain(config: ConfigView) -> tuple[Any, Any]:
    heads, rope = read_heads(config), rope_parameters(config)
    dims = text_dims(config, heads)
    config.require("is_causal", (True,), True)
    qkv_bias, out_bias = llama_biases(config)

    def attention(at: str, layer: int) -> list[Module]:
        return self_attention(
            at,
            layer,
            heads,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            rope=rope,
            max_position=dims.max_position_embeddings,
        )

    return dims, attention
