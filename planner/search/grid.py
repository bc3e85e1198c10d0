"""Every candidate of one layout at once: sizes x utilizations x lengths, as numpy arrays with a verdict each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from planner.engine.config import EngineConfig
from planner.memory.assess import Deployment
from planner.memory.kv_capacity import largest_max_model_len, num_blocks, whole_requests
from planner.search.costs import Costs, Ints
from planner.search.space import BATCHED_TOKENS, LENGTH_STEPS, SEQUENCES, UTILIZATIONS, SearchOptions, ladder
from planner.values import Bottleneck

if TYPE_CHECKING:
    from planner.search.occupancy import Occupancy

Bools = npt.NDArray[np.bool_]

VERDICTS: tuple[Bottleneck | None, ...] = (None, "startup_memory", "weights", "kv_cache", "device_memory")
"""Verdict codes of a grid: 0 holds, the others name the bottleneck."""


CONCURRENCY_LENGTH = 8192
"""max_model_len of the concurrency objective where the user names none."""


class Grid(Struct, frozen=True):
    """One layout's candidates. Axes: 0 sizes (max_num_seqs with max_num_batched_tokens), 1 utilization, 2 length.

    `longest`: [sizes, utilization], the longest max_model_len that holds the requests asked for, 0 where none does;
    `blocks`, `needed_device_bytes` (margin included; 0 where no budget holds anything) and `requests` (of the greatest
    length or of the workload's own, held at once): [sizes, utilization]; `verdicts`: index into VERDICTS.
    """

    deployment: Deployment
    seqs: Ints
    tokens: Ints
    utilizations: npt.NDArray[np.float64]
    lengths: Ints
    blocks: Ints
    longest: Ints
    requests: Ints
    needed_device_bytes: Ints
    verdicts: npt.NDArray[np.int8]


def evaluate(
    deployment: Deployment, costs: Costs, options: SearchOptions, concurrency: int, demand: Occupancy | None = None
) -> Grid:
    """Judge every candidate of a layout as vLLM and the device would, with the safety margin on the device's side.

    `concurrency` requests at once: of the greatest length that results, or as `demand` says.
    """
    utilizations = _utilizations(deployment.config, options)
    lengths = _lengths(deployment, options)
    total = deployment.gpus.gpu.total_memory_bytes
    requested = np.ceil(total * utilizations).astype(np.int64)
    available = _available(costs, requested, deployment.config)
    blocks: Ints = num_blocks(deployment.pool, available)
    context = np.max([stage.context for stage in costs.stages], axis=0)[:, None]
    weights = np.max([stage.weights for stage in costs.stages], axis=0)[:, None]
    late = total - context < requested[None, :]
    heavy = np.broadcast_to(weights > total - context, late.shape)
    upper = np.full(blocks.shape, int(lengths[-1]), dtype=np.int64)
    batched = costs.tokens[:, None]
    longest = largest_max_model_len(deployment.pool, available, batched, upper)
    if demand is None:
        shares = [
            np.maximum(blocks - 1, 0) // concurrency * stage.bytes_per_needed_block for stage in deployment.pool.stages
        ]
        longest = np.minimum(longest, largest_max_model_len(deployment.pool, shares, batched, upper))
        requests = whole_requests(deployment.pool, blocks, upper, batched)
    else:
        longest = np.where(blocks - 1 >= demand.needed(concurrency, batched), longest, 0)
        requests = demand.held(blocks, batched)
    needed = np.zeros_like(blocks)
    if ((longest > 0) & ~late & ~heavy).any():
        needed = _device_bytes(deployment, costs, blocks, options.safety_margin)
    over = needed > total
    return Grid(
        deployment=deployment,
        seqs=costs.seqs,
        tokens=costs.tokens,
        utilizations=utilizations,
        lengths=lengths,
        blocks=blocks,
        longest=np.where(late | heavy | over, 0, longest),
        requests=requests,
        needed_device_bytes=needed,
        verdicts=_verdicts(longest, lengths, (late, heavy, over)),
    )


def size_pairs(config: EngineConfig, options: SearchOptions) -> list[tuple[int, int]]:
    """(max_num_seqs, max_num_batched_tokens) to try, none with more sequences than tokens (vLLM refuses those)."""
    seqs = SEQUENCES if "max_num_seqs" not in options.given else (config.max_num_seqs,)
    tokens = BATCHED_TOKENS if "max_num_batched_tokens" not in options.given else (config.max_num_batched_tokens,)
    return [(one, other) for one in seqs for other in tokens if one <= other]


def candidates_of_a_pair(deployment: Deployment, options: SearchOptions) -> int:
    """Utilizations times lengths: the candidates of one pair of sizes."""
    return len(_utilizations(deployment.config, options)) * len(_lengths(deployment, options))


def _utilizations(config: EngineConfig, options: SearchOptions) -> npt.NDArray[np.float64]:
    if "gpu_memory_utilization" in options.given or config.kv_cache_memory_bytes is not None:
        return np.array([config.gpu_memory_utilization])
    return np.array(UTILIZATIONS)


def _lengths(deployment: Deployment, options: SearchOptions) -> Ints:
    config, model = deployment.config, deployment.model
    if "max_model_len" in options.given and config.max_model_len != -1:
        return np.array([config.max_model_len], dtype=np.int64)
    if options.objective == "concurrency":
        least = 1 if options.workload.mix else CONCURRENCY_LENGTH
        wanted = max(options.workload.min_model_len, least)
        return np.array([min(wanted, model.derived_max_model_len)], dtype=np.int64)
    low = min(max(options.workload.min_model_len, 512), model.derived_max_model_len)
    return np.array(ladder(low, model.derived_max_model_len, LENGTH_STEPS, 256), dtype=np.int64)


def _available(costs: Costs, requested: Ints, config: EngineConfig) -> list[Ints]:
    if config.kv_cache_memory_bytes is not None:
        fixed = np.full((len(costs.seqs), len(requested)), config.kv_cache_memory_bytes, dtype=np.int64)
        return [fixed for _ in costs.stages]
    return [requested[None, :] - stage.non_kv[:, None] for stage in costs.stages]


def _device_bytes(deployment: Deployment, costs: Costs, blocks: Ints, margin: float) -> Ints:
    """The most that any stage's rank needs on the device, margin included."""
    worst = np.zeros_like(blocks)
    for stage, pool in zip(costs.stages, deployment.pool.stages, strict=True):
        worst = np.maximum(worst, (stage.beside_cache + stage.encoder)[:, None] + blocks * pool.bytes_per_block)
        worst = np.maximum(worst, stage.profile_peak[:, None])
    needed: Ints = np.ceil(worst * (1.0 + margin)).astype(np.int64)
    return needed


def _verdicts(longest: Ints, lengths: Ints, refusals: tuple[Bools, Bools, Bools]) -> npt.NDArray[np.int8]:
    late, heavy, over = refusals
    result = np.where(lengths[None, None, :] > longest[:, :, None], np.int8(3), np.int8(0))
    for code, mask in ((4, over & (longest > 0)), (2, heavy), (1, late)):
        result[mask] = code
    return result
