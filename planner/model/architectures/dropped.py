"""Architectures that vLLM 0.26.0 no longer has, and the last release that had them.

Source: vLLM 0.26.0 model_executor/models/registry.py _PREVIOUSLY_SUPPORTED_MODELS, _raise_for_unsupported.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture
from planner.model.config_view import ConfigView
from planner.values import reject

LAST_RELEASE = {
    "MotifForCausalLM": "0.10.2",
    "Phi3SmallForCausalLM": "0.9.2",
    "Phi4FlashForCausalLM": "0.10.2",
    "JAISLMHeadModel": "0.22.0",
    "InternLM2VEForCausalLM": "0.23.0",
    "QWenLMHeadModel": "0.23.0",
    "QwenVLForConditionalGeneration": "0.23.0",
    "InternLMForCausalLM": "0.23.0",
    "DonutForConditionalGeneration": "0.10.2",
    "XverseForCausalLM": "0.23.0",
    "MiniMaxText01ForCausalLM": "0.23.0",
    "MiniMaxM1ForCausalLM": "0.23.0",
    "MiniMaxVL01ForConditionalGeneration": "0.23.0",
    "BaiChuanForCausalLM": "0.23.0",
    "BaichuanForCausalLM": "0.23.0",
    "AquilaModel": "0.24.0",
    "AquilaForCausalLM": "0.24.0",
    "Grok1ModelForCausalLM": "0.24.0",
    "Grok1ForCausalLM": "0.24.0",
    "TarsierForConditionalGeneration": "0.24.0",
    "Tarsier2ForConditionalGeneration": "0.23.0",
    "MantisForConditionalGeneration": "0.24.0",
    "TeleChatForCausalLM": "0.25.0",
}


def dropped(config: ConfigView) -> Architecture:
    """Raises: Rejected with the sentence that vLLM prints for the architecture."""
    name = config.strings("architectures")[0]
    raise reject(
        "flag",
        f"Model architecture {name} was supported in vLLM until v{LAST_RELEASE[name]}, and is not supported anymore. "
        "Please use an older version of vLLM if you want to use this model architecture.",
    )
