"""Multimodal flags: items per prompt, and where the encoder's weights live."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from msgspec import Struct

from planner.engine.args import EngineArgs
from planner.model.spec import ModelSpec
from planner.values import reject

DEFAULT_LIMIT = 999
_OPTIONS = {
    "image": ("count", "width", "height"),
    "video": ("count", "num_frames", "width", "height"),
    "audio": ("count", "length"),
}
_OLD_SYNTAX = re.compile(r"\w+=[0-9]+(?:,\w+=[0-9]+)*")


class MediaLimits(Struct, frozen=True, kw_only=True):
    """`limits`: items per prompt of each modality the model has. `options`: the sizes given beside a count."""

    limits: tuple[tuple[str, int], ...] = ()
    options: tuple[tuple[str, str, int], ...] = ()


def resolve_media(args: EngineArgs, model: ModelSpec) -> MediaLimits:
    """Raises Rejected for a --limit-mm-per-prompt that vLLM refuses; the old `image=5` form gets its JSON as a fix.

    A modality that is not named has a limit of 999. Source: vLLM 0.26.0 config/multimodal.py:15-60, 190, 330.
    """
    given = _parsed(args.limit_mm_per_prompt)
    limits: dict[str, int] = {}
    options: list[tuple[str, str, int]] = []
    for modality, value in given.items():
        entry = {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value
        limits[modality] = _checked(modality, entry)
        options += [
            (modality, name, number) for name, number in entry.items() if name != "count" and number is not None
        ]
    if model.vision is None:
        return MediaLimits()
    if args.language_model_only:
        return MediaLimits(limits=tuple((modality, 0) for modality in model.vision.modalities))
    counted = tuple((modality, limits.get(modality, DEFAULT_LIMIT)) for modality in model.vision.modalities)
    return MediaLimits(limits=counted, options=tuple(options))


def resolve_encoder_mode(args: EngineArgs, model: ModelSpec) -> tuple[Literal["weights", "data"], tuple[str, ...]]:
    """`data` falls back to `weights` for classes without it. Source: vLLM 0.26.0 config/model.py:700."""
    if args.mm_encoder_tp_mode == "data" and model.vision and not model.supports_encoder_tp_data:
        warning = (
            "This model does not support `--mm-encoder-tp-mode data`. Falling back to `--mm-encoder-tp-mode weights`."
        )
        return "weights", (warning,)
    return args.mm_encoder_tp_mode, ()


def _parsed(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if isinstance(given, dict):
        return given
    fix: tuple[str, ...] = ()
    if _OLD_SYNTAX.fullmatch(text.strip()):
        counts = (pair.split("=") for pair in text.strip().split(","))
        fix = (f"--limit-mm-per-prompt '{json.dumps({modality: int(count) for modality, count in counts})}'",)
    sentence = f"argument --limit-mm-per-prompt: Value {text} cannot be converted to <function loads>."
    raise reject("flag", sentence, fix=fix)


def _checked(modality: str, entry: Any) -> int:
    allowed = _OPTIONS.get(modality, ("count",))
    if not isinstance(entry, dict) or not set(entry) <= set(allowed):
        raise reject("flag", f"--limit-mm-per-prompt: {modality} takes a count or an object of {', '.join(allowed)}")
    for name, number in entry.items():
        least = 0 if name == "count" else 1
        if number is None and name != "count":
            continue
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise reject("flag", f"--limit-mm-per-prompt: {modality}.{name} must be a whole number of at least {least}")
    return int(entry.get("count", DEFAULT_LIMIT))
