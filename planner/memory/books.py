"""Both ledgers of one deployment under one load, for plain ints or for numpy arrays of loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Size = Any
"""Bytes or counts: an int, or a numpy int64 array that broadcasts against the other sizes of a load."""


@dataclass(frozen=True, slots=True)
class Load:
    """The four sizes that a search varies. Ints and a float, or arrays that broadcast against each other."""

    max_model_len: Size
    max_num_seqs: Size
    max_num_batched_tokens: Size
    gpu_memory_utilization: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBooks:
    """One pipeline stage's rank, in bytes. `available_kv_cache_bytes` may be negative: then nothing is left.

    `used_after_startup_bytes` counts the cache that the engine allocates from what is available.
    `profile_peak_bytes` is what the device holds at the height of the profile run.
    """

    requested_memory_bytes: Size
    weights_memory_bytes: Size
    peak_activation_bytes: Size
    non_torch_bytes: Size
    cuda_graph_estimate_bytes: Size
    available_kv_cache_bytes: Size
    runner_state_bytes: Size
    cuda_graph_actual_bytes: Size
    cuda_context_bytes: Size
    allocator_retained_bytes: Size
    profile_peak_bytes: Size
    encoder_runtime_peak_bytes: Size
