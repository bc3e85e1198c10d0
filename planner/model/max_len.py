"""The longest sequence that vLLM derives from a config, and which key said so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import InputError
from planner.model.config_view import ConfigView

ASSUMED_LENGTH = 2048
_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
_UNSCALED_ROPE = ("longrope", "llama3")


def derive_max_model_len(text: Mapping[str, Any], model_type: str | None = None) -> tuple[int, str]:
    """Length in tokens and the config key it came from ("" where no key says: then vLLM assumes 2,048 and takes any
    length that the user asks for).

    `text` is the language model's section. The smallest of the length keys counts, except that model_max_length
    wins over all; a rope scaling factor multiplies it, from the original length for yarn; gemma-3 states its scaled
    length already. Source: vLLM 0.26.0 config/model.py:2152 _get_and_verify_max_len,
    transformers_utils/model_arch_config_convertor.py derive_max_model_len_and_key.
    """
    config = ConfigView(text, model_type=model_type)
    return int(_scaled_length(config)), _stated_length(config)[1]


def printed_max_model_len(text: Mapping[str, Any], model_type: str | None = None) -> str:
    """The derived length as vLLM's refusals print it: a float, unless yarn scales by a whole factor."""
    return str(_scaled_length(ConfigView(text, model_type=model_type)))


def default_max_model_len(text: Mapping[str, Any], model_type: str | None = None) -> int:
    """What vLLM serves when the user names no length: the derived one, but a longrope model's original length."""
    config = ConfigView(text, model_type=model_type)
    derived = derive_max_model_len(text, model_type)[0]
    if any(rope_type(one) == "longrope" for one in _rope_sets(config)):
        original = config.raw("original_max_position_embeddings")
        return derived if original is None else _whole(original, "original_max_position_embeddings")
    return derived


def rope_type(parameters: Mapping[str, Any]) -> str:
    """The kind of scaling in today's name (legacy key "type", legacy names "su" and "mrope")."""
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    return {"su": "longrope", "mrope": "default"}.get(kind, kind)


def _scaled_length(config: ConfigView) -> float:
    length: float = float(_stated_length(config)[0] or ASSUMED_LENGTH)
    parameters = _rope_sets(config)
    if "gemma3" in config.model_type:
        return length
    factor: float = 1.0
    for one in parameters:
        kind = rope_type(one)
        if kind in _UNSCALED_ROPE:
            continue
        factor = _number(one.get("factor", factor), "rope factor")
        if kind == "yarn":
            length = _whole(one.get("original_max_position_embeddings", length), "original_max_position_embeddings")
    return length * factor


def _stated_length(config: ConfigView) -> tuple[int | None, str]:
    length: int | None = None
    source = ""
    for key in _KEYS:
        value = config.raw(key)
        if value is None:
            continue
        number = _whole(value, key)
        if length is None or number < length:
            length, source = number, key
    limit = config.raw("model_max_length")
    if limit:
        return _whole(limit, "model_max_length"), "model_max_length"
    return length, source


def _rope_sets(config: ConfigView) -> tuple[Mapping[str, Any], ...]:
    """The scaling dictionaries: one, or one for each kind of layer."""
    given = config.raw("rope_parameters") or config.raw("rope_scaling")
    if not isinstance(given, Mapping) or not given:
        return ()
    nested = tuple(value for value in given.values() if isinstance(value, Mapping))
    return nested if nested and len(nested) == len(given) else (given,)


def _number(value: Any, key: str) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise InputError(f"config.json: {key} must be a positive number, found {value!r}")
    return value


def _whole(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1:
        raise InputError(f"config.json: {key} must be a positive whole number, found {value!r}")
    return int(value)
