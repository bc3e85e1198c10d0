"""Building blocks that many architectures share, in vLLM's names and creation order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from planner.model.config_view import ConfigView
from planner.model.modules import (
    Attention,
    AttentionKind,
    Buffer,
    Component,
    Linear,
    LMHead,
    Module,
    PackedNames,
    Parameter,
    Placement,
    QKVLinear,
    VocabEmbedding,
)
from planner.model.rope import rotary_cache
from planner.model.spec import TextDims
from planner.model.vision_spec import VisionSpec
from planner.values import DType

LLAMA_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class Architecture(Struct, frozen=True, kw_only=True):
    """What an architecture file says about one config: the modules in creation order, and the traits of vLLM's
    class."""

    modules: tuple[Module, ...]
    text: TextDims
    names: PackedNames = field(default_factory=lambda: PackedNames(fused=LLAMA_FUSED))
    tie_word_embeddings: bool = False
    is_moe: bool = False
    is_hybrid: bool = False
    use_mla: bool = False
    supports_pp: bool = True
    pipeline_refusal: str | None = None
    refusal: str | None = None
    full_graph_refusal: str | None = None
    supports_encoder_tp_data: bool = False
    num_experts: int = 0
    sliding_window: int | None = None
    vision: VisionSpec | None = None
    language_class: str = ""
    notes: tuple[str, ...] = ()


class Heads(Struct, frozen=True, kw_only=True):
    """Attention sizes of one layer, whole model."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int


def read_heads(config: ConfigView, head_size: int | None = None) -> Heads:
    """num_attention_heads, num_key_value_heads (default: as many) and head_dim (default: hidden / heads)."""
    hidden = config.size("hidden_size")
    heads = config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads") if config.explicit("num_key_value_heads") is not None else heads
    return Heads(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size or config.optional_size("head_dim") or hidden // heads,
    )


def text_dims(config: ConfigView, heads: Heads, intermediate_size: int | None = None) -> TextDims:
    return TextDims(
        hidden_size=heads.hidden_size,
        num_hidden_layers=config.layers(),
        vocab_size=config.size("vocab_size"),
        num_attention_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_size=heads.head_size,
        intermediate_size=intermediate_size or config.size("intermediate_size"),
        max_position_embeddings=config.size("max_position_embeddings", 8192),
    )


def norm(
    name: str,
    size: int,
    placement: int | Placement,
    *,
    bias: bool = False,
    component: Component = "language_model",
    dtype: DType | None = None,
) -> list[Module]:
    """RMSNorm (a weight) or LayerNorm (a weight and a bias), replicated."""
    parts: list[Module] = [
        Parameter(name=f"{name}.weight", placement=placement, shape=(size,), component=component, dtype=dtype)
    ]
    if bias:
        parts.append(
            Parameter(name=f"{name}.bias", placement=placement, shape=(size,), component=component, dtype=dtype)
        )
    return parts


def self_attention(
    prefix: str,
    layer: int | Placement,
    heads: Heads,
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    rope: Mapping[str, Any] | None = None,
    max_position: int = 0,
    qk_norm: bool = False,
    kind: AttentionKind = "full_attention",
    window: int | None = None,
    out_name: str = "o_proj",
    qkv_name: str = "qkv_proj",
    shard_names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"),
    interleaved: bool = False,
    softcap: bool = False,
    has_sinks: bool = False,
    rope_dtype: DType | None = None,
    head_size_v: int | None = None,
) -> list[Module]:
    """Fused QKV, output projection, rotary table, optional per-head q/k norm, and the cache. `rope` None: no table."""
    modules: list[Module] = [
        QKVLinear(
            name=f"{prefix}.{qkv_name}",
            placement=layer,
            hidden_size=heads.hidden_size,
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=heads.head_size,
            head_size_v=head_size_v,
            bias=qkv_bias,
            shard_names=shard_names,
        ),
        Linear(
            name=f"{prefix}.{out_name}",
            placement=layer,
            input_size=heads.num_heads * (head_size_v or heads.head_size),
            output_sizes=(heads.hidden_size,),
            parallelism="row",
            bias=out_bias,
        ),
    ]
    if rope is not None:
        modules.append(
            rotary_cache(
                f"{prefix}.rotary_emb",
                heads.head_size,
                max_position,
                rope,
                placement=layer,
                interleaved=interleaved,
                dtype=rope_dtype,
            )
        )
    modules.append(
        Attention(
            name=f"{prefix}.attn",
            placement=layer,
            kind=kind,
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=heads.head_size,
            head_size_v=head_size_v,
            window=window,
            has_rope=rope is not None,
            softcap=softcap,
            has_sinks=has_sinks,
        )
    )
    if qk_norm:
        modules += norm(f"{prefix}.q_norm", heads.head_size, layer) + norm(f"{prefix}.k_norm", heads.head_size, layer)
    return modules


def gated_mlp(
    prefix: str,
    layer: int | Placement,
    hidden: int,
    inner: int,
    *,
    bias: bool = False,
    component: Component = "language_model",
) -> list[Module]:
    """gate_up_proj (column, two shards) and down_proj (row)."""
    return [
        Linear(
            name=f"{prefix}.gate_up_proj",
            placement=layer,
            component=component,
            input_size=hidden,
            output_sizes=(inner, inner),
            parallelism="column",
            bias=bias,
            shard_names=("gate_proj", "up_proj"),
        ),
        Linear(
            name=f"{prefix}.down_proj",
            placement=layer,
            component=component,
            input_size=inner,
            output_sizes=(hidden,),
            parallelism="row",
            bias=bias,
        ),
    ]


def plain_mlp(
    prefix: str,
    layer: int | Placement,
    hidden: int,
    inner: int,
    *,
    names: tuple[str, str] = ("fc1", "fc2"),
    bias: bool = True,
    component: Component = "language_model",
) -> list[Module]:
    """Two linear layers with an activation between: column, then row."""
    return [
        Linear(
            name=f"{prefix}.{names[0]}",
            placement=layer,
            component=component,
            input_size=hidden,
            output_sizes=(inner,),
            parallelism="column",
            bias=bias,
        ),
        Linear(
            name=f"{prefix}.{names[1]}",
            placement=layer,
            component=component,
            input_size=inner,
            output_sizes=(hidden,),
            parallelism="row",
            bias=bias,
        ),
    ]


def embedding(name: str, vocab: int, hidden: int) -> VocabEmbedding:
    return VocabEmbedding(name=name, placement="first", num_embeddings=vocab, hidden_size=hidden)


def lm_head(name: str, vocab: int, hidden: int, *, tied_to: str | None, bias: bool = False) -> LMHead:
    return LMHead(name=name, placement="last", num_embeddings=vocab, hidden_size=hidden, tied_to=tied_to, bias=bias)


__all__ = [
    "LLAMA_FUSED",
    "Architecture",
    "Attention",
    "Buffer",
    "Heads",
    "embedding",
    "gated_mlp",
    "lm_head",
    "norm",
    "plain_mlp",
    "read_heads",
    "self_attention",
    "text_dims",
]
