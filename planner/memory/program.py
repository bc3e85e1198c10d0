"""A run of the engine as the tensors it allocates and frees, in order: the one description behind the peak of a forward
pass, its explanation tensor by tensor, and what the caching allocator still holds afterwards.

Sizes are linear in `tokens` (rows of the forward pass) and `seqs` (rows that are sampled), so that one program answers
for every batch size, for whole numbers and numpy arrays alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from msgspec import Struct, field

from planner.memory.allocator import Block, CachingAllocator


class LiveTensor(Struct, frozen=True, gc=False):
    """A tensor that is alive at some moment: its bytes for each token, for each sampled row, and fixed."""

    name: str
    bytes_per_token: int = 0
    bytes_per_seq: int = 0
    constant_bytes: int = 0

    def bytes(self, tokens: Any, seqs: Any) -> Any:
        """Bytes at a batch size. Takes and gives ints or numpy arrays."""
        return self.bytes_per_token * tokens + self.bytes_per_seq * seqs + self.constant_bytes


class Stage(Struct, frozen=True):
    """A moment of the run at which the memory in use can be highest, with everything that is alive then."""

    name: str
    tensors: tuple[LiveTensor, ...]

    def bytes(self, tokens: Any, seqs: Any) -> Any:
        return (
            sum([tensor.bytes_per_token for tensor in self.tensors]) * tokens
            + sum([tensor.bytes_per_seq for tensor in self.tensors]) * seqs
            + sum([tensor.constant_bytes for tensor in self.tensors])
        )


EventKind = Literal[
    "alloc", "free", "keep", "keep_here", "grow", "drop", "aside", "back", "leave", "part"
]  # fmt: skip

_ASIDE_STREAM = 1
_DEDICATED_STREAM = 2


class Event(Struct, frozen=True):
    """`keep` allocates a tensor that outlives the program, once, under its name, `keep_here` once for each stream;
    `grow` returns the cache before it makes a larger one; `drop` frees what a name holds. `aside` and `back` lead to a
    stream beside the main one and back; `leave` makes another stream the main one. `part` stands for the events of a
    part, whose handles count from `handle`."""

    kind: EventKind
    handle: int
    tensor: LiveTensor
    stage: str
    part: Part | None = None


_Operation = tuple[int, int, int, int, int, Event]
_ALLOC, _FREE, _OTHER = 0, 1, 2


class Part(Struct, frozen=True):
    """A finished stretch of a program, to be used in several. `results`: the handles that it leaves to what follows;
    `operations`: its events as `Program.replay` takes them."""

    events: tuple[Event, ...]
    operations: tuple[_Operation, ...]
    handles: int
    stage: str
    results: tuple[int | None, ...]


class Program(Struct):
    """Collects events. `alloc` gives a handle to `free` later; `stage` names what follows."""

    events: list[Event] = field(default_factory=list)
    _stage: str = ""
    _handles: int = 0

    def stage(self, name: str) -> None:
        self._stage = name

    def alloc(self, name: str, *, token: int = 0, seq: int = 0, constant: int = 0) -> int:
        self._handles += 1
        self.events.append(Event("alloc", self._handles, LiveTensor(name, token, seq, constant), self._stage))
        return self._handles

    def free(self, *handles: int | None) -> None:
        for handle in handles:
            if handle is not None:
                self.events.append(Event("free", handle, _NOTHING, self._stage))

    def _note(self, kind: EventKind, tensor: LiveTensor) -> None:
        """An event that no handle stands for."""
        self.events.append(Event(kind, 0, tensor, self._stage))

    def keep(self, name: str, *, token: int = 0, seq: int = 0, constant: int = 0) -> None:
        """A tensor that stays: allocated when the name holds nothing or less (the smaller one goes first)."""
        self._note("keep", LiveTensor(name, token, seq, constant))

    def keep_here(self, name: str, *, constant: int) -> None:
        """A tensor that stays, one for each stream: the workspace of a library's handle."""
        self._note("keep_here", LiveTensor(name, 0, 0, constant))

    def grow(self, name: str, *, token: int = 0, constant: int = 0) -> None:
        """A tensor that stays, made larger where needed, after the cache went back to the driver."""
        self._note("grow", LiveTensor(name, token, 0, constant))

    def aside(self) -> None:
        """What follows runs on a stream beside the main one, until `back`."""
        self._note("aside", _NOTHING)

    def back(self) -> None:
        self._note("back", _NOTHING)

    def leave(self) -> None:
        """Leave the default stream for good: blocks cached for it serve nobody from here on."""
        self._note("leave", _NOTHING)

    def drop(self, name: str, *, token: int = 0, seq: int = 0, constant: int = 0) -> None:
        """Free what `name` holds. For a tensor made before the program, its size counts against the peak."""
        self._note("drop", LiveTensor(name, token, seq, constant))

    def part(self, *results: int | None) -> Part:
        """What was written so far, to use in other programs."""
        events = tuple(self.flat())
        return Part(events, tuple(_operation(event) for event in events), self._handles, self._stage, results)

    def use(self, part: Part) -> tuple[int | None, ...]:
        """Write a part's events; gives the handles of its results."""
        base = self._handles
        self.events.append(Event("part", base, _NOTHING, self._stage, part))
        self._handles += part.handles
        self._stage = part.stage
        return tuple(None if handle is None else base + handle for handle in part.results)

    def flat(self) -> Iterator[Event]:
        """Every event, those of parts in their place."""
        for event in self.events:
            if event.part is None:
                yield event
                continue
            for inner in event.part.events:
                yield Event(inner.kind, inner.handle + event.handle, inner.tensor, inner.stage)

    def stages(self) -> tuple[Stage, ...]:
        """The moments that are highest for some batch size: what no other moment exceeds in every coefficient."""
        live: dict[int | str, LiveTensor] = {}
        total = (0, 0, 0)
        best: list[tuple[tuple[int, int, int], Stage]] = []
        for event in self.flat():
            if event.kind == "free":
                total = _add(total, live.pop(event.handle), -1)
                continue
            if event.kind == "drop":
                gone = live.pop(event.tensor.name, None)
                if gone is None:
                    given = event.tensor
                    live[-len(live) - 1] = LiveTensor(
                        f"{given.name} (freed)", -given.bytes_per_token, -given.bytes_per_seq, -given.constant_bytes
                    )
                    total = _add(total, given, -1)
                else:
                    total = _add(total, gone, -1)
                continue
            if event.kind in _SILENT:
                continue
            key: int | str = event.handle
            if event.kind in _KEEPING:
                key = event.tensor.name
                held = live.get(key)
                if held is not None:
                    if _covers(_vector(held), _vector(event.tensor)):
                        continue
                    total = _add(total, held, -1)
            live[key] = event.tensor
            total = _add(total, event.tensor, 1)
            if not any(_covers(vector, total) for vector, _ in best):
                best = [item for item in best if not _covers(total, item[0])]
                best.append((total, Stage(event.stage, tuple(live.values()))))
        return tuple(stage for _, stage in best)

    def replay(self, allocator: CachingAllocator, tokens: int, seqs: int, kept: dict[str, Block]) -> None:
        """Run the events on an allocator. `kept` carries the tensors that outlive programs, by name."""
        blocks: list[Block | None] = []
        own: list[_Operation] = []
        for event in self.events:
            if event.part is None:
                own.append(_operation(event))
                continue
            _run(allocator, own, 0, (tokens, seqs), blocks, kept)
            _run(allocator, event.part.operations, event.handle, (tokens, seqs), blocks, kept)
            own = []
        _run(allocator, own, 0, (tokens, seqs), blocks, kept)


