"""Nemotron Nano VL and its omni-modal successors: C-RADIO, a squared-ReLU projector, a Nemotron-H decoder, Parakeet.

Source: vLLM 0.26.0 model_executor/models/nano_nemotron_vl.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.nemotron_h import nemotron_h
from planner.model.architectures.radio import parakeet, radio
from planner.model.architectures.vision_blocks import as_tower, multimodal, text_view, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Module
from planner.model.vision_spec import Modality, VisionSpec

_PREFIXES = (("language_model.backbone", "language_model.model"),)
_ALL: tuple[Modality, ...] = ("image", "video", "audio")


def nemotron_nano_vl(config: ConfigView) -> Architecture:
    """NemotronH_Nano_VL_V2 and the classes named Omni_Reasoning_V3: all encoders are dropped together or not at all."""
    key = "llm_config" if isinstance(config.data.get("llm_config"), dict) else "text_config"
    text = nemotron_h(text_view(config, "nemotron_h", key), "language_model.")
    vision, output = config.section("vision_config"), text.text.hidden_size
    merged = config.size("vit_hidden_size") * round(1 / config.fraction("downsample_ratio")) ** 2
    inner = config.size("projector_hidden_size")
    modules = radio(vision, "vision_model")
    modules += norm("mlp1.0", merged, "every") + weight("mlp1.1", inner, merged) + weight("mlp1.3", output, inner)
    modalities: tuple[Modality, ...] = ("image", "video")
    if config.data.get("sound_config") is not None:
        modules += _sound(config.section("sound_config"), output)
        modalities = _ALL
    spec = VisionSpec(family="NemotronNanoVL", modalities=modalities, dropped_with=_ALL)
    return multimodal(text, as_tower(modules), vision=spec, prefixes=_PREFIXES, supports_pp=False)


def _sound(sound: ConfigView, output: int, base: str = "sound_encoder") -> list[Module]:
    width, inner, bias = sound.size("hidden_size"), sound.size("projection_hidden_size"), sound.flag("projection_bias")
    modules = parakeet(sound, f"{base}.encoder") + norm(f"{base}.projection.norm", width, "every")
    modules += weight(f"{base}.projection.linear1", inner, width, bias=bias)
    return modules + weight(f"{base}.projection.linear2", output, inner, bias=bias)
