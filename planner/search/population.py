"""Requests drawn from a mix, as arrays. One seeded generator: the same mix is the same numbers every time."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from planner.search.workload import RequestMix, TokenLengths

if TYPE_CHECKING:
    from numpy.random import Generator

Ints = npt.NDArray[np.int64]

SEED = 20_260_000
POPULATION = 1 << 16
"""Requests drawn from a distribution, from which the moments of a server are put together."""
Z95 = 1.6448536269514722
"""The 95th percentile of the standard normal distribution."""
LONGEST_PERCENTILE = 99.9
"""Of a fitted distribution, which has no longest request: longer ones are taken to be cut to it."""


def population(mix: RequestMix) -> tuple[Ints, Ints]:
    """Prompt and output tokens of many requests; prompt plus output of none is above `longest`."""
    prompts, outputs = _drawn(mix)
    most = _longest(mix, prompts, outputs)
    prompts = np.minimum(prompts, most - 1)
    return prompts, np.minimum(outputs, most - prompts)


def longest(mix: RequestMix) -> int:
    """Tokens of the longest request: of all where lengths are fixed or measured, else LONGEST_PERCENTILE."""
    return _longest(mix, *_drawn(mix))


def means(mix: RequestMix) -> tuple[float, float]:
    """Mean prompt and output tokens of a request."""
    prompts, outputs = population(mix)
    return float(prompts.mean()), float(outputs.mean())


def in_flight(mix: RequestMix, count: int) -> Ints:
    """[count] contexts in tokens: requests met at a random moment, each somewhere in its answer.

    A request is met as often as it is there, which is as long as its answer takes: long answers are met more often
    than they are asked for. The stage is uniform over the answer; the time that the prompt takes is left out.
    """
    prompts, outputs = population(mix)
    generator = np.random.default_rng(SEED)
    heights = np.cumsum(outputs, dtype=np.float64)
    every = (np.arange(POPULATION) + 0.5) / POPULATION * heights[-1]
    biased = np.searchsorted(heights, every, side="right")
    met = biased[generator.integers(0, POPULATION, count)]
    reached: Ints = prompts[met] + (generator.random(count) * outputs[met]).astype(np.int64) + 1
    return reached


def _draw(lengths: TokenLengths, generator: Generator, count: int) -> Ints:
    if lengths.is_fixed:
        return np.full(count, lengths.p50, dtype=np.int64)
    sigma = log(lengths.p95 / lengths.p50) / Z95
    drawn = np.rint(generator.lognormal(log(lengths.p50), sigma, count))
    return np.minimum(drawn, 1 << 40).astype(np.int64)


def _drawn(mix: RequestMix) -> tuple[Ints, Ints]:
    if mix.sample:
        pairs = np.array(mix.sample, dtype=np.int64)
        prompts, outputs = pairs[:, 0], pairs[:, 1]
    else:
        generator = np.random.default_rng(SEED)
        count = POPULATION if mix.has_tail else 1
        prompts, outputs = _draw(mix.prompt, generator, count), _draw(mix.output, generator, count)
    return np.maximum(prompts, mix.shared_prefix_tokens + 1) + mix.media_tokens, np.maximum(outputs, 1)


def _longest(mix: RequestMix, prompts: Ints, outputs: Ints) -> int:
    whole = prompts + outputs
    most = int(np.ceil(np.percentile(whole, LONGEST_PERCENTILE))) if mix.has_tail else int(whole.max())
    return most if mix.limit is None else min(most, mix.limit)


def share_above(mix: RequestMix, tokens: int) -> float:
    """Share of the requests, uncut, that are longer than `tokens`."""
    prompts, outputs = _drawn(mix)
    return float((prompts + outputs > tokens).mean())
