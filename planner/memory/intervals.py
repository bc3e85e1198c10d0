"""How far each uncertain term may be off, and which side of it is safe.

On the verified release and the measured compute capability a term spreads as far as it did between boots. Elsewhere
the margins are wider, set above what the published figures of other releases and cards show (docs/published.md):
weights 0.5 % and 32 MiB, peak activation 6 % and 32 MiB, captured graphs 40 %, the CUDA context a quarter up and a half
down. Plain arithmetic: ints or numpy arrays.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from planner.engine.config import EngineConfig
from planner.memory import measured_constants as measured
from planner.memory.activation import forward_of
from planner.memory.compiled import FLUSH_BYTES, CompiledForward
from planner.memory.constants import Measured
from planner.memory.device import cuda_context_bytes, non_torch_terms
from planner.memory.graphs import captured_graphs, draft_graph_bytes, estimate_terms
from planner.model.spec import ModelSpec
from planner.releases.choose import release_for
from planner.sharding.rank import RankShare
from planner.units import MIB
from planner.values import DTYPE_BYTES

Confidence = Literal["safe", "expected"]
MEASURED_CAPABILITY = (9, 0)


class Spread(Struct, frozen=True):
    """How far below (`down`) and above (`up`) its expected value a term may lie, in bytes, neither negative."""

    down: Any = 0
    up: Any = 0

    def __add__(self, other: Spread) -> Spread:
        return Spread(self.down + other.down, self.up + other.up)

    def around(self, value: int) -> tuple[int, int] | None:
        """(low, high) about `value`, None where the term is exact."""
        if not (self.down or self.up):
            return None
        low = value - int(self.down)
        return (max(0, low) if value >= 0 else low, value + int(self.up))


class Spreads(Struct, frozen=True):
    """Of the terms of one rank. `residual` and `unexplained`: of the device's and the engine's sum beside the terms."""

    weights: Spread
    peak: Spread
    non_torch: Spread
    graph_estimate: Spread
    graph_actual: Spread
    context: Spread
    residual: Spread
    unexplained: Spread

    @property
    def engine(self) -> Spread:
        """Of what the engine subtracts from its budget."""
        return self.weights + self.peak + self.non_torch + self.graph_estimate + self.unexplained

    @property
    def device(self) -> Spread:
        """Of the device's use after startup: the cache shrinks by what the engine's own terms grow, so of those only
        what was set aside and is not there in the end counts, with the opposite sign."""
        aside = self.peak + self.graph_estimate
        return Spread(aside.up, aside.down) + self.graph_actual + self.context + self.residual

    @property
    def held(self) -> Any:
        """What the device may hold more, beside a cache that is already sized by the engine's unfavourable end."""
        return self.engine.up + self.device.up

    @property
    def profile(self) -> Spread:
        """Of what the device holds at the height of the profile run."""
        return self.weights + self.peak + self.non_torch + self.context


_DRAFTED = Spread(2 * MIB, 2 * MIB)
"""Of weights with a draft model: it is loaded after the target, into blocks of whose order only one boot tells."""

CERTAIN = Spreads(
    weights=Spread(), peak=Spread(), non_torch=Spread(), graph_estimate=Spread(), graph_actual=Spread(),
    context=Spread(), residual=Spread(), unexplained=Spread(),
)  # fmt: skip
"""Every term at its expected value."""


def spreads(
    model: ModelSpec, share: RankShare, config: EngineConfig, weights: Any, peak: Any, actual: Any, context: Any
) -> Spreads:
    """All of them, for a rank whose expected weights, peak, captured graphs and context are given in bytes."""
    known = is_verified(config)
    return Spreads(
        weights=_DRAFTED
        if known and model.draft is not None
        else Spread()
        if known
        else Spread(weights // 200 + 32 * MIB, weights // 200 + 32 * MIB),
        peak=_unmeasured_peak(model, share, config)
        if known
        else Spread(peak * 6 // 100 + 32 * MIB, peak * 6 // 100 + 32 * MIB),
        non_torch=_sum(1, non_torch_terms(config)),
        graph_estimate=_estimate(model, share, config),
        graph_actual=_actual(model, share, config) if known else Spread(actual * 2 // 5, actual * 2 // 5),
        context=_of(cuda_context_bytes(model, config)) if known else Spread(context // 2, context // 4),
        residual=_of(measured.USED_RESIDUAL),
        unexplained=_of(measured.ENGINE_RESIDUAL),
    )


def is_verified(config: EngineConfig) -> bool:
    """Whether boots of this very release on this compute capability were measured."""
    evidence = release_for(config.vllm_version).release.evidence
    return evidence == "verified on hardware" and config.compute_capability == MEASURED_CAPABILITY


def _of(constant: Measured, times: int = 1) -> Spread:
    return Spread((constant.value - constant.low) * times, (constant.high - constant.value) * times)


def _sum(times: int, constants: tuple[Measured, ...]) -> Spread:
    return sum((_of(constant, times) for constant in constants), Spread())


def _estimate(model: ModelSpec, share: RankShare, config: EngineConfig) -> Spread:
    return sum((_of(constant, times) for constant, times in estimate_terms(model, share, config)), Spread())


def _unmeasured_peak(model: ModelSpec, share: RankShare, config: EngineConfig) -> Spread:
    """Of passes that few boots had: a draft head, and adapters or a draft model in a compiled model, where inductor
    decides what a buffer shares. Two hidden states of the batch either way. Compiled recurrent
    layers are written as they run eagerly: twice that more, and the flush of inductor's timer (a compiled Granite 4
    Tiny on an H200 took 133 MiB more, with hidden states of 24 MiB)."""
    hidden = 2 * model.text.hidden_size * DTYPE_BYTES[config.dtype] * config.max_num_batched_tokens
    forward = forward_of(model, share, config)
    if isinstance(forward, CompiledForward) and forward.is_recurrent:
        return Spread(hidden, FLUSH_BYTES + 2 * hidden)
    head = model.draft is not None and model.draft.method != "draft_model"
    compiled = not config.enforce_eager and (config.enable_lora or model.draft is not None)
    return Spread(hidden, hidden) if head or compiled else Spread()


def _actual(model: ModelSpec, share: RankShare, config: EngineConfig) -> Spread:
    mixed, whole = captured_graphs(config)
    if not mixed and not whole:
        return Spread()
    nodes = (len(mixed) + len(whole)) * len(share.layers)
    draft = draft_graph_bytes(model, config)
    adapters = nodes * measured.GRAPH_NODE_BYTES.value if config.enable_lora else 0
    unmeasured = Spread(draft, draft + adapters)
    return _of(measured.GRAPH_NODE_BYTES, nodes) + _of(measured.GRAPH_STREAM_BYTES) + unmeasured
