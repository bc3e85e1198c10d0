"""What must hold of any KV cache pool, and vLLM's refusals."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_cases import engine, full, pool_of, recurrent, sliding, stage

from planner.memory import kv_capacity as capacity
from planner.memory.kv_counts import largest_where
from planner.memory.kv_pool import KVPool, build_pool
from planner.units import GIB
from planner.values import Rejected

POOLS: dict[str, KVPool] = {
    "uniform": pool_of(*[full(4)] * 28),
    "mixed pages": pool_of(full(4, 128), full(4, 192, head_size_v=128)),
    "windows": pool_of(*([sliding(1024)] * 5 + [full()]) * 4),
    "chunks": pool_of(*([full(kind="chunked_local_attention", window=4096)] * 3 + [full()]) * 4),
    "states": pool_of(*([recurrent(1_097_728)] * 3 + [full(2, 256)]) * 12),
    "all states": pool_of(*([recurrent(1_097_728)] * 3 + [full(2, 256)]) * 12, mamba_cache_mode="all"),
    "two stages": build_pool([stage(*[full(4)] * 15), stage(*[full(4)] * 13, number=1)], engine()),
    "latent": pool_of(
        *[{"kind": "mla_attention", "num_kv_heads": 1, "head_size": 576}] * 27, decode_context_parallel_size=2
    ),
}
SMALLEST_POOL_BYTES = 1 << 24

pools = st.sampled_from(sorted(POOLS)).map(POOLS.__getitem__)
lengths = st.integers(1, 262_144)
batches = st.integers(1, 32_768)
sizes = st.integers(0, 160 * GIB)


@given(pools, lengths, lengths, batches)
def test_a_longer_request_never_needs_less(pool: KVPool, length: int, more: int, batch: int) -> None:
    short = capacity.blocks_for_request(pool, length, batch)
    long = capacity.blocks_for_request(pool, length + more, batch)
    assert 0 < short <= long
    assert capacity.request_bytes(pool, length, batch) <= capacity.request_bytes(pool, length + more, batch)


@given(pools, lengths, batches, batches)
def test_a_larger_batch_never_needs_less(pool: KVPool, length: int, batch: int, more: int) -> None:
    assert capacity.blocks_for_request(pool, length, batch) <= capacity.blocks_for_request(pool, length, batch + more)


@given(pools, sizes)
def test_the_pool_is_filled_to_the_last_block(pool: KVPool, available_bytes: int) -> None:
    blocks = capacity.num_blocks(pool, available_bytes)
    assert blocks * pool.bytes_per_block <= available_bytes < (blocks + 1) * pool.bytes_per_block


@given(pools, lengths, batches)
def test_exactly_one_request_fits_and_a_byte_less_does_not(pool: KVPool, length: int, batch: int) -> None:
    config = engine(max_model_len=length, max_num_batched_tokens=batch)
    needed = capacity.request_bytes(pool, length, batch)
    assert capacity.check_fits(pool, needed, config) is None
    refusal = capacity.check_fits(pool, needed - 1, config)
    assert refusal is not None
    assert (refusal.bottleneck, refusal.need_bytes, refusal.have_bytes) == ("kv_cache", needed, needed - 1)


@given(pools, st.integers(SMALLEST_POOL_BYTES, 40 * GIB), lengths, batches)
def test_the_longest_length_fits_and_the_next_does_not(
    pool: KVPool, available_bytes: int, upper: int, batch: int
) -> None:
    longest = capacity.largest_max_model_len(pool, available_bytes, batch, upper)
    assert 0 <= longest <= upper
    if longest:
        assert capacity.request_bytes(pool, longest, batch) <= available_bytes
    if longest < upper:
        assert capacity.request_bytes(pool, longest + 1, batch) > available_bytes


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_largest_where_agrees_with_counting(limit: int, upper: int) -> None:
    assert largest_where(lambda count: count <= limit, upper) == min(limit, upper)


@settings(max_examples=30)
@given(pools, st.lists(st.tuples(lengths, batches, sizes), min_size=1, max_size=8))
def test_arrays_give_what_ints_give(pool: KVPool, candidates: list[tuple[int, int, int]]) -> None:
    length, batch, available_bytes = (np.array(column, dtype=np.int64) for column in zip(*candidates, strict=True))
    blocks = capacity.num_blocks(pool, available_bytes)
    together: list[Any] = [
        blocks,
        capacity.blocks_for_request(pool, length, batch),
        capacity.request_bytes(pool, length, batch),
        capacity.max_concurrency(pool, blocks, length, batch),
        capacity.capacity_tokens(pool, blocks, length, batch),
        capacity.whole_requests(pool, blocks, length, batch),
        capacity.usable_tokens(pool, blocks, length, batch),
        capacity.largest_max_model_len(pool, available_bytes, batch, length),
    ]
    for i, (one_length, one_batch, one_size) in enumerate(candidates):
        count = capacity.num_blocks(pool, one_size)
        assert [column[i] for column in together] == [
            count,
            capacity.blocks_for_request(pool, one_length, one_batch),
            capacity.request_bytes(pool, one_length, one_batch),
            capacity.max_concurrency(pool, count, one_length, one_batch),
            capacity.capacity_tokens(pool, count, one_length, one_batch),
            capacity.whole_requests(pool, count, one_length, one_batch),
            capacity.usable_tokens(pool, count, one_length, one_batch),
            capacity.largest_max_model_len(pool, one_size, one_batch, one_length),
        ]


@given(pools, sizes, lengths, batches)
def test_usable_requests_leave_the_null_block_alone(
    pool: KVPool, available_bytes: int, length: int, batch: int
) -> None:
    blocks = capacity.num_blocks(pool, available_bytes)
    requests = capacity.whole_requests(pool, blocks, length, batch)
    needed = capacity.blocks_for_request(pool, length, batch)
    assert requests * needed <= max(blocks - 1, 0) < (requests + 1) * needed


def test_ints_need_no_numpy() -> None:
    program = """
