"""The ledger's lines as people see them: one label, sign and colour for each term, the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Term:
    """`field` of PerGpu; `letter` where the term is a part of the device's sum; `color` (Okabe and Ito's palette, told
    apart by colour-blind readers) where it is drawn. What both ledgers have has one colour."""

    field: str
    label: str
    sign: str = ""
    letter: str = ""
    color: str = ""


ENGINE_TERMS: tuple[Term, ...] = (
    Term("total_memory_bytes", "total memory"),
    Term("requested_memory_bytes", "requested (total x utilization)"),
    Term("weights_memory_bytes", "weights", "-", "", "#0072b2"),
    Term("peak_activation_bytes", "peak activation", "-", "", "#f0e442"),
    Term("non_torch_bytes", "non-torch", "-", "", "#666666"),
    Term("cuda_graph_estimate_bytes", "CUDA graphs, estimated", "-", "", "#e69f00"),
    Term("also_counted_bytes", "runner state, where counted", "-", "", "#cc79a7"),
    Term("available_kv_cache_bytes", "available for KV cache", "=", "", "#009e73"),
)
DEVICE_TERMS: tuple[Term, ...] = (
    Term("cuda_context_bytes", "CUDA context and NCCL", "", "c", "#999999"),
    Term("non_torch_bytes", "non-torch", "+", "n", "#666666"),
    Term("weights_memory_bytes", "weights", "+", "W", "#0072b2"),
    Term("runner_state_bytes", "runner and sampler state", "+", "s", "#cc79a7"),
    Term("kv_cache_allocated_bytes", "KV cache", "+", "K", "#009e73"),
    Term("cuda_graph_actual_bytes", "CUDA graphs", "+", "g", "#e69f00"),
    Term("allocator_retained_bytes", "kept by the allocator", "+", "a", "#d55e00"),
    Term("used_after_startup_bytes", "used after startup", "="),
    Term("vision_encoder_runtime_peak_bytes", "vision encoder, at run time", "then +", "", "#56b4e9"),
)
