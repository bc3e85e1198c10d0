"""A program's two readings: the moments that can be highest, and its replay on the caching allocator."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory.allocator import Block, CachingAllocator
from planner.memory.program import LiveTensor, Program, Stage
from planner.units import MIB


def replayed(program: Program, tokens: int = 1, seqs: int = 1) -> tuple[CachingAllocator, dict[str, Block]]:
    allocator, kept = CachingAllocator(), dict[str, Block]()
    program.replay(allocator, tokens, seqs, kept)
    return allocator, kept


def highest(program: Program, tokens: int = 1, seqs: int = 1) -> int:
    return max(int(stage.bytes(tokens, seqs)) for stage in program.stages())


def test_sizes_follow_tokens_and_rows() -> None:
    program = Program()
    program.alloc("one", token=MIB, seq=2 * MIB, constant=4 * MIB)
    program.keep("two", token=4 * MIB, seq=5 * MIB, constant=6 * MIB)
    assert replayed(program, 10, 100)[0].allocated_bytes == (10 + 200 + 4 + 40 + 500 + 6) * MIB
    assert highest(program, 10, 100) == (10 + 200 + 4 + 40 + 500 + 6) * MIB


def test_kept_tensors_are_made_once_and_grow() -> None:
    """The smaller one goes before the larger is made."""
    program = Program()
    for size in (20, 12, 20, 30):
        program.keep("workspace", constant=size * MIB)
    assert highest(program) == 30 * MIB
    allocator, kept = replayed(program)
    assert (allocator.allocated_bytes, allocator.peak_allocated_bytes) == (30 * MIB, 30 * MIB)
    assert kept["workspace"][0] == 30 * MIB
    program.replay(allocator, 1, 1, kept)
    assert allocator.allocated_bytes == 30 * MIB


def test_growing_returns_the_cache_first() -> None:
    kept_program, grown = Program(), Program()
    kept_program.keep("workspace", constant=20 * MIB)
    kept_program.keep("workspace", constant=30 * MIB)
    grown.grow("workspace", constant=20 * MIB)
    grown.grow("workspace", constant=30 * MIB)
    assert replayed(kept_program)[0].reserved_bytes == 50 * MIB
    assert replayed(grown)[0].reserved_bytes == 30 * MIB


def test_a_library_has_one_workspace_for_each_stream() -> None:
    program = Program()
    program.keep_here("handle", constant=20 * MIB)
    program.aside()
    program.keep_here("handle", constant=20 * MIB)
    program.keep("shared", constant=12 * MIB)
    program.back()
    program.keep_here("handle", constant=20 * MIB)
    program.keep("shared", constant=12 * MIB)
    allocator, kept = replayed(program)
    assert allocator.allocated_bytes == 52 * MIB
    assert sorted(kept) == ["handle", "handle of stream 1", "shared"]
    assert allocator.stream == 0


def test_streams_do_not_share_blocks() -> None:
    """A block cached for the stream beside serves only that; leaving the main one leaves its blocks to nobody."""
    program = Program()
    program.aside()
    program.free(program.alloc("beside", constant=20 * MIB))
    program.back()
    program.free(program.alloc("main", constant=20 * MIB))
    program.aside()
    program.free(program.alloc("beside again", constant=20 * MIB))
    program.back()
    assert replayed(program)[0].reserved_bytes == 40 * MIB
    program.leave()
    program.free(program.alloc("after", constant=20 * MIB))
    program.aside()
    program.back()
    program.free(program.alloc("after again", constant=20 * MIB))
    allocator, _ = replayed(program)
    assert allocator.reserved_bytes == 60 * MIB
    assert (allocator.stream, allocator.main_stream) == (2, 2)


def test_dropping_frees_what_a_name_holds() -> None:
    program = Program()
    program.keep("table", constant=20 * MIB)
    program.drop("table", constant=20 * MIB)
    program.alloc("next", constant=12 * MIB)
    assert highest(program) == 20 * MIB
    allocator, kept = replayed(program)
    assert (allocator.allocated_bytes, kept) == (12 * MIB, {})


def test_dropping_what_was_there_before_counts_against_the_peak() -> None:
    program = Program()
    program.stage("early")
    program.free(program.alloc("small", constant=MIB))
    program.drop("table", token=2, seq=3, constant=20 * MIB)
    program.drop("other table", constant=MIB)
    program.stage("late")
    program.alloc("large", constant=50 * MIB)
    late = next(stage for stage in program.stages() if stage.name == "late")
    assert late.bytes(10, 100) == 29 * MIB - 20 - 300
    assert [tensor.name for tensor in late.tensors] == ["table (freed)", "other table (freed)", "large"]


def test_a_stage_adds_its_tensors() -> None:
    stage = Stage("any", (LiveTensor("a", 1, 20, 300), LiveTensor("b", 4, 50, 600)))
    assert stage.bytes(2, 3) == 10 + 210 + 900
    assert LiveTensor("a", 1, 20, 300).bytes(2, 3) == 2 + 60 + 300


SIZES = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 99))


@given(st.lists(st.tuples(SIZES, st.booleans()), min_size=1, max_size=12), st.integers(0, 20), st.integers(0, 20))
def test_no_moment_is_above_the_stages(steps: list[tuple[tuple[int, int, int], bool]], tokens: int, seqs: int) -> None:
    """The kept stages are those of a walk through all moments: none exceeds them, and each of them is one."""
    program = Program()
    live: dict[int, int] = {}
    moments: list[int] = []
    for number, ((token, seq, constant), keep) in enumerate(steps):
        program.stage(f"step {number}")
        handle = program.alloc("tensor", token=token, seq=seq, constant=constant)
        live[handle] = token * tokens + seq * seqs + constant
        moments.append(sum(live.values()))
        if not keep:
            program.free(handle)
            del live[handle]
    stages = program.stages()
    assert max(int(stage.bytes(tokens, seqs)) for stage in stages) == max(moments)
    vectors = [
        tuple(sum(getattr(tensor, name) for tensor in stage.tensors) for name in LiveTensor.__struct_fields__[1:])
        for stage in stages
    ]
    for one in vectors:
        assert not any(other != one and all(a >= b for a, b in zip(other, one, strict=True)) for other in vectors)
    assert len(set(vectors)) == len(vectors)


@pytest.mark.parametrize("before", [0, 2])
def test_a_part_does_what_its_events_do(before: int) -> None:
    """Wherever it stands, and as often as it is used: its handles count from those before it."""
    inner = Program()
    inner.stage("inner")
    scratch, result = inner.alloc("scratch", token=MIB), inner.alloc("result", token=2 * MIB)
    inner.free(scratch)
    part = inner.part(result, None)
    used, plain = Program(), Program()
    for program in (used, plain):
        program.stage("outer")
        for _ in range(before):
            program.alloc("outer tensor", constant=3 * MIB)
    handles = used.use(part), used.use(part)
    used.alloc("last", constant=MIB)
    used.free(handles[0][0])
    for _ in range(2):
        plain.stage("inner")
        first, second = plain.alloc("scratch", token=MIB), plain.alloc("result", token=2 * MIB)
        plain.free(first)
        if _ == 0:
            kept = second
    plain.alloc("last", constant=MIB)
    plain.free(kept)
    assert handles == ((before + 2, None), (before + 4, None))
    assert list(used.flat()) == list(plain.flat())
    one, other = replayed(used, 7)[0], replayed(plain, 7)[0]
    assert one.state() == other.state()
    assert one.peak_allocated_bytes == other.peak_allocated_bytes
    assert used.stages() == plain.stages()