import sys
from planner.memory import kv_capacity
from planner.memory.kv_pool import KVGroup, KVPool, StagePool
group = KVGroup(kind="sliding_window", num_layers=1, num_kv_heads=1, head_size=128, block_size=16,
                page_size_bytes=8192, window=128, window_tokens=127, extra_blocks=1)
pool = KVPool(stages=(StagePool((group,), 8192, 8192),), block_size=16, max_concurrent_batches=2)
assert kv_capacity.largest_max_model_len(pool, 1 << 20, 512, 100_000) == 100_000
assert kv_capacity.capacity_tokens(pool, kv_capacity.num_blocks(pool, 1 << 20), 4096, 512) > 0
sys.exit("numpy" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_least_stage_decides_the_blocks() -> None:
    pool = POOLS["two stages"]
    per_layer = 2 * 16 * 4 * 128 * 2
    assert [part.bytes_per_block for part in pool.stages] == [15 * per_layer, 13 * per_layer]
    assert pool.bytes_per_block == 15 * per_layer
    assert capacity.num_blocks(pool, (1500 * per_layer, 1170 * per_layer)) == 90
    assert capacity.num_blocks(pool, (900 * per_layer, 1170 * per_layer)) == 60
    with pytest.raises(ValueError, match="3 figures of available bytes for 2 stages"):
        capacity.num_blocks(pool, (GIB, GIB, GIB))


def test_each_stage_is_asked_whether_one_request_fits() -> None:
    pool = POOLS["two stages"]
    refusal = capacity.check_fits(pool, (40 * GIB, 1 << 20), engine())
    assert refusal is not None
    assert refusal.need_bytes == 512 * pool.stages[1].bytes_per_block
    assert capacity.largest_max_model_len(pool, (40 * GIB, 1 << 20), 8192, 8192) == 2 * 16


def test_refusal_speaks_as_vllm_does() -> None:
    pool = POOLS["uniform"]
    refusal = capacity.check_fits(pool, GIB, engine(max_model_len=32_768))
    assert refusal is not None
    assert refusal.message == (
        "To serve at least one request with the model's max seq len (32768), (1.75 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (1.0 GiB). Based on the available memory, the estimated maximum "
        "model length is 18720. Try increasing `gpu_memory_utilization` (which also controls CPU memory on the CPU "
        "backend) or decreasing `max_model_len` when initializing the engine. See "
        "https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
    )
    assert refusal.fix == ("--max-model-len 18720",)


@pytest.mark.parametrize("available_bytes", [0, -GIB])
def test_nothing_left_is_told_first(available_bytes: int) -> None:
    refusal = capacity.check_fits(POOLS["uniform"], available_bytes, engine())
    assert refusal is not None
    assert refusal.message == capacity.NO_MEMORY


def test_automatic_length() -> None:
    pool = POOLS["uniform"]
    assert capacity.auto_max_model_len(pool, 4 * GIB, engine(max_model_len=128_000)) == 4681 * 16
    assert capacity.auto_max_model_len(pool, 40 * GIB, engine(max_model_len=128_000)) == 128_000
    with pytest.raises(Rejected, match="not enough GPU memory available to serve even a single token"):
        capacity.auto_max_model_len(pool, 917_503, engine())


def test_block_override_stands_in_for_memory() -> None:
    pool = pool_of(*[full(4)] * 28, num_gpu_blocks_override=100)
    assert capacity.num_blocks(pool, 40 * GIB) == 100
    assert capacity.check_fits(pool, -GIB, engine(max_model_len=1600)) is None
    refusal = capacity.check_fits(pool, 40 * GIB, engine(max_model_len=1601))
    assert refusal is not None
    assert refusal.have_bytes == 100 * pool.bytes_per_block


def test_recurrent_states_must_cover_the_captured_batch() -> None:
    pool = POOLS["states"]
    available_bytes = 200 * pool.bytes_per_block
    graphs: dict[str, Any] = {"cudagraph_mode": "FULL_AND_PIECEWISE", "max_num_seqs": 201}
    refusal = capacity.check_fits(pool, available_bytes, engine(**graphs))
    assert refusal is not None
    assert refusal.message.startswith("max_num_seqs (201) exceeds available Mamba cache blocks (200). ")
    assert refusal.fix == ("--max-num-seqs 200",)
    assert capacity.check_fits(pool, available_bytes, engine(**graphs | {"max_num_seqs": 200})) is None
    assert capacity.check_fits(pool, available_bytes, engine(max_num_seqs=201)) is None


def test_align_mode_needs_a_batch_of_one_block() -> None:
    layers = [recurrent(1_097_728), full(2, 256)]
    pool = pool_of(*layers, mamba_cache_mode="align")
    config = engine(mamba_cache_mode="align", max_num_batched_tokens=pool.block_size - 1)
    refusal = capacity.check_fits(pool, 40 * GIB, config)
    assert refusal is not None
    assert refusal.message == ("In Mamba cache align mode, block_size (544) must be <= max_num_batched_tokens (543).")
    assert capacity.check_fits(pool, 40 * GIB, engine(mamba_cache_mode="align", max_num_batched_tokens=544)) is None


def test_a_state_is_one_block_whatever_the_length() -> None:
    pool = POOLS["states"]
    assert [capacity.blocks_for_request(pool, length, 8192) for length in (1, 544, 545, 8192)] == [4, 4, 5, 19]


def test_reported_tokens_of_a_hybrid_are_no_capacity() -> None:
    pool = POOLS["states"]
    blocks = capacity.num_blocks(pool, 40 * GIB)
    reported = capacity.capacity_tokens(pool, blocks, 8192, 8192)
    assert capacity.usable_tokens(pool, blocks, 8192, 8192) < reported
    assert capacity.usable_tokens(pool, blocks, 100, 8192) < reported // 10


def test_context_parallel_ranks_share_the_tokens() -> None:
    whole = pool_of(*[full(4)] * 28)
    shared = pool_of(*[full(4)] * 28, decode_context_parallel_size=4)
    assert capacity.blocks_for_request(whole, 8192, 8192) == 512
    assert capacity.blocks_for_request(shared, 8192, 8192) == 128
    assert (whole.bytes_per_token, shared.bytes_per_token) == (57_344, 14_336)


def test_cross_attention_holds_the_encoder_batch() -> None:
    pool = pool_of(full(kind="cross_attention"), full())
    assert capacity.blocks_for_request(pool, 448, 2048) == 448 // 16 + 2048 // 16
    assert pool.bytes_per_token == 4096


def test_a_model_without_cache() -> None:
    pool = build_pool([stage(full(kind="encoder_only"))], engine())
    assert pool.groups == ()
    assert capacity.num_blocks(pool, 0) == 1
    assert capacity.check_fits(pool, 0, engine()) is None
    assert capacity.capacity_tokens(pool, 1, 8192, 8192) == 0
    assert capacity.whole_requests(pool, 1, 8192, 8192) == 0
    assert pool.bytes_per_token == 0
