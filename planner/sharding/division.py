"""How dimensions divide over tensor-parallel ranks, and what vLLM refuses to divide."""

from __future__ import annotations

from msgspec.structs import replace

from planner.engine.config import EngineConfig
from planner.model.modules import Linear
from planner.values import reject


def divide(numerator: int, denominator: int) -> int:
    """Exact division, or vLLM's assertion (distributed/utils.py:55)."""
    if numerator % denominator:
        raise reject("heads_divisibility", f"{numerator} is not divisible by {denominator}")
    return numerator // denominator


def column_shards(module: Linear, tp: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the rank's, the whole layer's) rows of each shard of a column-parallel layer.

    A shard that each rank holds whole counts tp times in the layer as vLLM builds it, which is then one shard.
    """
    if tp == 1 or not module.replicated_shards:
        return tuple(divide(size, tp) for size in module.output_sizes), module.output_sizes
    repeated = sum(module.output_sizes[index] for index in module.replicated_shards)
    full = sum(module.output_sizes) + repeated * (tp - 1)
    return (divide(full, tp),), (full,)


def check_norm_groups(groups: int, tp: int) -> None:
    """Each rank normalizes whole groups, or vLLM's assertions (layers/mamba/linear/bailing_linear_attn.py:451)."""
    if tp > groups:
        raise reject("heads_divisibility", "tp_size must be <= group_norm_size for local rms norm")
    if groups % tp:
        raise reject("heads_divisibility", "group_norm_size must be divisible by tp_size")


def kv_heads_per_rank(total_num_kv_heads: int, tp: int) -> int:
    """KV heads of one rank: divided while there are enough, else one replicated head.

    Source: vLLM 0.26.0 layers/linear.py QKVParallelLinear; models/llama.py:148 asserts the division.
    """
    if total_num_kv_heads >= tp:
        if total_num_kv_heads % tp:
            raise reject(
                "heads_divisibility",
                f"{total_num_kv_heads} key-value heads cannot be divided by tensor parallel size {tp} "
                "(assert total_num_kv_heads % tp_size == 0)",
            )
        return total_num_kv_heads // tp
    if tp % total_num_kv_heads:
        raise reject(
            "heads_divisibility",
            f"{total_num_kv_heads} key-value heads cannot be replicated over tensor parallel size {tp} "
            "(assert tp_size % total_num_kv_heads == 0)",
        )
    return 1


def padded_to_blocks(module: Linear, tp: int) -> Linear:
    """The layer with its divided dimension rounded up so that each rank has whole blocks.

    Source: vLLM 0.26.0 models/deepseek_v4/nvidia/model.py:99.
    """
    block = module.whole_blocks

    def padded(size: int) -> int:
        return -(-(size // block) // tp) * block * tp

    if module.parallelism == "row":
        return replace(module, input_size=padded(module.input_size))
    return replace(module, output_sizes=tuple(padded(size) for size in module.output_sizes))


def sequence_parallel_experts(config: EngineConfig) -> bool:
    """Whether expert layers see a slice of the tokens, so that shared experts are whole on each rank.

    Source: vLLM 0.26.0 config/parallel.py use_sequence_parallel_moe, with the default all2all backend.
    """
    return config.enable_expert_parallel and config.tensor_parallel_size > 1 and config.data_parallel_size > 1