def _operation(event: Event) -> _Operation:
    tensor = event.tensor
    code = _ALLOC if event.kind == "alloc" else _FREE if event.kind == "free" else _OTHER
    return code, event.handle, tensor.bytes_per_token, tensor.bytes_per_seq, tensor.constant_bytes, event


def _run(
    allocator: CachingAllocator,
    operations: Iterable[_Operation],
    base: int,
    batch: tuple[int, int],
    blocks: list[Block | None],
    kept: dict[str, Block],
) -> None:
    """`blocks` has one for each tensor so far: a program counts its handles from 1 in the order of its tensors."""
    tokens, seqs = batch
    steps: list[int] = []
    for code, handle, token, seq, constant, event in operations:
        if code == _ALLOC:
            steps.append(token * tokens + seq * seqs + constant)
            continue
        if code == _FREE:
            steps.append(-base - handle)
            continue
        allocator.run(steps, blocks)
        steps = []
        if event.kind == "drop":
            allocator.free(kept.pop(event.tensor.name, None))
        elif event.kind in _KEEPING:
            _keep(allocator, event, token * tokens + seq * seqs + constant, kept)
        else:
            _turn(allocator, event.kind)
    allocator.run(steps, blocks)


def _turn(allocator: CachingAllocator, kind: EventKind) -> None:
    if kind == "leave":
        allocator.main_stream = _DEDICATED_STREAM
    allocator.stream = _ASIDE_STREAM if kind == "aside" else allocator.main_stream


def _keep(allocator: CachingAllocator, event: Event, size: int, kept: dict[str, Block]) -> None:
    here = event.kind == "keep_here" and allocator.stream
    name = f"{event.tensor.name} of stream {allocator.stream}" if here else event.tensor.name
    held = kept.get(name)
    if held is not None:
        if held[0] >= size:
            return
        allocator.free(kept.pop(name))
    if event.kind == "grow":
        allocator.empty_cache()
    block = allocator.allocate(size)
    if block is not None:
        kept[name] = block


_NOTHING = LiveTensor("")
_KEEPING = ("keep", "keep_here", "grow")
_SILENT = ("aside", "back", "leave")


def _vector(tensor: LiveTensor) -> tuple[int, int, int]:
    return tensor.bytes_per_token, tensor.bytes_per_seq, tensor.constant_bytes


def _add(total: tuple[int, int, int], tensor: LiveTensor, sign: int) -> tuple[int, int, int]:
    return (
        total[0] + sign * tensor.bytes_per_token,
        total[1] + sign * tensor.bytes_per_seq,
        total[2] + sign * tensor.constant_bytes,
    )


def _covers(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one[2] >= other[2]
