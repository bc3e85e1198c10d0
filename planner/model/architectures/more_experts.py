"""Mixtures of experts with names and norms of their own: Bailing / Ling, FlexOlmo, AFMoE, DBRX, Hunyuan 3.

Source: vLLM 0.26.0 model_executor/models/{bailing_moe,flex_olmo,afmoe,dbrx,hy_v3}.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.assemble import LLAMA_NAMES, Names, Windows, alternate, assemble
from planner.model.architectures.blocks import (
    Architecture,
    Heads,
    gated_mlp,
    norm,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.dense import POST_NORMS
from planner.model.architectures.experts import MIXTRAL_SHARDS, correction_bias, experts, router
from planner.model.architectures.moe import olmoe
from planner.model.config_view import ConfigView
from planner.model.modules import FusedMoE, Linear, Module
from planner.model.rope import rope_parameters
from planner.model.spec import TextDims
from planner.values import DType


def bailing_moe(config: ConfigView, prefix: str = "") -> Architecture:
    """BailingMoeForCausalLM, BailingMoeV2ForCausalLM (bailing_moe.py:71, 213, 324)."""
    heads = read_heads(config)
    dims = text_dims(config, heads)
    bias, qk_norm = config.flag("use_bias"), config.flag("use_qk_norm")
    rope = rope_parameters(config)
    if config.raw("rotary_dim") is not None:
        rope["partial_rotary_factor"] = config.size("rotary_dim") / heads.head_size
    config.require("router_dtype", (None, "fp32", "bf16"))
    gates: dict[str, DType] = {"fp32": "float32", "bf16": "bfloat16"}
    gate = gates.get(config.text("router_dtype", ""))
    count = config.size("num_experts")

    def attention(at: str, layer: int) -> list[Module]:
        parts = self_attention(
            at,
            layer,
            heads,
            qkv_bias=bias or config.flag("use_qkv_bias"),
            out_bias=bias,
            rope=rope,
            max_position=dims.max_position_embeddings,
            qkv_name="query_key_value",
            out_name="dense",
            shard_names=("query_key_value",),
        )
        if qk_norm:
            layer_norm = not config.flag("use_rmsnorm")
            parts += norm(f"{at}.query_layernorm", heads.head_size, layer, bias=layer_norm)
            parts += norm(f"{at}.key_layernorm", heads.head_size, layer, bias=layer_norm)
        return parts

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden, inner = dims.hidden_size, config.size("moe_intermediate_size")
        if layer < config.count("first_k_dense_replace", 0):
            return gated_mlp(at, layer, hidden, dims.intermediate_size, bias=bias)
        shared = config.count("num_shared_experts", 0)
        width = config.size("moe_shared_expert_intermediate_size", inner) * shared
        corrected = config.flag("moe_router_enable_expert_bias")
        return [
            router(f"{at}.gate", layer, hidden, count, dtype=gate),
            *([correction_bias(f"{at}.gate.expert_bias", layer, count)] if corrected else []),
            *(gated_mlp(f"{at}.shared_experts", layer, hidden, width, bias=bias) if shared else []),
            experts(at, layer, count=count, top_k=config.size("num_experts_per_tok"), hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        names=replace(LLAMA_NAMES, embed="word_embeddings", attention="attention"),
        num_experts=count,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=feed_forward,
        fused={"query_key_value": ("query_key_value",), "gate_up_proj": ("gate_proj", "up_proj")},
    )


def flex_olmo(config: ConfigView, prefix: str = "") -> Architecture:
    """FlexOlmoForCausalLM: OLMoE with its norms behind the parts, experts never quantized (flex_olmo.py:49, 108)."""
    base = olmoe(config, prefix)
    renamed = {f".{old}.": f".{new}." for old, new in zip(LLAMA_NAMES.norms, POST_NORMS.norms, strict=True)}

    def adapted(module: Module) -> Module:
        if isinstance(module, FusedMoE):
            return replace(module, quantizable=False)
        for old, new in renamed.items():
            if old in module.name:
                return replace(module, name=module.name.replace(old, new))
        return module

    return replace(base, modules=tuple(adapted(module) for module in base.modules))


def afmoe(config: ConfigView, prefix: str = "") -> Architecture:
    """AfmoeForCausalLM: gated attention, positions on sliding layers only, four norms a layer (afmoe.py:60, 159)."""
    heads = read_heads(config)
    dims = text_dims(config, heads)
    period = config.size("global_attn_every_n_layers", 4)
    windows = Windows(config, types=alternate(dims.num_hidden_layers, period))
    rope, count = rope_parameters(config), config.size("num_experts")
    names = replace(LLAMA_NAMES, norms=(*LLAMA_NAMES.norms, "pre_mlp_layernorm", "post_mlp_layernorm"))

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        local = kind == "sliding_window"
        parts = self_attention(
            at,
            layer,
            heads,
            rope=rope if local else None,
            max_position=dims.max_position_embeddings,
            qk_norm=True,
            kind=kind,
            window=window,
        )
        width = heads.num_heads * heads.head_size
        gate = Linear(
            name=f"{at}.gate_proj",
            placement=layer,
            input_size=dims.hidden_size,
            output_sizes=(width,),
            parallelism="column",
        )
        return [*parts, gate]

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden, inner = dims.hidden_size, config.size("moe_intermediate_size")
        if layer < config.count("num_dense_layers"):
            return gated_mlp(at, layer, hidden, dims.intermediate_size)
        shared = config.count("num_shared_experts", 0)
        return [
            router(f"{at}.gate", layer, hidden, count, dtype="float32"),
            correction_bias(f"{at}.expert_bias", layer, count),
            *(gated_mlp(f"{at}.shared_experts", layer, hidden, inner * shared) if shared else []),
            experts(at, layer, count=count, top_k=config.size("num_experts_per_tok"), hidden=hidden, inner=inner),
        ]

    return assemble(
        dims, prefix=prefix, names=names, tied=False, attention=attention, feed_forward=feed_forward, num_experts=count
    )


def dbrx(config: ConfigView) -> Architecture:
    """DbrxForCausalLM: norms without bias inside the attention block, everything on each stage (dbrx.py:139, 185).

    vLLM finds the number of experts in a config's own keys only, and DBRX nests it: to the engine it is no mixture.
    """
    attn, ffn = config.section("attn_config", "dbrx_attention"), config.section("ffn_config", "dbrx_ffn")
    hidden, count = config.size("d_model"), config.size("n_heads")
    heads = Heads(
        hidden_size=hidden, num_heads=count, num_kv_heads=attn.size("kv_n_heads", 1), head_size=hidden // count
    )
    dims = TextDims(
        hidden_size=hidden,
        num_hidden_layers=config.layers("n_layers"),
        vocab_size=config.size("vocab_size"),
        num_attention_heads=count,
        num_kv_heads=heads.num_kv_heads,
        head_size=heads.head_size,
        intermediate_size=ffn.size("ffn_hidden_size"),
        max_position_embeddings=config.size("max_seq_len"),
    )
    rope = {"rope_type": "default", "rope_theta": int(attn.number("rope_theta", 10000.0))}
    routed = ffn.size("moe_num_experts")

    def attention(at: str, layer: int) -> list[Module]:
        block = f"{at}.attn"
        parts = self_attention(
            block,
            layer,
            heads,
            rope=rope,
            max_position=dims.max_position_embeddings,
            qkv_name="Wqkv",
            out_name="out_proj",
            shard_names=("Wqkv",),
        )
        return parts + norm(f"{at}.norm_1", hidden, layer) + norm(f"{at}.norm_2", hidden, layer)

    def feed_forward(at: str, layer: int) -> list[Module]:
        inner, top_k = dims.intermediate_size, ffn.size("moe_top_k", 1)
        return [
            router(f"{at}.router.layer", layer, hidden, routed),
            experts(at, layer, count=routed, top_k=top_k, hidden=hidden, inner=inner, shard_names=MIXTRAL_SHARDS),
        ]

    names = Names(
        model="transformer",
        embed="wte",
        layers="blocks",
        attention="norm_attn_norm",
        mlp="ffn",
        norms=(),
        final_norm="norm_f",
    )
    return assemble(
        dims,
        names=names,
        every_stage=True,
        tied=False,
        attention=attention,
        feed_forward=feed_forward,
        fused={},
    )


def hy_v3(config: ConfigView, prefix: str = "") -> Architecture:
    """HYV3ForCausalLM: float32 gate, dense layers first, everything on each stage (hy_v3.py:126, 224, 436)."""
    heads = read_heads(config)
    dims = text_dims(config, heads)
    rope, count = rope_parameters(config), config.size("num_experts")
    dense, qk_norm = config.count("first_k_dense_replace"), config.flag("qk_norm")

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden = dims.hidden_size
        if layer < dense:
            return gated_mlp(at, layer, hidden, dims.intermediate_size)
        inner, shared = config.size("expert_hidden_dim"), config.count("num_shared_experts", 0)
        return [
            router(f"{at}.gate", layer, hidden, count, dtype="float32"),
            *(gated_mlp(f"{at}.shared_mlp", layer, hidden, inner * shared) if shared else []),
            correction_bias(f"{at}.expert_bias", layer, count),
            experts(at, layer, count=count, top_k=config.size("num_experts_per_tok"), hidden=hidden, inner=inner),
        ]

    return assemble(
        dims,
        prefix=prefix,
        every_stage=True,
        tied=config.flag("tie_word_embeddings"),
        attention=lambda at, layer: self_attention(
            at, layer, heads, rope=rope, max_position=dims.max_position_embeddings, qk_norm=qk_norm
        ),
        feed_forward=feed_forward,
        num_experts=count,
    )
