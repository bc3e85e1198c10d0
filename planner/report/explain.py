"""Each figure of an estimate with its formula, the numbers put in and its source: a person can redo it by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from planner.memory.activation import activation_stages
from planner.memory.adapters import adapter_indices
from planner.memory.assess import Assessment, Deployment
from planner.memory.kv_pool import KVGroup
from planner.memory.program import LiveTensor, Stage
from planner.memory.relief import part_peaks, reliefs
from planner.memory.result import Estimate, PerGpu
from planner.memory.runner_state import runner_buffers, sampler_buffers
from planner.sharding.rank import Tensor
from planner.units import format_bytes
from planner.values import DTYPE_BYTES

_LAYER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Part:
    """One line of a figure: what it is, how it is computed, and its bytes."""

    name: str
    arithmetic: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: its value in `unit`, the rule, the rule with numbers, where the rule comes from, and its parts."""

    name: str
    value: float
    unit: str
    formula: str
    arithmetic: str
    source: str
    parts: tuple[Part, ...] = ()


def explain(assessment: Assessment) -> tuple[Figure, ...]:
    """The figures in the order in which the engine comes to them. Empty where vLLM refuses before any."""
    deployment, estimate = assessment.deployment, assessment.estimate
    if deployment is None or estimate.per_gpu is None or estimate.kv_cache is None:
        return ()
    stage = _stage_index(deployment, estimate.per_gpu)
    return (
        *_budget(deployment, estimate.per_gpu),
        *_weights(deployment, stage, estimate.per_gpu),
        _peak(deployment, stage, estimate.per_gpu),
        *_profile_parts(deployment, stage),
        *_constants(deployment, estimate.per_gpu),
        _available(estimate.per_gpu),
        *_cache(deployment, stage, estimate),
        *_device(deployment, stage, estimate.per_gpu),
    )


def _stage_index(deployment: Deployment, per_gpu: PerGpu) -> int:
    same = [index for index, share in enumerate(deployment.shares) if share.parameter_bytes == per_gpu.parameter_bytes]
    return same[0]


def _budget(deployment: Deployment, per_gpu: PerGpu) -> list[Figure]:
    gpu, share = deployment.gpus.gpu, deployment.config.gpu_memory_utilization
    total = per_gpu.total_memory_bytes
    return [
        Figure(
            "total_memory_bytes",
            total,
            "bytes",
            "what CUDA reports for the card",
            f"{gpu.name}: {total:,}",
            f"hardware catalog, {gpu.memory_evidence}",
        ),
        Figure(
            "requested_memory_bytes",
            per_gpu.requested_memory_bytes,
            "bytes",
            "ceil(total_memory x gpu_memory_utilization)",
            f"ceil({total:,} x {share:g})",
            "vLLM 0.26.0 v1/worker/utils.py:425",
        ),
    ]


def _weights(deployment: Deployment, stage: int, per_gpu: PerGpu) -> list[Figure]:
    share = deployment.shares[stage]
    created = tuple(_tensor_parts(tensor for tensor in share.created if tensor.role == "parameter"))
    loaded = sum(tensor.size_bytes for tensor in share.loaded)
    adapters = _adapters(deployment, stage)
    rounding = per_gpu.weights_memory_bytes - loaded - sum(int(figure.value) for figure in adapters)
    parts = (
        Part("parameters as created", "as above", per_gpu.parameter_bytes),
        Part(
            "buffers, copies and repacking after load",
            f"{loaded:,} - {per_gpu.parameter_bytes:,}",
            loaded - per_gpu.parameter_bytes,
        ),
        *(Part("slots and index tensors of LoRA adapters", "below", int(figure.value)) for figure in adapters),
        Part(
            "allocator blocks beyond the tensors",
            "512 B, 2 MiB above 10 MiB, unsplit above 20 MiB while loading",
            rounding,
        ),
    )
    tp = deployment.config.tensor_parallel_size
    return [
        Figure(
            "parameter_bytes",
            per_gpu.parameter_bytes,
            "bytes",
            f"sum of the rank's parameters at tensor_parallel_size {tp}",
            "sum of the lines below",
            "vLLM 0.26.0 model_executor/models, layers/linear.py, vocab_parallel_embedding.py",
            created,
        ),
        Figure(
            "weights_memory_bytes",
            per_gpu.weights_memory_bytes,
            "bytes",
            "torch bytes allocated while loading",
            " + ".join(f"{part.bytes:,}" for part in parts),
            "vLLM 0.26.0 v1/worker/gpu_worker.py:424; PyTorch CUDACachingAllocator",
            parts,
        ),
        *adapters,
    ]


