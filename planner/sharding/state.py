"""The per-request state of a recurrent layer on one rank."""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.model.modules import StateSpace
from planner.sharding.rank import LayerKVSpec


def mamba_spec(module: StateSpace, config: EngineConfig) -> LayerKVSpec:
    """State shapes of one request on one rank."""
    raise UnsupportedError("state-space layers", f"recurrent layers ({module.kind}) are not supported by this planner yet")
