"""The caching allocator against a plain one: lists of segments, searched from end to end, as PyTorch's source says it.

Source: PyTorch 2.11 c10/cuda/CUDACachingAllocator.cpp get_free_block, should_split, alloc_block, free_block,
release_cached_blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory.allocator import Block, CachingAllocator
from planner.units import KIB, MIB

UNLIMITED = 1 << 62


@dataclass(eq=False)
class Piece:
    size: int
    free: bool = True


@dataclass(eq=False)
class Segment:
    stream: int
    small: bool
    pieces: list[Piece]


@dataclass
class Plain:
    """One list of segments in order of creation; a block is a `Piece` of one of them."""

    limit: int = UNLIMITED
    segments: list[Segment] = field(default_factory=list)
    allocated: int = 0
    peak_allocated: int = 0
    peak_reserved: int = 0

    @property
    def reserved(self) -> int:
        return sum(piece.size for segment in self.segments for piece in segment.pieces)

    def allocate(self, stream: int, asked: int) -> Piece | None:
        if asked == 0:
            return None
        size = -(-asked // 512) * 512
        small = size <= MIB
        segment, piece = self._best(stream, small, size) or self._new(stream, small, size)
        rest = piece.size - size
        if rest >= 512 if small else rest > MIB and size < self.limit:
            piece.size = size
            segment.pieces.insert(segment.pieces.index(piece) + 1, Piece(rest))
        piece.free = False
        self.allocated += piece.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return piece

    def _best(self, stream: int, small: bool, size: int) -> tuple[Segment, Piece] | None:
        fitting = [
            (piece.size, place, segment, piece)
            for place, segment in enumerate(self.segments)
            if (segment.stream, segment.small) == (stream, small)
            for piece in segment.pieces
            if piece.free and piece.size >= size
        ]
        if not fitting:
            return None
        _, _, segment, piece = min(fitting, key=lambda found: found[:2])
        if size < self.limit <= piece.size or (size >= self.limit and piece.size >= size + 20 * MIB):
            return None
        return segment, piece

    def _new(self, stream: int, small: bool, size: int) -> tuple[Segment, Piece]:
        whole = 2 * MIB if small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        segment = Segment(stream, small, [Piece(whole)])
        self.segments.append(segment)
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return segment, segment.pieces[0]

    def free(self, piece: Piece | None) -> None:
        if piece is None:
            return
        self.allocated -= piece.size
        piece.free = True
        segment = next(one for one in self.segments if any(other is piece for other in one.pieces))
        joined: list[Piece] = []
        for one in segment.pieces:
            if joined and joined[-1].free and one.free:
                joined[-1] = Piece(joined[-1].size + one.size)
            else:
                joined.append(one)
        segment.pieces = joined

    def empty_cache(self) -> None:
        self.segments = [one for one in self.segments if not (len(one.pieces) == 1 and one.pieces[0].free)]


SIZES = st.one_of(
    st.integers(0, 3 * KIB),
    st.integers(1, 24).map(lambda count: count * MIB),
    st.integers(MIB - 600, MIB + 600),
    st.integers(10 * MIB - 600, 10 * MIB + 600),
    st.integers(1, 45 * MIB),
    st.sampled_from([19 * MIB, 20 * MIB - 512, 20 * MIB, 21 * MIB, 39 * MIB, 40 * MIB, 41 * MIB]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), SIZES),
        st.tuples(st.just("allocate"), SIZES),
        st.tuples(st.just("free"), st.integers(0, 30)),
        st.tuples(st.just("free"), st.integers(0, 30)),
        st.tuples(st.just("stream"), st.integers(0, 1)),
        st.tuples(st.just("empty"), st.just(0)),
        st.tuples(st.just("copy"), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS, st.sampled_from([None, None, 20 * MIB, 20 * MIB]))
def test_both_hand_out_the_same_blocks(steps: list[tuple[str, int]], limit: int | None) -> None:
    allocator, plain = CachingAllocator(limit), Plain(UNLIMITED if limit is None else limit)
    held: list[tuple[Block | None, Piece | None]] = []
    for kind, number in steps:
        if kind == "allocate":
            held.append((allocator.allocate(number), plain.allocate(allocator.stream, number)))
            block, piece = held[-1]
            assert (None if block is None else block[0]) == (None if piece is None else piece.size)
        elif kind == "free" and held:
            block, piece = held.pop(number % len(held))
            allocator.free(block)
            plain.free(piece)
        elif kind == "stream":
            allocator.stream = number
        elif kind == "empty":
            allocator.empty_cache()
            plain.empty_cache()
        elif kind == "copy":
            before, allocator = allocator, allocator.copy()
            before.allocate(3 * MIB)
        assert (allocator.allocated_bytes, allocator.reserved_bytes) == (plain.allocated, plain.reserved)
        peaks = allocator.peak_allocated_bytes, allocator.peak_reserved_bytes
        assert peaks == (plain.peak_allocated, plain.peak_reserved)
        cached = sorted(
            (piece.size for one in plain.segments for piece in one.pieces
             if piece.free and not one.small and one.stream == allocator.stream), reverse=True,
        )  # fmt: skip
        assert allocator.free_blocks(2 * MIB) == tuple(size for size in cached if size > 2 * MIB)


@given(st.lists(SIZES, max_size=25), st.lists(st.integers(0, 24), max_size=25))
def test_steps_at_once_are_steps_one_by_one(sizes: list[int], freed: list[int]) -> None:
    """`run` takes whole sequences: sizes, and `~n` for the n-th block."""
    gone = sorted({index for index in freed if index < len(sizes)})
    once, single = CachingAllocator(), CachingAllocator()
    blocks = once.run([*sizes, *(~index for index in gone)])
    assert once.run([5 * MIB], blocks) is blocks
    ones = [single.allocate(size) for size in sizes]
    for index in gone:
        single.free(ones[index])
    ones.append(single.allocate(5 * MIB))
    assert blocks == ones
    assert once.state() == single.state()


def test_peaks_begin_anew_with_what_is_held() -> None:
    allocator = CachingAllocator()
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (0, 0)
    kept = allocator.allocate(30 * MIB)
    allocator.free(allocator.allocate(50 * MIB))
    allocator.empty_cache()
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (80 * MIB, 80 * MIB)
    allocator.reset_peaks()
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (30 * MIB, 30 * MIB)
    allocator.free(kept)
    assert allocator.peak_allocated_bytes == 30 * MIB


@pytest.mark.parametrize("change", ["stream", "main_stream", "reserved", "allocated", "cached"])
def test_states_differ_where_allocators_go_on_differently(change: str) -> None:
    one = CachingAllocator()
    one.free(one.allocate(30 * MIB))
    other = one.copy()
    assert one.state() == other.state()
    if change in ("stream", "main_stream"):
        setattr(other, change, 1)
    elif change == "reserved":
        other.empty_cache()
    else:
        block = other.allocate(MIB)
        if change == "cached":
            other.free(block)
    assert one.state() != other.state()
