"""The parallel layouts a pool of cards allows, and one deployment for each layout and cache dtype."""

from __future__ import annotations

from msgspec import Struct

from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.hardware.spec import GpuPool
from planner.memory.assess import Deployment, deploy
from planner.model.spec import ModelSpec
from planner.search.media import pixel_bounds
from planner.search.space import SearchOptions
from planner.values import Rejected, Rejection

BLOCK_SIZES = (32, 64, 128)
"""Tokens in a cache block to try beside vLLM's own choice."""


_DEPTHS = 8


class Layout(Struct, frozen=True):
    """A layout that vLLM accepts (deployment) or refuses (rejection). `args` has the sizes at vLLM's defaults."""

    args: EngineArgs
    deployment: Deployment | None
    rejection: Rejection | None


def tensor_parallel_sizes(gpus: GpuPool, options: SearchOptions) -> tuple[int, ...]:
    """Powers of two up to the cards of one node, and the node's own count."""
    if "tensor_parallel_size" in options.given:
        return (options.args.tensor_parallel_size,)
    powers = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= gpus.count]
    return tuple(sorted({*powers, gpus.count}))


def pipeline_parallel_sizes(gpus: GpuPool, tensor_parallel_size: int, model: ModelSpec) -> tuple[int, ...]:
    """Stages beyond one that fit the pool and leave each at least one layer: all up to _DEPTHS (a stage count that fits
    fewer cards is among those of more cards), and of deeper ones those that use every card."""
    room = min(gpus.world_size // tensor_parallel_size, model.text.num_hidden_layers)
    return tuple(stages for stages in range(2, room + 1) if stages <= _DEPTHS or room % stages == 0 or stages == room)


def data_parallel_sizes(
    gpus: GpuPool, options: SearchOptions, model: ModelSpec, tensor_parallel_size: int, stages: int
) -> tuple[int, ...]:
    """Replicas of an engine: as many as the cards hold, where the user left the layout open; whole ones on each node.

    Engines of a dense model are independent of each other (vLLM 0.26.0 v1/engine/core.py:1288). Those of a mixture of
    experts split the experts between them: replicas of those are tried where the search is told to.
    """
    ranks = tensor_parallel_size * stages
    if "data_parallel_size" in options.given:
        return (options.args.data_parallel_size,)
    nodes = -(-ranks // gpus.count)
    most = gpus.count // ranks * gpus.nodes if nodes == 1 else gpus.nodes // nodes
    if "data-parallel" in options.vary and most > 1:
        return tuple(size for size in range(1, most + 1) if most % size == 0)
    if model.is_moe or most < 2 or "tensor_parallel_size" in options.given or "pipeline_parallel_size" in options.given:
        return (1,)
    return (most,)


def engine_updates(model: ModelSpec, options: SearchOptions) -> tuple[dict[str, object], ...]:
    """Changes to the user's flags that `options.vary` asks to try, the unchanged flags first."""
    found: list[dict[str, object]] = [{}]
    for axis, field, values in (
        ("eager", "enforce_eager", (True,)),
        ("expert-parallel", "enable_expert_parallel", (True,) if model.is_moe else ()),
        ("block-size", "block_size", BLOCK_SIZES),
        ("pixels", "mm_processor_kwargs", pixel_bounds(model, options)),
    ):
        if axis in options.vary and field not in options.given:
            found += [{**update, field: value} for update in found for value in values]
    return tuple(found)


def layout(
    model: ModelSpec, gpus: GpuPool, args: EngineArgs, vllm_version: str, like: Deployment | None = None
) -> Layout:
    """The layout of these flags, with vLLM's refusal in place of a deployment where it refuses.

    `like`: see planner.memory.assess.deploy.
    """
    try:
        config = resolve(model, gpus.gpu, args, vllm_version)
        return Layout(args, deploy(model, gpus, config, like), None)
    except Rejected as refused:
        return Layout(args, None, refused.rejection)


def cache_dtypes(options: SearchOptions) -> tuple[str, ...]:
    """The user's, else the model's own and then FP8."""
    if "kv_cache_dtype" in options.given:
        return (options.args.kv_cache_dtype,)
    return ("auto", "fp8")
