"""Where the card itself, not the engine's budget, ends a plan: refusals at startup, and warnings."""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.memory.intervals import CERTAIN, Confidence
from planner.memory.multimodal.recommend import limits_sentence
from planner.memory.multimodal.workload import MediaWorkload
from planner.memory.result import PerGpu
from planner.memory.runtime import RuntimeTerms, encoder_peak
from planner.model.spec import ModelSpec
from planner.sharding.rank import RankShare
from planner.units import format_gib
from planner.values import Rejection


def startup_rejection(
    terms: tuple[RuntimeTerms, ...], total: int, utilization: float, requested: int, confidence: Confidence
) -> Rejection | None:
    """Free memory below the request at startup, then the weights and the profile run against the card itself.

    `total`, `requested`: bytes of the card, and of it what `utilization` asks for.
    """
    for term in terms:
        spread = term.spreads if confidence == "safe" else CERTAIN
        free = total - term.cuda_context_bytes - spread.context.up
        profile = term.profile_peak_bytes + spread.profile.up
        if free < requested:
            return Rejection(
                bottleneck="startup_memory",
                message=(
                    f"Free memory on device cuda:0 ({_gib(free)}/{_gib(total)} GiB) on startup is less than desired "
                    f"GPU memory utilization ({utilization:g}, {_gib(requested)} GiB). Decrease GPU memory utilization "
                    "or reduce GPU memory used by other processes."
                ),
                need_bytes=requested,
                have_bytes=free,
                fix=(f"--gpu-memory-utilization {int(free / total * 1000) / 1000:g}",),
            )
        if term.weights_memory_bytes > free:
            return Rejection(
                bottleneck="weights",
                message=(
                    "Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization to free "
                    "memory for weights, increasing --tensor-parallel-size, or using --quantization."
                ),
                need_bytes=term.weights_memory_bytes,
                have_bytes=free,
                fix=("a larger --tensor-parallel-size", "a quantized checkpoint"),
            )
        if profile > total:
            return Rejection(
                bottleneck="device_memory",
                message=(
                    "CUDA out of memory while profiling: weights, runner state and peak activation exceed the card."
                ),
                need_bytes=profile,
                have_bytes=total,
                fix=("a smaller --max-num-batched-tokens", "a smaller --max-num-seqs"),
            )
    return None


def used_bytes(per_gpu: PerGpu, confidence: Confidence) -> int:
    """What startup needs of the device: the expected use, or more where the unfavourable end needs more even after
    PyTorch has given its cached blocks back, as it does before it runs out of memory."""
    interval = per_gpu.used_after_startup_bytes_interval
    if confidence == "expected" or interval is None:
        return per_gpu.used_after_startup_bytes
    return max(per_gpu.used_after_startup_bytes, interval[1] - per_gpu.allocator_retained_bytes)


def device_rejection(per_gpu: PerGpu, used: int) -> Rejection:
    """The card is smaller than `used` bytes, though the engine's own budget holds."""
    over = used - per_gpu.total_memory_bytes
    share = (per_gpu.requested_memory_bytes - over) / per_gpu.total_memory_bytes
    return Rejection(
        bottleneck="device_memory",
        message=(
            f"CUDA out of memory during startup: the engine's budget holds, but the device would need "
            f"{format_gib(used)} of {format_gib(per_gpu.total_memory_bytes)}."
        ),
        need_bytes=used,
        have_bytes=per_gpu.total_memory_bytes,
        fix=(f"--gpu-memory-utilization {int(share * 1000) / 1000:g}", "a smaller --max-num-seqs"),
    )


def slack_warning(
    model: ModelSpec, share: RankShare, config: EngineConfig, per_gpu: PerGpu, workload: MediaWorkload | None
) -> tuple[str, ...]:
    """A plan that starts, and whose card a full batch of media would overfill."""
    need = per_gpu.used_after_startup_bytes + per_gpu.vision_encoder_runtime_peak_bytes
    if need <= per_gpu.total_memory_bytes:
        return ()
    advice = limits_sentence(model, share, config, workload)
    return (
        f"starts, but a full media batch needs {format_gib(per_gpu.vision_encoder_runtime_peak_bytes)} for the vision "
        f"encoder and only {format_gib(per_gpu.total_memory_bytes - per_gpu.used_after_startup_bytes)} is left on the "
        "device; lower "
        "--gpu-memory-utilization, --limit-mm-per-prompt or max_pixels",
        *((advice,) if advice else ()),
    )


def stage_warning(books: list[PerGpu], fullest: int, crowded: int) -> tuple[str, ...]:
    """The cache is bounded by one pipeline stage, the device by another: the last one samples."""
    more = books[crowded].used_after_startup_bytes - books[fullest].used_after_startup_bytes
    if more <= 0:
        return ()
    return (
        f"the ledger is that of pipeline stage {fullest}, which bounds the cache; the GPUs of stage {crowded} use "
        f"{format_gib(more)} more after startup",
    )


def encoder_warning(
    model: ModelSpec, share: RankShare, config: EngineConfig, workload: MediaWorkload | None
) -> tuple[str, ...]:
    """What the vision encoder's peak leaves out."""
    if model.vision is None:
        return ()
    reason = encoder_peak(model, share, config, workload)[1]
    return () if reason is None else (reason,)


def _gib(size_bytes: int) -> str:
    return format_gib(size_bytes).removesuffix(" GiB")
