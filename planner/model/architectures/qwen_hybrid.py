"""Qwen3-Next and Qwen3.5: gated delta nets, with gated full attention in every few layers.

Source: vLLM 0.26.0 model_executor/models/{qwen3_next,qwen3_5}.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.blocks import LLAMA_FUSED, Architecture, Heads, gated_mlp, norm, read_heads, text_dims
from planner.model.architectures.experts import experts, router
from planner.model.architectures.mixers import DeltaNet, delta_net
from planner.model.architectures.mla import whole_in_sequence_parallel
from planner.model.architectures.moe import is_sparse
from planner.model.architectures.qwen_vl import with_qwen3_tower
from planner.model.architectures.vision_blocks import text_view
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, Linear, LMHead, Module, PackedNames, Parameter, QKVLinear, VocabEmbedding
from planner.model.rope import rope_parameters, rotary_cache

_NEXT_FUSED = {**LLAMA_FUSED, "in_proj_qkvz": ("in_proj_qkvz",), "in_proj_ba": ("in_proj_ba",)}
_FUSED = {**LLAMA_FUSED, "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"), "in_proj_ba": ("in_proj_b", "in_proj_a")}


def qwen3_next(config: ConfigView) -> Architecture:
    """Qwen3NextForCausalLM: embedding and an untied, unquantized head on each stage (qwen3_next.py:505, 725)."""
    sparse = [is_sparse(config, layer) for layer in range(config.layers())]
    return _decoder(config, "", sparse, separate_projections=False)


def qwen3_5(config: ConfigView) -> Architecture:
    """Qwen3_5ForConditionalGeneration, dense. It builds its language model itself, so that pipelines are allowed."""
    text = text_view(config, "qwen3_5_text")
    language = qwen3_5_language(text)
    return with_qwen3_tower(config, language, family="Qwen3_5", vision_type="qwen3_5_vision", pipeline_refusal=None)


def qwen3_5_language(text: ConfigView, prefix: str = "language_model.") -> Architecture:
    """Qwen3_5ForCausalLM inside another multimodal model."""
    return _decoder(text, prefix, [False] * text.layers(), separate_projections=True)


def qwen3_5_moe(config: ConfigView) -> Architecture:
    """Qwen3_5MoeForConditionalGeneration: experts in each layer (qwen3_5.py:137)."""
    text = text_view(config, "qwen3_5_moe_text")
    language = _decoder(text, "language_model.", [True] * text.layers(), separate_projections=True)
    return with_qwen3_tower(config, language, family="Qwen3_5", vision_type="qwen3_5_vision", pipeline_refusal=None)


def qwen3_5_text(config: ConfigView) -> Architecture:
    """A text-only Qwen3.5, dense or not: vLLM 0.26.0 resolves its name to the class with a vision tower
    (models/registry.py:1215), which then looks for the tower's section in vain."""
    moe = config.model_type == "qwen3_5_moe_text"
    language = _decoder(config, "", [moe] * config.layers(), separate_projections=True)
    class_name = "Qwen3_5MoeTextConfig" if moe else "Qwen3_5TextConfig"
    return replace(language, refusal=f"'{class_name}' object has no attribute 'vision_config'")


