"""What the engine subtracts from its budget, release by release: the same startup, three ways of counting it."""

from __future__ import annotations

from typing import Any

from planner.engine.config import EngineConfig
from planner.memory.device import Boot
from planner.releases.choose import release_for
from planner.releases.release import LedgerRule


def ledger_rule(config: EngineConfig) -> LedgerRule:
    """The rule of the release that the configuration is for."""
    return release_for(config.vllm_version).release.ledger_rule


def counted_peak_bytes(boot: Boot) -> int:
    """Peak activation as the engine counts it, beyond what it counts as held.

    "consumed_plus_headroom" takes it from what stays allocated after the profile run, the other rules from what was
    there before. Source: vLLM 0.33.0 utils/mem_utils.py memory_profiling; 0.26.0 v1/worker/gpu_worker.py:448.
    """
    if ledger_rule(boot.config) != "consumed_plus_headroom":
        return boot.peak_activation_bytes
    before = boot.weights_memory_bytes + boot.runner_state_bytes
    return before + boot.peak_activation_bytes - boot.allocated_after_profile_bytes


def also_counted_bytes(boot: Boot, cuda_context_bytes: int) -> int:
    """What the engine's ledger counts beside weights, peak, non-torch and graphs.

    "absolute_peak": the runner's state and the CUDA context (vLLM 0.8.3 v1/worker/gpu_worker.py).
    "sum_of_terms": nothing.
    "consumed_plus_headroom": whatever PyTorch has reserved beyond the weights once the profile run is over.
    """
    rule = ledger_rule(boot.config)
    if rule == "consumed_plus_headroom":
        return boot.reserved_after_profile_bytes - boot.weights_memory_bytes
    counted: int = also_counted(rule, boot.runner_state_bytes, cuda_context_bytes)
    return counted


def also_counted(rule: LedgerRule, runner_state_bytes: Any, cuda_context_bytes: Any) -> Any:
    """The same without a replay, for ints or arrays: reserved memory is taken to be the runner's state."""
    if rule == "absolute_peak":
        return runner_state_bytes + cuda_context_bytes
    return runner_state_bytes if rule == "consumed_plus_headroom" else 0 * runner_state_bytes
