"""In how many parts FlashAttention 3 reads the keys of a sequence: each part has its own float32 output.

Source: FlashAttention hopper/heuristics.h num_splits_heuristic, hopper/tile_size.h tile_size_fwd_sm90, hopper/
flash_api.cpp get_num_splits (varlen calls count one sequence while the batch has at most 992). Four parts at sequences
of 1024 with 16 heads of 72 were seen on an H200.
"""

from __future__ import annotations

from math import ceil

_TILES = ((64, 192, 192), (96, 192, 144), (128, 128, 176), (192, 128, 112), (256, 128, 80))
_FULL = 0.8
_GOOD = 0.85
_L2_BYTES = 50 * 1024 * 1024
_MAX_SPLITS = 128
_MAX_DYNAMIC_BATCH = 992


def flash_splits(heads: int, head_size: int, longest: int, sequences: int, sm_count: int, item: int = 2) -> int:
    """Parts for full attention over `sequences` of up to `longest` positions on a Hopper card."""
    rows, columns = next((m, n) for size, m, n in _TILES if head_size <= size)
    row_blocks, column_blocks = ceil(longest / rows), ceil(longest / columns)
    blocks = heads * row_blocks * (1 if sequences <= _MAX_DYNAMIC_BATCH else sequences)
    if blocks >= _FULL * sm_count:
        key_bytes = longest * 2 * head_size * item
        return min(ceil(key_bytes / _L2_BYTES), _MAX_SPLITS) if row_blocks >= 2 * sm_count else 1
    if column_blocks <= 4:
        return 1
    efficiency = [
        _efficiency(blocks * splits / sm_count) for splits in range(1, min(_MAX_SPLITS, sm_count, column_blocks) + 1)
    ]
    return next(index for index, value in enumerate(efficiency, 1) if value >= _GOOD * max(efficiency))


def _efficiency(waves: float) -> float:
    return waves / ceil(waves)
