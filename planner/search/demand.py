"""What a mix of requests asks of one layout: requests at once, cache blocks, sequences and tokens in a step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil

from planner.errors import UnsupportedError
from planner.memory.assess import Deployment
from planner.model.spec import ModelSpec
from planner.search.media import media_tokens
from planner.search.occupancy import Occupancy, moments, occupancy, shared_prefix, tokens_in_flight
from planner.search.population import Ints, longest, means, share_above
from planner.search.roofline import cache_read_bytes, decode_tokens_per_s, engine_load, prefill_tokens_per_s
from planner.search.space import SearchOptions
from planner.search.workload import PlanDemand, RequestMix
from planner.values import Rejection

SLOW, FAST = 2 / 3, 4 / 3
"""Shares of the expected speed between which engines are taken to lie: four in five published figures do."""
MOST_REQUESTS = 1 << 17


@dataclass(frozen=True, slots=True)
class LayoutDemand:
    """Of one engine of a layout. `requests`: at once; `least_tokens`: tokens in a step for prompts to keep pace."""

    requests: int
    interval: tuple[int, int] | None
    blocks: Occupancy
    least_tokens: int

    def sized(
        self, options: SearchOptions, pairs: list[tuple[int, int]]
    ) -> tuple[LayoutDemand | Rejection, list[tuple[int, int]]]:
        """The (max_num_seqs, max_num_batched_tokens) that serve all requests at once and let prompts keep pace, larger
        ones added where none does; what the user fixed stays, or refuses the workload where it is too few sequences."""
        tokens = sorted({pair[1] for pair in pairs})
        enough = [size for size in tokens if size >= max(self.least_tokens, self.requests)]
        if not enough and "max_num_batched_tokens" not in options.given:
            enough = [ceil(max(self.least_tokens, self.requests) / 1024) * 1024]
        enough = enough or tokens
        seqs = sorted({pair[0] for pair in pairs if pair[0] >= self.requests})
        if not seqs and "max_num_seqs" in options.given:
            fix = (f"--max-num-seqs {self.requests}",)
            message = f"{self.requests} requests at once need as many sequences; --max-num-seqs is lower"
            return Rejection(bottleneck="flag", message=message, fix=fix), pairs
        kept = [(one, other) for one in seqs or [self.requests] for other in enough if one <= other]
        return self, kept


@dataclass(slots=True)
class Demands:
    """The mix of a search, simulated once for all layouts."""

    mix: RequestMix
    options: SearchOptions
    known: dict[object, Occupancy] = field(default_factory=dict)
    _contexts: Ints | None = None

    @property
    def contexts(self) -> Ints:
        if self._contexts is None:
            self._contexts = moments(self.mix)
        return self._contexts

    def of(self, deployment: Deployment, replicas: int, default: int) -> LayoutDemand | Rejection:
        """What one of `replicas` engines must hold; `default` requests in all where the user names neither number nor
        rate. A rejection where the estimate of speed says that the rate is above what the layout can do."""
        workload = self.options.workload
        interval = None
        if workload.request_rate is not None:
            found = self._at_rate(deployment, workload.request_rate / replicas)
            if found is None:
                return Rejection(
                    bottleneck="parallelism",
                    message=(
                        f"by the estimate of speed, {replicas} engine(s) of this layout fall behind "
                        f"{workload.request_rate:g} requests a second"
                    ),
                    fix=("more cards", "a larger --tensor-parallel-size", "more replicas (--data-parallel-size)"),
                )
            requests, interval = found
        else:
            requests = ceil((workload.concurrency or default) / replicas)
        return LayoutDemand(requests, interval, self._blocks(deployment), self._least_tokens(deployment, requests))

    def summary(
        self, deployment: Deployment, demand: LayoutDemand, replicas: int, blocks: int, seqs: int
    ) -> PlanDemand:
        """The demand of a chosen plan, with what its `blocks` and `seqs` (max_num_seqs) hold."""
        tokens = deployment.config.max_num_batched_tokens
        return PlanDemand(
            concurrency=demand.requests * replicas,
            concurrency_interval=None
            if demand.interval is None
            else (demand.interval[0] * replicas, demand.interval[1] * replicas),
            percentile=self.mix.percentile,
            longest_request_tokens=longest(self.mix),
            needed_kv_tokens=replicas
            * tokens_in_flight(self.mix, self.contexts, demand.requests, deployment.pool.block_size),
            mean_kv_tokens=round(replicas * demand.requests * float(self.contexts.mean())),
            shared_prefix_tokens=shared_prefix(deployment.pool, deployment.config, self.mix),
            needed_blocks=int(demand.blocks.needed(demand.requests, _one(tokens))[0]) + 1,
            max_num_seqs=demand.requests,
            max_num_batched_tokens=demand.least_tokens,
            media_tokens=self.mix.media_tokens,
            held=replicas * min(self.held(deployment, blocks), seqs),
        )

    def held(self, deployment: Deployment, blocks: int) -> int:
        """Requests of the mix that one engine's cache of `blocks` holds at once, at the mix's percentile."""
        tokens = deployment.config.max_num_batched_tokens
        return int(self._blocks(deployment).held(_one(blocks), _one(tokens))[0])

    def _blocks(self, deployment: Deployment) -> Occupancy:
        config, pool = deployment.config, deployment.pool
        key = (
            pool.groups, pool.max_concurrent_batches, config.num_speculative_tokens, config.enable_prefix_caching,
        )  # fmt: skip
        if key not in self.known:
            self.known[key] = occupancy(pool, config, self.mix, self.contexts)
        return self.known[key]

    def _least_tokens(self, deployment: Deployment, requests: int) -> int:
        """In a steady state each answer's token is matched by as many prompt tokens as prompts are longer."""
        prompt, output = self._own_means(deployment)
        return ceil(requests * (1 + prompt / output))

    def _own_means(self, deployment: Deployment) -> tuple[float, float]:
        """Mean tokens that a request computes: of its prompt beyond the shared prefix, and of its answer."""
        prompt, output = means(self.mix)
        return max(1.0, prompt - shared_prefix(deployment.pool, deployment.config, self.mix)), output

    def _at_rate(self, deployment: Deployment, rate: float) -> tuple[int, tuple[int, int]] | None:
        """Requests at once by Little's law, of a slow engine, and (of a fast one, of a slow one)."""
        counts = [self._little(deployment, rate, speed) for speed in (FAST, SLOW)]
        fast, slow = counts
        return None if slow is None or fast is None else (slow, (fast, slow))

    def _little(self, deployment: Deployment, rate: float, speed: float) -> int | None:
        """The least whole number that is at least rate x latency at that many requests; None where none is."""
        gpu, config = deployment.gpus.gpu, deployment.config
        context = max(1, round(float(self.contexts.mean())))
        load = replace(engine_load(deployment), cache_bytes=cache_read_bytes(deployment.pool, context))
        prefill = prefill_tokens_per_s(load, gpu, config.dtype)
        decode = decode_tokens_per_s(load, gpu, config.dtype, 1)
        if prefill is None or decode is None:
            raise UnsupportedError(
                "request_rate", f"the catalog does not know the speed of {gpu.name}; give --concurrency instead"
            )
        prompt, output = self._own_means(deployment)
        busy = rate * prompt / (prefill * speed)
        if busy >= 1:
            return None
        requests = 1
        while requests <= MOST_REQUESTS:
            tokens_per_s = decode_tokens_per_s(load, gpu, config.dtype, requests)
            assert tokens_per_s is not None
            step = requests / (tokens_per_s * speed)
            latency = prompt / (prefill * speed) + output * step / (1 - busy)
            if rate * latency <= requests:
                return requests
            requests = min(ceil(rate * latency), requests * 2)
        return None


