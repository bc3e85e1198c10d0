"""From bytes to blocks to tokens: what a pool holds, what one request needs, and vLLM's refusal when it does not fit.

Lengths, batches and bytes may be ints or numpy int64 arrays that broadcast against each other.
Source: vLLM 0.26.0 v1/core/kv_cache_utils.py:751-1000, :1819-2036.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from planner.engine.config import EngineConfig
from planner.memory.kv_counts import Counts, N, ceil_div, larger, largest_where, smaller
from planner.memory.kv_pool import KVGroup, KVPool, StagePool
from planner.units import GIB
from planner.values import Rejection, reject

_CONSERVING = "https://docs.vllm.ai/en/latest/configuration/conserving_memory/"

NO_MEMORY = (
    "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine "
    "(this flag also controls CPU memory reservation on the CPU backend, despite its name). "
    f"See {_CONSERVING} for more details."
)
"""vLLM's sentence when nothing is left for the cache."""


def blocks_for_request(pool: KVPool, max_model_len: N | int, max_num_batched_tokens: N | int) -> N:
    """Blocks that one request of `max_model_len` tokens may hold at once, over all groups; 0 without cache.

    Windows count with the tokens that all batches in flight may add, as vLLM's own reservation does.
    """
    return cast(N, _blocks(pool, pool.fullest, max_model_len, max_num_batched_tokens))


def request_bytes(pool: KVPool, max_model_len: N | int, max_num_batched_tokens: N | int) -> N:
    """Bytes that vLLM demands on a rank of the fullest stage before it starts (one request of `max_model_len`)."""
    return cast(N, _stage_request_bytes(pool, pool.fullest, max_model_len, max_num_batched_tokens))


