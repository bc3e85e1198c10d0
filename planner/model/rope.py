"""Rotary position tables: one buffer for each distinct get_rope call (vLLM rotary_embedding/__init__.py:30)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import InputError, UnsupportedError
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Placement
from planner.values import DType

_SAME_LENGTH = {"default", "llama3", "dynamic", "ntk", "proportional", "xdrope", "mllama4"}
_ORIGINAL_TIMES_FACTOR = {"yarn", "deepseek_yarn", "deepseek_llama_scaling"}


def rope_parameters(config: ConfigView, layer_type: str | None = None) -> dict[str, Any]:
    """The one dictionary that transformers 5 makes of rope_scaling, rope_theta and rope_parameters.

    Legacy "type" becomes "rope_type", "su" "longrope", "mrope" "default" (vLLM patch_legacy_rope_type). With
    `layer_type` the entry of that attention type is chosen where the config has one per type.
    """
    given = config.raw("rope_parameters") or config.raw("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise InputError(f"{config.where}: rope_scaling must be an object")
    if layer_type is not None and isinstance(given.get(layer_type), Mapping):
        given = given[layer_type]
    result = dict(given)
    kind = result.get("rope_type", result.pop("type", None) or "default")
    if not isinstance(kind, str):
        raise InputError(f"{config.where}: the rope_type must be text, found {kind!r:.60}")
    kind = {"su": "longrope", "mrope": "default"}.get(kind, kind)
    result.pop("type", None)
    result["rope_type"] = kind
    for key in ("rope_theta", "partial_rotary_factor"):
        if key not in result and config.raw(key) is not None:
            result[key] = config.raw(key)
    if kind in _ORIGINAL_TIMES_FACTOR | {"longrope", "llama3"} and "original_max_position_embeddings" not in result:
        result["original_max_position_embeddings"] = config.raw("original_max_position_embeddings") or config.raw(
            "max_position_embeddings"
        )
    return result


def rotary_rows(parameters: Mapping[str, Any], max_position: int) -> int:
    """Rows of the cos/sin table for a get_rope call with `max_position`. Source: vLLM 0.26.0 rotary_embedding/*.py."""
    kind = parameters.get("rope_type", "default")
    factor = _number(parameters, "factor", 1.0)
    if kind in _ORIGINAL_TIMES_FACTOR:
        original = int(_number(parameters, "original_max_position_embeddings"))
        if "mrope_section" in parameters:
            return int(original * 4 * factor)
        return int(original * factor)
    if kind == "linear":
        return int(max_position * factor)
    if kind == "longrope":
        return int(_number(parameters, "original_max_position_embeddings")) + max_position
    if kind in _SAME_LENGTH:
        if kind == "dynamic" and "alpha" not in parameters:
            return max_position
        return max_position * 4 if "mrope_section" in parameters else max_position
    raise UnsupportedError("rope_scaling", f"rope type {kind!r} is not supported by this planner")


def _number(parameters: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive, finite number of the rope section, far below what no table could hold."""
    value = parameters.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1 << 40:
        raise InputError(f"config.json: {key} of the rope section must be a number above 0, found {value!r:.60}")
    return value


def rotary_cache(
    name: str,
    head_size: int,
    max_position: int,
    parameters: Mapping[str, Any],
    *,
    dtype: DType | None = None,
    placement: int | Placement = "every",
    rotary_dim: int | None = None,
    interleaved: bool = False,
) -> Buffer:
    """The table of one attention layer: [rows, rotary_dim] in the model's dtype unless `dtype` says otherwise.

    Layers whose call has the same arguments share one allocation.
    """
    if rotary_dim is None and parameters.get("rope_type") == "proportional":
        rotary_dim = head_size  # the entries that do not rotate are in the table too (gemma4_rope.py:46)
    if rotary_dim is None:
        share = _number(parameters, "partial_rotary_factor", 1.0)
        rotary_dim = int(_number(parameters, "rope_dim") if parameters.get("rope_dim") else head_size * share)
    rows = rotary_rows(parameters, max_position)
    key = repr(
        (head_size, rotary_dim, max_position, interleaved, sorted((k, str(v)) for k, v in parameters.items()), dtype)
    )
    return Buffer(
        name=f"{name}.cos_sin_cache", placement=placement, shape=(rows, rotary_dim), dtype=dtype, shared_key=key
    )
