"""The out-of-memory ladder: the cheapest sequence of changes that lets a failing launch start, each with its bytes.

Every step is judged by the ledgers themselves. The sequence is the least in this sense: none that stops on an earlier
rung (planner.search.rungs) starts, no step of it can be left out, and none can be milder, but for what the allocator
retains more or less under another utilization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import ceil, floor

from msgspec import Struct

from planner.engine.args import EngineArgs
from planner.hardware.spec import GpuPool
from planner.memory.assess import Assessment
from planner.memory.intervals import CERTAIN, Confidence
from planner.memory.kv_capacity import blocks_for_request
from planner.model.spec import ModelSpec
from planner.search.rungs import CACHE_SIZES, Change, Rung, rungs, shorter
from planner.search.variants import Variants

_WORTH_BYTES = 1 << 20
_LENGTH_STEP = 256
_GRADED = {
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "mm_processor_kwargs",
    "max_cudagraph_capture_size",
}
_FINEST = 10_000


class Step(Struct, frozen=True):
    """A change with the bytes of the fullest GPU that it frees, and what is lacking after it (0: nothing).

    For --gpu-memory-utilization and cache sizes fixed by hand the bytes are those that they move between the cache and
    the rest of the card.
    """

    change: Change
    freed_bytes: int
    lacking_bytes: int


class Ladder(Struct, frozen=True):
    """`before`: the launch as it was. `after`: with all steps, None where no sequence starts. `args`, `checkpoint` and
    `gpus`: of the launch with all steps. `lacking_bytes`: at the start; None where vLLM refuses for another reason."""

    before: Assessment
    lacking_bytes: int | None
    steps: tuple[Step, ...]
    after: Assessment | None
    args: EngineArgs
    checkpoint: str | None
    gpus: GpuPool


class _Need(Struct, frozen=True):
    """Bytes that one stage's rank needs: the requests' `cache`; what the engine counts beside it, and the `margin` of
    that; what the `device` holds beside the cache, the encoder's run-time peak among it; the CUDA `context`; and the
    height of the `profile` run. At the unfavourable ends of their intervals, or expected ones."""

    cache: int
    non_kv: int
    margin: int
    device: int
    context: int
    profile: int


class _State(Struct, frozen=True):
    """A launch with changes made."""

    args: EngineArgs
    checkpoint: str | None = None
    cards: int | None = None

    def with_change(self, change: Change) -> _State:
        return _State(
            change.apply(self.args), change.checkpoint or self.checkpoint, change.cards or self.cards
        )  # fmt: skip


def climb(
    model: ModelSpec, gpus: GpuPool, args: EngineArgs, vllm_version: str, *, given: Iterable[str] = (),
    concurrency: int = 1, checkpoints: Iterable[str] = (), load: Callable[[str], ModelSpec] | None = None,
    confidence: Confidence = "safe",
) -> Ladder:  # fmt: skip
    """The ladder of a launch that vLLM's own rules accept; where they do not, a ladder without steps.

    `concurrency`: requests of max_model_len that the cache must hold. `checkpoints`: other checkpoints of the model,
    the best first, read by `load`.
    """
    climber = _Climber(model, gpus, vllm_version, concurrency, load, confidence)
    start = _State(args)
    before = climber.assess(start)
    if before.config is None:
        return Ladder(before, None, (), None, args, None, gpus)
    lacking = max(0, -_room(before, concurrency, confidence))
    if climber.fine(before):
        return Ladder(before, 0, (), before, args, None, gpus)
    ladder = rungs(model, gpus, args, before.config, frozenset(given), tuple(checkpoints) if load else ())
    chosen = climber.choose(start, ladder)
    state = _changed(start, chosen)
    share = climber.share(state)
    after = None if share is None else climber.assess(share)
    steps = climber.steps(start, chosen, share)
    return Ladder(before, lacking, steps, after, (share or state).args, state.checkpoint, climber.pool(state))


@dataclass(slots=True)
class _Climber:
    model: ModelSpec
    gpus: GpuPool
    vllm_version: str
    concurrency: int
    load: Callable[[str], ModelSpec] | None
    confidence: Confidence
    sites: dict[tuple[str | None, int | None], Variants] = field(default_factory=dict)
    known: dict[_State, Assessment] = field(default_factory=dict)

    def pool(self, state: _State) -> GpuPool:
        if state.cards is None:
            return self.gpus
        spelling = f"{self.gpus.spelling.partition(':')[0]}:{state.cards}"
        return self.gpus.model_copy(update={"count": state.cards, "spelling": spelling})

    def assess(self, state: _State) -> Assessment:
        found = self.known.get(state)
        if found is None:
            site = (state.checkpoint, state.cards)
            if site not in self.sites:
                assert state.checkpoint is None or self.load is not None
                model = self.model if state.checkpoint is None or not self.load else self.load(state.checkpoint)
                self.sites[site] = Variants(model, self.pool(state), self.vllm_version, confidence=self.confidence)
            found = self.known[state] = self.sites[site].assess(state.args)
        return found

    def room(self, state: _State) -> int | None:
        found = self.assess(state)
        return None if not found.terms else _room(found, self.concurrency, self.confidence)

    def fine(self, found: Assessment) -> bool:
        """It starts, a full media batch fits the device, and the cache holds the requests asked for."""
        gpu, cache, config = found.estimate.per_gpu, found.estimate.kv_cache, found.config
        if not found.estimate.starts or gpu is None or cache is None or config is None or found.deployment is None:
            return False
        if gpu.used_after_startup_bytes + gpu.vision_encoder_runtime_peak_bytes > gpu.total_memory_bytes:
            return False
        need = blocks_for_request(found.deployment.pool, config.max_model_len, config.max_num_batched_tokens)
        return self.concurrency == 1 or cache.num_gpu_blocks > need * self.concurrency

    def share(self, state: _State) -> _State | None:
        """The launch with a utilization under which it is fine; its own where that is. None where there is none."""
        found = self.assess(state)
        for _ in range(4):
            if self.fine(found):
                return state
            if not found.terms or state.args.kv_cache_memory_bytes is not None:
                return None
            if _room(found, self.concurrency, self.confidence) < 0:
                return None
            utilization = _utilization(found, self.concurrency, self.confidence)
            if utilization is None or utilization == state.args.gpu_memory_utilization:
                return None
            args = state.args.model_copy(update={"gpu_memory_utilization": utilization})
            state = _State(args, state.checkpoint, state.cards)
            found = self.assess(state)
        return None

    def choose(self, start: _State, ladder: tuple[Rung, ...]) -> list[Change]:
        """Climb until it starts, then take back what was not needed, from the rung that hurts most."""
        taken: list[tuple[Rung, Change]] = []
        state = start
        for rung in ladder:
            if self.share(state) is not None:
                break
            change = rung[0] if _by_hand(rung[0]) else self._best(state, rung)
            if change is not None:
                taken.append((rung, change))
                state = state.with_change(change)
        changes = [change for _, change in taken]
        if self.share(state) is None:
            return changes
        for index in reversed(range(len(taken))):
            changes[index : index + 1] = self._milder(start, changes, index, taken[index][0])
        for index, change in enumerate(changes):
            if change.fields[0][0] == "max_model_len":
                rung = next(rung for rung, _ in reversed(taken) if change in rung)
                changes[index] = self._longest(start, changes, index, rung)
        return changes

    def _best(self, state: _State, rung: Rung) -> Change | None:
        """The mildest change of a rung that is enough, else the one that frees most; None where none frees anything."""
        room = self.room(state)
        least = (-(1 << 62) if room is None else room) + _WORTH_BYTES
        if _is_graded(rung) and self.room(state.with_change(rung[-1])) is not None:
            last = state.with_change(rung[-1])
            if self.share(last) is not None:
                return self._mildest(rung, state.with_change)
            left = self.room(last)
            return rung[-1] if left is not None and left >= least else None
        best = None
        for change in rung:
            after = state.with_change(change)
            left = self.room(after)
            if left is not None and self.share(after) is not None:
                return change
            if left is not None and left >= least:
                best, least = change, left + _WORTH_BYTES
        return best

    def _mildest(self, rung: Rung, launch: Callable[[Change], _State]) -> Change:
        """The first of a graded rung's changes with which a launch is fine; its last one is known to be."""
        low, high = 0, len(rung) - 1
        while low < high:
            middle = (low + high) // 2
            if self.share(launch(rung[middle])) is not None:
                high = middle
            else:
                low = middle + 1
        return rung[low]

    def _milder(self, start: _State, changes: list[Change], index: int, rung: Rung) -> list[Change]:
        """The change at `index` left out, or made as mild as the others allow."""
        before, after = changes[:index], changes[index + 1 :]
        if self.share(_changed(start, [*before, *after])) is not None:
            return []
        milder = rung[: rung.index(changes[index]) + 1]
        if _is_graded(milder):
            return [self._mildest(milder, lambda change: _changed(start, [*before, change, *after]))]
        fits = (change for change in milder if self.share(_changed(start, [*before, change, *after])) is not None)
        return [next(fits, changes[index])]

    def _longest(self, start: _State, changes: list[Change], index: int, rung: Rung) -> Change:
        """The longest length, in whole steps, between the one that is enough and the next of the rung."""
        low = _length_of(changes[index])
        high = min((_length_of(other) for other in rung if _length_of(other) > low), default=low * 2)
        while high - low > _LENGTH_STEP:
            middle = (low + high) // 2 // _LENGTH_STEP * _LENGTH_STEP
            tried = [*changes[:index], shorter(middle), *changes[index + 1 :]]
            if self.share(_changed(start, tried)) is not None:
                low = middle
            else:
                high = middle
        return shorter(low)

    def steps(self, start: _State, changes: list[Change], share: _State | None) -> tuple[Step, ...]:
        """Each change with its bytes, in order, the utilization last."""
        found, state = [], start
        for change in changes:
            before, previous, state = self.room(state), state, state.with_change(change)
            after = self.room(state)
            assert after is not None
            freed = after - (before if before is not None else after)
            if _by_hand(change):
                freed = abs(self._cache_bytes(state) - self._cache_bytes(previous))
            found.append(Step(change, freed, max(0, -after)))
        if share is not None and share.args != state.args:
            then, now = self.assess(state).estimate.per_gpu, self.assess(share).estimate.per_gpu
            assert then is not None
            assert now is not None
            moved = now.requested_memory_bytes - then.requested_memory_bytes
            utilization = share.args.gpu_memory_utilization
            costs = "the engine takes more of the card" if moved > 0 else "a smaller cache: fewer requests at once"
            found.append(Step(Change((("gpu_memory_utilization", utilization),), costs), abs(moved), 0))
        return tuple(found)

    def _cache_bytes(self, state: _State) -> int:
        gpu = self.assess(state).estimate.per_gpu
        return gpu.kv_cache_allocated_bytes if gpu is not None else 0


