"""The checkpoint's own size against the predicted parameters: a second witness for the weights."""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.model.spec import ModelSpec
from planner.sharding.shard import shard
from planner.units import format_gib
from planner.values import Rejected

TOLERANCE = 0.02


def checkpoint_warning(model: ModelSpec, config: EngineConfig) -> str | None:
    """A warning when the files' tensors and the predicted parameters of the whole model differ by more than 2 %.

    Towers that the limits drop count as well, since the files hold them. None where the checkpoint's size is not
    known, or where vLLM would not build the model on one GPU.
    """
    if model.checkpoint_bytes is None:
        return None
    whole = config.model_copy(
        update={
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1,
            "data_parallel_size": 1,
            "enable_expert_parallel": False,
            "mm_limits": (),
            "language_model_only": False,
        }
    )
    try:
        predicted = shard(model, whole).parameter_bytes
    except Rejected:
        return None
    difference = predicted - model.checkpoint_bytes
    if abs(difference) <= TOLERANCE * model.checkpoint_bytes:
        return None
    return (
        f"the checkpoint's files hold {format_gib(model.checkpoint_bytes)}, but {format_gib(predicted)} of parameters "
        f"are predicted ({100 * difference / model.checkpoint_bytes:+.1f} %): tied or unloaded tensors, another dtype, "
        "or a config that is not this checkpoint's"
    )
