"""Which file describes which architecture. Imported on demand: one model needs one family."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module

from planner.errors import UnsupportedError
from planner.model.architectures.blocks import Architecture
from planner.model.config_view import ConfigView

_HOME = "planner.model.architectures"

ARCHITECTURES: dict[str, str] = {
    "LlamaForCausalLM": "llama:llama",
    "LLaMAForCausalLM": "llama:llama",
    "InternLM3ForCausalLM": "llama:llama",
    "CwmForCausalLM": "llama:llama",
    "IQuestCoderForCausalLM": "llama:llama",
    "TeleChat3ForCausalLM": "llama:llama",
    "MistralForCausalLM": "llama:mistral",
    "Ministral3ForCausalLM": "llama:mistral",
    "Phi3ForCausalLM": "llama:phi3",
    "GlmForCausalLM": "llama:glm",
    "Ernie4_5ForCausalLM": "llama:ernie4_5",
    "MiMoForCausalLM": "llama:qwen2",
    "Qwen2ForCausalLM": "llama:qwen2",
    "Qwen3ForCausalLM": "llama:qwen3",
    "GemmaForCausalLM": "gemma:gemma",
    "Gemma2ForCausalLM": "gemma:gemma2",
    "Gemma3ForCausalLM": "gemma:gemma3",
    "Gemma3ForConditionalGeneration": "gemma:gemma3_mm",
    "Qwen2VLForConditionalGeneration": "qwen_vl:qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen_vl:qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen_vl:qwen3_vl",
}
"""vLLM's registry name -> "module:function" under planner.model.architectures."""


def describe(architecture: str) -> Callable[[ConfigView], Architecture]:
    """The function that turns a config into modules. Raises UnsupportedError for an architecture not known here."""
    try:
        module, function = ARCHITECTURES[architecture].split(":")
    except KeyError:
        close = difflib.get_close_matches(architecture, ARCHITECTURES, 1)
        hint = f" (closest known: {close[0]})" if close else ""
        raise UnsupportedError("architecture", f"architecture {architecture} is not supported by this planner{hint}") from None
    found: Callable[[ConfigView], Architecture] = getattr(import_module(f"{_HOME}.{module}"), function)
    return found
