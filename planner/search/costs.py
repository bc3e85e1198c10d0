"""What each pair of batch sizes costs on one layout, as arrays: the part of a search that replays the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resize import resized
from planner.memory.activation import activation_stages, peak_activation_bytes
from planner.memory.adapters import adapter_indices
from planner.memory.allocator import LoadTraits, weights_memory_bytes
from planner.memory.assess import Deployment
from planner.memory.device import Boot, cuda_context_bytes, non_torch_bytes
from planner.memory.graphs import (
    captured_graphs,
    cuda_graph_actual_bytes,
    cuda_graph_estimate_bytes,
    graph_node_bytes,
)
from planner.memory.intervals import CERTAIN, Confidence, Spreads, spreads
from planner.memory.layers import load_traits
from planner.memory.ledger import also_counted, ledger_rule
from planner.memory.multimodal.workload import MediaWorkload
from planner.memory.runner_state import runner_buffers, sampler_buffers, total_bytes
from planner.memory.runtime import encoder_peak, retained_bytes, thin
from planner.model.spec import ModelSpec
from planner.sharding.rank import RankShare

Ints = npt.NDArray[np.int64]
Thinned = tuple[ModelSpec, RankShare]
"""The model with two layers of each kind, and its split."""

MANY_BLOCKS = 1 << 20
"""More blocks than any warm-up asks for: the allocator then retains what it would in a pool of any useful size."""


@dataclass(frozen=True)
class StageCosts:
    """One pipeline stage's rank, an entry for each pair of sizes, in bytes. `beside_cache` and `encoder` are worked out
    by `device` when they are first asked for, which they are only where the engine's own budget holds something."""

    weights: Ints
    non_kv: Ints
    context: Ints
    profile_peak: Ints
    device: Callable[[], tuple[Ints, Ints]]

    @property
    def is_complete(self) -> bool:
        """Whether `beside_cache` and `encoder` have been worked out."""
        return "_device" in self.__dict__

    @cached_property
    def _device(self) -> tuple[Ints, Ints]:
        return self.device()

    @property
    def beside_cache(self) -> Ints:
        return self._device[0]

    @property
    def encoder(self) -> Ints:
        return self._device[1]


class Costs(Struct, frozen=True):
    """All stages of a layout. `seqs` and `tokens` are the pairs of sizes, seqs never above tokens."""

    seqs: Ints
    tokens: Ints
    stages: tuple[StageCosts, ...]


def size_costs(
    deployment: Deployment,
    args: EngineArgs,
    pairs: list[tuple[int, int]],
    workload: MediaWorkload | None,
    confidence: Confidence = "safe",
    weights_bytes: tuple[int, ...] | None = None,
) -> Costs:
    """Costs of each (max_num_seqs, max_num_batched_tokens), by `confidence` at the unfavourable end of their intervals.

    The profile's peak and the runner's buffers are exact linear forms (the V1 runner's sampled rows are the layout's,
    and so are the intervals). What the allocator retains is replayed at a few sizes and interpolated between: the plan
    that is chosen in the end is replayed whole. `weights_bytes`: of each stage, where they are known from the same
    shares and traits of the load.
    """
    seqs = np.array([pair[0] for pair in pairs], dtype=np.int64)
    tokens = np.array([pair[1] for pair in pairs], dtype=np.int64)
    return Costs(
        seqs,
        tokens,
        tuple(
            _stage(deployment, args, index, seqs, tokens, workload, confidence, weights_bytes)
            for index in range(len(deployment.shares))
        ),
    )


def traits_of(deployment: Deployment) -> tuple[LoadTraits, ...]:
    """Of each stage, what its load allocates beside the tensors."""
    return tuple(load_traits(deployment.model, share, deployment.config) for share in deployment.shares)


