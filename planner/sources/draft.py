"""The draft model that a --speculative-config names, read like any other model, or the target's own predictors."""

from __future__ import annotations

import json
from collections.abc import Callable

from planner.errors import UnsupportedError
from planner.model.drafts import drafting_method, with_draft
from planner.model.spec import ModelFiles, ModelSpec

_LAID_OUT = ("eagle", "eagle3", "draft_model")
_NO_MODELS = ("ngram", "[ngram]", "ngram_gpu", "suffix", "extract_hidden_states")


def attach_draft(target: ModelSpec, own: ModelFiles, text: str, load: Callable[[str], ModelFiles]) -> ModelSpec:
    """The target, of files `own`, with what `text` lets draft, or as it is where that is not laid out here.

    Text that is no JSON object is left to the engine's rules, which refuse it as vLLM does.
    """
    try:
        config = json.loads(text)
    except ValueError:
        return target
    if not isinstance(config, dict):
        return target
    name = config.get("model")
    if drafting_method(config, None) == "mtp":
        return _with_predictors(target, own, name, load)
    if not isinstance(name, str) or name in _NO_MODELS or drafting_method(config, None) not in _LAID_OUT:
        return target
    files = load(name)
    method = drafting_method(config, files)
    return with_draft(target, files, method) if method in _LAID_OUT else target


def _with_predictors(target: ModelSpec, own: ModelFiles, name: object, load: Callable[[str], ModelFiles]) -> ModelSpec:
    from planner.model.mtp import with_predictors

    if name is not None and not (isinstance(name, str) and load(name).config == own.config):
        raise UnsupportedError(
            "speculative_config", "drafting by mtp of another model is not supported by this planner"
        )
    return with_predictors(target, own)
