"""Every layout of a pool with all its candidates judged: what a search chooses from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from planner.engine.args import EngineArgs
from planner.hardware.spec import GpuPool
from planner.memory.assess import Deployment
from planner.model.spec import ModelSpec
from planner.search.costs import Costs, loaded_bytes, size_costs, traits_of
from planner.search.grid import VERDICTS, Bools, Grid, candidates_of_a_pair, evaluate, size_pairs
from planner.search.layouts import layout
from planner.search.media import media_of, served_pairs
from planner.search.space import SearchOptions
from planner.values import Bottleneck, Rejection

if TYPE_CHECKING:
    from planner.search.demand import Demands, LayoutDemand

BALANCED_CONCURRENCY = 8
"""Requests of full length that the balanced objective holds at once where the user names no number."""

Pairs = list[tuple[int, int]]
Flags = tuple[tuple[str, str | int | float], ...]


@dataclass(slots=True)
class Tally:
    """Candidates by what became of them."""

    counts: Counter[Bottleneck] = field(default_factory=Counter)
    examples: dict[Bottleneck, tuple[Rejection, Flags]] = field(default_factory=dict)
    evaluated: int = 0
    feasible: int = 0

    def refuse(self, reason: Bottleneck, count: int, example: Rejection, flags: Flags) -> None:
        self.counts[reason] += count
        self.evaluated += count
        self.examples.setdefault(reason, (example, flags))


@dataclass(frozen=True, slots=True)
class Candidates:
    """One layout's grid, the flags that make it, and what the workload asks of each of its `replicas` engines."""

    args: EngineArgs
    flags: Flags
    grid: Grid
    replicas: int
    demand: LayoutDemand | None

    @property
    def gpus(self) -> int:
        """Cards that each of them takes."""
        args = self.args
        return args.tensor_parallel_size * args.pipeline_parallel_size * args.data_parallel_size

    def enough_seqs(self, options: SearchOptions) -> Bools:
        """[sizes], whether max_num_seqs lets the stated requests run at once; the most that is tried is enough."""
        wanted = options.workload.concurrency
        if wanted is None or "max_num_seqs" in options.given:
            return np.ones(len(self.grid.seqs), dtype=np.bool_)
        least: Bools = self.grid.seqs >= min(-(-wanted // self.replicas), int(self.grid.seqs.max()))
        return least


@dataclass(slots=True)
class Explorer:
    """Judges layouts one after the other; the weights of a layout are split once for all cache dtypes."""

    model: ModelSpec
    gpus: GpuPool
    options: SearchOptions
    vllm_version: str
    tally: Tally
    known: dict[tuple[int, int, int], Deployment] = field(default_factory=dict)
    costs: dict[tuple[object, ...], Costs] = field(default_factory=dict)
    served: dict[tuple[int, int, int], Pairs] = field(default_factory=dict)
    weights: dict[tuple[object, ...], tuple[int, ...]] = field(default_factory=dict)
    demands: Demands | None = None

    def candidates(self, cache_dtype: str, tp: int, stages: int, replicas: int) -> Candidates | None:
        """Every candidate of one layout, judged; None where vLLM or the workload refuses the layout as a whole."""
        options = self.options
        sizes: dict[str, str | int | float] = {
            "tensor_parallel_size": tp, "pipeline_parallel_size": stages, "kv_cache_dtype": cache_dtype,
        }  # fmt: skip
        if replicas > 1:
            sizes["data_parallel_size"] = replicas
        args = options.args.model_copy(update=sizes)
        flags = tuple(sizes.items())
        key = (tp, stages, replicas if self.model.is_moe else 1)
        found = layout(self.model, self.gpus, args, self.vllm_version, self.known.get(key))
        if found.deployment is None:
            assert found.rejection is not None
            self.tally.refuse(found.rejection.bottleneck, 1, found.rejection, flags)
            return None
        self.known.setdefault(key, found.deployment)
        pairs = self._served(key, found.deployment, flags)
        if not pairs:
            return None
        demand = self._demand(found.deployment, replicas)
        if demand is not None and not isinstance(demand, Rejection):
            demand, pairs = demand.sized(options, pairs)
        if isinstance(demand, Rejection):
            self.tally.refuse(demand.bottleneck, max(1, len(pairs)), demand, flags)
            return None
        weights = self._weights(key, found.deployment)
        if max(weights) > self.gpus.gpu.total_memory_bytes:
            self._too_heavy(found.deployment, len(pairs), max(weights), flags)
            return None
        costs = self.costs.get((*key, weights, *pairs))
        if costs is None:
            costs = size_costs(found.deployment, args, pairs, media_of(options), options.confidence, weights)
            self.costs[*key, weights, *pairs] = costs
        if demand is None:
            grid = evaluate(found.deployment, costs, options, -(-wanted_concurrency(options) // replicas))
        else:
            grid = evaluate(found.deployment, costs, options, demand.requests, demand.blocks)
        return Candidates(args, flags, grid, replicas, demand)

    def _weights(self, key: tuple[int, int, int], deployment: Deployment) -> tuple[int, ...]:
        """Bytes that the weights of each stage take on a rank, loaded."""
        loads = (*key, *traits_of(deployment))
        if loads not in self.weights:
            self.weights[loads] = loaded_bytes(deployment)
        return self.weights[loads]

    def _too_heavy(self, deployment: Deployment, pairs: int, weights_bytes: int, flags: Flags) -> None:
        """Count all candidates of a layout whose weights alone are more than the card: none needs its costs."""
        total = self.gpus.gpu.total_memory_bytes
        example = Rejection(
            bottleneck="weights", message=_SENTENCES["weights"], need_bytes=weights_bytes, have_bytes=total
        )
        self.tally.refuse("weights", pairs * candidates_of_a_pair(deployment, self.options), example, flags)

    def _served(self, key: tuple[int, int, int], deployment: Deployment, flags: Flags) -> Pairs:
        """The sizes whose encoder cache takes the stated media; those that fall are counted once."""
        if key not in self.served:
            pairs = size_pairs(deployment.config, self.options)
            kept, refusal = served_pairs(deployment, self.options, pairs)
            if refusal is not None:
                self.tally.refuse(refusal.bottleneck, max(1, len(pairs) - len(kept)), refusal, flags)
            self.served[key] = kept
        return self.served[key]

    def _demand(self, deployment: Deployment, replicas: int) -> LayoutDemand | Rejection | None:
        mix = self.options.workload.mix
        if mix is None:
            return None
        if self.demands is None:
            from planner.search.demand import Demands

            self.demands = Demands(mix, self.options)
        return self.demands.of(deployment, replicas, wanted_concurrency(self.options))


def wanted_concurrency(options: SearchOptions) -> int:
    """Requests at once, of all replicas together: the user's, else the objective's."""
    if options.workload.concurrency is not None:
        return options.workload.concurrency
    return BALANCED_CONCURRENCY if options.objective == "balanced" and "max_model_len" not in options.given else 1


def tally_grid(grid: Grid, flags: Flags, tally: Tally) -> None:
    """Count every candidate of a grid by its verdict."""
    for code, count in enumerate(np.bincount(grid.verdicts.ravel()).tolist()):
        if not count:
            continue
        reason = VERDICTS[code]
        if reason is None:
            tally.feasible += count
            tally.evaluated += count
            continue
        tally.counts[reason] += count
        tally.evaluated += count
        if reason not in tally.examples:
            tally.examples[reason] = (_example(grid, code, reason), (*flags, *_flags_of(grid, code)))


def _flags_of(grid: Grid, code: int) -> Flags:
    sizes, utilization, length = (int(axis[0]) for axis in np.nonzero(grid.verdicts == code))
    return (
        ("max_num_seqs", int(grid.seqs[sizes])), ("max_num_batched_tokens", int(grid.tokens[sizes])),
        ("gpu_memory_utilization", float(grid.utilizations[utilization])), ("max_model_len", int(grid.lengths[length])),
    )  # fmt: skip


_SENTENCES: dict[Bottleneck, str] = {
    "startup_memory": "free memory at startup is below the requested share of the card",
    "weights": "the weights do not fit the card",
    "kv_cache": "the cache does not hold the requests asked for",
    "device_memory": "the device would not keep the safety margin free",
}


def _example(grid: Grid, code: int, reason: Bottleneck) -> Rejection:
    sizes, utilization, _ = (int(axis[0]) for axis in np.nonzero(grid.verdicts == code))
    need = have = None
    if reason == "device_memory":
        need, have = int(grid.needed_device_bytes[sizes, utilization]), grid.deployment.gpus.gpu.total_memory_bytes
    return Rejection(bottleneck=reason, message=_SENTENCES[reason], need_bytes=need, have_bytes=have)