def _is_graded(rung: Rung) -> bool:
    """Whether each change of a rung frees at least what the one before it does: smaller values of one flag."""
    return {name for change in rung for name, _ in change.fields} <= _GRADED


def _by_hand(change: Change) -> bool:
    """Whether it takes back a cache size fixed by hand, which no utilization makes up for."""
    return change.fields[0][0] in CACHE_SIZES


def _changed(start: _State, changes: list[Change]) -> _State:
    for change in changes:
        start = start.with_change(change)
    return start


def _length_of(change: Change) -> int:
    value = change.fields[0][1]
    assert isinstance(value, int)
    return value


def _needs(found: Assessment, concurrency: int, confidence: Confidence) -> list[_Need]:
    """What each stage needs. PyTorch gives back what it retains before the device runs out of memory."""
    assert found.config is not None
    assert found.deployment is not None
    pool, config = found.deployment.pool, found.config
    length = max(config.max_model_len, 1)
    blocks = int(blocks_for_request(pool, length, config.max_num_batched_tokens)) * concurrency + (concurrency > 1)
    rows = []
    for term, retained, stage in zip(found.terms, found.retained_bytes, pool.stages, strict=True):
        spread = CERTAIN if confidence == "expected" else term.spreads
        held = term.device_bytes_beside_cache + max(int(spread.device.up), retained)
        rows.append(
            _Need(
                cache=blocks * stage.bytes_per_needed_block,
                non_kv=term.non_kv_bytes,
                margin=int(spread.engine.up),
                device=held + term.encoder_runtime_peak_bytes,
                context=term.cuda_context_bytes + int(spread.context.up),
                profile=term.profile_peak_bytes + int(spread.profile.up),
            )
        )
    return rows


