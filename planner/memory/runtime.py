"""What the engine takes at run time beside weights and cache, for one rank under one configuration."""

from __future__ import annotations

from dataclasses import dataclass

from planner.engine.config import EngineConfig
from planner.hardware.spec import GpuSpec
from planner.memory.allocator import weights_memory_bytes
from planner.model.spec import ModelSpec
from planner.sharding.rank import RankShare
from planner.units import MIB

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class StaticCosts:
    """What depends on the rank alone."""

    weights_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeTerms:
    """The terms of both ledgers for one rank, in bytes. Intervals are (low, high), None where the term is exact."""

    weights_memory_bytes: int
    peak_activation_bytes: int
    peak_activation_interval: Interval | None
    non_torch_bytes: int
    non_torch_interval: Interval | None
    cuda_graph_estimate_bytes: int
    runner_state_bytes: int
    cuda_graph_actual_bytes: int
    cuda_context_bytes: int
    allocator_retained_bytes: int
    encoder_runtime_peak_bytes: int

    @property
    def non_kv_bytes(self) -> int:
        """What the engine subtracts from its budget."""
        return (
            self.weights_memory_bytes + self.peak_activation_bytes + self.non_torch_bytes + self.cuda_graph_estimate_bytes
        )

    @property
    def device_bytes_beside_cache(self) -> int:
        """What the device holds after startup, the cache aside."""
        return (
            self.cuda_context_bytes + self.non_torch_bytes + self.weights_memory_bytes + self.runner_state_bytes
            + self.cuda_graph_actual_bytes + self.allocator_retained_bytes
        )  # fmt: skip

    @property
    def profile_peak_bytes(self) -> int:
        """What the device holds at the height of the profile run."""
        return (
            self.cuda_context_bytes + self.non_torch_bytes + self.weights_memory_bytes + self.runner_state_bytes
            + self.peak_activation_bytes
        )  # fmt: skip


def static_costs(model: ModelSpec, share: RankShare, config: EngineConfig, gpu: GpuSpec) -> StaticCosts:
    return StaticCosts(weights_memory_bytes(share))


def runtime_terms(model: ModelSpec, share: RankShare, config: EngineConfig, gpu: GpuSpec, static: StaticCosts) -> RuntimeTerms:
    """All terms of one rank."""
    tokens, inner = config.max_num_batched_tokens, model.text.intermediate_size // config.tensor_parallel_size
    peak = tokens * 2 * (4 * model.text.hidden_size + 3 * inner) + 33 * MIB
    return RuntimeTerms(
        weights_memory_bytes=static.weights_memory_bytes,
        peak_activation_bytes=peak,
        peak_activation_interval=None,
        non_torch_bytes=241_172_480 if config.tensor_parallel_size == 1 else 69_206_016,
        non_torch_interval=None,
        cuda_graph_estimate_bytes=0,
        runner_state_bytes=config.max_num_seqs * model.text.vocab_size * 4 * 33 // 32,
        cuda_graph_actual_bytes=0,
        cuda_context_bytes=552_402_944,
        allocator_retained_bytes=0,
        encoder_runtime_peak_bytes=0,
    )