def _adapters(deployment: Deployment, stage: int) -> list[Figure]:
    """The slots of LoRA adapters, tensor by tensor; empty without --enable-lora."""
    config, share = deployment.config, deployment.shares[stage]
    if not config.enable_lora:
        return []
    tokens, seqs = config.max_num_batched_tokens, config.max_num_seqs
    indices = [_live_part(tensor, tokens, seqs) for tensor in adapter_indices(config)]
    parts = (*_tensor_parts(share.adapters), Part("which token has which adapter", "", sum(p.bytes for p in indices)))
    return [
        Figure(
            "adapter_slots_bytes",
            sum(part.bytes for part in parts),
            "bytes",
            "max_loras x (A: rank x input + B: output x rank) for each layer fused into a linear layer",
            f"max_loras {config.max_loras}, max_lora_rank {config.max_lora_rank}, "
            f"{config.lora_dtype or config.dtype}; T = {tokens:,}, S = {seqs:,}",
            "vLLM 0.26.0 lora/layers/base_linear.py:95, lora/punica_wrapper/punica_base.py:131",
            parts,
        )
    ]


def _tensor_parts(tensors: Iterable[Tensor]) -> list[Part]:
    """Equal tensors of different layers on one line, in order of first appearance."""
    counts: dict[tuple[str, tuple[int, ...], str], int] = {}
    for tensor in tensors:
        name = tensor.module if not tensor.name else f"{tensor.module}.{tensor.name}"
        key = (_LAYER.sub(".N", name), tensor.shape, tensor.dtype)
        counts[key] = counts.get(key, 0) + 1
    parts = []
    for (name, shape, dtype), count in counts.items():
        size = DTYPE_BYTES[dtype]
        for dimension in shape:
            size *= dimension
        times = f"{count} x " if count > 1 else ""
        shown = " x ".join(f"{dimension:,}" for dimension in shape) or "1"
        parts.append(Part(name, f"{times}[{shown}] {dtype}, {DTYPE_BYTES[dtype]} B each", count * size))
    return parts


def _peak(deployment: Deployment, stage: int, per_gpu: PerGpu) -> Figure:
    config = deployment.config
    tokens, seqs = config.max_num_batched_tokens, min(config.max_num_seqs, config.max_num_batched_tokens)
    stages = activation_stages(deployment.model, deployment.shares[stage], config)
    highest = max(stages, key=lambda item: item.bytes(tokens, seqs))
    parts = tuple(_live_part(tensor, tokens, seqs) for tensor in _merged(highest))
    rest = per_gpu.peak_activation_bytes - sum(part.bytes for part in parts)
    if rest:
        parts = (*parts, Part("allocator blocks beyond the tensors, and what stays from earlier stages", "", rest))
    return Figure(
        "peak_activation_bytes",
        per_gpu.peak_activation_bytes,
        "bytes",
        f"highest stage of the profile run: {highest.name}",
        f"T = {tokens:,} tokens (max_num_batched_tokens), S = {seqs:,} sampled rows",
        "vLLM 0.26.0 v1/worker/gpu_worker.py:448 and the model's forward",
        parts,
    )


def _profile_parts(deployment: Deployment, stage: int) -> list[Figure]:
    """What each part of the profile run would need by itself, and what flags take off the highest."""
    model, share, config = deployment.model, deployment.shares[stage], deployment.config
    peaks = part_peaks(model, share, config)
    freed = reliefs(model, share, config)
    tokens, seqs = config.max_num_batched_tokens, min(config.max_num_seqs, config.max_num_batched_tokens)
    highest = max(peaks, key=lambda name: peaks[name])
    source = "the tensors alive in each part of the profile run"
    figures = [
        Figure(
            "profile_run_parts", peaks[highest], "bytes",
            f"the highest part is the {highest}; the lower ones cost nothing more",
            f"T = {tokens:,}, S = {seqs:,} (max_num_seqs, at most T)", source,
            tuple(Part(name, "", size) for name, size in peaks.items()),
        )
    ]  # fmt: skip
    if freed:
        figures.append(
            Figure(
                "profile_run_relief", max(item.freed_bytes for item in freed), "bytes",
                "what a flag takes off the highest part",
                "peak with the flags as they are - peak with the flag", source,
                tuple(Part(item.flags, "frees", item.freed_bytes) for item in freed),
            )
        )  # fmt: skip
    return figures


def _merged(stage: Stage) -> list[LiveTensor]:
    counted: dict[LiveTensor, int] = {}
    for tensor in stage.tensors:
        counted[tensor] = counted.get(tensor, 0) + 1
    return [
        tensor
        if count == 1
        else LiveTensor(
            f"{count} x {tensor.name}",
            tensor.bytes_per_token * count,
            tensor.bytes_per_seq * count,
            tensor.constant_bytes * count,
        )
        for tensor, count in counted.items()
    ]


