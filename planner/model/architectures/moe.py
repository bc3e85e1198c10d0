"""Mixtures of experts around Llama-like attention: Mixtral, PhiMoE, Granite, Qwen, OLMoE.

Source: vLLM 0.26.0 model_executor/models/{mixtral,phimoe,granitemoe,granitemoeshared,qwen2_moe,qwen3_moe,olmoe}.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.assemble import LLAMA_NAMES, LayerPart, Windows, assemble
from planner.model.architectures.blocks import (
    LLAMA_FUSED,
    Architecture,
    Heads,
    gated_mlp,
    norm,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.experts import MIXTRAL_SHARDS, experts, router
from planner.model.config_view import ConfigView
from planner.model.modules import Linear, Module
from planner.model.rope import rope_parameters

QKV_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
BLOCK_SPARSE = replace(LLAMA_NAMES, mlp="block_sparse_moe")


def plain_attention(
    config: ConfigView, heads: Heads, *, qkv_bias: bool = False, out_bias: bool = False, qk_norm: bool = False
) -> LayerPart:
    """Fused attention with one rotary table and the model's window, the same in each layer."""
    rope, windows = rope_parameters(config), Windows(config, per_layer=False)
    position = config.size("max_position_embeddings", 8192)

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        return self_attention(
            at,
            layer,
            heads,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            rope=rope,
            max_position=position,
            qk_norm=qk_norm,
            kind=kind,
            window=window,
        )

    return attention


def mixtral(config: ConfigView, prefix: str = "") -> Architecture:
    """MixtralForCausalLM: each layer a gate and its experts (mixtral.py:71)."""
    return _block_sparse(config, prefix, read_heads(config))


def granite_moe(config: ConfigView, prefix: str = "") -> Architecture:
    """GraniteMoeForCausalLM (granitemoe.py:70)."""
    return _block_sparse(config, prefix, _square_heads(config))


def granite_moe_shared(config: ConfigView, prefix: str = "") -> Architecture:
    """GraniteMoeSharedForCausalLM: a dense MLP beside the experts where it has a width (granitemoeshared.py:38)."""
    width = config.count("shared_intermediate_size", 0)

    def shared(at: str, layer: int) -> list[Module]:
        if width == 0:
            return []
        hidden = config.size("hidden_size")
        beside = f"{at.rpartition('.')[0]}.shared_mlp"
        return [
            Linear(
                name=f"{beside}.input_linear",
                placement=layer,
                input_size=hidden,
                output_sizes=(width, width),
                parallelism="column",
            ),
            Linear(
                name=f"{beside}.output_linear",
                placement=layer,
                input_size=width,
                output_sizes=(hidden,),
                parallelism="row",
            ),
        ]

    return _block_sparse(config, prefix, _square_heads(config), shared)


def phimoe(config: ConfigView, prefix: str = "") -> Architecture:
    """PhiMoEForCausalLM: biases in the attention and on the head, LayerNorm, no tied head (phimoe.py:243)."""
    heads = read_heads(config)
    return _block_sparse(config, prefix, heads, attention_bias=True)


def _square_heads(config: ConfigView) -> Heads:
    return read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))


def _block_sparse(
    config: ConfigView, prefix: str, heads: Heads, shared: LayerPart | None = None, *, attention_bias: bool = False
) -> Architecture:
    dims = text_dims(config, heads)
    count, top_k = config.size("num_local_experts"), config.size("num_experts_per_tok")

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden, inner = dims.hidden_size, dims.intermediate_size
        return [
            router(f"{at}.gate", layer, hidden, count),
            experts(at, layer, count=count, top_k=top_k, hidden=hidden, inner=inner, shard_names=MIXTRAL_SHARDS),
            *(shared(at, layer) if shared else []),
        ]

    return assemble(
        dims,
        prefix=prefix,
        names=BLOCK_SPARSE,
        every_stage=True,
        tied=config.flag("tie_word_embeddings") and not attention_bias,
        fused=QKV_FUSED,
        num_experts=count,
        attention=plain_attention(config, heads, qkv_bias=attention_bias, out_bias=attention_bias),
        feed_forward=feed_forward,
        norm_bias=attention_bias,
        head_bias=attention_bias,
        head_quantizable=not attention_bias,
    )


