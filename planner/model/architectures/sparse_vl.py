"""Multimodal models whose language model is sparse: Qwen3-VL MoE, Qwen3-Omni, Llama 4, Kimi-VL and Kimi-K2.5.

Source: vLLM 0.26.0 model_executor/models/qwen3_vl_moe.py, qwen3_omni_moe_thinker.py, mllama4.py,
kimi_vl.py, kimi_k25.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.audio import (
    THINKER_PREFIXES,
    audio_encoder,
    convolved_frames,
    qwen3_audio_tower,
    thinker_text,
)
from planner.model.architectures.blocks import Architecture
from planner.model.architectures.llama4_vision import with_llama4_tower
from planner.model.architectures.moonvit import with_kimi_k25_tower, with_kimi_vl_tower
from planner.model.architectures.qwen_vl import (
    deepstack_inputs,
    frame_patches,
    qwen3_spec,
    qwen3_vision_tower,
    with_qwen3_tower,
)
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import multimodal, text_view
from planner.model.config_view import ConfigView


def qwen3_vl_moe(config: ConfigView) -> Architecture:
    """Qwen3VLMoeForConditionalGeneration."""
    text = _as("Qwen3MoeForCausalLM", text_view(config, "qwen3_vl_moe_text"))
    return with_qwen3_tower(config, text, family="Qwen3VL", vision_type="qwen3_vl_moe_vision")


def qwen3_omni_moe(config: ConfigView) -> Architecture:
    """Qwen3OmniMoeThinkerForConditionalGeneration: talker and code2wav are not built."""
    thinker = config.section("thinker_config", "qwen3_omni_moe_thinker")
    audio = thinker.section("audio_config", "qwen3_omni_moe_audio_encoder")
    vision = thinker.section("vision_config", "qwen3_omni_moe_vision_encoder")
    vision.require("apply_vit_abs_pos_embed", (True,), True)
    text = _as("Qwen3MoeForCausalLM", thinker_text(config, thinker, "qwen3_omni_moe_text"))
    side = vision.size("image_size") // vision.size("patch_size")
    tower = qwen3_vision_tower(vision, mergers="merger_list", positions=side**2)
    tower += deepstack_inputs(vision, text.text.hidden_size)
    spec = qwen3_spec(config, vision, "Qwen3OmniMoe", positions=side**2)
    spec = replace(
        spec,
        modalities=("audio", "image", "video"),
        audio_encoder=audio_encoder(audio, audio.size("output_dim")),
        audio=convolved_frames(audio),
        image=frame_patches(config, vision),
    )
    return multimodal(text, qwen3_audio_tower(audio) + tower, vision=spec, prefixes=THINKER_PREFIXES)


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
