"""What a service feels: time to the first token, time between tokens, tokens per second, dollars a million of them.

A closed loop: `concurrency` requests are always there, a new one comes when one ends. Each step decodes all of them,
and each request's prompt delays the steps that read it.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, sqrt

from msgspec import Struct, structs

from planner.hardware.spec import GpuSpec
from planner.memory.assess import Deployment
from planner.search.kernel_shares import REQUEST_SECONDS
from planner.search.roofline import (
    EngineLoad,
    cache_read_bytes,
    engine_load,
    prefill_tokens_per_s,
    prompt_seconds,
    step_seconds,
)

SLOW, EXPECTED, FAST = -1, 0, 1


class Range(Struct, frozen=True):
    """An estimate between two ends, `low` <= `value` <= `high`."""

    low: float
    value: float
    high: float

    def scaled(self, factor: float) -> Range:
        return Range(self.low * factor, self.value * factor, self.high * factor)


class Speed(Struct, frozen=True):
    """One engine under a closed loop of `concurrency` requests of `prompt_tokens` and `output_tokens`.

    `ttft_s`: from the request to its first token. `itl_s`: between two tokens, on average. `output_tokens_per_s`: of
    all requests. `prefill_tokens_per_s`: at most, prompts alone.
    """

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: Range
    itl_s: Range
    output_tokens_per_s: Range
    prefill_tokens_per_s: Range


def speed_of(deployment: Deployment, concurrency: int, prompt_tokens: int, output_tokens: int) -> Speed | None:
    """The speed of one launch, data-parallel engines sharing the requests; None where the catalog knows no bandwidth or
    FLOPS of the card."""
    context = prompt_tokens + max(1, output_tokens // 2)
    load = replace(engine_load(deployment), cache_bytes=cache_read_bytes(deployment.pool, context))
    engines = min(deployment.config.data_parallel_size, concurrency)
    each = ceil(concurrency / engines)
    one = estimated_speed(load, deployment.gpus.gpu, deployment.config.dtype, each, prompt_tokens, output_tokens)
    if one is None:
        return None
    rates = one.output_tokens_per_s.scaled(concurrency / each)
    return structs.replace(one, concurrency=concurrency, output_tokens_per_s=rates)


def estimated_speed(
    load: EngineLoad, gpu: GpuSpec, dtype: str, concurrency: int, prompt_tokens: int, output_tokens: int
) -> Speed | None:
    """The same from a load whose cache is that of an average moment of a request."""
    ends = [_closed_loop(load, gpu, dtype, concurrency, prompt_tokens, output_tokens, end) for end in (-1, 0, 1)]
    slow, middle, fast = ends
    rates = [prefill_tokens_per_s(load, gpu, dtype, end) for end in (SLOW, EXPECTED, FAST)]
    if slow is None or middle is None or fast is None or rates[0] is None or rates[1] is None or rates[2] is None:
        return None
    return Speed(
        concurrency=concurrency,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        ttft_s=Range(fast[0], middle[0], slow[0]),
        itl_s=Range(fast[1], middle[1], slow[1]),
        output_tokens_per_s=Range(slow[2], middle[2], fast[2]),
        prefill_tokens_per_s=Range(rates[0], rates[1], rates[2]),
    )


def usd_per_million_tokens(usd_per_hour: float, output_tokens_per_s: Range) -> Range:
    """Dollars for a million generated tokens of an engine (or all engines) that costs `usd_per_hour`."""
    low, value, high = (
        usd_per_hour / 3600 / rate * 1e6
        for rate in (output_tokens_per_s.high, output_tokens_per_s.value, output_tokens_per_s.low)
    )
    return Range(low, value, high)


def _closed_loop(
    load: EngineLoad, gpu: GpuSpec, dtype: str, concurrency: int, prompt: int, output: int, end: int
) -> tuple[float, float, float] | None:
    """(time to the first token, time between tokens, tokens per second) at one end of the interval.

    In the time of one request every other one brings one prompt, so that each token waits for its share of them. A new
    prompt waits for half a step, for prompts before it, and for the steps that read it. Those before it: none at the
    fast end, all that came in one wave at the slow one, and else as if requests bunched up to groups of the square root
    of their number, as they do in closed loops (docs/speed.md).
    """
    step = step_seconds(load, gpu, dtype, concurrency, end)
    alone = step_seconds(load, gpu, dtype, 1, end)
    reading = prompt_seconds(load, gpu, dtype, prompt, end)
    if step is None or alone is None or reading is None:
        return None
    between = step + (concurrency - 1) * reading / max(output, 1)
    wave = (concurrency - 1) / 2 * reading
    queued = {FAST: 0.0, EXPECTED: (sqrt(concurrency) - 1) / 2 * reading, SLOW: wave}[end]
    chunks = -(-prompt // max(1, load.chunk_tokens))
    first = REQUEST_SECONDS.at(end, seconds=True) + queued + reading + chunks * alone
    first += step / 2 if concurrency > 1 else 0.0
    return first, between, concurrency * output / (first + max(output - 1, 0) * between)