def is_sparse(config: ConfigView, layer: int) -> bool:
    """Whether a Qwen layer has experts: mlp_only_layers and decoder_sparse_step say (qwen3_moe.py:393)."""
    if layer in config.sizes("mlp_only_layers", ()):
        return False
    return config.count("num_experts") > 0 and (layer + 1) % config.size("decoder_sparse_step", 1) == 0


def qwen2_moe(config: ConfigView, prefix: str = "") -> Architecture:
    """Qwen2MoeForCausalLM: a shared expert with a gate of its own (qwen2_moe.py:123)."""
    heads = _square_heads(config)
    attention = plain_attention(config, heads, qkv_bias=True)
    shared = config.count("shared_expert_intermediate_size")
    gated = config.sizes("mlp_only_layers", ()) or shared
    return _qwen_moe(
        config, prefix, heads, attention, shared, gate_always=True, gate_quantizable=False, gated=bool(gated)
    )


def qwen3_moe(config: ConfigView, prefix: str = "") -> Architecture:
    """Qwen3MoeForCausalLM, and the language model of Qwen3-VL-MoE: q and k norms by head (qwen3_moe.py:130)."""
    heads = read_heads(config)
    attention = plain_attention(config, heads, qkv_bias=config.flag("attention_bias"), qk_norm=True)
    shared = config.count("shared_expert_intermediate_size", 0)
    gated = bool(config.sizes("mlp_only_layers", ()))
    return _qwen_moe(config, prefix, heads, attention, shared, gate_always=False, gate_quantizable=True, gated=gated)


def _qwen_moe(
    config: ConfigView,
    prefix: str,
    heads: Heads,
    attention: LayerPart,
    shared: int,
    *,
    gate_always: bool,
    gate_quantizable: bool,
    gated: bool,
) -> Architecture:
    dims = text_dims(config, heads)
    hidden, count = dims.hidden_size, config.count("num_experts")
    config.require("hidden_act", ("silu",), "silu")

    def feed_forward(at: str, layer: int) -> list[Module]:
        if not is_sparse(config, layer):
            return gated_mlp(at, layer, hidden, dims.intermediate_size)
        parts: list[Module] = [router(f"{at}.gate", layer, hidden, count, quantizable=gate_quantizable)]
        if shared or gate_always:
            parts.append(router(f"{at}.shared_expert_gate", layer, hidden, 1))
        if shared:
            parts += gated_mlp(f"{at}.shared_expert", layer, hidden, shared)
        inner, top_k = config.size("moe_intermediate_size"), config.size("num_experts_per_tok")
        return [*parts, experts(at, layer, count=count, top_k=top_k, hidden=hidden, inner=inner)]

    return assemble(
        dims,
        prefix=prefix,
        every_stage=True,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=feed_forward,
        fused=LLAMA_FUSED if gated else QKV_FUSED,
        num_experts=count,
    )


def olmoe(config: ConfigView, prefix: str = "") -> Architecture:
    """OlmoeForCausalLM: whole-width q and k norms on each rank (olmoe.py:121)."""
    heads = _square_heads(config)
    dims = text_dims(config, heads)
    base = plain_attention(config, heads)
    count, top_k = config.size("num_experts"), config.size("num_experts_per_tok")

    def attention(at: str, layer: int) -> list[Module]:
        parts = base(at, layer) + norm(f"{at}.q_norm", heads.num_heads * heads.head_size, layer)
        return parts + norm(f"{at}.k_norm", heads.num_kv_heads * heads.head_size, layer)

    def feed_forward(at: str, layer: int) -> list[Module]:
        return [
            router(f"{at}.gate", layer, dims.hidden_size, count),
            experts(at, layer, count=count, top_k=top_k, hidden=dims.hidden_size, inner=dims.intermediate_size),
        ]

    return assemble(
        dims,
        prefix=prefix,
        every_stage=True,
        tied=False,
        attention=attention,
        feed_forward=feed_forward,
        fused=QKV_FUSED,
        num_experts=count,
    )
