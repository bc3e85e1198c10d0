"""FlashAttention 3's parts, against its heuristic written as its C++ has it, in whole numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory.multimodal.flash_splits import flash_splits

TILES = {64: (192, 192), 96: (192, 144), 128: (128, 176), 192: (128, 112), 256: (128, 80)}
L2 = 50 << 20


def parts(heads: int, size: int, longest: int, sequences: int, sms: int) -> int:
    """hopper/heuristics.h num_splits_heuristic for attention that is neither causal nor local; hopper/tile_size.h."""
    block_m, block_n = TILES[min(known for known in TILES if size <= known)]
    blocks_m, blocks_n = (longest + block_m - 1) // block_m, (longest + block_n - 1) // block_n
    total = heads * blocks_m * (sequences if sequences > 992 else 1)
    if 10 * total >= 8 * sms:
        one_head = longest * 2 * size * 2
        if one_head > L2 and blocks_m >= 2 * sms:
            return min((one_head + L2 - 1) // L2, 128)
        return 1
    if blocks_n <= 4:
        return 1
    best = 0.0
    found: list[float] = []
    for count in range(1, min(128, sms, blocks_n) + 1):
        waves = total * count / sms
        whole = int(waves) + (waves > int(waves))
        found.append(waves / whole)
        best = max(best, found[-1])
    return 1 + next(place for place, value in enumerate(found) if value >= 0.85 * best)


SIZES = st.sampled_from([32, 64, 72, 80, 96, 104, 128, 160, 192, 200, 256])


@given(
    st.integers(1, 24),
    SIZES,
    st.integers(1, 6000),
    st.sampled_from([1, 8, 992, 993, 1500]),
    st.sampled_from([108, 132]),
)
def test_parts_are_those_of_the_heuristic(heads: int, size: int, longest: int, sequences: int, sms: int) -> None:
    assert flash_splits(heads, size, longest, sequences, sms) == parts(heads, size, longest, sequences, sms)


@pytest.mark.parametrize("size", sorted(TILES))
def test_parts_at_the_edges_of_blocks(size: int) -> None:
    edges = {unit * count + more for unit in {*TILES[size], 128, 192} for count in range(1, 24) for more in (0, 1)}
    for longest in sorted(edges):
        for heads in (1, 2, 5, 16):
            assert flash_splits(heads, size, longest, 1, 132) == parts(heads, size, longest, 1, 132)
            assert flash_splits(heads, size, longest, 1, 20) == parts(heads, size, longest, 1, 20)


@pytest.mark.parametrize(
    ("heads", "size", "longest", "found"),
    [
        (16, 64, 264 * 192, 1),  # 264 row blocks, and 13 MB of keys: they fit
        (16, 80, 264 * 192, 1),
        (16, 256, 263 * 128, 1),
        (16, 256, 51_200, 1),  # just 50 MiB
        (16, 256, 51_201, 2),
        (16, 256, 100_000, 2),
        (16, 256, 200_000, 4),
        (16, 256, 10_000_000, 128),
        (1, 128, 704, 1),
        (1, 128, 705, 5),
    ],
)
def test_keys_beyond_the_cache_are_read_in_parts(heads: int, size: int, longest: int, found: int) -> None:
    assert flash_splits(heads, size, longest, 1, 132) == found == parts(heads, size, longest, 1, 132)
