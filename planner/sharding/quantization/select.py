"""Which scheme stores which layer: the checkpoint's method, its ignore list, and the flags."""

from __future__ import annotations

from typing import Protocol

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.model.modules import FusedMoE, Linear, LMHead, QKVLinear, VocabEmbedding
from planner.model.spec import ModelSpec
from planner.sharding.quantization.base import UNQUANTIZED, Scheme

QuantizableModule = Linear | QKVLinear | FusedMoE | LMHead | VocabEmbedding


class Selector(Protocol):
    """Chooses the scheme of each layer of one model under one configuration."""

    kv_cache_scales: bool

    def scheme(self, module: QuantizableModule) -> Scheme: ...


class UnquantizedSelector:
    """No quantization: every layer keeps the model's dtype."""

    kv_cache_scales = False

    def scheme(self, module: QuantizableModule) -> Scheme:
        return UNQUANTIZED


def selector_for(model: ModelSpec, config: EngineConfig) -> Selector:
    """The selector of the resolved quantization method. Raises UnsupportedError for a method not known here."""
    if config.quantization is None:
        return UnquantizedSelector()
    raise UnsupportedError("quantization", f"quantization method {config.quantization} is not supported by this planner")