def loaded_bytes(deployment: Deployment) -> tuple[int, ...]:
    """Of each stage, a rank's weights as loaded, with what the load allocates beside them."""
    return tuple(map(weights_memory_bytes, deployment.shares, traits_of(deployment)))


def _stage(
    deployment: Deployment,
    args: EngineArgs,
    index: int,
    seqs: Ints,
    tokens: Ints,
    workload: MediaWorkload | None,
    confidence: Confidence,
    weights_bytes: tuple[int, ...] | None,
) -> StageCosts:
    model, share, config = deployment.model, deployment.shares[index], deployment.config
    loaded = loaded_bytes(deployment)[index] if weights_bytes is None else weights_bytes[index]
    thinned = thin(model, share)
    at = _Sized(deployment, args)
    configs = [at(int(one), int(other)) for one, other in zip(seqs, tokens, strict=True)]
    estimate = np.array([cuda_graph_estimate_bytes(model, share, item) for item in configs], dtype=np.int64)
    weights = loaded + total_bytes(adapter_indices(config), tokens, seqs)
    terms = engine_terms(model, share, thinned, config, weights, estimate, tokens, seqs, confidence)

    def device() -> tuple[Ints, Ints]:
        actual = _graphs(thinned, len(share.layers), configs)
        retained = _retained(deployment, at, index, thinned, seqs, tokens)
        return terms.device_bytes(actual, retained), _encoder(thinned, configs, workload)

    every = np.ones(len(seqs), dtype=np.int64)
    return StageCosts(
        weights=every * weights,
        non_kv=terms.non_kv_bytes * every,
        context=every * terms.context_bytes,
        profile_peak=terms.profile_peak_bytes * every,
        device=device,
    )


@dataclass(frozen=True, slots=True)
class EngineTerms:
    """What one rank sets aside, as ints or an array entry for each pair of sizes, at the unfavourable end of its
    interval where `confidence` says so."""

    model: ModelSpec
    share: RankShare
    config: EngineConfig
    confidence: Confidence
    weights_bytes: Any
    peak_bytes: Any
    non_kv_bytes: Any
    context_bytes: int
    resident_bytes: Any
    profile_peak_bytes: Any

    def device_bytes(self, graphs_bytes: Any, retained_bytes: Any) -> Any:
        """What the device holds beside the cache, with captured graphs and what the allocator retains."""
        spread = CERTAIN if self.confidence == "expected" else self._spreads(graphs_bytes)
        return self.resident_bytes + graphs_bytes + retained_bytes + spread.held

    def _spreads(self, graphs_bytes: Any) -> Spreads:
        return spreads(
            self.model, self.share, self.config, self.weights_bytes, self.peak_bytes, graphs_bytes, self.context_bytes
        )


def engine_terms(
    model: ModelSpec,
    share: RankShare,
    thinned: Thinned,
    config: EngineConfig,
    weights: Any,
    estimate: Any,
    tokens: Any,
    seqs: Any,
    confidence: Confidence,
) -> EngineTerms:
    """The terms of a rank whose `weights`, adapters' indices among them, and graph `estimate` are given, for batches of
    `tokens` and `seqs`. Of `share` only its place and its layers count, of `thinned` the tensors."""
    peak = peak_activation_bytes(activation_stages(*thinned, config), tokens, seqs)
    state = total_bytes(runner_buffers(model, config), tokens, seqs)
    first, last = share.pp_rank == 0, share.pp_rank == share.pipeline_parallel_size - 1
    state = state + total_bytes(sampler_buffers(model, config, last_stage=last, first_stage=first), tokens, seqs)
    context, outside = cuda_context_bytes(model, config).value, non_torch_bytes(config)
    spread = CERTAIN if confidence == "expected" else spreads(model, share, config, weights, peak, 0, context)
    resident = context + outside + weights + state
    beside = outside + estimate + also_counted(ledger_rule(config), state, context)
    return EngineTerms(
        model=model,
        share=share,
        config=config,
        confidence=confidence,
        weights_bytes=weights,
        peak_bytes=peak,
        non_kv_bytes=weights + peak + beside + spread.engine.up,
        context_bytes=context,
        resident_bytes=resident,
        profile_peak_bytes=resident + peak + spread.profile.up,
    )


