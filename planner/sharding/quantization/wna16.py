"""Integer weights with 16-bit activations: which kernel a linear layer gets, and what it keeps after repacking.

Source: vLLM 0.26.0 model_executor/kernels/linear/__init__.py:396 (_POSSIBLE_KERNELS for CUDA) and
kernels/linear/mixed_precision/*.py. Conch needs a package that vLLM does not install and is taken as absent; CUTLASS
W4A8 serves FP8 activations only.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from planner.sharding.quantization import humming, marlin
from planner.sharding.quantization.base import Stored
from planner.sharding.quantization.context import Context
from planner.sharding.quantization.marlin import padded_nk, round_up
from planner.sharding.rank import TensorRole
from planner.values import DType, reject

Kernel = Literal["machete", "allspark", "marlin", "exllama", "triton", "humming"]
WeightType = Literal["uint4", "uint8", "uint4b8", "uint8b128", "other"]

_TRITON_GROUPS = (-1, 32, 64, 128, 256)
_MACHETE_BLOCK = (64, 128)


class Problem(Struct, frozen=True, kw_only=True):
    """vLLM's MPLinearLayerConfig: k inputs (full_k before the split), n outputs, one rank's.

    `group_size` -1: one group for all inputs (any k is a multiple of it).
    """

    k: int
    full_k: int
    n: int
    weight_type: WeightType
    bits: int
    dtype: DType
    group_size: int
    zero_points: bool
    has_g_idx: bool

    @property
    def groups(self) -> int:
        return 1 if self.group_size == -1 else self.k // self.group_size


class TensorNames(Struct, frozen=True, kw_only=True):
    """The attribute names under which a method registers its tensors."""

    weight: str
    scale: str
    zero_point: str
    g_idx: str


def weight_type(bits: int, *, zero_points: bool) -> WeightType:
    if zero_points:
        return "uint4" if bits == 4 else "uint8" if bits == 8 else "other"
    return "uint4b8" if bits == 4 else "uint8b128" if bits == 8 else "other"


def choose_kernel(problem: Problem, context: Context) -> Kernel:
    """The first kernel in vLLM's order that can run the layer. Raises Rejected when none can."""
    for kernel, can_run in (
        ("machete", _machete), ("allspark", _allspark), ("marlin", _marlin), ("exllama", _exllama), ("triton", _triton),
        ("humming", _humming),
    ):  # fmt: skip
        if can_run(problem, context):
            return kernel  # type: ignore[return-value]
    raise reject(
        "quantization_alignment",
        "Failed to find a kernel that can implement the WNA16 linear layer. "
        f"(in_features per partition {problem.k}, out_features {problem.n}, group_size {problem.group_size}, "
        f"weight type {problem.weight_type}, {problem.dtype}, device_capability {context.capability})",
    )


