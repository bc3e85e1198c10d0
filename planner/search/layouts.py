"""The parallel layouts a pool of cards allows, and one deployment for each layout and cache dtype."""

from __future__ import annotations

from msgspec import Struct

from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.hardware.spec import GpuPool
from planner.memory.assess import Deployment, deploy
from planner.model.spec import ModelSpec
from planner.search.space import SearchOptions
from planner.values import Rejected, Rejection


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
    """Stages beyond one that fit the pool and leave each at least one layer."""
    room = min(gpus.world_size // tensor_parallel_size, model.text.num_hidden_layers)
    return tuple(stages for stages in range(2, room + 1) if room % stages == 0 or stages == room)


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
