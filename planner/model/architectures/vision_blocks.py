"""Pieces that encoder towers share, and how a multimodal class wraps its language model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from planner.model.architectures.blocks import LLAMA_FUSED, Architecture
from planner.model.config_view import ConfigView
from planner.model.modules import Component, Linear, Module, PackedNames, Parameter, QKVLinear
from planner.model.vision_spec import VisionSpec

NO_ARCHITECTURE = "No model architectures are specified"
"""How vLLM 0.26.0 refuses pipeline parallelism where the text section has no class of its own: with_hf_config
(config/vllm.py:717) leaves `architectures` empty, and the check of the split asks for it (config/model.py:1224)."""


def as_tower(modules: Iterable[Module], component: Component = "vision_tower") -> list[Module]:
    """The same modules as parts of an encoder tower, which every pipeline stage builds."""
    return [replace(module, component=component, placement="every") for module in modules]


def weight(name: str, *shape: int, bias: bool = False, shard_dim: int | None = None) -> list[Module]:
    """A parameter outside vLLM's linear layers (convolution, table, nn.Linear), with a bias of its first size."""
    parts: list[Module] = [Parameter(name=f"{name}.weight", shape=shape, shard_dim=shard_dim)]
    if bias:
        parts.append(Parameter(name=f"{name}.bias", shape=shape[:1], shard_dim=shard_dim))
    return parts


def column(
    name: str,
    input_size: int,
    *output_sizes: int,
    bias: bool = True,
    quantizable: bool = True,
    shard_names: tuple[str, ...] = (),
    num_heads: int | None = None,
) -> Linear:
    return Linear(
        name=name,
        input_size=input_size,
        output_sizes=output_sizes,
        parallelism="column",
        bias=bias,
        quantizable=quantizable,
        shard_names=shard_names,
        num_heads=num_heads,
    )


def row(name: str, input_size: int, output_size: int, *, bias: bool = True, quantizable: bool = True) -> Linear:
    return Linear(
        name=name,
        input_size=input_size,
        output_sizes=(output_size,),
        parallelism="row",
        bias=bias,
        quantizable=quantizable,
    )


def replicated(name: str, input_size: int, output_size: int, *, bias: bool = True, quantizable: bool = True) -> Linear:
    return Linear(name=name, input_size=input_size, output_sizes=(output_size,), bias=bias, quantizable=quantizable)


def fused_qkv(
    name: str,
    hidden: int,
    num_heads: int,
    head_size: int,
    *,
    bias: bool = True,
    quantizable: bool = True,
    shard_names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"),
) -> QKVLinear:
    return QKVLinear(
        name=name,
        hidden_size=hidden,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_size=head_size,
        bias=bias,
        quantizable=quantizable,
        shard_names=shard_names,
    )


def text_view(config: ConfigView, text_type: str, key: str = "text_config") -> ConfigView:
    """The language model's section, or the whole config where an old file keeps its keys there.

    `tie_word_embeddings` is the whole config's: vLLM copies it into the text section (config/vllm.py:738-768).
    """
    section = config.data.get(key)
    data: Mapping[str, Any] = section if isinstance(section, Mapping) else config.data
    model_type = str(data.get("model_type") or text_type) if isinstance(section, Mapping) else text_type
    tied = config.raw("tie_word_embeddings")
    merged = dict(data) if tied is None else {**data, "tie_word_embeddings": tied}
    where = f"{config.where}: {key}" if isinstance(section, Mapping) else config.where
    return ConfigView(merged, where, model_type, config.files)


def multimodal(
    text: Architecture,
    before: Iterable[Module],
    *,
    vision: VisionSpec,
    after: Iterable[Module] = (),
    prefixes: tuple[tuple[str, str], ...] = (),
    fused: Mapping[str, tuple[str, ...]] | None = None,
    encoder_data: bool = False,
    pipeline_refusal: str | None = None,
    supports_pp: bool = True,
) -> Architecture:
    """The language model with its towers: `before` and `after` it in the order of construction."""
    return replace(
        text,
        modules=(*before, *text.modules, *after),
        names=PackedNames(fused={**LLAMA_FUSED, **text.names.fused, **(fused or {})}, prefixes=prefixes),
        vision=vision,
        supports_encoder_tp_data=encoder_data,
        supports_pp=text.supports_pp and supports_pp,
        pipeline_refusal=pipeline_refusal,
    )
