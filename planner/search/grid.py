"""Every candidate of one layout at once: sizes x utilizations x lengths, as numpy arrays with a verdict each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.engine.config import EngineConfig
from planner.engine.resize import resized
from planner.memory.assess import Deployment
from planner.memory.kv_capacity import blocks_for_request, largest_max_model_len, num_blocks, request_bytes
from planner.memory.runtime import RuntimeTerms, runtime_terms
from planner.search.space import BATCHED_TOKENS, LENGTH_STEPS, SEQUENCES, UTILIZATIONS, SearchOptions, ladder
from planner.engine.args import EngineArgs
from planner.values import Bottleneck

Ints = npt.NDArray[np.int64]

VERDICTS: tuple[Bottleneck | None, ...] = (None, "batched_tokens", "startup_memory", "weights", "kv_cache", "device_memory")
"""Verdict codes of a grid: 0 holds, the others name the bottleneck."""


@dataclass(frozen=True, slots=True)
class Grid:
    """One layout's candidates. Axes: 0 sizes (max_num_seqs with max_num_batched_tokens), 1 utilization, 2 length.

    `longest`: [sizes, utilization], the longest max_model_len that holds `concurrency` requests, 0 where none does;
    `blocks`: [sizes, utilization]; `verdicts`: [sizes, utilization, length], index into VERDICTS.
    """

    deployment: Deployment
    seqs: Ints
    tokens: Ints
    utilizations: npt.NDArray[np.float64]
    lengths: Ints
    blocks: Ints
    longest: Ints
    needed_device_bytes: Ints
    verdicts: npt.NDArray[np.int8]


def evaluate(deployment: Deployment, args: EngineArgs, options: SearchOptions, concurrency: int) -> Grid:
    """Judge every candidate of a layout as vLLM and the device would, with the safety margin on the device's side."""
    pairs = _pairs(deployment.config, options)
    terms = [_terms(deployment, args, seqs, tokens) for seqs, tokens in pairs]
    seqs = np.array([pair[0] for pair in pairs], dtype=np.int64)
    tokens = np.array([pair[1] for pair in pairs], dtype=np.int64)
    utilizations = _utilizations(deployment.config, options)
    lengths = _lengths(deployment, options)
    total = deployment.gpus.gpu.total_memory_bytes
    requested = np.ceil(total * utilizations).astype(np.int64)
    available = _available(terms, requested, deployment.config)
    blocks: Ints = num_blocks(deployment.pool, available)
    needed = _device_bytes(deployment, terms, blocks, options.safety_margin)
    upper = np.full(blocks.shape, int(lengths[-1]), dtype=np.int64)
    share = [stage // concurrency for stage in _within_blocks(deployment, blocks)]
    longest = np.minimum(
        largest_max_model_len(deployment.pool, available, tokens[:, None], upper),
        largest_max_model_len(deployment.pool, share, tokens[:, None], upper),
    )
    startup = _bounds(terms, requested, total)
    verdicts = _verdicts(deployment, available, blocks, tokens, lengths, concurrency, needed > total, startup)
    sizes_refused = (seqs > tokens)[:, None, None]
    verdicts = np.where(sizes_refused, np.int8(1), verdicts)
    usable = (verdicts != 1).any(axis=2) & ~startup[0] & ~startup[1] & (needed <= total)
    return Grid(
        deployment=deployment, seqs=seqs, tokens=tokens, utilizations=utilizations, lengths=lengths, blocks=blocks,
        longest=np.where(usable, longest, 0), needed_device_bytes=needed, verdicts=verdicts,
    )  # fmt: skip


def _pairs(config: EngineConfig, options: SearchOptions) -> list[tuple[int, int]]:
    seqs = SEQUENCES if "max_num_seqs" not in options.given else (config.max_num_seqs,)
    tokens = BATCHED_TOKENS if "max_num_batched_tokens" not in options.given else (config.max_num_batched_tokens,)
    return [(one, other) for one in seqs for other in tokens]


def _utilizations(config: EngineConfig, options: SearchOptions) -> npt.NDArray[np.float64]:
    if "gpu_memory_utilization" in options.given or config.kv_cache_memory_bytes is not None:
        return np.array([config.gpu_memory_utilization])
    return np.array(UTILIZATIONS)


def _lengths(deployment: Deployment, options: SearchOptions) -> Ints:
    config, model = deployment.config, deployment.model
    if "max_model_len" in options.given and config.max_model_len != -1:
        return np.array([config.max_model_len], dtype=np.int64)
    low = max(options.workload.min_model_len, 512)
    return np.array(ladder(low, max(low, model.derived_max_model_len), LENGTH_STEPS, 256), dtype=np.int64)


def _terms(deployment: Deployment, args: EngineArgs, seqs: int, tokens: int) -> tuple[RuntimeTerms, ...]:
    config = resized(
        deployment.config, deployment.model, args, max_num_seqs=min(seqs, tokens), max_num_batched_tokens=tokens
    )
    return tuple(
        runtime_terms(deployment.model, share, config, deployment.gpus.gpu, static)
        for share, static in zip(deployment.shares, deployment.static, strict=True)
    )


def _column(terms: list[tuple[RuntimeTerms, ...]], stage: int, field: str) -> Ints:
    return np.array([getattr(pair[stage], field) for pair in terms], dtype=np.int64)[:, None]


def _available(terms: list[tuple[RuntimeTerms, ...]], requested: Ints, config: EngineConfig) -> list[Ints]:
    if config.kv_cache_memory_bytes is not None:
        fixed = np.full((len(terms), len(requested)), config.kv_cache_memory_bytes, dtype=np.int64)
        return [fixed for _ in terms[0]]
    return [requested[None, :] - _column(terms, stage, "non_kv_bytes") for stage in range(len(terms[0]))]


def _device_bytes(deployment: Deployment, terms: list[tuple[RuntimeTerms, ...]], blocks: Ints, margin: float) -> Ints:
    """The most that any stage's rank needs on the device, margin included."""
    worst = np.zeros_like(blocks)
    for stage, pool in enumerate(deployment.pool.stages):
        beside = _column(terms, stage, "device_bytes_beside_cache") + _column(terms, stage, "encoder_runtime_peak_bytes")
        worst = np.maximum(worst, beside + blocks * pool.bytes_per_block)
        worst = np.maximum(worst, _column(terms, stage, "profile_peak_bytes"))
    return np.ceil(worst * (1.0 + margin)).astype(np.int64)


def _within_blocks(deployment: Deployment, blocks: Ints) -> list[Ints]:
    """Bytes of the blocks that requests can have: all but the null block."""
    return [np.maximum(blocks - 1, 0) * stage.bytes_per_needed_block for stage in deployment.pool.stages]


def _bounds(terms: list[tuple[RuntimeTerms, ...]], requested: Ints, total: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    context = np.max([_column(terms, stage, "cuda_context_bytes") for stage in range(len(terms[0]))], axis=0)
    weights = np.max([_column(terms, stage, "weights_memory_bytes") for stage in range(len(terms[0]))], axis=0)
    free = total - context
    return free < requested[None, :], np.broadcast_to(weights > free, (len(terms), len(requested)))


def _verdicts(
    deployment: Deployment, available: list[Ints], blocks: Ints, tokens: Ints, lengths: Ints, concurrency: int,
    over: npt.NDArray[np.bool_], startup: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]],
) -> npt.NDArray[np.int8]:
    pool = deployment.pool
    length, batched = lengths[None, None, :], tokens[:, None, None]
    need_bytes = request_bytes(pool, length, batched)
    need_blocks = blocks_for_request(pool, length, batched)
    scarcest = np.min(available, axis=0)[:, :, None]
    short = (need_bytes > scarcest) | (need_blocks * concurrency > np.maximum(blocks - 1, 0)[:, :, None])
    result = np.zeros(short.shape, dtype=np.int8)
    for code, mask in ((5, over[:, :, None]), (4, short), (3, startup[1][:, :, None]), (2, startup[0][:, :, None])):
        result = np.where(mask, np.int8(code), result)
    return result
