"""compressed-tensors schemes of linear layers. Source: vLLM 0.26.0 layers/quantization/compressed_tensors/schemes."""

from __future__ import annotations

from msgspec import Struct

from planner.sharding.quantization import fp8_kernels as kernels
from planner.sharding.quantization import humming, wna16
from planner.sharding.quantization.base import LinearShard, MoEShard, Storage, Stored
from planner.sharding.quantization.compressed_args import QuantArgs
from planner.sharding.quantization.context import Context
from planner.values import reject

_NAMES = wna16.TensorNames(
    weight="weight_packed", scale="weight_scale", zero_point="weight_zero_point", g_idx="weight_g_idx"
)


class Wna16(Struct, frozen=True):
    """pack-quantized integers: 32 bits of weights along the input in an int32, one scale a group.

    `layer` is the layer's name, for vLLM's sentence about groups that straddle the split.
    """

    context: Context
    weights: QuantArgs
    layer: str
    name: str = "compressed-tensors wNa16"

    def linear(self, shard: LinearShard) -> Storage:
        weights = self.weights
        bits, group = weights.num_bits, weights.group_size or -1
        if group == -1 and weights.strategy != "channel":
            raise reject(
                "quantization_capability",
                "Pack-quantized format requires group quantization or channelwise quantization, but found no group "
                "size and strategy is not channelwise.",
            )
        k, n, full_k = shard.input_size, shard.output_size, shard.full_input_size
        problem = wna16.Problem(
            k=k, full_k=full_k, n=n, weight_type=wna16.weight_type(bits, zero_points=not weights.symmetric), bits=bits,
            dtype=shard.dtype, group_size=group, zero_points=not weights.symmetric, has_g_idx=weights.act_order,
        )  # fmt: skip
        size = full_k if group == -1 else group
        repeats = weights.act_order or (group == -1 and k != full_k)
        if not repeats and k % size:
            raise reject(
                "quantization_alignment",
                f"Weight input_size_per_partition={k} for layer '{self.layer}' is not divisible by group_size={size}. "
                "This happens when tensor_parallel_size splits the layer input into shards that are not a whole "
                "number of quant groups. Consider reducing tensor_parallel_size.",
            )
        kernel = wna16.choose_kernel(problem, self.context)
        groups = (full_k if repeats else k) // size
        created = [
            Stored("weight_packed", (n, -(-k * bits // 32)), "int32"),
            Stored("weight_scale", (n, groups), shard.dtype),
            Stored("weight_shape", (2,), "int64"),
        ]
        if not weights.symmetric:
            created.append(Stored("weight_zero_point", (-(-n * bits // 32), groups), "int32"))
        if weights.act_order:
            created.append(Stored("weight_g_idx", (k,), "int32"))
        tensors = tuple(created)
        return Storage(tensors, *wna16.after_load(problem, kernel, _NAMES, tensors, self.context))

    def moe(self, shard: MoEShard) -> Storage:
        raise AssertionError("experts have schemes of their own")


class Fp8(Struct, frozen=True):
    """FP8 weights with per-tensor, per-channel or per-block scales. `static`: the checkpoint has input scales.

    Below 8.9, and for weight-only checkpoints on any card, the Humming kernel multiplies in 16 bit
    (compressed_tensors_w8a16_fp8.py; kernels/linear/__init__.py _POSSIBLE_WFP8A16_KERNELS).
    """

    context: Context
    weights: QuantArgs
    static: bool
    weight_only: bool
    name: str = "compressed-tensors fp8"

    def linear(self, shard: LinearShard) -> Storage:
        n, k, parts = shard.output_size, shard.input_size, len(shard.output_sizes)
        weight = Stored("weight", (n, k), "float8_e4m3fn")
        if self.weights.block is not None:
            kernels.validate_block_shape(shard, self.weights.block, fused_may_differ=False)
            scale = kernels.block_scale("weight_scale", shard, self.weights.block)
        else:
            shape = (n, 1) if self.weights.strategy == "channel" else (parts,)
            scale = Stored("weight_scale", shape, "float32")
        created = [weight, scale]
        if self.static:
            created.append(Stored("input_scale", (parts,), "float32"))
        return Storage(tuple(created), *self._after_load(shard, scale))

    def _after_load(self, shard: LinearShard, scale: Stored) -> kernels.Loaded:
        if self.weight_only or kernels.uses_marlin(self.context):
            if self.weights.block is not None:
                return humming.block_after_load(shard.output_size, shard.input_size, self.weights.block), None
            return humming.linear_after_load(shard.output_size, shard.input_size, 1, bits=8, dtype=shard.dtype), None
        if self.weights.block is not None:
            return kernels.block_after_load(shard, self.context, self.weights.block, scale)
        if self.weights.strategy == "channel":
            return kernels.channel_after_load(shard, self.context, static=self.static)
        return kernels.tensor_after_load(shard, self.context, static=self.static)

    def moe(self, shard: MoEShard) -> Storage:
        raise AssertionError("experts have schemes of their own")


class Int8(Struct, frozen=True):
    """INT8 weights and activations. Fused per-tensor scales become one scale a row; asymmetric inputs keep a row
    correction (kernels/linear/scaled_mm/cutlass.py)."""

    weights: QuantArgs
    static: bool
    symmetric: bool
    name: str = "compressed-tensors int8"

    def linear(self, shard: LinearShard) -> Storage:
        n, k, parts = shard.output_size, shard.input_size, len(shard.output_sizes)
        channel = self.weights.strategy == "channel"
        created = [
            Stored("weight", (n, k), "int8"),
            Stored("weight_scale", (n, 1) if channel else (parts,), "float32"),
        ]
        loaded = [
            Stored("weight", (k, n), "int8"),
            Stored("weight_scale", (n, 1) if channel or parts > 1 else (parts,), "float32"),
        ]
        if self.static:
            created.append(Stored("input_scale", (1,), "float32"))
            loaded.append(Stored("input_scale", (), "float32"))
            if not self.symmetric:
                created.append(Stored("input_zero_point", (1,), "int8"))
                loaded.append(Stored("input_zero_point", (), "int32"))
        if not self.symmetric:
            loaded.append(Stored("azp_adj", (1, n), "int32"))
        return Storage(tuple(created), tuple(loaded))

    def moe(self, shard: MoEShard) -> Storage:
        raise AssertionError("experts have schemes of their own")


class PackedEmbedding(Struct, frozen=True):
    """A token embedding of packed integers, unpacked row by row (compressed_tensors_embedding.py)."""

    weights: QuantArgs
    name: str = "compressed-tensors embedding"

    def linear(self, shard: LinearShard) -> Storage:
        rows, hidden = shard.output_size, shard.input_size
        pack = 32 // self.weights.num_bits
        grouped = self.weights.strategy == "group" and self.weights.group_size is not None
        groups = hidden // (self.weights.group_size or hidden) if grouped else 1
        return Storage((
            Stored("weight_packed", (rows, hidden // pack), "int32"),
            Stored("weight_scale", (rows, groups), shard.dtype),
            Stored("weight_shape", (2,), "int64"),
        ))  # fmt: skip

    def moe(self, shard: MoEShard) -> Storage:
        raise AssertionError("an embedding has no experts")
