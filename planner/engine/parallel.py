"""What vLLM demands of the parallel sizes before it builds a model. Source: vLLM 0.26.0 config/model.py:1224."""

from __future__ import annotations

from planner.engine.args import EngineArgs
from planner.errors import InputError
from planner.model.spec import ModelSpec
from planner.releases.release import Release
from planner.values import reject


def refuse_sizes(args: EngineArgs) -> None:
    """Sizes that are no counts."""
    sizes = {
        "--tensor-parallel-size": args.tensor_parallel_size,
        "--pipeline-parallel-size": args.pipeline_parallel_size,
        "--data-parallel-size": args.data_parallel_size,
        "--decode-context-parallel-size": args.decode_context_parallel_size,
    }
    for flag, size in sizes.items():
        if size < 1:
            raise InputError(f"{flag} must be at least 1, found {size}")
    if args.tensor_parallel_size % args.decode_context_parallel_size:
        raise reject(
            "parallelism",
            f"tp_size={args.tensor_parallel_size} must be divisible by dcp_size={args.decode_context_parallel_size}.",
        )


def refuse_parallel(model: ModelSpec, args: EngineArgs, release: Release) -> None:
    """Heads, experts, pipeline stages and decode context parallelism against the model. Raises Rejected."""
    heads, size = model.text.num_attention_heads, args.tensor_parallel_size
    if heads % size:
        divisors = tuple(f"--tensor-parallel-size {count}" for count in range(size - 1, 0, -1) if heads % count == 0)
        raise reject(
            "heads_divisibility",
            f"Total number of attention heads ({heads}) must be divisible by tensor parallel size ({size}).",
            fix=divisors[:2],
        )
    if args.enable_expert_parallel and not model.is_moe:
        raise reject(
            "parallelism",
            "Number of experts in the model must be greater than 0 when expert parallelism is enabled.",
            fix=("leave out --enable-expert-parallel",),
        )
    if args.pipeline_parallel_size > 1 and not model.supports_pp:
        raise reject(
            "parallelism",
            "Pipeline parallelism is not supported for this model. Supported models implement the `SupportsPP` "
            "interface.",
            fix=("--pipeline-parallel-size 1",),
        )
    if args.pipeline_parallel_size > 1 and model.architecture in release.pipeline_refused_architectures:
        raise reject(
            "parallelism",
            "No model architectures are specified",
            fix=("--pipeline-parallel-size 1",),
        )
    if args.decode_context_parallel_size > 1 and not model.use_mla:
        _refuse_decode_context(model, args)


def _refuse_decode_context(model: ModelSpec, args: EngineArgs) -> None:
    size, wanted, kv_heads = args.tensor_parallel_size, args.decode_context_parallel_size, model.text.num_kv_heads
    if size <= kv_heads:
        raise reject(
            "parallelism",
            f"tensor parallel size {size} must be greater than total num kv heads {kv_heads} when enable decode "
            "context parallel for GQA/MQA",
        )
    most = size // kv_heads
    if wanted > most:
        raise reject(
            "parallelism",
            f"decode context parallel size must less than or equal to (tensor parallel size {size} // total num kv "
            f"heads {kv_heads}) = {most}, but got {wanted}",
            fix=(f"--decode-context-parallel-size {most}",),
        )
    shared = model.text.num_attention_heads // kv_heads
    if shared % wanted:
        raise reject(
            "parallelism",
            f"Total number of q per kv attn heads ({shared}) must be divisible by dcp world size when enable decode "
            f"context parallel for GQA ({wanted}).",
        )
