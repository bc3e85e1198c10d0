"""Bounds of an engine before it is replayed: weights from a thin model, the rest from engines like it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil

from planner.engine.config import EngineConfig
from planner.model.spec import ModelSpec
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard
from planner.units import GIB, MIB
from planner.values import DTYPE_BYTES, Value


class Guard(Value):
    """How far a figure may lie from that of a replayed engine: a share of it, and bytes."""

    share: float
    bytes: int

    def room(self, value: int) -> int:
        return ceil(abs(value) * self.share) + self.bytes


ALIKE = Guard(share=0.15, bytes=GIB // 4)
"""Of engines alike in tensor parallelism, batch, dtype's size and generation of cards: they were within 11 %."""
OTHER_DENSE = Guard(share=0.5, bytes=2 * GIB)
"""Of any other engine of a dense text model, once the figure is raised as its batch is larger or its ranks fewer."""
OTHER = Guard(share=1.0, bytes=3 * GIB)
"""The same of a model with experts or towers."""


@dataclass(frozen=True, slots=True)
class Aside:
    """What a replayed engine sets aside, in bytes. `budget`: beside weights and cache; `device`: what the device holds
    beyond context and budget, None where no budget held anything; `profile`: the profile run's height beside weights
    and context."""

    config: EngineConfig
    budget: int
    device: int | None
    profile: int


@dataclass(frozen=True, slots=True)
class Weighed:
    """The model with two layers of each kind, and how often the whole model has each of its layers."""

    small: ModelSpec
    times: dict[int, int]

    def bounds(self, config: EngineConfig) -> tuple[int, int]:
        """(least, most) bytes of a rank's weights."""
        least = most = 0
        for tensor in shard(self.small, config).loaded:
            size, times = tensor.size_bytes, 1 if tensor.layer is None else self.times.get(tensor.layer, 1)
            least += size * times
            most += (size + (2 * MIB if size >= MIB else 512)) * times
        return least - least // 50, most + 64 * MIB


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine before any replay. `margin`: the share of its weights that the safe end of their interval adds."""

    config: EngineConfig
    margin: float
    context: int
    bytes_per_block: int
    request_blocks: int


def kind_of(config: EngineConfig) -> tuple[object, ...]:
    """What engines have in common whose sums hardly differ. Before Hopper nothing is tuned at startup, and
    FlashAttention 3 runs on Hopper alone."""
    major = config.compute_capability[0]
    generation = "before" if major < 9 else "Hopper" if major == 9 else "after"
    size = DTYPE_BYTES[config.dtype]
    return config.tensor_parallel_size, config.max_num_seqs, config.max_num_batched_tokens, size, generation


def held(engine: Engine, cache_bytes: int) -> int:
    """Requests in so many bytes; one block is never given to a request."""
    return max(0, cache_bytes // engine.bytes_per_block - 1) // engine.request_blocks


def times_of(share: RankShare) -> dict[int, int]:
    """How often the whole model has each layer that its thin form keeps: the second of a kind for all further ones."""
    tensors: dict[int, list[tuple[object, ...]]] = {}
    for tensor in share.created:
        if tensor.layer is not None:
            tensors.setdefault(tensor.layer, []).append((tensor.name, tensor.shape, tensor.dtype))
    kinds = {layer: tuple(kind) for layer, kind in tensors.items()}
    whole = Counter(kinds.values())
    seen: Counter[tuple[object, ...]] = Counter()
    times: dict[int, int] = {}
    for layer, kind in sorted(kinds.items()):
        seen[kind] += 1
        if seen[kind] <= 2:
            times[layer] = 1 if seen[kind] == 1 else whole[kind] - 1
    return times
