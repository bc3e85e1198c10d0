"""Layers that repeat: a run of equal layers, or of equal groups of layers, allocates like a few of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

_LONGEST_PERIOD = 8
_KEPT_PERIODS = 4


def representatives(kinds: Sequence[Hashable]) -> tuple[int, ...]:
    """Positions to keep: of each repetition, two periods at its start and two or three at its end.

    An even number of periods is left out, so that the allocator ends as after the whole run even where a layer's output
    alternates between two blocks.
    """
    kept: list[int] = []
    position = 0
    while position < len(kinds):
        length, period = _repetition(kinds, position)
        dropped = max(0, length // period - _KEPT_PERIODS) // 2 * 2 * period
        if dropped == 0:
            kept.append(position)
            position += 1
            continue
        middle = position + _KEPT_PERIODS // 2 * period
        kept += range(position, middle)
        kept += range(middle + dropped, position + length)
        position += length
    return tuple(kept)


def _repetition(kinds: Sequence[Hashable], start: int) -> tuple[int, int]:
    """Length and period of the repetition that begins at `start` and drops the most."""
    best = (1, 1)
    for period in range(1, _LONGEST_PERIOD + 1):
        end = start + period
        while end < len(kinds) and kinds[end] == kinds[end - period]:
            end += 1
        length = end - start
        if length // period > _KEPT_PERIODS + 1 and length - _KEPT_PERIODS * period > best[0] - _KEPT_PERIODS * best[1]:
            best = (length, period)
    return best
