"""The draft model that a --speculative-config names, read like any other model."""

from __future__ import annotations

import json
from collections.abc import Callable

from planner.model.drafts import drafting_method, with_draft
from planner.model.spec import ModelFiles, ModelSpec

_LAID_OUT = ("eagle", "eagle3", "draft_model")
_NO_MODELS = ("ngram", "[ngram]", "ngram_gpu", "suffix", "extract_hidden_states")


def attach_draft(target: ModelSpec, text: str, load: Callable[[str], ModelFiles]) -> ModelSpec:
    """The target with the draft head that `text` names, or as it is where it names none that is laid out here.

    Text that is no JSON object is left to the engine's rules, which refuse it as vLLM does.
    """
    try:
        config = json.loads(text)
    except ValueError:
        return target
    if not isinstance(config, dict):
        return target
    name = config.get("model")
    if not isinstance(name, str) or name in _NO_MODELS or drafting_method(config, None) not in _LAID_OUT:
        return target
    files = load(name)
    method = drafting_method(config, files)
    return with_draft(target, files, method) if method in _LAID_OUT else target