def _live_part(tensor: LiveTensor, tokens: int, seqs: int) -> Part:
    terms = []
    if tensor.bytes_per_token:
        terms.append(f"{tensor.bytes_per_token:,} B x T")
    if tensor.bytes_per_seq:
        terms.append(f"{tensor.bytes_per_seq:,} B x S")
    if tensor.constant_bytes:
        terms.append(f"{tensor.constant_bytes:,} B")
    return Part(tensor.name, " + ".join(terms) or "0", tensor.bytes(tokens, seqs))


def _constants(deployment: Deployment, per_gpu: PerGpu) -> list[Figure]:
    measured = "planner/memory/measured_constants.py"
    calibrated = dict(deployment.config.calibrated).get("non_torch_bytes", 0)
    plain = per_gpu.non_torch_bytes - calibrated
    return [
        Figure(
            "non_torch_bytes",
            per_gpu.non_torch_bytes,
            "bytes",
            "memory of the process outside torch, grown since startup",
            f"{plain:,} measured + {calibrated:,} of the calibration" if calibrated else "measured constant",
            measured,
        ),
        Figure(
            "cuda_graph_estimate_bytes",
            per_gpu.cuda_graph_estimate_bytes,
            "bytes",
            "what the engine sets aside for CUDA graphs",
            "0 for the V2 model runner of 0.26.0",
            "vLLM 0.26.0 v1/worker/gpu/model_runner.py:705, v1/worker/gpu_model_runner.py:6576",
        ),
    ]


def _available(per_gpu: PerGpu) -> Figure:
    more = " - also_counted (the runner's state; before 0.9.2 the CUDA context)" if per_gpu.also_counted_bytes else ""
    counted = f" - {per_gpu.also_counted_bytes:,}" if per_gpu.also_counted_bytes else ""
    return Figure(
        "available_kv_cache_bytes",
        per_gpu.available_kv_cache_bytes,
        "bytes",
        "requested_memory - weights - peak_activation - non_torch - cuda_graph_estimate" + more,
        f"{per_gpu.requested_memory_bytes:,} - {per_gpu.weights_memory_bytes:,} - {per_gpu.peak_activation_bytes:,} - "
        f"{per_gpu.non_torch_bytes:,} - {per_gpu.cuda_graph_estimate_bytes:,}" + counted,
        "vLLM 0.26.0 v1/worker/gpu_worker.py:541",
    )


def _cache(deployment: Deployment, stage: int, estimate: Estimate) -> list[Figure]:
    cache, per_gpu, config = estimate.kv_cache, estimate.per_gpu, deployment.config
    assert cache is not None
    assert per_gpu is not None
    assert estimate.engine is not None
    pool = deployment.pool.stages[stage]
    parts = tuple(
        Part(
            f"group of {group.num_layers} {group.kind} layers",
            _page(group, config.kv_torch_dtype),
            group.page_size_bytes,
        )
        for group in pool.groups
    )
    length = estimate.engine.max_model_len
    figures = [
        Figure(
            "bytes_per_block",
            cache.bytes_per_block,
            "bytes",
            "page size x layers of the largest group",
            f"{pool.groups[0].page_size_bytes if pool.groups else 0:,} x "
            f"{max((group.num_layers for group in pool.groups), default=0)}",
            "vLLM 0.26.0 v1/core/kv_cache_utils.py:990, v1/kv_cache_interface.py:176",
            parts,
        ),
        Figure(
            "num_gpu_blocks",
            cache.num_gpu_blocks,
            "blocks",
            "floor(available_kv_cache / bytes_per_block), least over the ranks",
            f"floor({per_gpu.available_kv_cache_bytes:,} / {cache.bytes_per_block:,})",
            "vLLM 0.26.0 v1/core/kv_cache_utils.py:990",
        ),
    ]
    if cache.num_gpu_blocks and cache.max_concurrency:
        needed = cache.num_gpu_blocks / cache.max_concurrency
        figures.append(
            Figure(
                "max_concurrency",
                round(cache.max_concurrency, 4),
                "requests",
                "num_gpu_blocks / blocks of one request of max_model_len",
                f"{cache.num_gpu_blocks:,} / {needed:,.0f}",
                "vLLM 0.26.0 v1/core/kv_cache_utils.py:937",
            )
        )
        figures.append(
            Figure(
                "capacity_tokens",
                cache.capacity_tokens,
                "tokens",
                "floor(max_concurrency x max_model_len)",
                f"floor({cache.max_concurrency:.4f} x {length:,})",
                "vLLM 0.26.0 v1/core/kv_cache_utils.py:1819",
            )
        )
    return figures


