"""The language model inside a multimodal model, chosen as vLLM chooses it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import cast

from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.architectures.blocks import Architecture
from planner.model.architectures.vision_blocks import NO_ARCHITECTURE
from planner.model.config_view import ConfigView
from planner.model.registry import describe
from planner.values import reject

CAUSAL_LM = {
    "apertus": "ApertusForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "granite": "GraniteForCausalLM",
    "hyperclovax": "HyperCLOVAXForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "ministral": "MinistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "opt": "OPTForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""transformers 5.14.1 MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, the part that vision models use: vLLM asks it where the text
section has no `architectures` (config/vllm.py:725)."""


def language_model(text: ConfigView, prefix: str = "language_model.") -> Architecture:
    """The model that the text section names, its modules under `prefix`.

    Raises: Rejected where vLLM finds no class for the section, UnsupportedError for a class not known here.
    """
    architectures = text.strings("architectures")
    name = architectures[0] if architectures else CAUSAL_LM.get(text.model_type)
    if name is None:
        raise reject("flag", NO_ARCHITECTURE)
    function = describe(name)
    if "prefix" not in inspect.signature(function).parameters:
        raise UnsupportedError("text_config", f"{name} inside a multimodal model is not supported by this planner")
    built = cast(Callable[[ConfigView, str], Architecture], function)(text, prefix)
    return replace(built, language_class=name)
