"""What one engine sets aside and holds, in closed bounds: weights from a thin model, the rest exact or from engines
like it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from planner.engine.config import EngineConfig
from planner.memory.allocator import (
    LARGE_SEGMENT_BYTES,
    LOAD_MAX_SPLIT_BYTES,
    MIN_BLOCK_BYTES,
    ROUND_LARGE_BYTES,
    SMALL_BYTES,
    round_up,
)
from planner.memory.kv_capacity import blocks_for_request
from planner.memory.kv_pool import KVPool
from planner.model.spec import ModelSpec
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard
from planner.units import GIB, MIB
from planner.values import DTYPE_BYTES, Value

_COPIES = ("W_UK_T", "W_UV")
"""Latent attention's views of a weight, which may have no bytes of their own."""
_BESIDE_BYTES = 128 * MIB
"""DeepGEMM's workspace of 32 MiB, and four large blocks that the rotary table's making leaves to tensors."""


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
RETAINED = Guard(share=2.0, bytes=128 * MIB)
"""Of what the allocator retains, about the peak activation: its blocks are those of passes no larger than the profile
run, which leave it fragmented, and of the sampler's warm-up. The former were at most 1.9 times the peak."""
SAMPLED_BYTES = 64
"""The most that warming up the sampler leaves for each logit of a batch: some eight copies in float32, and as much."""


@dataclass(frozen=True, slots=True)
class Aside:
    """What an engine sets aside, in bytes. `budget`: beside weights and cache; `device`: what the device holds beyond
    context and budget; `profile`: the profile run's height beside weights and context."""

    budget: int
    profile: int
    device: int | None = None


NOTHING = Aside(0, 0)
"""The least that an engine of which nothing is known sets aside."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """The model with two layers of each kind, and how often the whole model has each of its layers."""

    small: ModelSpec
    times: dict[int, int]

    def split(self, config: EngineConfig) -> RankShare:
        """The thin model's share of one rank, which names the layers of the whole one."""
        return shard(self.small, config)

    def bounds(self, share: RankShare) -> tuple[int, int]:
        """(least, most) bytes of a rank's weights, from its thin share.

        No tensor has less than its own size. While vLLM loads, a block between 1 and 20 MiB is at most 1 MiB larger
        than its tensor; a larger one has whole pages of 2 MiB, or, where post-processing makes it, a block that was
        freed whole and is less than 20 MiB larger (planner.memory.allocator).
        """
        created, loaded = set(share.created), set(share.loaded)
        freed = sorted(
            {_pages(tensor.size_bytes) for tensor in created - loaded if tensor.size_bytes >= LOAD_MAX_SPLIT_BYTES}
        )
        least = most = 0
        for tensor in share.loaded:
            size, times = tensor.size_bytes, 1 if tensor.layer is None else self.times.get(tensor.layer, 1)
            least += 0 if tensor.name in _COPIES else size * times
            if size <= SMALL_BYTES:
                block = size + MIN_BLOCK_BYTES
            elif size < LOAD_MAX_SPLIT_BYTES:
                block = size + SMALL_BYTES
            else:
                larger = bisect_left(freed, size + LARGE_SEGMENT_BYTES)
                reused = freed[larger - 1] if larger and tensor not in created else 0
                block = max(_pages(size), reused)
            most += block * times
        return least, most + _BESIDE_BYTES


def _pages(size: int) -> int:
    return round_up(size, ROUND_LARGE_BYTES)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine before any replay: `context`, `block_bytes` and one request's needs are exact. `has_margin`: the safe
    end of its weights' interval is half a hundredth above them."""

    config: EngineConfig
    has_margin: bool
    context: int
    pool: KVPool
    block_bytes: int
    request_blocks: int
    request_bytes: int

    @classmethod
    def of(cls, config: EngineConfig, pool: KVPool, context: int, *, has_margin: bool) -> Engine:
        needed = blocks_for_request(pool, config.max_model_len, config.max_num_batched_tokens)
        request_bytes = needed * pool.fullest.bytes_per_needed_block
        return cls(config, has_margin, context, pool, pool.bytes_per_block, needed, request_bytes)

    def requests(self, aside: Aside, weights: int, card: Card, *, slack: int = 0) -> int:
        """Requests that the engine holds on a card whose other terms are those of `aside`, as the grid of candidates
        has it: at the largest budget that leaves the device its safety margin, one block never given to a request.
        `slack`: bytes added to the device's need; where `aside` does not know that, it counts for nothing."""
        total, kept = card.total_bytes, weights + (weights // 200 if self.has_margin else 0)
        free, reserved, block = total - self.context, kept + aside.budget, self.block_bytes
        if weights > free:
            return 0
        profile = self.context + kept + aside.profile + slack
        for budget in card.budgets:
            cache = budget - reserved
            if cache < self.request_bytes:
                return 0
            if budget > free:
                continue
            needed = profile
            if aside.device is not None:
                needed = max(profile, self.context + budget - cache % block + aside.device + slack)
            if ceil(needed * (1.0 + card.safety_margin)) <= total:
                return max(0, cache // block - 1) // self.request_blocks
        return 0


@dataclass(frozen=True, slots=True)
class Card:
    """A card's memory, and the budgets that an engine may be given of it, the largest first, in bytes."""

    total_bytes: int
    safety_margin: float
    budgets: Sequence[int]


def kind_of(config: EngineConfig) -> tuple[object, ...]:
    """What engines have in common whose sums hardly differ. Before Hopper nothing is tuned at startup, and
    FlashAttention 3 runs on Hopper alone; `gpu_memory_bytes` is 0 but where a tower reads the card's memory."""
    major = config.compute_capability[0]
    generation = "before" if major < 9 else "Hopper" if major == 9 else "after"
    size = DTYPE_BYTES[config.dtype]
    batch = config.max_num_seqs, config.max_num_batched_tokens
    return config.tensor_parallel_size, *batch, size, generation, config.gpu_memory_bytes


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
