"""FP8 experts: what is created, and what a backend keeps.

Source: vLLM 0.26.0 layers/fused_moe/oracle/fp8.py (select_fp8_moe_backend, convert_to_fp8_moe_kernel_format),
quantization/utils/{marlin_utils_fp8,flashinfer_utils,fp8_utils}.py. Triton, CUTLASS and DeepGEMM on 9.0 take the
weights as they are; FlashInfer pads per-tensor experts; Marlin repacks; DeepGEMM on Blackwell packs block scales.
"""

from __future__ import annotations

from typing import Literal

from planner.sharding.quantization import marlin
from planner.sharding.quantization.base import MoEShard, Stored
from planner.sharding.quantization.context import Context
from planner.sharding.quantization.fp8_kernels import packed_scale, packs_scales, uses_marlin
from planner.sharding.quantization.marlin import padded_moe_intermediate, round_up

Strategy = Literal["tensor", "channel", "block"]


def created_experts(
    shard: MoEShard, strategy: Strategy, *, static: bool, shards: int, block: tuple[int, int] = (128, 128), suffix: str
) -> tuple[Stored, ...]:
    """Weights, biases, weight scales named w13_/w2_ + `suffix`, and input scales of a static scheme.

    `shards`: 2 for gate and up, 1 where the method knows experts without a gate.
    """
    experts, hidden, inner = shard.num_local_experts, shard.hidden_size, shard.intermediate_size
    tensors = [
        Stored("w13_weight", (experts, shards * inner, hidden), "float8_e4m3fn"),
        Stored("w2_weight", (experts, hidden, inner), "float8_e4m3fn"),
        *biases(shard),
    ]
    block_n, block_k = block
    shapes: dict[Strategy, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "tensor": ((experts, shards), (experts,)),
        "channel": ((experts, shards * inner, 1), (experts, hidden, 1)),
        "block": (
            (experts, shards * -(-inner // block_n), -(-hidden // block_k)),
            (experts, -(-hidden // block_n), -(-inner // block_k)),
        ),
    }
    w13, w2 = shapes[strategy]
    tensors += [Stored(f"w13_{suffix}", w13, "float32"), Stored(f"w2_{suffix}", w2, "float32")]
    if static:
        tensors += [Stored(f"{name}_input_scale", (experts,), "float32") for name in ("w13", "w2")]
    return tuple(tensors)


def biases(shard: MoEShard) -> tuple[Stored, ...]:
    if not shard.bias:
        return ()
    experts = shard.num_local_experts
    return (
        Stored("w13_bias", (experts, shard.w13_rows), shard.dtype),
        Stored("w2_bias", (experts, shard.hidden_size), shard.dtype),
    )


def loaded_experts(
    shard: MoEShard,
    created: tuple[Stored, ...],
    strategy: Strategy,
    context: Context,
    *,
    static: bool,
    suffix: str,
    block: tuple[int, int] = (128, 128),
) -> tuple[Stored, ...]:
    """The tensors of `created_experts` after loading, in the backend's layout: one scale an expert where they are per
    tensor, one input scale a layer."""
    tensors = {stored.name: stored for stored in created}
    experts = shard.num_local_experts
    if strategy == "tensor":
        tensors[f"w13_{suffix}"] = Stored(f"w13_{suffix}", (experts,), "float32")
    if static:
        for name in ("w13_input_scale", "w2_input_scale"):
            tensors[name] = Stored(name, (), "float32")
    if uses_marlin(context):
        return _marlin(shard, tensors, strategy, context, suffix, block)
    if strategy == "tensor" and static and context.capability >= 90:
        _flashinfer(shard, tensors)
    if strategy == "block" and context.family == 120 and packs_scales(context):
        rows = tensors["w13_weight"].shape[1]
        tensors[f"w13_{suffix}"] = packed_scale(f"w13_{suffix}", (experts,), rows, shard.hidden_size)
        tensors[f"w2_{suffix}"] = packed_scale(f"w2_{suffix}", (experts,), shard.hidden_size, shard.intermediate_size)
    return tuple(tensors.values())


def _flashinfer(shard: MoEShard, tensors: dict[str, Stored]) -> None:
    """align_moe_weights_for_fi: the intermediate size up to 16, or 128 without a gate; dequantization factors."""
    inner = round_up(shard.intermediate_size, 16 if shard.gated else 128)
    experts, hidden = shard.num_local_experts, shard.hidden_size
    rows = inner * (2 if shard.gated else 1)
    tensors["w13_weight"] = Stored("w13_weight", (experts, rows, hidden), "float8_e4m3fn")
    tensors["w2_weight"] = Stored("w2_weight", (experts, hidden, inner), "float8_e4m3fn")
    for name in ("g1_alphas", "g2_alphas"):
        tensors[name] = Stored(name, (experts,), "float32", "workspace")
    for name in ("a1_gscale", "a2_gscale"):
        tensors[name] = Stored(name, (), "float32", "workspace")


def _marlin(
    shard: MoEShard,
    tensors: dict[str, Stored],
    strategy: Strategy,
    context: Context,
    suffix: str,
    block: tuple[int, int],
) -> tuple[Stored, ...]:
    """prepare_fp8_moe_layer_for_marlin: tiles, a scale for each output row (and group of inputs)."""
    group = block[1] if strategy == "block" else -1
    experts, hidden = shard.num_local_experts, shard.hidden_size
    inner = padded_moe_intermediate(shard.intermediate_size, group)
    shards = tensors["w13_weight"].shape[1] // shard.intermediate_size
    groups13, groups2 = (1, 1) if group == -1 else (hidden // group, inner // group)
    tensors["w13_weight"] = marlin.repacked_experts("w13_weight", experts, shards * inner, hidden, 8)
    tensors["w2_weight"] = marlin.repacked_experts("w2_weight", experts, hidden, inner, 8)
    tensors[f"w13_{suffix}"] = Stored(f"w13_{suffix}", (experts, groups13, shards * inner), shard.dtype)
    tensors[f"w2_{suffix}"] = Stored(f"w2_{suffix}", (experts, groups2, hidden), shard.dtype)
    tensors["workspace"] = marlin.workspace(context, 4)
    return tuple(tensors.values())
