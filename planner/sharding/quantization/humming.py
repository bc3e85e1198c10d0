"""Linear layers in the layout of the Humming kernels, which vLLM tries last, and first for weight-only FP8.

Source: vLLM 0.26.0 quantization/utils/humming_utils.py:438 prepare_humming_layer; humming-kernels 0.1.10 layer.py
check_and_pad_tensors. Read, not measured.
"""

from __future__ import annotations

from planner.sharding.quantization.base import Stored
from planner.sharding.quantization.marlin import round_up
from planner.values import DType

_PAD_N, _PAD_K = 256, 128
_LOCKS = 1024


def linear_after_load(
    n: int, k: int, groups: int, *, bits: int, dtype: DType, zero_points: bool = False
) -> tuple[Stored, ...]:
    """Outputs padded to 256, inputs to 128, one scale for each output and group, 1024 locks.

    Groups of padded inputs are counted too: `groups` are those of the k inputs.
    """
    rows, inputs = round_up(n, _PAD_N), round_up(k, _PAD_K)
    if groups > 1:
        groups = inputs // (k // groups)
    tensors = [
        Stored("weight", (inputs // 16, rows * 16 * bits // 32), "int32"),
        Stored("weight_scale", (groups, rows), dtype),
    ]
    if zero_points:
        tensors.append(Stored("zero_point", (groups, rows * (4 if bits <= 4 else 8) // 32), "int32"))
    return (*tensors, locks())


def block_after_load(n: int, k: int, block: tuple[int, int]) -> tuple[Stored, ...]:
    """FP8 blocks keep float32 scales, one for each block of the padded weight."""
    rows, inputs = round_up(n, _PAD_N), round_up(k, _PAD_K)
    return (
        Stored("weight", (inputs // 16, rows * 16 * 8 // 32), "int32"),
        Stored("weight_scale", (-(-inputs // block[1]), -(-rows // block[0])), "float32"),
        locks(),
    )


def locks() -> Stored:
    return Stored("locks", (_LOCKS,), "int32", "buffer")
