"""bitsandbytes: NF4 or FP4 in a byte pair, or INT8, from a checkpoint or while loading.

Source: vLLM 0.26.0 layers/quantization/bitsandbytes.py, model_loader/bitsandbytes_loader.py. The quantization states
are kept beside the weights, one for each fused shard: a float32 maximum for each 64 values (double quantization is
undone while loading) and a table of 16 values; for INT8 a float32 scale for each row.
"""

from __future__ import annotations

from msgspec import Struct

from planner.model.modules import FusedMoE
from planner.model.spec import ModelSpec, QuantizationSpec
from planner.sharding.quantization.base import UNQUANTIZED, LinearShard, MoEShard, Scheme, Storage, Stored
from planner.sharding.quantization.context import BaseSelector, Context, LinearModule, Section
from planner.values import DTYPE_BYTES, reject

_BLOCK = 64
_TABLE = 16


class BitsAndBytes(Struct, frozen=True):
    eight_bit: bool
    name: str = "bitsandbytes"

    def linear(self, shard: LinearShard) -> Storage:
        n, k = shard.output_size, shard.input_size
        if self.eight_bit:
            weight = Stored("weight", (n, k), "int8")
            scales = tuple(
                Stored(f"quant_state.{index}", (size,), "float32", "workspace")
                for index, size in enumerate(shard.output_sizes)
            )
            return Storage((weight,), (weight, *scales))
        ratio = DTYPE_BYTES[shard.dtype]
        if n * k % ratio:
            raise reject("quantization_alignment", "The input size is not aligned with the quantized weight shape.")
        weight = Stored("weight", (n * k // ratio, 1), "uint8")
        states = tuple(
            state for index, size in enumerate(shard.output_sizes) for state in _state(f"quant_state.{index}", size * k)
        )
        return Storage((weight,), (weight, *states))

    def moe(self, shard: MoEShard) -> Storage:
        if self.eight_bit:
            raise reject("quantization_capability", "bitsandbytes has no 8-bit experts (NotImplementedError)")
        experts, values = shard.num_local_experts, shard.hidden_size * shard.intermediate_size
        ratio = DTYPE_BYTES[shard.dtype]
        created = (
            Stored("w13_weight", (experts, 2 * values // ratio, 1), "uint8"),
            Stored("w2_weight", (experts, values // ratio, 1), "uint8"),
        )
        states = _state("w13.quant_state", 2 * values * experts) + _state("w2.quant_state", values * experts)
        return Storage(created, created + states)


def _state(name: str, values: int) -> tuple[Stored, ...]:
    return (
        Stored(f"{name}.absmax", (-(-values // _BLOCK),), "float32", "workspace"),
        Stored(f"{name}.code", (_TABLE,), "float32", "workspace"),
    )


class BitsAndBytesSelector(BaseSelector):
    """Every linear layer and expert, but those a name part or a leading path of which llm_int8_skip_modules lists."""

    def __init__(self, context: Context, section: Section) -> None:
        super().__init__(context)
        self.skipped = frozenset(section.strings("llm_int8_skip_modules"))
        self.scheme_ = BitsAndBytes(section.flag("load_in_8bit", default=False))
        storage = section.value("bnb_4bit_quant_storage", default="uint8")
        if storage != "uint8":
            raise reject("quantization_capability", f"Unsupported bnb_4bit_quant_storage: {storage}")

    def linear(self, module: LinearModule) -> Scheme:
        return UNQUANTIZED if self._skips(module.name) else self.scheme_

    def moe(self, module: FusedMoE) -> Scheme:
        return self.scheme_

    def _skips(self, name: str) -> bool:
        parts = name.split(".")
        paths = {".".join(parts[: index + 1]) for index in range(len(parts))}
        return bool(self.skipped & paths) or bool(self.skipped & set(parts))


def select(model: ModelSpec, checkpoint: QuantizationSpec | None, context: Context) -> BitsAndBytesSelector:
    """A checkpoint's section, or vLLM's defaults (4 bit) while loading."""
    if checkpoint is None:
        return BitsAndBytesSelector(context, Section({}))
    if context.tensor_parallel_size > 1:
        raise reject(
            "parallelism",
            "Prequant BitsAndBytes models with tensor parallelism is not supported. Please try with pipeline "
            "parallelism.",
        )
    return BitsAndBytesSelector(context, Section(checkpoint.raw))
