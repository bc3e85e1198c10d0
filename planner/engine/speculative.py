"""--speculative-config as far as memory depends on it."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

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


class Speculation(Struct, frozen=True, kw_only=True):
    """`slots_per_request`: extra tokens of a step that drafting adds for each request."""

    method: str | None = None
    num_speculative_tokens: int = 0

    @property
    def allows_async(self) -> bool:
        """Whether asynchronous scheduling stays on. Source: vLLM 0.26.0 config/vllm.py:1085."""
        return self.method is None or self.method in (*_EAGLE_LIKE, "ngram_gpu", "dspark")


def resolve_speculation(text: str | None, model: ModelSpec) -> Speculation:
    """Method and draft length. Raises Rejected for what vLLM refuses, UnsupportedError for drafts whose weights this
    planner does not lay out. Source: vLLM 0.26.0 config/speculative.py:660, 1224."""
    if text is None:
        return Speculation()
    config = _parsed(text)
    name = config.get("model")
    method = config.get("method") or ("ngram" if name in ("ngram", "[ngram]") else "draft_model")
    method = "mtp" if isinstance(method, str) and method.endswith("_mtp") else method
    if method not in _METHODS:
        raise reject("flag", f"argument --speculative-config: method {method!r} is not one of {', '.join(_METHODS)}")
    drafts = any(module.component == "draft_model" for module in model.modules)
    if method not in _WITHOUT_WEIGHTS and not (method == "mtp" and drafts):
        raise UnsupportedError(
            "speculative_config", f"speculative decoding by {method} is not supported by this planner"
        )
    count = config.get("num_speculative_tokens")
    if count is None:
        raise reject(
            "flag",
            "num_speculative_tokens must be provided with speculative model unless the draft model config contains an "
            "n_predict parameter.",
        )
    if isinstance(count, bool) or not isinstance(count, int) or count <= 0:
        raise reject("flag", f"Expected num_speculative_tokens to be greater than zero ({count}).")
    return Speculation(method=method, num_speculative_tokens=count)


def _parsed(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise reject("flag", f"argument --speculative-config: Value {text} cannot be converted to <function loads>.")
    return {str(key).replace("-", "_"): value for key, value in config.items()}