def _encoder(thinned: Thinned, configs: list[EngineConfig], workload: MediaWorkload | None) -> Ints:
    """The encoder's peak for each max_num_batched_tokens, with the most sequences: they can only fill its batch."""
    fullest: dict[int, EngineConfig] = {}
    for config in configs:
        known = fullest.get(config.max_num_batched_tokens)
        if known is None or config.max_num_seqs > known.max_num_seqs:
            fullest[config.max_num_batched_tokens] = config
    model, share = thinned
    peaks = {tokens: encoder_peak(model, share, config, workload)[0] for tokens, config in fullest.items()}
    return np.array([peaks[config.max_num_batched_tokens] for config in configs], dtype=np.int64)


def _graphs(thinned: Thinned, num_layers: int, configs: list[EngineConfig]) -> Ints:
    """Graph memory of each configuration; those that capture the same sizes cost the same."""
    known: dict[tuple[int, ...], int] = {}
    sizes = []
    for config in configs:
        key = (*config.cudagraph_capture_sizes, config.max_num_seqs)
        if key not in known:
            known[key] = whole_graph_bytes(thinned, num_layers, config)
        sizes.append(known[key])
    return np.array(sizes, dtype=np.int64)


def whole_graph_bytes(thinned: Thinned, num_layers: int, config: EngineConfig) -> int:
    """What the captured graphs of the whole model hold: those of the thin one, and the nodes of the layers left out."""
    model, share = thinned
    graphs = sum(len(captured) for captured in captured_graphs(config))
    nodes = graphs * (num_layers - len(share.layers)) * graph_node_bytes(model, share, config)
    return cuda_graph_actual_bytes(model, share, config) + nodes


def _retained(deployment: Deployment, at: _Sized, index: int, thinned: Thinned, seqs: Ints, tokens: Ints) -> Ints:
    model, share = thinned
    seq_anchors, token_anchors = _anchors(seqs, 4), _anchors(tokens, 2)
    table = np.empty((len(token_anchors), len(seq_anchors)))
    for row, other in enumerate(token_anchors):
        for column, one in enumerate(seq_anchors):
            boot = Boot(model, share, at(min(one, other), other))
            table[row, column] = retained_bytes(boot, deployment.pool, deployment.pool.stages[index], MANY_BLOCKS)
    along_seqs = np.array([np.interp(seqs, seq_anchors, row) for row in table])
    share_of_last = np.interp(tokens, token_anchors, np.linspace(0.0, 1.0, len(token_anchors)))
    first, final = along_seqs[0], along_seqs[-1]
    kept: Ints = np.ceil(first + (final - first) * share_of_last).astype(np.int64)
    return kept


def _anchors(values: Ints, count: int) -> list[int]:
    """The least, the greatest, and members between, in equal steps of rank."""
    distinct = sorted(set(values.tolist()))
    picks = np.linspace(0, len(distinct) - 1, min(count, len(distinct))).round().astype(int)
    return [distinct[pick] for pick in dict.fromkeys(picks.tolist())]


class _Sized:
    """A layout's configuration at other sizes."""

    def __init__(self, deployment: Deployment, args: EngineArgs) -> None:
        self._deployment, self._args = deployment, args
        self._known: dict[tuple[int, int], EngineConfig] = {}

    def __call__(self, seqs: int, tokens: int) -> EngineConfig:
        config = self._known.get((seqs, tokens))
        if config is None:
            config = self._known[seqs, tokens] = resized(
                self._deployment.config, self._deployment.model, self._args, max_num_seqs=seqs,
                max_num_batched_tokens=tokens,
            )  # fmt: skip
        return config
