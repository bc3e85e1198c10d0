"""AWQ and GPTQ experts for the Triton kernel. Source: vLLM 0.26.0 layers/quantization/moe_wna16.py."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.modules import FusedMoE
from planner.model.spec import ModelSpec, QuantizationSpec
from planner.sharding.quantization.base import UNQUANTIZED, LinearShard, MoEShard, Scheme, Storage, Stored
from planner.sharding.quantization.context import BaseSelector, Context, LinearModule, Section
from planner.values import reject

_SMALLEST_GROUP = 32


class MoeWna16(Struct, frozen=True):
    """uint8 weights [E, N, K / pack] with scales along K. Unchanged after loading.

    The group is halved until it divides the hidden and the intermediate size; below 32 vLLM asserts.
    """

    bits: int
    group_size: int
    zero_points: bool
    gptq: bool
    name: str = "moe_wna16"

    def linear(self, shard: LinearShard) -> Storage:
        raise AssertionError("moe_wna16 stores experts only; linear layers take AWQ's or GPTQ's scheme")

    def moe(self, shard: MoEShard) -> Storage:
        pack = 8 // self.bits
        experts, hidden, inner = shard.num_local_experts, shard.hidden_size, shard.intermediate_size
        group = self._group(hidden, inner)
        tensors = [
            Stored("w13_qweight", (experts, 2 * inner, hidden // pack), "uint8"),
            Stored("w2_qweight", (experts, hidden, inner // pack), "uint8"),
            Stored("w13_scales", (experts, 2 * inner, hidden // group), shard.dtype),
            Stored("w2_scales", (experts, hidden, inner // group), shard.dtype),
        ]
        if self.zero_points:
            tensors.append(Stored("w13_qzeros", (experts, 2 * inner // pack, hidden // group), "uint8"))
            tensors.append(Stored("w2_qzeros", (experts, hidden // pack, inner // group), "uint8"))
        if self.gptq:
            empty = ["w13_g_idx", "w2_g_idx"] + ([] if self.zero_points else ["w13_qzeros", "w2_qzeros"])
            tensors += [Stored(name, (0,), "int32") for name in empty]
        return Storage(tuple(tensors))

    def _group(self, hidden: int, inner: int) -> int:
        group = self.group_size
        while group >= _SMALLEST_GROUP and (inner % group or hidden % group):
            group //= 2
        if group < _SMALLEST_GROUP:
            raise reject(
                "quantization_alignment",
                f"the experts' intermediate size {inner} and hidden size {hidden} are not divisible by a group of at "
                "least 32 (assert group_size >= 32)",
            )
        return group


class MoeWna16Selector(BaseSelector):
    """--quantization moe_wna16: experts here, linear layers as the checkpoint's own method stores them."""

    def __init__(self, linear: BaseSelector, scheme: MoeWna16, skipped: tuple[str, ...]) -> None:
        super().__init__(linear.context)
        self.inner = linear
        self.scheme_ = scheme
        self.skipped = skipped

    def _skips(self, name: str) -> bool:
        return any(entry in name for entry in self.skipped)

    def linear(self, module: LinearModule) -> Scheme:
        return UNQUANTIZED if self._skips(module.name) else self.inner.linear(module)

    def moe(self, module: FusedMoE) -> Scheme:
        return UNQUANTIZED if self._skips(module.name) else self.scheme_


def scheme_of(section: Section) -> MoeWna16:
    """The experts' scheme of an AWQ or GPTQ section."""
    gptq = section.value("quant_method") == "gptq"
    return MoeWna16(
        bits=section.whole("bits"),
        group_size=section.whole("group_size"),
        zero_points=not section.flag("sym") if gptq else section.flag("zero_point"),
        gptq=gptq,
    )


def select(model: ModelSpec, checkpoint: QuantizationSpec | None, context: Context) -> MoeWna16Selector:
    """--quantization moe_wna16 over an AWQ checkpoint.

    vLLM asks a new AWQ or GPTQ configuration about each linear layer, one that knows neither the file headers nor which
    layers are fused (moe_wna16.py get_quant_method). A GPTQ checkpoint's are then built in 16 bit, and loading fails.
    """
    from planner.sharding.quantization import awq

    if checkpoint is None:
        raise UnsupportedError("quantization", "moe_wna16 needs a quantized checkpoint")
    section = Section(checkpoint.raw)
    if section.value("quant_method") == "gptq":
        raise UnsupportedError(
            "quantization",
            "moe_wna16 cannot hold the packed linear layers of a GPTQ checkpoint; leave --quantization out",
        )
    apart = replace(context, names=replace(context.names, fused={}))
    linear = awq.select(model, checkpoint, apart)
    return MoeWna16Selector(linear, scheme_of(section), section.strings("modules_to_not_convert"))
