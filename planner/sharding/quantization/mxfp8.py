"""MXFP8: E4M3 weights with one E8M0 exponent for each 32 inputs.

Source: vLLM 0.26.0 kernels/linear/mxfp8/*.py, layers/fused_moe/oracle/mxfp8.py, quantization/modelopt.py
ModelOptMxFp8LinearMethod and ModelOptMxFp8FusedMoE, compressed_tensors_w8a8_mxfp8.py.
"""

from __future__ import annotations

from msgspec import Struct

from planner.sharding.quantization import marlin
from planner.sharding.quantization.base import LinearShard, MoEShard, Storage, Stored
from planner.sharding.quantization.context import Context
from planner.sharding.quantization.marlin import padded_moe_intermediate, padded_nk, round_up
from planner.values import reject

GROUP = 32


class Mxfp8(Struct, frozen=True):
    """A checkpoint's MXFP8 layers. From 10.0 FlashInfer takes linear layers, below Marlin in 16 bit."""

    context: Context
    name: str = "mxfp8"

    def linear(self, shard: LinearShard) -> Storage:
        n, k = shard.output_size, shard.input_size
        if k % GROUP:
            raise reject(
                "quantization_alignment", f"MXFP8 requires input dimension to be divisible by {GROUP}, got {k}"
            )
        created = (
            Stored("weight", (n, k), "float8_e4m3fn"),
            Stored("weight_scale", (n, k // GROUP), "uint8"),
        )
        return Storage(created, *linear_after_load(shard, self.context))

    def moe(self, shard: MoEShard) -> Storage:
        experts, hidden, inner = shard.num_local_experts, shard.hidden_size, shard.intermediate_size
        if hidden % GROUP:
            raise reject(
                "quantization_alignment", f"MXFP8 MoE requires hidden_size divisible by {GROUP}, got {hidden}."
            )
        if inner % GROUP:
            raise reject(
                "quantization_alignment",
                f"MXFP8 MoE requires intermediate_size_per_partition divisible by {GROUP}, got {inner}.",
            )
        created = (
            Stored("w13_weight", (experts, shard.w13_rows, hidden), "float8_e4m3fn"),
            Stored("w2_weight", (experts, hidden, inner), "float8_e4m3fn"),
            Stored("w13_weight_scale", (experts, shard.w13_rows, hidden // GROUP), "uint8"),
            Stored("w2_weight_scale", (experts, hidden, inner // GROUP), "uint8"),
        )
        return Storage(created, experts_after_load(shard, self.context))


def linear_after_load(shard: LinearShard, context: Context) -> tuple[tuple[Stored, ...], int | None]:
    n, k = shard.output_size, shard.input_size
    if context.capability >= 100:
        scale = Stored("weight_scale", (round_up(n, 128) * round_up(k // GROUP, 4),), "uint8")
        return (Stored("weight", (n, k), "float8_e4m3fn"), scale), None
    padded_n, padded_k = padded_nk(n, k, GROUP)
    tensors = (
        marlin.repacked("weight", padded_n, padded_k, 8),
        Stored("weight_scale", (padded_k // GROUP, padded_n), "float8_e8m0fnu"),
        marlin.workspace(context),
    )
    return tensors, padded_n if padded_n != n else None


def experts_after_load(shard: MoEShard, context: Context) -> tuple[Stored, ...]:
    """FlashInfer and DeepGEMM keep the bytes on 10.x; Marlin repacks elsewhere."""
    experts, hidden = shard.num_local_experts, shard.hidden_size
    if context.family == 100:
        inner, rows = shard.intermediate_size, shard.w13_rows
        return (
            Stored("w13_weight", (experts, rows, hidden), "float8_e4m3fn"),
            Stored("w2_weight", (experts, hidden, inner), "float8_e4m3fn"),
            Stored("w13_weight_scale", (experts, rows, hidden // GROUP), "uint8"),
            Stored("w2_weight_scale", (experts, hidden, inner // GROUP), "uint8"),
        )
    inner = padded_moe_intermediate(shard.intermediate_size, GROUP)
    rows = inner * (2 if shard.gated else 1)
    return (
        marlin.repacked_experts("w13_weight", experts, rows, hidden, 8),
        marlin.repacked_experts("w2_weight", experts, hidden, inner, 8),
        Stored("w13_weight_scale", (experts, hidden // GROUP, rows), "float8_e8m0fnu"),
        Stored("w2_weight_scale", (experts, inner // GROUP, hidden), "float8_e8m0fnu"),
        marlin.workspace(context, 4),
    )
