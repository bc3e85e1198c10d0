"""NVFP4: two 4-bit floats in a byte, an FP8 scale for each 16 inputs, one float32 scale a layer.

Source: vLLM 0.26.0 kernels/linear/nvfp4/*.py, quantization/utils/{nvfp4_utils,marlin_utils_fp4,flashinfer_fp4_moe}.py,
quantization/modelopt.py:1130, compressed_tensors_w4a4_nvfp4.py, layers/fused_moe/oracle/nvfp4.py. From 10.0 FlashInfer
and CUTLASS multiply in FP4 with swizzled scales; below, and for 16-bit activations, Marlin.
"""

from __future__ import annotations

from msgspec import Struct

from planner.sharding.quantization import marlin
from planner.sharding.quantization.base import LinearShard, MoEShard, Storage, Stored
from planner.sharding.quantization.context import Context
from planner.sharding.quantization.marlin import padded_nk, round_up
from planner.values import reject

GROUP = 16


class Nvfp4Names(Struct, frozen=True, kw_only=True):
    """The dialect's attribute names. `always_input_scale`: registered even where activations stay 16 bit (ModelOpt)."""

    weight: str
    scale: str
    global_scale: str
    input_scale: str
    always_input_scale: bool = False


MODELOPT = Nvfp4Names(
    weight="weight", scale="weight_scale", global_scale="weight_scale_2", input_scale="input_scale",
    always_input_scale=True,
)  # fmt: skip


class Nvfp4(Struct, frozen=True):
    context: Context
    names: Nvfp4Names
    use_a16: bool
    group_size: int = GROUP
    name: str = "nvfp4"

    @property
    def on_marlin(self) -> bool:
        return self.use_a16 or self.context.capability < 100

    def linear(self, shard: LinearShard) -> Storage:
        n, k, parts = shard.output_size, shard.input_size, len(shard.output_sizes)
        names = self.names
        if names.always_input_scale and k % 16:
            raise reject("quantization_alignment", "Unsupported model when in features size is not multiple of 16")
        created = [
            Stored(names.weight, (n, k // 2), "uint8"),
            Stored(names.global_scale, (parts,), "float32"),
            Stored(names.scale, (n, k // self.group_size), "float8_e4m3fn"),
        ]
        if names.always_input_scale or not self.use_a16:
            created.append(Stored(names.input_scale, (parts,), "float32"))
        return Storage(tuple(created), *self._linear_after_load(shard))

    def _linear_after_load(self, shard: LinearShard) -> tuple[tuple[Stored, ...], int | None]:
        n, k = shard.output_size, shard.input_size
        scalars = ["weight_global_scale"]
        if not self.use_a16:
            scalars += ["input_global_scale", "input_global_scale_inv", "alpha"]
        rest = tuple(Stored(name, (), "float32") for name in scalars)
        if self.on_marlin:
            padded_n, padded_k = padded_nk(n, k, GROUP)
            tensors = (
                marlin.repacked("weight", padded_n, padded_k, 4),
                Stored("weight_scale", (padded_k // GROUP, padded_n), "float8_e4m3fn"),
                *rest,
                marlin.workspace(self.context),
            )
            return tensors, padded_n if padded_n != n else None
        scale = Stored("weight_scale", (round_up(n, 128), round_up(k // self.group_size, 4)), "float8_e4m3fn")
        return (Stored("weight", (round_up(n, 32), round_up(k, 32) // 2), "uint8"), scale, *rest), None

    def moe(self, shard: MoEShard) -> Storage:
        experts, hidden, inner, rows = (
            shard.num_local_experts, shard.hidden_size, shard.intermediate_size, shard.w13_rows,
        )  # fmt: skip
        names, shards = self.names, rows // inner
        shared_scales = names.always_input_scale and not self.on_marlin
        scale_experts = shard.num_experts if shared_scales else experts
        created = (
            Stored(f"w13_{names.weight}", (experts, rows, hidden // 2), "uint8"),
            Stored(f"w2_{names.weight}", (experts, hidden, inner // 2), "uint8"),
            Stored(f"w13_{names.scale}", (experts, rows, hidden // self.group_size), "float8_e4m3fn"),
            Stored(f"w2_{names.scale}", (experts, hidden, inner // self.group_size), "float8_e4m3fn"),
            Stored(f"w13_{names.global_scale}", (experts, shards), "float32"),
            Stored(f"w2_{names.global_scale}", (experts,), "float32"),
            Stored(f"w13_{names.input_scale}", (scale_experts, shards), "float32"),
            Stored(f"w2_{names.input_scale}", (scale_experts,), "float32"),
        )
        weights = self._marlin_experts(shard) if self.on_marlin else self._native_experts(shard)
        kept = () if names.always_input_scale else created[4:]
        globals_ = tuple(Stored(f"{name}_weight_scale_2", (experts,), "float32") for name in ("w13", "w2"))
        return Storage(created, (*weights, *globals_, *kept))

    def _marlin_experts(self, shard: MoEShard) -> tuple[Stored, ...]:
        """prepare_nvfp4_moe_layer_for_marlin: the intermediate size to 64, or 128 for hidden sizes off 128."""
        experts, hidden = shard.num_local_experts, shard.hidden_size
        if hidden % 64:
            raise reject("quantization_alignment", f"hidden_size = {hidden} unsupported by Marlin tiles")
        inner = round_up(shard.intermediate_size, 64 if hidden % 128 == 0 else 128)
        rows = inner * (2 if shard.gated else 1)
        return (
            marlin.repacked_experts("w13_weight", experts, rows, hidden, 4),
            marlin.repacked_experts("w2_weight", experts, hidden, inner, 4),
            Stored("w13_weight_scale", (experts, hidden // GROUP, rows), "float8_e4m3fn"),
            Stored("w2_weight_scale", (experts, inner // GROUP, hidden), "float8_e4m3fn"),
            marlin.workspace(self.context, 4),
        )

    def _native_experts(self, shard: MoEShard) -> tuple[Stored, ...]:
        """TRT-LLM's kernel on 10.x pads hidden to 256 and intermediate to 64; CUTLASS elsewhere swizzles scales."""
        experts, hidden, inner = shard.num_local_experts, shard.hidden_size, shard.intermediate_size
        if self.context.family == 100:
            hidden, inner = round_up(hidden, 256), round_up(inner, 64 if shard.gated else 128)
            rows = inner * (2 if shard.gated else 1)
            scales = ((experts, rows, hidden // GROUP), (experts, hidden, inner // GROUP))
        else:
            rows = inner * (2 if shard.gated else 1)
            scales = (
                (experts, round_up(rows, 128), round_up(hidden // GROUP, 4)),
                (experts, round_up(hidden, 128), round_up(inner // GROUP, 4)),
            )
        inputs = tuple(Stored(f"{name}_input_scale", (experts,), "float32") for name in ("w13", "w2"))
        return (
            Stored("w13_weight", (experts, rows, hidden // 2), "uint8"),
            Stored("w2_weight", (experts, hidden, inner // 2), "uint8"),
            Stored("w13_weight_scale", scales[0], "float8_e4m3fn"),
            Stored("w2_weight_scale", scales[1], "float8_e4m3fn"),
            *inputs,
        )
