"""The scheduler's sizes: vLLM's defaults for this card, its caps and its refusals."""

from __future__ import annotations

from msgspec import Struct

from planner.engine.args import EngineArgs
from planner.errors import InputError
from planner.hardware.spec import GpuSpec
from planner.model.spec import ModelSpec
from planner.releases.release import BatchTier, Release
from planner.values import reject


class BatchSizes(Struct, frozen=True, kw_only=True):
    """What SchedulerConfig ends with."""

    max_num_batched_tokens: int
    max_num_seqs: int
    enable_chunked_prefill: bool
    warnings: tuple[str, ...] = ()


def resolve_batch_sizes(
    args: EngineArgs, model: ModelSpec, gpu: GpuSpec, release: Release, max_model_len: int
) -> BatchSizes:
    """Sizes for `vllm serve`. `max_model_len` is a length, never -1.

    Raises Rejected with vLLM's sentence where the sizes contradict each other, InputError for sizes below 1.
    Source: vLLM 0.26.0 engine/arg_utils.py:2431,2628, config/scheduler.py:240-300.
    """
    for flag, size in (
        ("--max-num-seqs", args.max_num_seqs),
        ("--max-num-batched-tokens", args.max_num_batched_tokens),
    ):
        if size is not None and size < 1:
            raise InputError(f"{flag} must be at least 1, found {size}")
    chunked = not model.facts.is_encoder_decoder if args.enable_chunked_prefill is None else args.enable_chunked_prefill
    tier = batch_tier(gpu, release)
    seqs = tier.max_num_seqs if args.max_num_seqs is None else args.max_num_seqs
    tokens = args.max_num_batched_tokens
    if tokens is None:
        tokens = tier.max_num_batched_tokens if chunked else max(max_model_len, tier.max_num_batched_tokens)
        if model.is_multimodal and model.facts.prefix_lm:
            tokens = max(tokens, model.facts.prefix_lm_item_tokens or 0)
        tokens = min(seqs * max_model_len, tokens)
    if args.max_num_seqs is None:
        seqs = min(seqs, tokens)
    chunked = chunked and not model.facts.is_encoder_decoder
    _refuse(tokens, seqs, max_model_len, chunked)
    return BatchSizes(
        max_num_batched_tokens=tokens,
        max_num_seqs=seqs,
        enable_chunked_prefill=chunked,
        warnings=_warnings(tokens, seqs, max_model_len),
    )


def batch_tier(gpu: GpuSpec, release: Release) -> BatchTier:
    """The first class of card whose conditions this one meets."""
    name = gpu.device_name.lower()
    for tier in release.batch_tiers:
        large_enough = gpu.total_memory_bytes >= tier.min_memory_bytes
        named_out = any(part in name for part in tier.not_named) or (
            bool(tier.named) and not any(part in name for part in tier.named)
        )
        if large_enough and not named_out and gpu.compute_capability not in tier.not_capability:
            return tier
    return release.batch_tiers[-1]


def _refuse(tokens: int, seqs: int, max_model_len: int, chunked: bool) -> None:
    if tokens < max_model_len and not chunked:
        raise reject(
            "batched_tokens",
            f"max_num_batched_tokens ({tokens}) is smaller than max_model_len ({max_model_len}). This effectively "
            "limits the maximum sequence length to max_num_batched_tokens and makes vLLM reject longer sequences. "
            "Please increase max_num_batched_tokens or decrease max_model_len.",
            fix=(f"--max-num-batched-tokens {max_model_len}", f"--max-model-len {tokens}"),
        )
    if tokens < seqs:
        raise reject(
            "batched_tokens",
            f"max_num_batched_tokens ({tokens}) must be greater than or equal to max_num_seqs ({seqs}).",
            fix=(f"--max-num-seqs {tokens}", f"--max-num-batched-tokens {seqs}"),
        )


def _warnings(tokens: int, seqs: int, max_model_len: int) -> tuple[str, ...]:
    if tokens <= seqs * max_model_len:
        return ()
    return (
        f"max_num_batched_tokens ({tokens}) exceeds max_num_seqs * max_model_len ({seqs * max_model_len}). This may "
        "lead to unexpected behavior.",
    )