def _page(group: KVGroup, dtype: str) -> str:
    if not group.num_kv_heads or group.kind == "mamba":
        return "sum of the layer's state tensors, padded to the pool's page"
    heads = f"{group.num_kv_heads} KV heads x head size {group.head_size} (keys and values)"
    return f"block {group.block_size} x {heads}, {dtype}"


def _device(deployment: Deployment, stage: int, per_gpu: PerGpu) -> list[Figure]:
    config, model = deployment.config, deployment.model
    tokens, seqs = config.max_num_batched_tokens, config.max_num_seqs
    last = stage == len(deployment.shares) - 1
    buffers = [*runner_buffers(model, config), *sampler_buffers(model, config, last_stage=last)]
    large = sorted((_live_part(tensor, tokens, seqs) for tensor in buffers), key=lambda part: -part.bytes)[:12]
    lines = (
        ("cuda_context_bytes", per_gpu.cuda_context_bytes),
        ("non_torch_bytes", per_gpu.non_torch_bytes),
        ("weights_memory_bytes", per_gpu.weights_memory_bytes),
        ("runner_state_bytes", per_gpu.runner_state_bytes),
        ("kv_cache_allocated_bytes", per_gpu.kv_cache_allocated_bytes),
        ("cuda_graph_actual_bytes", per_gpu.cuda_graph_actual_bytes),
        ("allocator_retained_bytes", per_gpu.allocator_retained_bytes),
    )
    return [
        Figure(
            "runner_state_bytes",
            per_gpu.runner_state_bytes,
            "bytes",
            "buffers of the runner and the sampler, in no term of the engine's formula",
            f"T = {tokens:,}, S = {seqs:,} (max_num_seqs); the largest below",
            "vLLM 0.26.0 v1/worker/gpu/sample/penalties.py:32, states.py, input_batch.py",
            tuple(large),
        ),
        Figure(
            "allocator_retained_bytes",
            per_gpu.allocator_retained_bytes,
            "bytes",
            "reserved after startup beyond weights, runner state and cache",
            "startup replayed on the caching allocator: what warming up the kernels and the sampler leaves cached",
            "vLLM 0.26.0 v1/worker/gpu_worker.py:746, v1/worker/gpu/warmup.py",
        ),
        Figure(
            "used_after_startup_bytes",
            per_gpu.used_after_startup_bytes,
            "bytes",
            "sum of the device's lines",
            " + ".join(f"{value:,}" for _, value in lines),
            "cudaMemGetInfo: total - free",
            tuple(Part(name, "", value) for name, value in lines),
        ),
        Figure(
            "vision_encoder_runtime_peak_bytes",
            per_gpu.vision_encoder_runtime_peak_bytes,
            "bytes",
            "tensors alive in one call of the vision encoder, beside everything above",
            "the largest batch of media that one step can take",
            "the tower's forward; not reserved by the V2 model runner of 0.26.0",
        ),
    ]


def explain_text(assessment: Assessment, figures: tuple[Figure, ...]) -> str:
    """Figures as plain lines: value, rule, the rule with numbers, source, parts."""
    estimate = assessment.estimate
    lines = [f"{estimate.model} on {estimate.gpus}, vLLM {estimate.vllm_version}: {estimate.verdict}"]
    if estimate.engine is not None and assessment.config is not None:
        lines.append(f"model runner {estimate.engine.model_runner}: {assessment.config.model_runner_reason}")
    for figure in figures:
        human = f" ({format_bytes(int(figure.value))})" if figure.unit == "bytes" else ""
        lines += [
            "",
            f"{figure.name} = {figure.value:,} {figure.unit}{human}",
            f"  rule    {figure.formula}",
            f"  numbers {figure.arithmetic}",
            f"  source  {figure.source}",
        ]
        width = max((len(part.name) for part in figure.parts), default=0)
        lines += [
            f"    {part.name.ljust(width)}  {part.bytes:>18,}  {part.arithmetic}".rstrip() for part in figure.parts
        ]
    if estimate.rejection is not None:
        lines += [
            "",
            f"{estimate.rejection.bottleneck}: {estimate.rejection.message}",
            *(f"  try: {fix}" for fix in estimate.rejection.fix),
        ]
    lines += [f"warning: {warning}" for warning in estimate.warnings]
    return "\n".join(lines)


def explain_json(assessment: Assessment, figures: tuple[Figure, ...]) -> str:
    """`vplan.explain/1`: the estimate and the figures."""
    document = {
        "schema": "vplan.explain/1",
        "estimate": assessment.estimate.model_dump(mode="json"),
        "figures": [asdict(figure) for figure in figures],
    }
    return json.dumps(document, indent=1)
