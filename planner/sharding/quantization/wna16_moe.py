"""Experts with integer weights after Marlin's repacking.

Source: vLLM 0.26.0 layers/fused_moe/oracle/int_wna16.py. Marlin serves every CUDA card from 7.5; FlashInfer's
TRT-LLM kernel takes its place on 10.x for symmetric 4-bit groups of 32.
"""

from __future__ import annotations

from msgspec import Struct

from planner.sharding.quantization import marlin
from planner.sharding.quantization.base import MoEShard, Stored


class ExpertNames(Struct, frozen=True, kw_only=True):
    """Attribute names after "w13_" and "w2_"."""

    weight: str = "qweight"
    scale: str = "scales"
    zero_point: str = "qzeros"
    g_idx: str = "g_idx"


_GPTQ_NAMES = ExpertNames()


def marlin_experts(
    shard: MoEShard,
    *,
    bits: int,
    group_size: int,
    zero_points: bool = False,
    act_order: bool = False,
    g_idx: bool = False,
    names: ExpertNames = _GPTQ_NAMES,
    full_scale_rows: bool = False,
    shards: int = 2,
) -> tuple[Stored, ...]:
    """w13 and w2 in tiles, scales, packed zero points, and (`g_idx`) index tensors, empty without act-order.

    `shards`: 2 for gate and up, 1 without a gate. `full_scale_rows`: w2's scales cover the whole model's intermediate
    size (act-order).
    """
    experts, hidden = shard.num_local_experts, shard.hidden_size
    inner = marlin.padded_moe_intermediate(shard.intermediate_size, group_size)
    rows = shard.full_intermediate_size if full_scale_rows else inner
    groups13 = 1 if group_size == -1 else hidden // group_size
    groups2 = 1 if group_size == -1 else rows // group_size
    tensors = [
        marlin.repacked_experts(f"w13_{names.weight}", experts, shards * inner, hidden, bits),
        marlin.repacked_experts(f"w2_{names.weight}", experts, hidden, inner, bits),
        Stored(f"w13_{names.scale}", (experts, groups13, shards * inner), shard.dtype),
        Stored(f"w2_{names.scale}", (experts, groups2, hidden), shard.dtype),
    ]
    if zero_points:
        tensors.append(Stored(f"w13_{names.zero_point}", (experts, groups13, shards * inner * bits // 32), "int32"))
        tensors.append(Stored(f"w2_{names.zero_point}", (experts, groups2, hidden * bits // 32), "int32"))
    if g_idx:
        for name, size in (("w13", hidden), ("w2", shard.intermediate_size)):
            shape = (experts, size if act_order else 0)
            tensors.append(Stored(f"{name}_{names.g_idx}", shape, "int32"))
            tensors.append(Stored(f"{name}_g_idx_sort_indices", shape, "int32"))
    return tuple(tensors)
