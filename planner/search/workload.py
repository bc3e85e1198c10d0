"""What users ask of a server, in their terms: how long prompts and answers are, and what they have in common."""

from __future__ import annotations

from planner.values import Value


class TokenLengths(Value):
    """Tokens of a prompt or of an answer: `p50` for all where `p95` is the same, else lognormal through both."""

    p50: int
    p95: int

    @property
    def is_fixed(self) -> bool:
        return self.p50 == self.p95

    def describe(self) -> str:
        if self.is_fixed:
            return f"{self.p50:,}"
        return f"{self.p50:,} (median) to {self.p95:,} (95th percentile, lognormal)"


class RequestMix(Value):
    """Requests as they come.

    `prompt` and `output`: tokens of text, drawn apart; or `sample`: (prompt, output) of measured requests, which then
    count alone. The first `shared_prefix_tokens` of every prompt are the same text. `media_tokens` are added to every
    prompt. No request is longer than `limit` tokens, if there is one. `percentile`: the share of moments, in percent,
    at which the cache must hold all requests in flight.
    """

    prompt: TokenLengths
    output: TokenLengths
    sample: tuple[tuple[int, int], ...] = ()
    shared_prefix_tokens: int = 0
    media_tokens: int = 0
    limit: int | None = None
    percentile: float = 99.0

    @property
    def has_tail(self) -> bool:
        """Whether lengths are of a fitted distribution, which has no longest request."""
        return not self.sample and not (self.prompt.is_fixed and self.output.is_fixed)

    def describe(self) -> str:
        if self.sample:
            return f"{len(self.sample):,} measured requests"
        return f"prompts of {self.prompt.describe()} and outputs of {self.output.describe()} tokens"


class PlanDemand(Value):
    """What the workload needs of a plan, all replicas together unless said otherwise.

    `concurrency`: requests at once; where it follows from a rate, `concurrency_interval` is what a faster and a slower
    engine would have, and the slower counts. `needed_kv_tokens`: at the percentile, in whole blocks, a shared prefix
    counted for each request; `mean_kv_tokens`: mean times count. `needed_blocks`, `max_num_seqs` and
    `max_num_batched_tokens`: the least of one engine. `media_tokens`: of one request's images and videos. `held`:
    requests of the mix that the plan's cache holds.
    """

    concurrency: int
    concurrency_interval: tuple[int, int] | None
    percentile: float
    longest_request_tokens: int
    needed_kv_tokens: int
    mean_kv_tokens: int
    shared_prefix_tokens: int
    needed_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    media_tokens: int = 0
    held: int = 0
