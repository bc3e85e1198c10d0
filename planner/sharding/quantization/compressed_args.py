"""compressed-tensors sections: groups of targets, each with the quantization of its weights and activations.

Source: compressed-tensors quantization/quant_args.py (defaults and inferred strategy), vLLM 0.26.0
layers/quantization/compressed_tensors/compressed_tensors.py:295 (config groups, formats).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from planner.errors import InputError, UnsupportedError
from planner.sharding.quantization.context import Section

ACTIVATION_FORMATS = ("naive-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized")
_WHERE = "config.json: quantization_config: config_groups"


class QuantArgs(Struct, frozen=True, kw_only=True):
    """One QuantizationArgs. `strategy` is tensor, channel, group, block, token, tensor_group or attn_head.
    `dynamic` is True for "local" too. `act_order`: groups follow a permuted input order (actorder group or dynamic)."""

    num_bits: int
    is_float: bool
    symmetric: bool
    strategy: str
    group_size: int | None
    block: tuple[int, int] | None
    dynamic: bool
    act_order: bool
    scale_dtype: str | None

    @property
    def is_nvfp4(self) -> bool:
        return self.strategy == "tensor_group" and self._is_float4(16)

    @property
    def is_mxfp4(self) -> bool:
        return self.strategy == "group" and self._is_float4(32)

    @property
    def is_mxfp8(self) -> bool:
        return (
            self.strategy == "group" and self.is_float and self.num_bits == 8 and self.group_size == 32
            and self.symmetric and self.scale_dtype == "uint8"
        )  # fmt: skip

    def _is_float4(self, group_size: int) -> bool:
        return self.is_float and self.num_bits == 4 and self.group_size == group_size and self.symmetric


class Target(Struct, frozen=True, kw_only=True):
    """What one config group asks of the layers it targets."""

    weights: QuantArgs
    inputs: QuantArgs | None
    outputs: QuantArgs | None
    format: str


def read_args(value: Any) -> QuantArgs:
    if not isinstance(value, Mapping):
        raise InputError(f"{_WHERE}: weights and activations must be objects")
    section = Section(value, _WHERE)
    group = section.value("group_size")
    if group is not None and (type(group) is not int or group < -1):
        raise InputError(f"{_WHERE}: group_size must be a whole number from -1, found {group!r}")
    strategy = str(section.value("strategy") or _inferred_strategy(group)).lower()
    order = section.value("actorder")
    scale = section.value("scale_dtype")
    return QuantArgs(
        num_bits=section.whole("num_bits", default=8),
        is_float=str(section.value("type", default="int")).lower() == "float",
        symmetric=section.flag("symmetric", default=True),
        strategy=strategy,
        group_size=group,
        block=_block(section),
        dynamic=bool(section.value("dynamic", default=False)),
        act_order=order is True or str(order).lower() in ("group", "dynamic"),
        scale_dtype=None if scale is None else str(scale).removeprefix("torch."),
    )


def read_targets(section: Section) -> dict[str, Target]:
    """{target: scheme} of all config groups in order; groups that only quantize attention are left out."""
    default = str(section.value("format") or "")
    targets: dict[str, Target] = {}
    for group in section.section("config_groups").data.values():
        if not isinstance(group, Mapping):
            raise InputError(f"{_WHERE} must hold objects")
        inner = Section(group, _WHERE)
        names = inner.strings("targets")
        if len(names) == 1 and names[0].endswith("Attention"):
            continue
        target = _target(inner, default)
        if target is not None:
            targets.update(dict.fromkeys(names, target))
    if section.value("sparsity_config") and section.section("sparsity_config").value("targets"):
        raise UnsupportedError(
            "quantization", "compressed-tensors checkpoints with sparsity are not supported by vLLM 0.26.0"
        )
    transform = section.value("transform_config")
    if transform and section.section("transform_config").value("config_groups"):
        raise UnsupportedError("quantization", "compressed-tensors transforms are not supported by this planner")
    return targets


def _target(group: Section, default: str) -> Target | None:
    if group.value("weights") is None:
        return None
    inputs, outputs = group.value("input_activations"), group.value("output_activations")
    return Target(
        weights=read_args(group.value("weights")),
        inputs=read_args(inputs) if inputs else None,
        outputs=read_args(outputs) if outputs else None,
        format=str(group.value("format") or default),
    )


def _inferred_strategy(group: int | None) -> str:
    if group is None:
        return "tensor"
    return "group" if group > 0 else "channel"


def _block(section: Section) -> tuple[int, int] | None:
    value = section.value("block_structure")
    if isinstance(value, str):
        parts = value.split("x")
        if len(parts) == 2 and all(part.isdigit() for part in parts):
            return int(parts[0]), int(parts[1])
        raise InputError(f"{_WHERE}: block_structure must be two whole numbers, found {value!r}")
    return section.whole_pair("block_structure")
