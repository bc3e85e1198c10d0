"""The per-request state of a recurrent layer on one rank."""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.model.modules import State, StateSpace
from planner.sharding.rank import LayerKVSpec
from planner.values import DType, reject


def mamba_spec(module: StateSpace, config: EngineConfig) -> LayerKVSpec:
    """State shapes and dtypes of one request on one rank.

    Raises Rejected where vLLM asserts that heads, groups or the convolution cannot be divided. Source: vLLM 0.26.0
    model_executor/layers/mamba/mamba_utils.py MambaStateShapeCalculator, mamba_mixer2.py:291,
    layers/mamba/abstract.py:45 get_kv_cache_spec.
    """
    _check_split(module, config.tensor_parallel_size)
    return LayerKVSpec(
        layer_name=module.name,
        kind="mamba",
        mamba_kind=module.kind,
        state_shapes=tuple(_rank_shape(state, module, config) for state in module.states),
        state_dtypes=tuple(_dtype(state, config) for state in module.states),
        num_speculative_blocks=config.num_speculative_tokens,
        chunk_size=module.chunk_size,
    )


def _check_split(module: StateSpace, tp: int) -> None:
    if module.num_groups == 0:
        return
    if module.num_heads % tp:
        raise reject("heads_divisibility", "Tensor parallel world size must divide num heads.")
    if module.num_groups % tp and module.num_groups != 1:
        raise reject(
            "heads_divisibility",
            "If tensor parallel world size does not divide num_groups, then num_groups must equal 1.",
        )


def _rank_shape(state: State, module: StateSpace, config: EngineConfig) -> tuple[int, ...]:
    """Divides the sharded dimension, counting a single group once for each rank, and adds the rows for drafts."""
    tp = config.tensor_parallel_size
    groups = module.num_groups if module.num_groups % tp == 0 else tp
    total = state.shape[state.shard_dim] + groups * state.group_size
    if total % tp:
        raise reject("heads_divisibility", f"{total} is not divisible by {tp}")
    shape = list(state.shape)
    shape[state.shard_dim] = total // tp
    if state.row_per_draft:
        shape[0] += config.num_speculative_tokens
    return tuple(shape)


def _dtype(state: State, config: EngineConfig) -> DType:
    if state.dtype is not None:
        return state.dtype
    return config.conv_state_dtype if state.role == "conv" else config.ssm_state_dtype
