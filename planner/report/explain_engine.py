"""The engine's ledger, figure by figure: budget, weights, profile run, and what is left for the cache."""

from __future__ import annotations

from planner.memory.activation import activation_stages
from planner.memory.adapters import adapter_indices
from planner.memory.assess import Deployment
from planner.memory.program import LiveTensor, Stage
from planner.memory.relief import part_peaks, reliefs
from planner.memory.result import PerGpu
from planner.report.explained import Figure, Part, live_part, tensor_parts


def engine_figures(deployment: Deployment, stage: int, per_gpu: PerGpu) -> list[Figure]:
    """The terms of one stage's GPU in the order in which the engine comes to them."""
    return [
        *_budget(deployment, per_gpu),
        *_weights(deployment, stage, per_gpu),
        _peak(deployment, stage, per_gpu),
        *_profile_parts(deployment, stage),
        *_constants(deployment, per_gpu),
        _available(per_gpu),
    ]


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
    created = tuple(tensor_parts(tensor for tensor in share.created if tensor.role == "parameter"))
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
    indices = [live_part(tensor, tokens, seqs) for tensor in adapter_indices(config)]
    parts = (*tensor_parts(share.adapters), Part("which token has which adapter", "", sum(p.bytes for p in indices)))
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


def _peak(deployment: Deployment, stage: int, per_gpu: PerGpu) -> Figure:
    config = deployment.config
    tokens, seqs = config.max_num_batched_tokens, min(config.max_num_seqs, config.max_num_batched_tokens)
    stages = activation_stages(deployment.model, deployment.shares[stage], config)
    highest = max(stages, key=lambda item: item.bytes(tokens, seqs))
    parts = tuple(live_part(tensor, tokens, seqs) for tensor in _merged(highest))
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


def _constants(deployment: Deployment, per_gpu: PerGpu) -> list[Figure]:
    measured = "planner/memory/measured_constants.py"
    calibrated = deployment.config.calibrated_bytes("non_torch_bytes")
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
