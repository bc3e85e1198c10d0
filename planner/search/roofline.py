"""Estimates of speed from two roofs: bytes over memory bandwidth, and operations over FLOPS.

An estimate for ranking cards before a purchase, not a promise and not part of any ledger. A decode step of B sequences
reads every weight of the rank once, and each sequence's cache; it does two operations for each weight and sequence. A
token of prefill does two operations for each weight that it meets. The slower roof counts. What is left out makes real
engines slower: kernels below peak, attention's own operations, communication between ranks, scheduling, sampling, the
vision encoder; `EFFICIENCY` takes one flat share off for all of it.

Of a mixture of experts, B sequences touch min(1, B x top_k / experts) of the expert weights in a decode step, and a
token meets top_k experts. Sequences hold half of max_model_len on average.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.hardware.spec import GpuSpec
from planner.memory.assess import Deployment
from planner.memory.kv_capacity import request_bytes
from planner.model.modules import FusedMoE, Linear, LMHead, Module, QKVLinear
from planner.model.spec import ModelSpec

EFFICIENCY = 0.6
"""Share of the roof that an engine is taken to reach: an assumption, the same for all cards."""

_HALF = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What one engine (all its ranks) does. Bytes are of the busiest rank; operations of all ranks together.

    `dense_bytes` and `expert_bytes`: weights that a decode step reads. `touched`: share of the experts that one
    sequence meets. `cache_bytes`: of one sequence of average length.
    """

    dense_bytes: int
    expert_bytes: int
    touched: float
    cache_bytes: int
    decode_flops: int
    prefill_flops: int
    ranks: int
    stages: int


def engine_load(deployment: Deployment) -> EngineLoad:
    """The load of one engine with the deployment's lengths. Embeddings (a row a token) and towers are not read."""
    model, config = deployment.model, deployment.config
    experts = {module.name: module for module in model.modules if isinstance(module, FusedMoE)}
    dense = routed = 0
    for share in deployment.shares:
        sizes = [0, 0]
        for tensor in share.loaded:
            if (
                tensor.role == "parameter"
                and tensor.component == "language_model"
                and "embed_tokens" not in tensor.module
            ):
                sizes[tensor.module in experts] += tensor.size_bytes
        if sum(sizes) > dense + routed:
            dense, routed = sizes
    body, head = _operations(model)
    length = max(config.max_model_len // 2, 1)
    return EngineLoad(
        dense_bytes=dense,
        expert_bytes=routed,
        touched=max((moe.top_k / moe.num_experts for moe in experts.values()), default=1.0),
        cache_bytes=int(request_bytes(deployment.pool, length, config.max_num_batched_tokens)),
        decode_flops=body + head,
        prefill_flops=body,
        ranks=config.tensor_parallel_size,
        stages=config.pipeline_parallel_size,
    )


def decode_tokens_per_s(load: EngineLoad, gpu: GpuSpec, dtype: str, sequences: int) -> float | None:
    """Tokens per second of `sequences` at once; None where the card's bandwidth is not known."""
    if gpu.memory_bandwidth_bytes_per_s is None or sequences < 1:
        return None
    experts = load.expert_bytes * min(1.0, sequences * load.touched)
    read = load.dense_bytes + experts + load.cache_bytes * sequences
    step = load.stages * read / gpu.memory_bandwidth_bytes_per_s
    flops = flops_of(gpu, dtype)
    if flops is not None:
        step = max(step, sequences * load.decode_flops / (flops * load.ranks))
    return EFFICIENCY * sequences / step


def prefill_tokens_per_s(load: EngineLoad, gpu: GpuSpec, dtype: str) -> float | None:
    """Prompt tokens per second of a full batch, stages working side by side; None where FLOPS are not known."""
    flops = flops_of(gpu, dtype)
    if flops is None or not load.prefill_flops:
        return None
    return EFFICIENCY * flops * load.ranks * load.stages / load.prefill_flops


def flops_of(gpu: GpuSpec, dtype: str) -> int | None:
    """Dense FLOPS of the dtype that activations have: 16-bit ones where 8-bit weights are unpacked or not supported."""
    known = [gpu.dense_flops[name] for name in (dtype, *_HALF) if name in gpu.dense_flops]
    return known[0] if known else None


def _operations(model: ModelSpec) -> tuple[int, int]:
    """Operations for one token: of the layers, and of the output head."""
    body = head = 0
    for module in model.modules:
        if module.component == "language_model":
            if isinstance(module, LMHead):
                head += 2 * module.num_embeddings * module.hidden_size
            else:
                body += 2 * _multiplied(module)
    return body, head


def _multiplied(module: Module) -> int:
    """Weights of a module that one token is multiplied with."""
    if isinstance(module, Linear):
        return module.input_size * sum(module.output_sizes)
    if isinstance(module, QKVLinear):
        queries = module.num_heads * module.head_size * (2 if module.output_gate else 1)
        return module.hidden_size * (
            queries + module.num_kv_heads * (module.head_size + (module.head_size_v or module.head_size))
        )
    if isinstance(module, FusedMoE):
        return module.top_k * module.hidden_size * module.intermediate_size * (3 if module.gated else 2)
    return 0
