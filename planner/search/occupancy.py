"""How many cache blocks the requests in flight hold, by simulating moments of a server: a distribution, not a mean.

Each request takes whole blocks in every group of layers; windows stop growing, recurrent states do not grow, blocks of
a shared prefix are held once. The sum over the requests in flight varies from moment to moment; what a plan must hold
is a high percentile of it. Source of the per-request rule: vLLM 0.26.0 v1/core/single_type_kv_cache_manager.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import numpy as np

from planner.engine.config import EngineConfig
from planner.memory.kv_counts import ceil_div, smaller
from planner.memory.kv_pool import KVGroup, KVPool
from planner.search.population import Ints, in_flight
from planner.search.workload import RequestMix

MOMENTS = 1024
"""Moments of the server that are simulated."""
SIMULATED = 1024
"""Requests at once up to which moments are simulated; above, the sum is close to a normal distribution."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Blocks that 1, 2, ... requests at once hold at the mix's percentile, on a rank of any stage.

    `steps[n - 1]`: of n requests, what they share left out. `shared`: blocks held once for all. `mean` and `deviation`:
    of one request; `z`: the percentile on the standard normal distribution. `batches`: in flight at once.
    `window_block_sizes`: tokens in a block of each windowed group, which prefill fills beyond its window;
    `encoder_block_sizes`: of groups that hold an encoder's tokens.
    """

    steps: Ints
    shared: int
    mean: float
    deviation: float
    z: float
    batches: int
    window_block_sizes: tuple[int, ...]
    encoder_block_sizes: tuple[int, ...]

    def needed(self, requests: int, batched_tokens: Ints) -> Ints:
        """Blocks that `requests` at once need, for each max_num_batched_tokens: [len(batched_tokens)]."""
        return (
            self._step(requests)
            + self.shared
            + self._prefilling(batched_tokens)
            + requests * self._each(batched_tokens)
        )

    def held(self, blocks: Ints, batched_tokens: Ints) -> Ints:
        """The most requests at once that `blocks` hold; the arguments broadcast. Block 0 is given to no request."""
        left = np.maximum(blocks - 1 - self.shared - self._prefilling(batched_tokens), 0)
        each = np.broadcast_to(self._each(batched_tokens), left.shape)
        found = np.zeros(left.shape, dtype=np.int64)
        counts = np.arange(1, len(self.steps) + 1)
        for size in np.unique(each):
            held = np.searchsorted(self.steps + counts * size, left, side="right")
            if self.mean + size > 0:
                beyond = np.maximum(held, self._beyond(left, self.mean + float(size)))
                held = np.where(held == len(counts), beyond, held)
            found = np.where(each == size, held, found)
        return found

    def _each(self, batched_tokens: Ints) -> Ints:
        """Blocks for the encoder's tokens of one request."""
        return sum((ceil_div(batched_tokens, size) for size in self.encoder_block_sizes), batched_tokens * 0)

    def _step(self, requests: int) -> int:
        if requests <= len(self.steps):
            return int(self.steps[requests - 1])
        return int(np.ceil(requests * self.mean + self.z * self.deviation * requests**0.5))

    def _beyond(self, left: Ints, mean: float) -> Ints:
        """Requests above the simulated ones: the root of n mean + z deviation sqrt(n) = left."""
        z = self.z * self.deviation
        root = (-z + np.sqrt(z * z + 4 * mean * left)) / (2 * mean)
        found: Ints = np.floor(root * root * (1 + 1e-12)).astype(np.int64)
        return found

    def _prefilling(self, batched_tokens: Ints) -> Ints:
        """Blocks beyond their windows that the prompts of the batches in flight fill, all requests together."""
        return sum(
            (ceil_div(self.batches * batched_tokens, size) for size in self.window_block_sizes), batched_tokens * 0
        )


def moments(mix: RequestMix) -> Ints:
    """Contexts in tokens of the requests of MOMENTS moments, SIMULATED in each: the same for every pool."""
    return in_flight(mix, MOMENTS * SIMULATED)


def occupancy(pool: KVPool, config: EngineConfig, mix: RequestMix, contexts: Ints) -> Occupancy:
    """Blocks of 1 to SIMULATED requests in each of the moments (`contexts`: planner.search.occupancy.moments)."""
    groups = pool.fullest.groups
    prefix = shared_prefix(pool, config, mix)
    ahead = pool.max_concurrent_batches * (1 + config.num_speculative_tokens)
    blocks = sum((_own_blocks(group, contexts, ahead, prefix) for group in groups), contexts * 0)
    sums = np.cumsum(blocks.reshape(MOMENTS, SIMULATED), axis=1)
    steps = np.percentile(sums, mix.percentile, axis=0, method="higher").astype(np.int64)
    return Occupancy(
        steps=np.maximum.accumulate(steps),
        shared=sum(prefix // (group.block_size * group.shards) for group in groups if _is_whole(group)),
        mean=float(blocks.mean()),
        deviation=float(blocks.std()),
        z=_standard_normal(mix.percentile),
        batches=pool.max_concurrent_batches,
        window_block_sizes=tuple(group.block_size for group in groups if group.grows and group.window is not None),
        encoder_block_sizes=tuple(group.block_size for group in groups if group.encoder),
    )


def shared_prefix(pool: KVPool, config: EngineConfig, mix: RequestMix) -> int:
    """Tokens of the shared prefix whose blocks are held once: whole blocks of every group, none where vLLM does not
    cache prefixes, or where recurrent states stand beside them."""
    if not config.enable_prefix_caching or pool.has_states or not pool.groups:
        return 0
    unit = lcm(*(group.block_size * group.shards for group in pool.groups))
    return mix.shared_prefix_tokens // unit * unit


def tokens_in_flight(mix: RequestMix, contexts: Ints, requests: int, block_size: int) -> int:
    """Tokens that `requests` at once hold at the mix's percentile, in whole blocks, a shared prefix in each."""
    rounded = ceil_div(contexts, block_size) * block_size
    if requests > SIMULATED:
        spread = _standard_normal(mix.percentile) * float(rounded.std()) * requests**0.5
        return int(requests * float(rounded.mean()) + spread)
    sums = rounded.reshape(MOMENTS, SIMULATED)[:, :requests].sum(axis=1)
    return int(np.percentile(sums, mix.percentile, method="higher"))


def _standard_normal(percentile: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(percentile / 100)


def _own_blocks(group: KVGroup, contexts: Ints, ahead: int, prefix: int) -> Ints:
    """Blocks of one group that requests of `contexts` tokens hold for themselves while they decode."""
    if group.encoder:
        return contexts * 0
    if not group.grows:
        return contexts * 0 + group.extra_blocks
    tokens = contexts + ahead
    if group.window_tokens is not None:
        tokens = smaller(tokens, group.window_tokens + ahead)
    unit = group.block_size * group.shards
    own: Ints = ceil_div(tokens, unit) + group.extra_blocks
    return own - prefix // unit if _is_whole(group) else own


def _is_whole(group: KVGroup) -> bool:
    return group.grows and group.window is None and not group.encoder