def num_blocks(pool: KVPool, available_bytes: N | Sequence[N]) -> N:
    """Blocks of the pool (num_gpu_blocks): the least over the stages, or --num-gpu-blocks-override.

    `available_bytes`: for the cache, on one rank of every stage, or one entry for each stage. vLLM gives a model
    without cache one block.
    """
    per_stage = _per_stage(pool, available_bytes)
    if not pool.groups:
        return cast(N, per_stage[0] * 0 + 1)
    if pool.num_gpu_blocks_override is not None:
        return cast(N, per_stage[0] * 0 + pool.num_gpu_blocks_override)
    fewest: Counts = None
    for stage, stage_bytes in zip(pool.stages, per_stage, strict=True):
        blocks = larger(stage_bytes // stage.bytes_per_block, 0)
        fewest = blocks if fewest is None else smaller(fewest, blocks)
    return cast(N, fewest)


def max_concurrency(pool: KVPool, blocks: N, max_model_len: N | int, max_num_batched_tokens: N | int) -> float:
    """vLLM's "Maximum concurrency for L tokens per request": an array of floats where arrays are given.

    A packed pool (DeepSeek-V4) is counted in pages of its first group, as vLLM does, which is more than it holds.
    """
    if not pool.groups:
        return 0.0
    stage = pool.fullest
    pages = sum(
        _group_blocks(pool, group, max_model_len, max_num_batched_tokens) * group.page_size_bytes
        for group in stage.groups
    )
    return cast(float, blocks / ceil_div(pages, stage.groups[0].page_size_bytes))


def capacity_tokens(pool: KVPool, blocks: N, max_model_len: N | int, max_num_batched_tokens: N | int) -> N:
    """vLLM's "GPU KV cache size: N tokens": concurrency times length, cut to a whole number.

    Floating point as in vLLM, whose quotient may fall just short of the integer one. For models with windows or
    recurrent states this is no capacity: see `usable_tokens`.
    """
    concurrency: Counts = max_concurrency(pool, blocks, max_model_len, max_num_batched_tokens)
    tokens = concurrency * max_model_len
    return cast(N, int(tokens) if isinstance(tokens, float) else tokens.astype("int64"))


def whole_requests(pool: KVPool, blocks: N, tokens: N | int, max_num_batched_tokens: N | int) -> N:
    """Requests of `tokens` tokens that the pool holds at once. Block 0 is never given to a request (null block)."""
    if not pool.groups:
        nothing: Counts = blocks * 0
        return cast(N, nothing)
    return cast(N, larger(blocks - 1, 0) // _blocks(pool, pool.fullest, tokens, max_num_batched_tokens))


def usable_tokens(pool: KVPool, blocks: N, tokens: N | int, max_num_batched_tokens: N | int) -> N:
    """Tokens in the pool when it is full of requests of `tokens` tokens each: the honest form of the capacity."""
    requests: Counts = whole_requests(pool, blocks, tokens, max_num_batched_tokens)
    return cast(N, requests * tokens)


def largest_max_model_len(
    pool: KVPool, available_bytes: N | Sequence[N], max_num_batched_tokens: N | int, upper: N | int
) -> N:
    """The longest length up to `upper` of which one request fits on every stage; 0 where not one token does.

    This is the M of vLLM's refusal (with `upper` the refused length) and the result of --max-model-len auto (with
    `upper` the model's own length).
    """
    shortest: Counts = upper
    for stage, stage_bytes in zip(pool.stages, _effective(pool, available_bytes), strict=True):
        if stage.groups:
            longest = _largest_len(pool, stage, stage_bytes, max_num_batched_tokens, upper)
            shortest = smaller(shortest, longest)
    return cast(N, shortest)


def auto_max_model_len(pool: KVPool, available_bytes: int | Sequence[int], config: EngineConfig) -> int:
    """The length that --max-model-len auto (-1) ends with; `config.max_model_len` is the model's own.

    Raises Rejected where not one token fits.
    """
    longest = largest_max_model_len(pool, available_bytes, config.max_num_batched_tokens, config.max_model_len)
    if longest <= 0:
        raise reject(
            "kv_cache",
            "Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token. "
            "Try increasing `gpu_memory_utilization`.",
        )
    return longest


def check_fits(pool: KVPool, available_bytes: int | Sequence[int], config: EngineConfig) -> Rejection | None:
    """vLLM's refusal to start with these bytes for the cache, None when it starts.

    In vLLM's order: nothing left, one request too large (per stage, first refused stage speaks), the "align" mode's
    block against the batch, then recurrent states against max_num_seqs when full CUDA graphs are captured.
    """
    for stage, stage_bytes in zip(pool.stages, _effective(pool, available_bytes), strict=True):
        if not stage.groups:
            continue
        needed = _stage_request_bytes(pool, stage, config.max_model_len, config.max_num_batched_tokens)
        if stage_bytes <= 0:
            return Rejection(bottleneck="kv_cache", message=NO_MEMORY, need_bytes=needed, have_bytes=stage_bytes)
        if needed > stage_bytes:
            return _too_long(pool, stage, needed, stage_bytes, config)
    return _check_states(pool, num_blocks(pool, available_bytes), config)


def _too_long(pool: KVPool, stage: StagePool, needed: int, available_bytes: int, config: EngineConfig) -> Rejection:
    longest = _largest_len(pool, stage, available_bytes, config.max_num_batched_tokens, config.max_model_len)
    estimate = f"Based on the available memory, the estimated maximum model length is {longest}. " if longest else ""
    return Rejection(
        bottleneck="kv_cache",
        message=(
            f"To serve at least one request with the model's max seq len ({config.max_model_len}), "
            f"({_gib(needed)} GiB KV cache is needed, which is larger than the available KV cache memory "
            f"({_gib(available_bytes)} GiB). {estimate}Try increasing `gpu_memory_utilization` (which also controls "
            "CPU memory on the CPU backend) or decreasing `max_model_len` when initializing the engine. "
            f"See {_CONSERVING} for more details."
        ),
        need_bytes=needed,
        have_bytes=available_bytes,
        fix=(f"--max-model-len {longest}",) if longest else (),
    )


def _check_states(pool: KVPool, blocks: int, config: EngineConfig) -> Rejection | None:
    """vLLM 0.26.0 config/vllm.py:2265 validate_block_size and config/compilation.py:1482."""
    if not pool.has_states:
        return None
    if pool.mamba_cache_mode == "align" and pool.smallest_block_size > config.max_num_batched_tokens:
        return Rejection(
            bottleneck="batched_tokens",
            message=(
                f"In Mamba cache align mode, block_size ({pool.smallest_block_size}) must be <= "
                f"max_num_batched_tokens ({config.max_num_batched_tokens})."
            ),
            fix=(f"--max-num-batched-tokens {pool.smallest_block_size}",),
        )
    if "FULL" in config.cudagraph_mode and config.max_num_seqs > blocks:
        return Rejection(
            bottleneck="kv_cache",
            message=(
                f"max_num_seqs ({config.max_num_seqs}) exceeds available Mamba cache blocks ({blocks}). Each decode "
                "sequence requires one Mamba cache block, so CUDA graph capture cannot proceed. Please lower "
                f"max_num_seqs to at most {blocks} or increase gpu_memory_utilization."
            ),
            need_bytes=config.max_num_seqs * pool.bytes_per_block,
            have_bytes=blocks * pool.bytes_per_block,
            fix=(f"--max-num-seqs {blocks}",),
        )
    return None


def _group_blocks(pool: KVPool, group: KVGroup, max_model_len: Counts, max_num_batched_tokens: Counts) -> Counts:
    """Blocks of one group that one request may hold at once (vLLM max_memory_usage_bytes over page size)."""
    if group.encoder:
        return ceil_div(max_num_batched_tokens, group.block_size)
    if not group.grows:
        return max_model_len * 0 + group.extra_blocks
    tokens = max_model_len
    if group.window_tokens is not None:
        in_flight_tokens = pool.max_concurrent_batches * max_num_batched_tokens
        tokens = smaller(group.window_tokens + in_flight_tokens, tokens)
    return ceil_div(ceil_div(tokens, group.shards), group.block_size) + group.extra_blocks


def _blocks(pool: KVPool, stage: StagePool, max_model_len: Counts, max_num_batched_tokens: Counts) -> Counts:
    per_group = [_group_blocks(pool, group, max_model_len, max_num_batched_tokens) for group in stage.groups]
    return sum(per_group, max_model_len * 0)


def _stage_request_bytes(
    pool: KVPool, stage: StagePool, max_model_len: Counts, max_num_batched_tokens: Counts
) -> Counts:
    return _blocks(pool, stage, max_model_len, max_num_batched_tokens) * stage.bytes_per_needed_block


def _largest_len(
    pool: KVPool, stage: StagePool, available_bytes: Counts, max_num_batched_tokens: Counts, upper: Counts
) -> Counts:
    return largest_where(
        lambda length: _stage_request_bytes(pool, stage, length, max_num_batched_tokens) <= available_bytes,
        upper + available_bytes * 0 + max_num_batched_tokens * 0,
    )


def _per_stage(pool: KVPool, available_bytes: Counts) -> list[Counts]:
    if isinstance(available_bytes, (list, tuple)):
        if len(available_bytes) != len(pool.stages):
            raise ValueError(f"{len(available_bytes)} figures of available bytes for {len(pool.stages)} stages")
        return list(available_bytes)
    return [available_bytes] * len(pool.stages)


def _effective(pool: KVPool, available_bytes: Counts) -> list[Counts]:
    """The bytes that the checks compare with: --num-gpu-blocks-override stands in for what was measured."""
    per_stage = _per_stage(pool, available_bytes)
    override = pool.num_gpu_blocks_override
    if override is None:
        return per_stage
    return [
        stage_bytes * 0 + override * stage.bytes_per_block if stage.groups else stage_bytes
        for stage, stage_bytes in zip(pool.stages, per_stage, strict=True)
    ]


def _gib(size_bytes: int) -> str:
    """GiB as vLLM writes it: two decimals at most, trailing zeros dropped (utils/mem_utils.py:30)."""
    return f"{round(size_bytes / GIB, 2)}"
