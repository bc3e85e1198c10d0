"""FP8 linear layers and experts after loading, per card.

Source: vLLM 0.26.0 kernels/linear/__init__.py (_POSSIBLE_FP8_KERNELS, _POSSIBLE_FP8_BLOCK_KERNELS),
kernels/linear/scaled_mm/{marlin,cutlass,deep_gemm,flashinfer}.py, quantization/utils/marlin_utils_fp8.py.
Below compute capability 8.9 Marlin keeps FP8 weights and multiplies in 16 bit.
"""

from __future__ import annotations

from planner.sharding.quantization import marlin
from planner.sharding.quantization.base import LinearShard, MoEShard, Stored
from planner.sharding.quantization.context import Context
from planner.sharding.quantization.marlin import padded_nk, round_up
from planner.values import DType, reject

Loaded = tuple[tuple[Stored, ...], int | None]

_DEEP_GEMM_N, _DEEP_GEMM_K = 64, 128
_NO_DEEP_GEMM_ON_BLACKWELL = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe")


def uses_marlin(context: Context) -> bool:
    forced = context.env.get("VLLM_TEST_FORCE_FP8_MARLIN", "0") not in ("0", "")
    return context.capability < 89 or forced


def tensor_after_load(shard: LinearShard, context: Context, *, static: bool) -> Loaded:
    """One scale for the whole layer: the shards are brought to the largest of their scales."""
    if uses_marlin(context):
        return marlin_after_load(shard, context, "weight_scale")
    n, k = _cutlass_padded(shard, context, per_tensor_activations=static)
    tensors = [Stored("weight", (k, n), "float8_e4m3fn"), Stored("weight_scale", (), "float32")]
    if static:
        tensors.append(Stored("input_scale", (), "float32"))
    return tuple(tensors), None


def channel_after_load(shard: LinearShard, context: Context, *, static: bool = False) -> Loaded:
    """One scale for each output row."""
    if uses_marlin(context):
        return marlin_after_load(shard, context, "weight_scale")
    n, k = _cutlass_padded(shard, context, per_tensor_activations=False)
    tensors = [Stored("weight", (k, n), "float8_e4m3fn"), Stored("weight_scale", (n, 1), "float32")]
    if static:
        tensors.append(Stored("input_scale", (), "float32"))
    return tuple(tensors), None


def block_after_load(
    shard: LinearShard, context: Context, block: tuple[int, int], scale: Stored, *, extra: tuple[Stored, ...] = ()
) -> Loaded:
    """One scale for each block. DeepGEMM packs the scales on 10.x and 12.x; elsewhere they stay as loaded."""
    if uses_marlin(context):
        return marlin_after_load(shard, context, "weight_scale_inv", block)
    weight = Stored("weight", (shard.output_size, shard.input_size), "float8_e4m3fn")
    if block == (128, 128) and packs_scales(context) and uses_deep_gemm(shard, context):
        scale = packed_scale(scale.name, (), shard.output_size, shard.input_size)
    return (weight, scale, *extra), None


def block_scale(name: str, shard: LinearShard, block: tuple[int, int], dtype: DType = "float32") -> Stored:
    """One scale for each begun block."""
    return Stored(name, (-(-shard.output_size // block[0]), -(-shard.input_size // block[1])), dtype)


def packs_scales(context: Context) -> bool:
    """Whether DeepGEMM turns fp32 block scales into packed UE8M0 (utils/deep_gemm.py, DeepGEMM's layout.hpp)."""
    enabled = context.env.get("VLLM_USE_DEEP_GEMM", "1") != "0"
    excluded = context.model_type in _NO_DEEP_GEMM_ON_BLACKWELL
    return enabled and context.family in (100, 120) and not excluded


def packed_scale(name: str, leading: tuple[int, ...], n: int, k: int) -> Stored:
    """UE8M0 exponents, four to an int32, one column for each 512 inputs, rows aligned to 16 bytes."""
    return Stored(name, (*leading, round_up(n, 4), -(-k // 512)), "int32")


def marlin_after_load(
    shard: LinearShard, context: Context, scale_name: str, block: tuple[int, int] | None = None
) -> Loaded:
    """prepare_fp8_layer_for_marlin: int32 tiles, one scale for each row (and group of inputs) in the model's dtype."""
    group = -1 if block is None else block[1]
    n, k = padded_nk(shard.output_size, shard.input_size, group)
    tensors = (
        marlin.repacked("weight", n, k, 8),
        marlin.scales(scale_name, n, k, group, shard.dtype),
        marlin.workspace(context),
    )
    return tensors, n if n != shard.output_size else None


def validate_block_shape(shard: LinearShard, block: tuple[int, int], *, fused_may_differ: bool) -> None:
    """Refuses splits that cut a block. `fused_may_differ`: Fp8Config lets a fused column layer through whose parts
    are no multiples of the block (layers/linear.py:502). Source: quantization/utils/fp8_utils.py
    validate_fp8_block_shape."""
    block_n, block_k = block
    fused = not shard.row_parallel and len(shard.output_sizes) > 1
    if fused_may_differ and fused and any(size % block_n for size in shard.output_sizes):
        return
    tp = shard.tensor_parallel_size
    if tp > 1 and shard.full_input_size // shard.input_size == tp and shard.input_size % block_k:
        raise reject(
            "quantization_alignment",
            f"Weight input_size_per_partition = {shard.input_size} is not divisible by weight quantization block_k = "
            f"{block_k}.",
        )
    is_split = tp > 1 and shard.full_output_size // shard.output_size == tp
    if not is_split and len(shard.output_sizes) < 2:
        return
    for size in shard.output_sizes if is_split else shard.output_sizes[:-1]:
        if size % block_n:
            raise reject(
                "quantization_alignment",
                f"Weight output_partition_size = {size} is not divisible by weight quantization block_n = {block_n}.",
            )


def validate_moe_block_shape(shard: MoEShard, block: tuple[int, int], context: Context) -> None:
    """Refuses experts whose intermediate size cuts a block. Source: quantization/fp8.py:559."""
    block_n, block_k = block
    inner = shard.intermediate_size
    if inner % block_n:
        raise reject(
            "quantization_alignment",
            f"The output_size of gate's and up's weight = {inner} is not divisible by weight quantization block_n = "
            f"{block_n}.",
        )
    if context.tensor_parallel_size > 1 and inner % block_k:
        raise reject(
            "quantization_alignment",
            f"The input_size of down's weight = {inner} is not divisible by weight quantization block_k = {block_k}.",
        )


def _cutlass_padded(shard: LinearShard, context: Context, *, per_tensor_activations: bool) -> tuple[int, int]:
    """CUTLASS pads both sides to 16; FlashInfer, which takes static per-tensor layers from 10.0, does not."""
    if context.capability >= 100 and per_tensor_activations:
        return shard.output_size, shard.input_size
    return round_up(shard.output_size, 16), round_up(shard.input_size, 16)


def uses_deep_gemm(shard: LinearShard, context: Context) -> bool:
    """Whether DeepGEMM serves a 128 x 128 block layer: 9.0, 10.x and 12.x, bfloat16, whole tiles."""
    aligned = shard.output_size % _DEEP_GEMM_N == 0 and shard.input_size % _DEEP_GEMM_K == 0
    on_card = context.capability == 90 or context.family in (100, 120)
    return aligned and on_card and context.dtype == "bfloat16" and context.env.get("VLLM_USE_DEEP_GEMM", "1") != "0"
