"""Which decoder layers and which modules a pipeline stage holds."""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.errors import InputError
from planner.model.modules import LMHead, Module


def partition(num_layers: int, stages: int, override: str = "") -> tuple[int, ...]:
    """Layers of each stage. A remainder goes one each to the stages before the last, counted backwards.

    `override` is VLLM_PP_LAYER_PARTITION ("20,12"). Source: vLLM 0.26.0 distributed/utils.py:127 get_pp_indices.
    """
    if override:
        try:
            sizes = tuple(int(part) for part in override.split(","))
        except ValueError:
            raise InputError(f"VLLM_PP_LAYER_PARTITION: not a list of whole numbers: {override!r}") from None
        if len(sizes) != stages or sum(sizes) != num_layers:
            raise InputError(f"VLLM_PP_LAYER_PARTITION={override}: need {stages} numbers that add up to {num_layers}")
        return sizes
    sizes_list = [num_layers // stages] * stages
    for back in range(2, num_layers % stages + 2):
        sizes_list[-back] += 1
    return tuple(sizes_list)


def layer_range(num_layers: int, pp_rank: int, config: EngineConfig) -> range:
    sizes = partition(num_layers, config.pipeline_parallel_size, config.environment("VLLM_PP_LAYER_PARTITION", ""))
    start = sum(sizes[:pp_rank])
    return range(start, start + sizes[pp_rank])


def is_on_stage(module: Module, pp_rank: int, stages: int, layers: range) -> bool:
    """Whether the stage builds the module. A tied head sits on the last stage (as a copy when stages > 1)."""
    placement = module.placement
    if isinstance(placement, int):
        return placement in layers
    if isinstance(module, LMHead) and placement != "every":
        return pp_rank == stages - 1
    if placement == "every":
        return True
    return pp_rank == (0 if placement == "first" else stages - 1)