def after_load(
    problem: Problem, kernel: Kernel, names: TensorNames, created: tuple[Stored, ...], context: Context
) -> tuple[tuple[Stored, ...], int | None]:
    """Tensors after repacking, and the bias's size where the kernel pads it. All kernels want the weight as
    [inputs / pack, outputs] and the scales as [groups, outputs]."""
    tensors = {stored.name: stored for stored in created}
    groups = _scale_groups(problem, tensors[names.scale])
    tensors[names.weight] = Stored(names.weight, (problem.k * problem.bits // 32, problem.n), "int32")
    tensors[names.scale] = Stored(names.scale, (groups, problem.n), problem.dtype)
    if kernel == "marlin":
        return _after_marlin(problem, names, tensors, context)
    if kernel == "machete":
        _machete_loaded(problem, names, tensors)
    elif kernel == "allspark":
        rows = round_up(problem.n, 32)
        tensors[names.weight] = Stored(names.weight, (problem.k, rows), "uint8")
        tensors[names.scale] = Stored(names.scale, (1, rows), problem.dtype)
    elif kernel == "exllama":
        _exllama_loaded(problem, names, tensors)
    elif kernel == "humming":
        return humming.linear_after_load(
            problem.n, problem.k, groups, bits=problem.bits, dtype=problem.dtype, zero_points=problem.zero_points
        ), None
    return tuple(tensors.values()), None


def _machete(problem: Problem, context: Context) -> bool:
    groups = (-1, 64, 128) if problem.dtype in ("float16", "bfloat16") else (-1, 128)
    types = ("uint4", "uint8") if problem.zero_points else ("uint4b8", "uint8b128")
    return (
        context.capability == 90
        and not (problem.has_g_idx and problem.k != problem.full_k)
        and problem.weight_type in types
        and problem.group_size in groups
        and problem.k % _MACHETE_BLOCK[0] == 0
        and problem.n % _MACHETE_BLOCK[1] == 0
    )


def _allspark(problem: Problem, context: Context) -> bool:
    return (
        80 <= context.capability < 90
        and not problem.has_g_idx
        and not problem.zero_points
        and problem.group_size == -1
        and problem.weight_type == "uint8b128"
        and problem.k % 16 == 0
        and problem.n % 16 == 0
    )


def _marlin(problem: Problem, context: Context) -> bool:
    types = ("uint4",) if problem.zero_points else ("uint4b8", "uint8b128")
    if context.capability < 75 or problem.weight_type not in types or problem.group_size not in marlin.GROUP_SIZES:
        return False
    straddles = problem.group_size != -1 and problem.group_size < problem.full_k and problem.k % problem.group_size != 0
    if problem.has_g_idx:
        return problem.n % 64 == 0 and problem.k % 128 == 0 and not straddles
    return not straddles


def _exllama(problem: Problem, context: Context) -> bool:
    return (
        context.capability >= 60
        and not (problem.has_g_idx and problem.k != problem.full_k)
        and problem.weight_type in ("uint4b8", "uint8b128")
        and problem.n % (32 // problem.bits) == 0
        and problem.dtype == "float16"
        and problem.group_size > 0
        and problem.full_k % problem.group_size == 0
    )


def _triton(problem: Problem, context: Context) -> bool:
    return (
        problem.weight_type in ("uint4b8", "uint4")
        and problem.dtype in ("float16", "bfloat16")
        and problem.n % 8 == 0
        and not problem.has_g_idx
        and (problem.group_size in _TRITON_GROUPS or problem.group_size == problem.full_k)
        and problem.k % problem.group_size == 0
    )


def _humming(problem: Problem, context: Context) -> bool:
    """Takes any width from 2 to 8 bits; groups that straddle the split fail its own checks while loading."""
    return context.capability >= 75 and not problem.has_g_idx and problem.k % problem.group_size == 0


def _after_marlin(
    problem: Problem, names: TensorNames, tensors: dict[str, Stored], context: Context
) -> tuple[tuple[Stored, ...], int | None]:
    """kernels/linear/mixed_precision/marlin.py: tiles, permuted scales, a sorted or empty g_idx, a workspace."""
    n, k = (problem.n, problem.k) if problem.has_g_idx else padded_nk(problem.n, problem.k, problem.group_size)
    groups = _scale_groups(problem, tensors[names.scale])
    if (n, k) != (problem.n, problem.k) and problem.group_size != -1:
        groups = k // problem.group_size
    tensors[names.weight] = marlin.repacked(names.weight, n, k, problem.bits)
    tensors[names.scale] = Stored(names.scale, (groups, n), problem.dtype)
    if problem.zero_points:
        tensors[names.zero_point] = Stored(names.zero_point, (groups, n * problem.bits // 32), "int32")
    else:
        tensors[names.zero_point] = Stored(names.zero_point, (0,), "int32")
    indices = problem.k if problem.has_g_idx else 0
    tensors[names.g_idx] = Stored(names.g_idx, (indices,), "int32")
    role: TensorRole = "workspace" if problem.has_g_idx else "parameter"
    tensors["g_idx_sort_indices"] = Stored("g_idx_sort_indices", (indices,), "int32", role)
    tensors["workspace"] = marlin.workspace(context)
    return tuple(tensors.values()), n if n != problem.n else None


def _scale_groups(problem: Problem, scale: Stored) -> int:
    """Groups of a scale tensor stored as [groups, n] or [n, groups]."""
    elements = scale.shape[0] * scale.shape[1]
    return elements // problem.n


def _machete_loaded(problem: Problem, names: TensorNames, tensors: dict[str, Stored]) -> None:
    """machete.py: the zero points become scaled 16-bit values; an act-order permutation is kept beside the layer."""
    if problem.zero_points:
        tensors[names.zero_point] = Stored(names.zero_point, (problem.groups, problem.n), problem.dtype)
    if problem.has_g_idx:
        tensors["act_perm"] = Stored("act_perm", (problem.k,), "int32", "workspace")


def _exllama_loaded(problem: Problem, names: TensorNames, tensors: dict[str, Stored]) -> None:
    """exllama.py: always zero points named qzeros, and a g_idx, empty without act-order."""
    if not problem.zero_points:
        tensors["qzeros"] = Stored("qzeros", (problem.groups, problem.n * problem.bits // 32), "int32")
    if not problem.has_g_idx:
        tensors.pop(names.g_idx, None)
        tensors["g_idx"] = Stored("g_idx", (0,), "int32")
