"""Gemma 4: per-layer input embeddings, two head sizes, layers that share keys and values, experts beside the MLP.

Source: vLLM 0.26.0 model_executor/models/gemma4.py, gemma4_mm.py; transformers 5.14.1 Gemma4TextConfig.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.assemble import SLIDING, Names, alternate, assemble
from planner.model.architectures.blocks import (
    Architecture,
    Heads,
    gated_mlp,
    norm,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.experts import experts, router
from planner.model.architectures.gemma4_vision import with_gemma4_towers
from planner.model.architectures.vision_blocks import text_view
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, AttentionKind, Buffer, Linear, Module, Parameter, VocabEmbedding
from planner.model.rope import rope_parameters
from planner.values import reject

FULL = "full_attention"
_NAMES = Names(
    norms=("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
)
_TEXT_PREFIXES = (("model.language_model.", "model."),)


def gemma4(config: ConfigView, prefix: str = "") -> Architecture:
    """Gemma4ForCausalLM. A nested text_config is the model where the config has one (gemma4.py:193)."""
    return _decoder(text_view(config, "gemma4_text"), prefix)


def gemma4_mm(config: ConfigView) -> Architecture:
    """Gemma4ForConditionalGeneration: images and videos, audio where the config has a section for it."""
    return with_gemma4_towers(config, _decoder(text_view(config, "gemma4_text"), "language_model."))


def _decoder(config: ConfigView, prefix: str) -> Architecture:
    config.require("use_bidirectional_attention", (None, "vision"))
    heads = read_heads(config)
    dims = text_dims(config, heads)
    types = layer_types(config)
    shared = config.count("num_kv_shared_layers", 0)
    first_shared = dims.num_hidden_layers - shared
    count = config.size("num_experts") if _has_experts(config) else 0
    double = config.flag("use_double_wide_mlp")
    per_layer = per_layer_width(config)

    def attention(at: str, layer: int) -> list[Module]:
        target = shared_with(types, layer, first_shared) if shared else None
        return _attention(config, at, layer, types[layer], target)

    def feed_forward(at: str, layer: int) -> list[Module]:
        block = at.rpartition(".")[0]
        width = dims.intermediate_size * (2 if double and layer >= first_shared > 0 else 1)
        modules = gated_mlp(at, layer, dims.hidden_size, width)
        if count:
            modules += _experts(config, block, layer, count)
        if per_layer:
            modules += per_layer_input(block, layer, dims.hidden_size, per_layer)
        return [*modules, Buffer(name=f"{block}.layer_scalar", placement=layer, shape=(1,))]

    return assemble(
        dims,
        prefix=prefix,
        attention=attention,
        feed_forward=feed_forward,
        tied=config.flag("tie_word_embeddings", True),
        names=_NAMES,
        extra=_model_parts(config, f"{prefix}model", per_layer),
        prefixes=() if prefix else _TEXT_PREFIXES,
        num_experts=count,
        every_stage=True,
    )


def layer_types(config: ConfigView) -> Sequence[str]:
    """One full layer in six where the config names none; the last one is always full (Gemma4TextConfig)."""
    layers = config.layers()
    given = config.raw("layer_types")
    types = list(config.strings("layer_types")) if given else alternate(layers, 6)
    if len(types) < layers:
        raise InputError(f"{config.where}: layer_types has {len(types)} entries for {layers} layers")
    return [*types[:-1], FULL]


def shared_with(types: Sequence[str], layer: int, first_shared: int) -> int | None:
    """The last layer of the same kind that keeps keys and values, None for a layer that keeps its own."""
    if layer < first_shared:
        return None
    own = [index for index in range(first_shared) if types[index] == types[layer]]
    if not own:
        raise reject("flag", f"'{types[layer]}' is not in list")
    return own[-1]


def _attention(config: ConfigView, at: str, layer: int, kind: str, target: int | None) -> list[Module]:
    """Full layers have heads of global_head_dim, and their own number of KV heads where keys are values."""
    heads = read_heads(config)
    if kind == FULL:
        heads = _global_heads(config, heads)
    window = config.optional_size("sliding_window") if kind == SLIDING else None
    cache: AttentionKind = "full_attention" if window is None else "sliding_window"
    bias = config.flag("attention_bias")
    modules = self_attention(
        at,
        layer,
        heads,
        qkv_bias=bias,
        out_bias=bias,
        rope=rope_of(config, kind),
        max_position=config.size("max_position_embeddings"),
        qk_norm=True,
        kind=cache,
        window=window,
        softcap=config.raw("attn_logit_softcapping") is not None,
    )
    if target is not None:
        modules = [sharing(module, f"{at.partition('.layers.')[0]}.layers.{target}") for module in modules]
    return [*modules, weightless_norm(f"{at}.v_norm", heads.head_size, layer)]


def _global_heads(config: ConfigView, heads: Heads) -> Heads:
    kv_heads = heads.num_kv_heads
    if config.flag("attention_k_eq_v"):
        if config.raw("num_global_key_value_heads") is None:
            raise reject("flag", "'>=' not supported between instances of 'NoneType' and 'int'")
        kv_heads = config.size("num_global_key_value_heads")
    return Heads(
        hidden_size=heads.hidden_size,
        num_heads=heads.num_heads,
        num_kv_heads=kv_heads,
        head_size=config.size("global_head_dim"),
    )


def sharing(module: Module, layer: str) -> Module:
    """An attention layer without a cache of its own; other modules as they are."""
    return replace(module, shares_kv_with=f"{layer}.self_attn.attn") if isinstance(module, Attention) else module


def weightless_norm(name: str, size: int, layer: int) -> Buffer:
    """RMSNorm(has_weight=False): ones that are neither parameter nor buffer (layers/layernorm.py:63)."""
    return Buffer(name=f"{name}.weight", placement=layer, shape=(size,), registered=False)


def rope_of(config: ConfigView, kind: str) -> Mapping[str, Any]:
    """The parameters of one kind of layer: Gemma4TextConfig fills in both kinds where the config names none."""
    nested = config.raw("rope_parameters")
    if nested is None:
        if kind == SLIDING:
            return {"rope_type": "default", "rope_theta": 10_000.0}
        return {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0}
    if isinstance(nested, Mapping) and isinstance(nested.get(kind), Mapping):
        return rope_parameters(config, kind)
    table = rope_parameters(config)
    return table | {"rope_theta": config.number("rope_local_base_freq", 10_000.0)} if kind == SLIDING else table


def _has_experts(config: ConfigView) -> bool:
    return config.flag("enable_moe_block") or config.flag("use_second_mlp_block")


def _experts(config: ConfigView, block: str, layer: int, count: int) -> list[Module]:
    """Router and experts beside the MLP, with three norms of their own (gemma4.py:599)."""
    hidden = config.size("hidden_size")
    modules: list[Module] = [
        weightless_norm(f"{block}.router.norm", hidden, layer),
        Parameter(name=f"{block}.router.scale", placement=layer, shape=(hidden,)),
        Buffer(name=f"{block}.router.root_size", placement=layer, shape=()),
        router(f"{block}.router.proj", layer, hidden, count),
        Parameter(name=f"{block}.moe.per_expert_scale", placement=layer, shape=(count,)),
        experts(
            f"{block}.moe",
            layer,
            count=count,
            top_k=config.size("top_k_experts"),
            hidden=hidden,
            inner=config.size("moe_intermediate_size"),
            activation="gelu_tanh",
        ),
    ]
    for name in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
        modules += norm(f"{block}.{name}", hidden, layer)
    return modules


def per_layer_width(config: ConfigView) -> int:
    """hidden_size_per_layer_input; a stated null turns per-layer embeddings off."""
    return config.count("hidden_size_per_layer_input") if config.explicit("hidden_size_per_layer_input") else 0


def per_layer_input(block: str, layer: int, hidden: int, width: int) -> list[Module]:
    """What gates a layer's own embedding into the stream, on each rank whole."""
    modules: list[Module] = [
        Linear(name=f"{block}.per_layer_input_gate", placement=layer, input_size=hidden, output_sizes=(width,)),
        Linear(name=f"{block}.per_layer_projection", placement=layer, input_size=width, output_sizes=(hidden,)),
    ]
    return modules + norm(f"{block}.post_per_layer_input_norm", hidden, layer)


def _model_parts(config: ConfigView, model: str, width: int) -> list[Module]:
    """Scalars, and the table of per-layer embeddings, which each pipeline stage holds (gemma4.py:1008)."""
    normalizer = Buffer(name=f"{model}.normalizer", shape=())
    if not width:
        return [normalizer]
    scales = ("embed_scale_per_layer", "per_layer_input_scale", "per_layer_projection_scale")
    return [
        *per_layer_embeddings(config, model, width),
        *(Buffer(name=f"{model}.{name}", shape=()) for name in scales),
        normalizer,
    ]


def per_layer_embeddings(config: ConfigView, model: str, width: int) -> list[Module]:
    """One embedding of `width` for each layer and token, packed in one table, and the projection beside it."""
    total = width * config.layers()
    return [
        VocabEmbedding(
            name=f"{model}.embed_tokens_per_layer",
            num_embeddings=config.size("vocab_size_per_layer_input", config.size("vocab_size")),
            hidden_size=total,
        ),
        Linear(
            name=f"{model}.per_layer_model_projection",
            input_size=config.size("hidden_size"),
            output_sizes=(total,),
            parallelism="column",
        ),
        *norm(f"{model}.per_layer_projection_norm", width, "every"),
    ]
