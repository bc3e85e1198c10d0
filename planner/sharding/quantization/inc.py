"""AutoRound checkpoints (Intel Neural Compressor): GPTQ or AWQ packing, bits chosen layer by layer.

Source: vLLM 0.26.0 layers/quantization/inc/{inc,config_parser}.py, inc/schemes/inc_wna16_{scheme,linear}.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from planner.errors import UnsupportedError
from planner.model.modules import FusedMoE, LMHead
from planner.model.spec import ModelSpec, QuantizationSpec
from planner.sharding.quantization import marlin
from planner.sharding.quantization.awq import Awq
from planner.sharding.quantization.base import UNQUANTIZED, Scheme
from planner.sharding.quantization.context import BaseSelector, Context, LinearModule, Section
from planner.sharding.quantization.gptq import Gptq
from planner.sharding.quantization.match import map_name, map_names, search_pattern
from planner.sharding.quantization.moe_wna16 import MoeWna16
from planner.values import reject

_REGEX = frozenset(r"*+?^$()[]{}|\\")
_FORMATS = ("auto_round:auto_gptq", "auto_round:auto_awq")
_BITS = (2, 3, 4, 8)
_UNQUANTIZED_BITS = 16


class LayerBits(NamedTuple):
    bits: int
    group_size: int
    sym: bool


class IncSelector(BaseSelector):
    """extra_config sets a layer's bits by name or pattern; block_name_to_quantize limits what is quantized."""

    def __init__(self, context: Context, section: Section) -> None:
        super().__init__(context)
        self.default = LayerBits(section.whole("bits"), section.whole("group_size"), section.flag("sym"))
        self.packing = str(section.value("packing_format", default=_FORMATS[0]))
        self.backend = str(section.value("backend", "vllm_backend", default="auto"))
        self._check(str(section.value("data_type", default="int")))
        blocks = section.value("block_name_to_quantize", "to_quant_block_names") or ()
        self.blocks = map_names(blocks.split(",") if isinstance(blocks, str) else blocks, context.names)
        extra = section.section("extra_config").data
        self.extra: dict[str, Mapping[str, Any]] = {
            map_name(name, context.names): value for name, value in extra.items() if isinstance(value, Mapping)
        }

    def _check(self, data_type: str) -> None:
        if self.default.bits not in _BITS:
            raise reject(
                "quantization_capability",
                f"Unsupported weight_bits: {self.default.bits}, currently only support {set(_BITS)}.",
            )
        if data_type != "int" or self.packing not in _FORMATS:
            raise reject(
                "quantization_capability",
                f"Unsupported data_type: {data_type} or packing_format: {self.packing}, currently only support "
                f"{{'int'}} and {set(_FORMATS)}.",
            )

    def linear(self, module: LinearModule) -> Scheme:
        return self._linear(module.name, is_head=False)

    def lm_head(self, module: LMHead) -> Scheme:
        return self._linear(module.name, is_head=True)

    def moe(self, module: FusedMoE) -> Scheme:
        layer = self._quantized(module.name, is_head=False)
        if layer is None:
            return UNQUANTIZED
        return self._gptq(layer) if self._is_gptq else self._awq(layer)

    @property
    def _is_gptq(self) -> bool:
        return "gptq" in self.packing or "gptq" in self.backend

    def _linear(self, name: str, *, is_head: bool) -> Scheme:
        layer = self._quantized(name, is_head=is_head)
        if layer is None:
            return UNQUANTIZED
        if not self._is_gptq:
            return self._awq(layer)
        on_marlin = (self.backend == "auto" or "marlin" in self.backend) and layer.bits in (4, 8) and layer.sym
        if not on_marlin or layer.group_size not in marlin.GROUP_SIZES:
            raise reject(
                "quantization_capability",
                f"INC quantization with bits={layer.bits}, sym={layer.sym} is not supported. Only 4-bit and 8-bit "
                "symmetric quantization is supported with Marlin kernels.",
            )
        return self._gptq(layer)

    def _gptq(self, layer: LayerBits) -> Gptq:
        fallback = MoeWna16(bits=layer.bits, group_size=layer.group_size, zero_points=not layer.sym, gptq=True)
        return Gptq(
            context=self.context, bits=layer.bits, group_size=layer.group_size, desc_act=False, sym=layer.sym,
            fallback=fallback, strict_experts=True,
        )  # fmt: skip

    def _awq(self, layer: LayerBits) -> Awq:
        if layer.bits != 4:
            raise reject("quantization_capability", f"Unsupported num_bits = {layer.bits}. Supported: 4.")
        return Awq(self.context, layer.group_size, not layer.sym, strict_experts=True)

    def _quantized(self, name: str, *, is_head: bool) -> LayerBits | None:
        """Bits of a layer; None for one that stays as it is, by its name alone (inc.py:150) or by what it becomes."""
        for key in (name, f"model.{name}"):
            if key in self.extra and self.extra[key].get("bits", _UNQUANTIZED_BITS) >= _UNQUANTIZED_BITS:
                return None
        layer = self._bits(name, is_head=is_head)
        return layer if layer.bits < _UNQUANTIZED_BITS else None

    def _bits(self, name: str, *, is_head: bool) -> LayerBits:
        """INCConfigParser._resolve_raw."""
        if name in self.extra:
            return self._configured(name, quantized=True)
        quantized = not is_head
        if self.blocks:
            quantized = name.startswith(self.blocks)
        for key, shards in self.fused.items() if self.extra else ():
            if name.count(key) != 1:
                continue
            parts = [name.replace(key, shard) for shard in shards]
            if not any(part in self.extra or self._pattern(part) is not None for part in parts):
                continue
            found = {self._configured(part, quantized=quantized) for part in parts}
            if len(found) > 1:
                raise reject(
                    "quantization_alignment", f"Fused module '{name}' requires consistent quant config for {parts}"
                )
            return found.pop()
        return self._configured(name, quantized=quantized)

    def _configured(self, name: str, *, quantized: bool) -> LayerBits:
        base = self.default if quantized else LayerBits(_UNQUANTIZED_BITS, -1, True)
        entry = self.extra.get(name) or self._pattern(name)
        if entry is None:
            return base
        return LayerBits(
            entry.get("bits", base.bits), entry.get("group_size", base.group_size), entry.get("sym", base.sym)
        )

    def _pattern(self, name: str) -> Mapping[str, Any] | None:
        for pattern, entry in self.extra.items():
            if not _REGEX.isdisjoint(pattern) and search_pattern(pattern, name):
                return entry
        return None


def select(model: ModelSpec, checkpoint: QuantizationSpec | None, context: Context) -> IncSelector:
    if checkpoint is None:
        raise UnsupportedError("quantization", "inc needs a quantized checkpoint")
    return IncSelector(context, Section(checkpoint.raw))