def _decoder(config: ConfigView, prefix: str, sparse: Sequence[bool], *, separate_projections: bool) -> Architecture:
    """`separate_projections` tells Qwen3.5 from Qwen3-Next: the delta nets' checkpoint layout, and a head that is
    built on the last stage, tied or quantized as the config says."""
    config.require("hidden_act", ("silu",), "silu")
    heads = read_heads(config)
    dims = text_dims(config, heads, config.optional_size("intermediate_size") or config.size("moe_intermediate_size"))
    hidden, tied = dims.hidden_size, separate_projections and config.flag("tie_word_embeddings")
    embed = f"{prefix}model.embed_tokens"
    modules: list[Module] = [
        VocabEmbedding(name=embed, num_embeddings=dims.vocab_size, hidden_size=hidden, quantizable=False)
    ]
    net = DeltaNet(
        hidden_size=hidden,
        num_key_heads=config.size("linear_num_key_heads"),
        num_value_heads=config.size("linear_num_value_heads"),
        key_head_size=config.size("linear_key_head_dim"),
        value_head_size=config.size("linear_value_head_dim"),
        kernel=config.size("linear_conv_kernel_dim"),
    )
    for layer, kind in enumerate(_layer_types(config)):
        at = f"{prefix}model.layers.{layer}"
        if kind == "linear_attention":
            modules += delta_net(f"{at}.linear_attn", layer, net, interleaved=not separate_projections)
        else:
            modules += _gated_attention(f"{at}.self_attn", layer, heads, config)
        modules += (
            _experts(f"{at}.mlp", layer, config)
            if sparse[layer]
            else gated_mlp(f"{at}.mlp", layer, hidden, config.size("intermediate_size"))
        )
        modules += norm(f"{at}.input_layernorm", hidden, layer) + norm(f"{at}.post_attention_layernorm", hidden, layer)
        if config.flag("layer_scale"):
            modules += [
                Parameter(name=f"{at}.{name}_layer_scale", placement=layer, shape=(1, 1, hidden))
                for name in ("attn", "ffn")
            ]
    modules += norm(f"{prefix}model.norm", hidden, "last")
    modules.append(
        LMHead(
            name=f"{prefix}lm_head",
            placement="last" if separate_projections and not tied else "every",
            num_embeddings=dims.vocab_size,
            hidden_size=hidden,
            tied_to=embed if tied else None,
            quantizable=separate_projections,
        )
    )
    return Architecture(
        modules=tuple(modules),
        text=dims,
        names=PackedNames(fused=_FUSED if separate_projections else _NEXT_FUSED),
        tie_word_embeddings=tied,
        is_moe=any(sparse),
        is_hybrid=True,
        num_experts=config.size("num_experts") if any(sparse) else 0,
    )


def _layer_types(config: ConfigView) -> tuple[str, ...]:
    """layer_types, or full attention in every full_attention_interval-th layer (configs/qwen3_5.py:80)."""
    count = config.layers()
    types = config.strings("layer_types")
    if not types:
        interval = config.size("full_attention_interval", 4)
        return tuple("linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(count))
    unknown = set(types) - {"linear_attention", "full_attention"}
    if len(types) != count or unknown:
        raise InputError(f"{config.where}: layer_types must name linear_attention or full_attention for {count} layers")
    return types


def _gated_attention(at: str, layer: int, heads: Heads, config: ConfigView) -> list[Module]:
    """Qwen3NextAttention: the query carries its output gate (qwen3_next.py:272)."""
    config.require("dual_chunk_attention_config", (None,))
    position, size = config.size("max_position_embeddings"), heads.head_size
    rope = rope_parameters(config)
    return [
        QKVLinear(
            name=f"{at}.qkv_proj",
            placement=layer,
            hidden_size=heads.hidden_size,
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=size,
            bias=config.flag("qkv_bias"),
            output_gate=config.flag("attn_output_gate", True),
        ),
        Linear(
            name=f"{at}.o_proj",
            placement=layer,
            input_size=heads.num_heads * size,
            output_sizes=(heads.hidden_size,),
            parallelism="row",
        ),
        rotary_cache(f"{at}.rotary_emb", size, position, rope, placement=layer),
        Attention(
            name=f"{at}.attn",
            placement=layer,
            kind="full_attention",
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=size,
        ),
        *norm(f"{at}.q_norm", size, layer),
        *norm(f"{at}.k_norm", size, layer),
    ]


def _experts(at: str, layer: int, config: ConfigView) -> list[Module]:
    """Qwen3NextSparseMoeBlock: the shared expert has a gate of its own (qwen3_next.py:139)."""
    hidden, count = config.size("hidden_size"), config.size("num_experts")
    shared = config.count("shared_expert_intermediate_size")
    expert = gated_mlp(f"{at}.shared_expert", layer, hidden, shared) if shared else []
    return [
        router(f"{at}.gate", layer, hidden, count),
        router(f"{at}.shared_expert_gate", layer, hidden, 1),
        *whole_in_sequence_parallel(expert),
        experts(
            at,
            layer,
            count=count,
            top_k=config.size("num_experts_per_tok"),
            hidden=hidden,
            inner=config.size("moe_intermediate_size"),
        ),
    ]
