"""Shapes of weights after Marlin's repacking. Source: vLLM 0.26.0 layers/quantization/utils/marlin_utils.py."""

from __future__ import annotations

from math import lcm

from planner.sharding.quantization.base import MoEShard, Stored
from planner.sharding.quantization.context import Context
from planner.values import DType

TILE = 16
GROUP_SIZES = (-1, 32, 64, 128)


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def padded_nk(n: int, k: int, group_size: int = -1) -> tuple[int, int]:
    """(n, k) padded to the cheaper of the two thread-tile families, k kept a multiple of the group (-1: of any k)."""
    candidates = (
        (round_up(n, 64), round_up(k, lcm(128, group_size))),
        (round_up(n, 128), round_up(k, lcm(64, group_size))),
    )
    return min(candidates, key=lambda nk: (nk[0] * nk[1], nk[0] + nk[1]))


def padded_moe_intermediate(size: int, group_size: int = -1) -> int:
    return round_up(size, lcm(64, group_size))


def supports_moe(shard: MoEShard, group_size: int, *, padding: bool) -> bool:
    """check_moe_marlin_supports_layer: hidden size a multiple of 128, groups that do not straddle the shard."""
    inner = shard.intermediate_size
    if shard.hidden_size % 128 or shard.router_weight_on_input or group_size not in GROUP_SIZES:
        return False
    if padding:
        return group_size == -1 or inner % group_size == 0
    return inner % max(64, group_size) == 0


def repacked(name: str, n: int, k: int, bits: int) -> Stored:
    """gptq_marlin_repack's result for an (already padded) [k, n] weight."""
    return Stored(name, (k // TILE, n * TILE * bits // 32), "int32")


def repacked_experts(name: str, experts: int, n: int, k: int, bits: int) -> Stored:
    return Stored(name, (experts, k // TILE, n * TILE * bits // 32), "int32")


def scales(name: str, n: int, k: int, group_size: int, dtype: DType) -> Stored:
    return Stored(name, (1 if group_size == -1 else k // group_size, n), dtype)


def workspace(context: Context, blocks_per_sm: int = 1) -> Stored:
    """marlin_make_workspace_new: one int32 for each thread block."""
    return Stored("workspace", (context.sm_count * blocks_per_sm,), "int32", "workspace")
