"""compressed-tensors schemes of experts. Source: vLLM 0.26.0 quantization/compressed_tensors/compressed_tensors_moe."""

from __future__ import annotations

from msgspec import Struct

from planner.sharding.quantization import fp8_kernels as kernels
from planner.sharding.quantization import fp8_moe, marlin
from planner.sharding.quantization.base import LinearShard, MoEShard, Scheme, Storage, Stored
from planner.sharding.quantization.compressed_args import QuantArgs
from planner.sharding.quantization.context import Context
from planner.sharding.quantization.wna16_moe import ExpertNames, marlin_experts
from planner.values import reject

_NAMES = ExpertNames(weight="weight_packed", scale="weight_scale", zero_point="weight_zero_point", g_idx="weight_g_idx")
_BITS = (2, 3, 4, 5, 6, 7, 8)


class Wna16Experts(Struct, frozen=True):
    """Packed integers with a scale a group, for Marlin, or Triton where Marlin cannot run the shape."""

    context: Context
    weights: QuantArgs
    name: str = "compressed-tensors wNa16"

    def linear(self, shard: LinearShard) -> Storage:
        raise AssertionError("linear layers have schemes of their own")

    def moe(self, shard: MoEShard) -> Storage:
        weights, bits = self.weights, self.weights.num_bits
        group = -1 if weights.strategy == "channel" else weights.group_size or -1
        on_marlin = marlin.supports_moe(shard, weights.group_size or -1, padding=not weights.act_order)
        if weights.act_order and weights.strategy == "group" and not on_marlin:
            raise reject("quantization_capability", "WNA16MoE is not supported with actorder=group/dynamic.")
        self._check_groups(shard, group, full_rows=weights.act_order, on_marlin=on_marlin)
        experts, hidden, inner = shard.num_local_experts, shard.hidden_size, shard.intermediate_size
        rows, pack = shard.w13_rows, 32 // bits
        groups13 = 1 if group == -1 else hidden // group
        groups2 = 1 if group == -1 else (shard.full_intermediate_size if weights.act_order else inner) // group
        shapes = tuple(Stored(f"{name}_weight_shape", (experts, 2), self.context.dtype) for name in ("w2", "w13"))
        zeros = () if weights.symmetric else (
            Stored("w13_weight_zero_point", (experts, groups13, rows // pack), "int32"),
            Stored("w2_weight_zero_point", (experts, groups2, hidden // pack), "int32"),
        )  # fmt: skip
        created = (
            Stored("w13_weight_packed", (experts, hidden // pack, rows), "int32"),
            Stored("w2_weight_packed", (experts, inner // pack, hidden), "int32"),
            Stored("w13_weight_scale", (experts, groups13, rows), shard.dtype),
            Stored("w2_weight_scale", (experts, groups2, hidden), shard.dtype),
            *zeros,
            *shapes,
            Stored("w13_weight_g_idx", (experts, hidden), "int32"),
            Stored("w2_weight_g_idx", (experts, inner), "int32"),
            Stored("w13_g_idx_sort_indices", (experts, hidden), "int32"),
            Stored("w2_g_idx_sort_indices", (experts, inner), "int32"),
        )
        if not on_marlin or self._on_flashinfer(shard):
            return Storage(created)
        loaded = marlin_experts(
            shard, bits=bits, group_size=group, act_order=weights.act_order, g_idx=True,
            names=_NAMES, full_scale_rows=weights.act_order, shards=rows // inner,
            zero_points=not weights.symmetric,
        )  # fmt: skip
        return Storage(created, (*loaded, *shapes, marlin.workspace(self.context, 4)))

    def _on_flashinfer(self, shard: MoEShard) -> bool:
        """TRT-LLM's MXINT4 kernel, which keeps every tensor's size (oracle/int_wna16.py, trtllm_mxint4_moe.py)."""
        weights = self.weights
        return (
            self.context.family == 100
            and weights.num_bits == 4
            and weights.group_size == 32
            and weights.symmetric
            and shard.gated
            and shard.activation == "silu"
        )

    def _check_groups(self, shard: MoEShard, group: int, *, full_rows: bool, on_marlin: bool) -> None:
        """Whole groups; one group for all inputs, -1, divides any size."""
        kind = "CompressedTensors WNA16 Marlin MoE" if on_marlin else "CompressedTensors WNA16 MoE"
        if shard.hidden_size % group:
            raise reject(
                "quantization_alignment",
                f"{kind} requires hidden_size ({shard.hidden_size}) to be divisible by group_size ({group}).",
            )
        if not full_rows and shard.intermediate_size % group:
            raise reject(
                "quantization_alignment",
                f"{kind} with static group scales requires the MoE intermediate size per tensor-parallel partition "
                f"({shard.intermediate_size}) to be divisible by group_size ({group}). Scale groups would otherwise "
                "cross TP shard boundaries; use a compatible TP size or enable expert parallelism.",
            )


def wna16_experts(context: Context, weights: QuantArgs, packing: str) -> Scheme:
    if weights.num_bits not in _BITS or packing != "pack-quantized":
        raise reject(
            "quantization_capability",
            f"For Fused MoE layers, only format: pack-quantized and bits: {list(_BITS)} is supported but got format: "
            f"{packing} and bits: {weights.num_bits}",
        )
    if weights.num_bits not in (4, 8):
        raise reject(
            "quantization_capability",
            "CompressedTensorsWNA16MarlinMoEMethod only supports int4 and int8 now.",
        )
    return Wna16Experts(context, weights)


class Fp8Experts(Struct, frozen=True):
    """FP8 experts per tensor, per channel with dynamic inputs, or per block."""

    context: Context
    weights: QuantArgs
    inputs: QuantArgs
    name: str = "compressed-tensors fp8"

    def linear(self, shard: LinearShard) -> Storage:
        raise AssertionError("linear layers have schemes of their own")

    def moe(self, shard: MoEShard) -> Storage:
        static = not self.inputs.dynamic
        strategy: fp8_moe.Strategy = (
            "block" if self.weights.block else "channel" if self.weights.strategy == "channel" else "tensor"
        )
        if static and strategy == "channel":
            raise reject(
                "quantization_capability",
                "For FP8 Fused MoE layer, we require either per tensor or channelwise, dynamic per token quantization.",
            )
        block = self.weights.block or (128, 128)
        if strategy == "block":
            kernels.validate_moe_block_shape(shard, block, self.context)
        created = fp8_moe.created_experts(
            shard, strategy, static=static, shards=2 if shard.gated else 1, block=block, suffix="weight_scale"
        )
        loaded = fp8_moe.loaded_experts(
            shard, created, strategy, self.context, static=static, suffix="weight_scale", block=block
        )
        return Storage(created, loaded)


class Int8Experts(Struct, frozen=True):
    """INT8 experts with a float32 scale a row. Unchanged after loading (Triton)."""

    name: str = "compressed-tensors int8"

    def linear(self, shard: LinearShard) -> Storage:
        raise AssertionError("linear layers have schemes of their own")

    def moe(self, shard: MoEShard) -> Storage:
        experts, hidden, rows = shard.num_local_experts, shard.hidden_size, shard.w13_rows
        return Storage((
            Stored("w13_weight", (experts, rows, hidden), "int8"),
            Stored("w2_weight", (experts, hidden, shard.intermediate_size), "int8"),
            Stored("w13_weight_scale", (experts, rows, 1), "float32"),
            Stored("w2_weight_scale", (experts, hidden, 1), "float32"),
        ))  # fmt: skip
