"""One look at a running engine: what its server says, what its cards hold. None stands for what nobody told."""

from __future__ import annotations

from planner.observed import Observed


class CardUse(Observed):
    """One card at one moment. `problem`: why NVML did not answer for it. `processes`: (pid, bytes)."""

    index: int
    used_bytes: int | None = None
    total_bytes: int | None = None
    utilization_percent: int | None = None
    processes: tuple[tuple[int, int | None], ...] = ()
    problem: str | None = None


class ServerLook(Observed):
    """What /metrics said, summed over the engines of a server (the cache usage is the fullest engine's).

    `started_at`: when the server's process began, seconds since 1970. `problem`: why there is no answer.
    """

    problem: str | None = None
    model: str | None = None
    started_at: float | None = None
    running: float | None = None
    waiting: float | None = None
    kv_cache_usage: float | None = None
    preemptions: float | None = None
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    prefix_cache_queries: float | None = None
    prefix_cache_hits: float | None = None
    mm_cache_queries: float | None = None
    mm_cache_hits: float | None = None
    requests_finished: float | None = None
    kv_cache_blocks: int | None = None


class Sample(Observed):
    """Everything at one moment (`time`: seconds since 1970), and rates since the look before (tokens per second)."""

    time: float
    server: ServerLook
    cards: tuple[CardUse, ...] = ()
    prompt_tokens_per_s: float | None = None
    generation_tokens_per_s: float | None = None
    new_preemptions: float | None = None
    restarted: bool = False
    warnings: tuple[str, ...] = ()