def with_request_room(model: ModelSpec, options: SearchOptions) -> SearchOptions:
    """The options with the media's tokens in the mix, and lengths that hold its longest request.

    Of a fitted distribution, what is longer than the model or --max-model-len takes is cut to it.
    """
    mix, workload, length = options.workload.mix, options.workload, options.args.max_model_len
    if mix is None:
        return options
    most = length if "max_model_len" in options.given and length is not None and length > 0 else None
    most = model.derived_max_model_len if most is None else most
    media = media_tokens(model, options)
    mix = mix.model_copy(update={"media_tokens": media, "limit": most if mix.has_tail and most > media + 1 else None})
    least = max(workload.min_model_len, longest(mix))
    return options.model_copy(update={"workload": workload.model_copy(update={"mix": mix, "min_model_len": least})})


def demand_notes(mix: RequestMix, demand: PlanDemand) -> tuple[str, ...]:
    """The arithmetic of the workload in words."""
    found = [
        f"{mix.describe()}: {demand.concurrency:,} at once hold {demand.needed_kv_tokens:,} tokens of cache at "
        f"{mix.percentile:g} % of all moments (mean times count: {demand.mean_kv_tokens:,})",
        f"they need at least --max-num-seqs {demand.max_num_seqs}, --max-num-batched-tokens "
        f"{demand.max_num_batched_tokens:,} for prompts to keep pace with answers, and --max-model-len "
        f"{demand.longest_request_tokens:,} for the longest request"
        + (f" ({share_above(mix, demand.longest_request_tokens):.2%} are longer and cut)" if mix.has_tail else ""),
    ]
    if demand.concurrency_interval is not None:
        fast, slow = demand.concurrency_interval
        found.append(
            f"estimate, by Little's law at {FAST:.0%} to {SLOW:.0%} of the expected speed: {fast:,} to "
            f"{slow:,} requests at once; the plan holds {slow:,}"
        )
    if demand.shared_prefix_tokens:
        found.append(f"{demand.shared_prefix_tokens:,} tokens of the shared prefix are held once (prefix caching)")
    return tuple(found)


def _one(value: int) -> Ints:
    import numpy as np

    return np.array([value], dtype=np.int64)
