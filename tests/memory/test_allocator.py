"""The caching allocator's arithmetic, and weights memory against real boots."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory.allocator import LOAD_MAX_SPLIT_BYTES, CachingAllocator, weights_memory_bytes
from planner.memory.layers import load_traits
from planner.units import KIB, MIB
from tests.memory.boots import BOOTS, label, set_up

BYTE_SLACK = 16 * KIB


@pytest.mark.parametrize("boot", BOOTS, ids=label)
def test_weights_memory_is_what_the_engine_logs(boot: dict[str, Any]) -> None:
    model, share, config = set_up(boot)
    predicted = weights_memory_bytes(share, load_traits(model, share, config))
    assert abs(predicted - boot["weights_memory_bytes"]) <= BYTE_SLACK


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (297 * MIB, 298 * MIB, 298 * MIB),
        (296 * MIB + 512 * KIB, 296 * MIB + 512 * KIB, 298 * MIB),
    ],
)
def test_a_block_and_its_segment(size: int, allocated: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(size)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (allocated, reserved)


def test_large_blocks_stay_whole_while_loading() -> None:
    allocator = CachingAllocator(LOAD_MAX_SPLIT_BYTES)
    freed = allocator.allocate(64 * MIB)
    allocator.free(freed)
    allocator.allocate(48 * MIB)
    assert allocator.allocated_bytes == 64 * MIB
    allocator.allocate(44 * MIB - 1)
    assert allocator.reserved_bytes == (64 + 44) * MIB


def test_freed_neighbours_join_and_serve_a_larger_tensor() -> None:
    allocator = CachingAllocator()
    first, second = allocator.allocate(30 * MIB), None
    allocator.free(first)
    first, second = allocator.allocate(10 * MIB), allocator.allocate(10 * MIB)
    allocator.free(first)
    allocator.free(second)
    allocator.allocate(30 * MIB)
    assert allocator.reserved_bytes == 30 * MIB


def test_empty_tensors_take_nothing() -> None:
    allocator = CachingAllocator()
    assert allocator.allocate(0) is None
    allocator.free(None)
    assert allocator.reserved_bytes == 0


@given(st.lists(st.tuples(st.integers(1, 64 * MIB), st.booleans()), max_size=40))
def test_everything_comes_back(requests: list[tuple[int, bool]]) -> None:
    allocator = CachingAllocator()
    held = []
    for size, keep in requests:
        block = allocator.allocate(size)
        if keep:
            held.append(block)
        else:
            allocator.free(block)
    assert allocator.reserved_bytes >= allocator.allocated_bytes
    for block in held:
        allocator.free(block)
    assert allocator.allocated_bytes == 0
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0
