"""--max-model-len against what the model was made for. Source: vLLM 0.26.0 config/model.py:2240."""

from __future__ import annotations

from planner.engine.args import EngineArgs
from planner.errors import InputError
from planner.model.spec import ModelSpec
from planner.values import reject

AUTO = -1


def resolve_max_model_len(args: EngineArgs, model: ModelSpec) -> tuple[int, tuple[str, ...]]:
    """The length in tokens and warnings; -1 stays -1: it is fitted to memory later.

    Raises Rejected with vLLM's sentence for a length beyond the model's, InputError for one below 1.
    """
    wanted = args.max_model_len
    if wanted == AUTO:
        return AUTO, ()
    if wanted is None:
        return default_length(model), ()
    if wanted < 1:
        raise InputError(f"--max-model-len must be at least 1, or -1 to fit it to memory; found {wanted}")
    limit = max(model.derived_max_model_len, model.facts.model_max_length or 0)
    if wanted <= limit or not model.max_model_len_source:
        return wanted, ()
    derived = model.facts.printed_max_model_len or str(model.derived_max_model_len)
    sentence = (
        f"User-specified max_model_len ({wanted}) is greater than the derived max_model_len "
        f"({model.max_model_len_source}={derived} or model_max_length={model.facts.model_max_length} in "
        "model's config.json)."
    )
    caution = (
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN must be used with extreme caution. If the model uses relative position encoding "
        "(RoPE), positions exceeding derived_max_model_len lead to nan. If the model uses absolute position encoding, "
        "positions exceeding derived_max_model_len will cause a CUDA array out-of-bounds error."
    )
    if dict(args.env).get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") not in ("0", ""):
        return wanted, (f"{sentence} {caution}",)
    raise reject(
        "max_model_len",
        f"{sentence} To allow overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. {caution}",
        fix=(f"--max-model-len {limit}",),
    )


def default_length(model: ModelSpec) -> int:
    """The length served when the user names none, also the basis of defaults while it is still to be fitted."""
    return model.facts.default_max_model_len or model.derived_max_model_len
