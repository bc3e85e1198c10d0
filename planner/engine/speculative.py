"""--speculative-config as far as memory depends on it."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

from planner.engine.args import EngineArgs
from planner.errors import UnsupportedError
from planner.model.spec import ModelSpec
from planner.values import reject

_EAGLE_LIKE = ("eagle", "eagle3", "extract_hidden_states", "mtp", "dflash")
_METHODS = (
    *_EAGLE_LIKE,
    "ngram",
    "ngram_gpu",
    "medusa",
    "mlp_speculator",
    "draft_model",
    "suffix",
    "custom_class",
    "dspark",
)
_WITHOUT_WEIGHTS = ("ngram", "suffix")
_SUFFIX_TREE_DEPTH = 24
_WITH_MODEL = ("eagle", "eagle3", "draft_model", "mtp")
_KNOWN_KEYS = frozenset(
    {
        "method",
        "model",
        "num_speculative_tokens",
        "draft_tensor_parallel_size",
        "draft_sample_method",
        "rejection_sample_method",
        "revision",
        "code_revision",
    }
)
_KNOWN_VALUES = {"draft_sample_method": ("greedy",), "rejection_sample_method": ("standard", "block")}


class Speculation(Struct, frozen=True, kw_only=True):
    """`slots_per_request`: extra tokens of a step that drafting adds for each request."""

    method: str | None = None
    num_speculative_tokens: int = 0

    @property
    def allows_async(self) -> bool:
        """Whether asynchronous scheduling stays on. Source: vLLM 0.26.0 config/vllm.py:1085."""
        return self.method is None or self.method in (*_EAGLE_LIKE, "ngram_gpu", "dspark")

    @property
    def has_weights(self) -> bool:
        """Whether what drafts has weights of its own."""
        return self.method in _WITH_MODEL


def resolve_speculation(args: EngineArgs, model: ModelSpec) -> Speculation:
    """Method and draft length. Raises Rejected for what vLLM refuses, UnsupportedError for drafts whose weights this
    planner does not lay out. Source: vLLM 0.26.0 config/speculative.py:660, 1224."""
    if args.speculative_config is None:
        return Speculation()
    from planner.model.drafts import drafting_method

    config = _parsed(args.speculative_config)
    method = model.draft.method if model.draft is not None else drafting_method(config, None)
    if method not in _METHODS:
        raise reject("flag", f"argument --speculative-config: method {method!r} is not one of {', '.join(_METHODS)}")
    if method in _WITH_MODEL and model.draft is not None:
        _refuse_draft(config, args, model, method)
    elif method not in _WITHOUT_WEIGHTS:
        raise UnsupportedError(
            "speculative_config", f"speculative decoding by {method} is not supported by this planner"
        )
    if method == "ngram":
        _refuse_lookup(config)
    count = config.get("num_speculative_tokens")
    if count is None and method == "suffix":
        count = config.get("suffix_decoding_max_tree_depth", _SUFFIX_TREE_DEPTH)
    if method == "mtp" and model.draft is not None:
        count = _predicted(config, count, model.draft.layers)
    if count is None and method in _WITH_MODEL and method != "mtp":
        raise reject("flag", "A speculative model was provided, but `num_speculative_tokens` was not provided")
    if count is None:
        raise reject(
            "flag",
            "num_speculative_tokens must be provided with speculative model unless the draft model config contains an "
            "n_predict parameter.",
        )
    if isinstance(count, bool) or not isinstance(count, int) or count <= 0:
        raise reject("flag", f"Expected num_speculative_tokens to be greater than zero ({count}).")
    return Speculation(method=method, num_speculative_tokens=count)


def _predicted(config: dict[str, Any], count: Any, layers: int) -> Any:
    """Tokens that predictors draft: as many as there are where the model is named and they are not. Source: vLLM 0.26.0
    config/speculative.py:682, 964."""
    if count is None and config.get("model") is not None:
        return layers
    if isinstance(count, int) and count > layers and count % layers:
        raise reject("flag", f"num_speculative_tokens:{count} must be divisible by n_predict={layers}")
    return count


def _refuse_lookup(config: dict[str, Any]) -> None:
    """Source: vLLM 0.26.0 config/speculative.py:736."""
    low, high = config.get("prompt_lookup_min"), config.get("prompt_lookup_max")
    if isinstance(low, int) and isinstance(high, int) and low > high:
        raise reject("flag", f"prompt_lookup_min={low} must be <= prompt_lookup_max={high}")


def _refuse_draft(config: dict[str, Any], args: EngineArgs, model: ModelSpec, method: str) -> None:
    """What else is asked of a draft: only what is known to leave memory alone, a target that it can read, one stage."""
    from planner.model.drafts import TAKES_EAGLE3

    part = "speculative_config"
    for key, value in config.items():
        if key not in _KNOWN_KEYS or value not in (None, *_KNOWN_VALUES.get(key, (value,))):
            raise UnsupportedError(part, f"--speculative-config with {key} = {value} is not supported by this planner")
    size, tp = config.get("draft_tensor_parallel_size"), args.tensor_parallel_size
    if size not in (None, 1, tp):
        raise reject(
            "flag",
            f"speculative_draft_tensor_parallel_size={size} cannot be other value than 1 or target model "
            "tensor_parallel_size",
        )
    if size not in (None, tp) and method == "draft_model":
        raise reject(
            "flag",
            "Currently, 'draft_tensor_parallel_size' and 'tensor_parallel_size' must be the same. "
            f"Got {size} and {tp}. Please pass 'draft_tensor_parallel_size' in the speculative_config.",
        )
    if size not in (None, tp):
        raise UnsupportedError(part, "a draft model on fewer GPUs than its target is not supported by this planner")
    if method == "eagle3" and model.architecture not in TAKES_EAGLE3:
        raise UnsupportedError(part, f"EAGLE-3 drafting for {model.architecture} is not supported by this planner")
    if args.pipeline_parallel_size > 1:
        raise UnsupportedError(part, "a draft model beside pipeline parallelism is not supported by this planner")
    if method == "mtp" and args.kv_cache_dtype.startswith("turboquant"):
        raise UnsupportedError(part, "drafting by mtp with a turboquant cache is not supported by this planner")
    if model.is_multimodal and method != "mtp":
        raise UnsupportedError(part, "a draft model for a multimodal target is not supported by this planner")


def _parsed(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise reject("flag", f"argument --speculative-config: Value {text} cannot be converted to <function loads>.")
    return {str(key).replace("-", "_"): value for key, value in config.items()}
