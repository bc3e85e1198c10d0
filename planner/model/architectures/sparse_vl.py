"""Multimodal models whose language model is sparse: Qwen3-VL MoE, Llama 4, Kimi-VL and Kimi-K2.5.

Source: vLLM 0.26.0 model_executor/models/qwen3_vl_moe.py, mllama4.py, kimi_vl.py, kimi_k25.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture
from planner.model.architectures.llama4_vision import with_llama4_tower
from planner.model.architectures.moonvit import with_kimi_k25_tower, with_kimi_vl_tower
from planner.model.architectures.qwen_vl import with_qwen3_tower
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import text_view
from planner.model.config_view import ConfigView


def qwen3_vl_moe(config: ConfigView) -> Architecture:
    """Qwen3VLMoeForConditionalGeneration."""
    text = _as("Qwen3MoeForCausalLM", text_view(config, "qwen3_vl_moe_text"))
    return with_qwen3_tower(config, text, family="Qwen3VL", vision_type="qwen3_vl_moe_vision")


def llama4_mm(config: ConfigView) -> Architecture:
    """Llama4ForConditionalGeneration."""
    return with_llama4_tower(config, _as("Llama4ForCausalLM", text_view(config, "llama4_text")))


def kimi_vl(config: ConfigView) -> Architecture:
    """KimiVLForConditionalGeneration."""
    return with_kimi_vl_tower(config, _as("DeepseekV2ForCausalLM", _stated(config, "deepseek_v2")))


def kimi_k25(config: ConfigView) -> Architecture:
    """KimiK25ForConditionalGeneration."""
    return with_kimi_k25_tower(config, _as("DeepseekV2ForCausalLM", _stated(config, "deepseek_v3")))


def _stated(config: ConfigView, text_type: str) -> ConfigView:
    """The text section under vLLM's own configuration classes, which give tie_word_embeddings no default of theirs."""
    plain = ConfigView(config.data, config.where, "kimi", config.files)
    view = text_view(plain, text_type)
    return ConfigView(view.data, view.where, text_type, view.files)


def _as(architecture: str, text: ConfigView) -> Architecture:
    """The language model as the class that the multimodal class names, whatever the section says."""
    return language_model(
        ConfigView({**text.data, "architectures": [architecture]}, text.where, text.model_type, text.files)
    )