def _room(found: Assessment, concurrency: int, confidence: Confidence) -> int:
    """Bytes that the fullest GPU has to spare under the best utilization; below zero, what it lacks.

    The utilization that leaves the cache enough of a high use leaves it more of the expected one.
    """
    assert found.deployment is not None
    total = found.deployment.gpus.gpu.total_memory_bytes
    rooms = []
    for need in _needs(found, concurrency, confidence):
        rooms.append(total - need.context - need.non_kv - need.margin - need.cache)
        rooms.append(total - need.device - need.cache - need.margin)
        rooms.append(total - need.profile)
    return min(rooms)


def _utilization(found: Assessment, concurrency: int, confidence: Confidence) -> float | None:
    """The utilization nearest to the launch's own that leaves the cache and the device what each needs."""
    assert found.config is not None
    assert found.deployment is not None
    total = found.deployment.gpus.gpu.total_memory_bytes
    needs = _needs(found, concurrency, confidence)
    least = max(need.non_kv + need.margin + need.cache for need in needs) / total
    most = min(min(total - need.context, total - need.device + need.non_kv) for need in needs) / total
    low, high = ceil(least * _FINEST) / _FINEST, floor(most * _FINEST) / _FINEST
    if low > high:
        return None
    wanted = found.config.gpu_memory_utilization
    nearest = min(max(wanted, low), high)
    rounded = floor(nearest * 100) / 100 if wanted > high else ceil(nearest * 100) / 100
    return rounded if low <= rounded <= high else nearest
