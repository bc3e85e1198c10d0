"""Quantization while loading: 16-bit checkpoints become FP8, MXFP8, INT8 or NVFP4 layer by layer.

vLLM creates these weights on the meta device, so what counts as created never occupies the card.
Source: vLLM 0.26.0 layers/quantization/online/{base,fp8,mxfp8,int8,nvfp4,moe_base}.py, config/quantization.py:142.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.modules import FusedMoE
from planner.model.spec import ModelSpec
from planner.sharding.quantization import fp8_kernels as kernels
from planner.sharding.quantization import fp8_moe, mxfp8
from planner.sharding.quantization.base import UNQUANTIZED, LinearShard, MoEShard, Scheme, Storage, Stored
from planner.sharding.quantization.context import BaseSelector, Context, LinearModule
from planner.sharding.quantization.marlin import round_up
from planner.sharding.quantization.nvfp4 import MODELOPT, Nvfp4
from planner.values import reject

_BLOCK = (128, 128)


class OnlineFp8(Struct, frozen=True):
    """One scale for a layer ("tensor"), for each output row ("channel"), or for each 128 x 128 block ("block")."""

    context: Context
    strategy: fp8_moe.Strategy
    name: str = "fp8_online"

    def linear(self, shard: LinearShard) -> Storage:
        created = UNQUANTIZED.linear(shard).created
        if self.strategy == "tensor":
            return Storage(created, *kernels.tensor_after_load(shard, self.context, static=False))
        if self.strategy == "channel":
            if kernels.uses_marlin(self.context):
                raise reject(
                    "quantization_capability",
                    "FP8 PTPC online quant requires a kernel that honors per-token activation quantization; MarlinFP8 "
                    "is W8A16 weight-only. Requires SM89+ for Cutlass FP8 or ROCm MI3xx for rowwise scaled_mm.",
                )
            return Storage(created, *kernels.channel_after_load(shard, self.context))
        scale = kernels.block_scale("weight_scale_inv", shard, _BLOCK)
        return Storage(created, *kernels.block_after_load(shard, self.context, _BLOCK, scale))

    def moe(self, shard: MoEShard) -> Storage:
        if self.strategy == "block":
            shard = _rounded(shard)
        if self.strategy == "channel" and kernels.uses_marlin(self.context):
            raise reject(
                "quantization_capability",
                "FP8 PTPC online MoE quant is not supported with the MARLIN backend, which does not implement "
                "per-output-channel weight scales.",
            )
        suffix = "weight_scale_inv" if self.strategy == "block" else "weight_scale"
        quantized = fp8_moe.created_experts(shard, self.strategy, static=False, shards=2, suffix=suffix)
        loaded = fp8_moe.loaded_experts(shard, quantized, self.strategy, self.context, static=False, suffix=suffix)
        return Storage(_full_precision(shard), loaded)


class OnlineMxfp8(Struct, frozen=True):
    context: Context
    name: str = "mxfp8_online"

    def linear(self, shard: LinearShard) -> Storage:
        if shard.input_size % mxfp8.GROUP:
            raise reject(
                "quantization_alignment",
                f"MXFP8 requires input_size_per_partition ({shard.input_size}) to be divisible by {mxfp8.GROUP}.",
            )
        return Storage(UNQUANTIZED.linear(shard).created, *mxfp8.linear_after_load(shard, self.context))

    def moe(self, shard: MoEShard) -> Storage:
        if shard.hidden_size % mxfp8.GROUP or shard.intermediate_size % mxfp8.GROUP:
            raise reject(
                "quantization_alignment",
                f"Online MXFP8 MoE requires hidden/intermediate sizes divisible by {mxfp8.GROUP}.",
            )
        return Storage(_full_precision(shard), mxfp8.experts_after_load(shard, self.context))


class OnlineInt8Experts(Struct, frozen=True):
    """INT8 experts with a float32 scale for each row; linear layers stay 16 bit."""

    context: Context
    name: str = "int8_online"

    def linear(self, shard: LinearShard) -> Storage:
        return UNQUANTIZED.linear(shard)

    def moe(self, shard: MoEShard) -> Storage:
        experts, hidden, inner = shard.num_local_experts, shard.hidden_size, shard.intermediate_size
        loaded = (
            Stored("w13_weight", (experts, 2 * inner, hidden), "int8"),
            Stored("w2_weight", (experts, hidden, inner), "int8"),
            *fp8_moe.biases(shard),
            Stored("w13_scale", (experts, 2 * inner), "float32"),
            Stored("w2_scale", (experts, hidden), "float32"),
        )
        return Storage(_full_precision(shard), loaded)


class OnlineNvfp4Experts(Struct, frozen=True):
    """NVFP4 experts on 10.x; linear layers stay 16 bit."""

    context: Context
    name: str = "nvfp4_online"

    def linear(self, shard: LinearShard) -> Storage:
        return UNQUANTIZED.linear(shard)

    def moe(self, shard: MoEShard) -> Storage:
        if self.context.family != 100:
            raise reject(
                "quantization_capability",
                "nvfp4_per_token online quantization requires a Blackwell (SM100) GPU.",
            )
        quantized = Nvfp4(self.context, MODELOPT, use_a16=False).moe(shard)
        return Storage(_full_precision(shard), quantized.after_load)


class OnlineSelector(BaseSelector):
    """Every linear layer and every layer's experts, None: that kind stays 16 bit."""

    def __init__(self, context: Context, linear: Scheme | None, moe: Scheme | None) -> None:
        super().__init__(context)
        self.linear_scheme = linear or UNQUANTIZED
        self.moe_scheme = moe or UNQUANTIZED

    def linear(self, module: LinearModule) -> Scheme:
        return self.linear_scheme

    def moe(self, module: FusedMoE) -> Scheme:
        return self.moe_scheme


def select(model: ModelSpec, method: str, context: Context) -> OnlineSelector:
    """The selector of a --quantization shorthand. "online" needs --quantization-config, which is not known here."""
    strategies: dict[str, fp8_moe.Strategy] = {
        "fp8_per_tensor": "tensor", "fp8_per_channel": "channel", "fp8_per_block": "block",
    }  # fmt: skip
    if method in strategies:
        scheme = OnlineFp8(context, strategies[method])
        return OnlineSelector(context, scheme, scheme)
    if method == "mxfp8":
        return OnlineSelector(context, OnlineMxfp8(context), OnlineMxfp8(context))
    if method in ("int8_per_channel_weight_only", "experts_int8"):
        return OnlineSelector(context, None, OnlineInt8Experts(context))
    if method == "nvfp4_per_token":
        return OnlineSelector(context, None, OnlineNvfp4Experts(context))
    raise UnsupportedError("quantization", f"online quantization {method} is not supported by this planner")


def _full_precision(shard: MoEShard) -> tuple[Stored, ...]:
    experts, hidden, inner = shard.num_local_experts, shard.hidden_size, shard.intermediate_size
    return (
        Stored("w13_weight", (experts, 2 * inner, hidden), shard.dtype),
        Stored("w2_weight", (experts, hidden, inner), shard.dtype),
        *fp8_moe.biases(shard),
    )


def _rounded(shard: MoEShard) -> MoEShard:
    """Fp8PerBlockOnlineMoEMethod.maybe_roundup_sizes: both sizes up to the block."""
    return replace(
        shard, hidden_size=round_up(shard.hidden_size, 128), intermediate_size=round_up(shard.intermediate_size, 128)
    )
