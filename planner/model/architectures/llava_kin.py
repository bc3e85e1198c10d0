"""Relatives of LLaVA: R-4B, Bee, LLaVA-NeXT-Video and Phi-4 with SigLIP 2.

Source: vLLM 0.26.0 model_executor/models/{rvl,bee,llava_next_video,phi4siglip}.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures import llama
from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.lfm2_vl import siglip2
from planner.model.architectures.llava import PREFIXES, feature_depth, llava_onevision
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, row, text_view, weight
from planner.model.architectures.vit import clip, siglip
from planner.model.config_view import ConfigView
from planner.model.modules import Module
from planner.model.vision_spec import VisionSpec

_PROJECTOR = "multi_modal_projector"


def r_4b(config: ConfigView) -> Architecture:
    """RForConditionalGeneration: LLaVA-OneVision with a norm before its projector (rvl.py:61)."""
    return _with_normed_projector(config, "RVL", 1)


def bee(config: ConfigView) -> Architecture:
    """BeeForConditionalGeneration: R-4B, the projector's hidden layer four times as wide (bee.py:111)."""
    return _with_normed_projector(config, "Bee", 4)


def _with_normed_projector(config: ConfigView, family: str, factor: int) -> Architecture:
    base = llava_onevision(config)
    width, output = config.section("vision_config").size("hidden_size"), base.text.hidden_size
    projector = norm(f"{_PROJECTOR}.pre_norm", width, "every", bias=True)
    projector += weight(f"{_PROJECTOR}.linear_1", factor * output, width, bias=True)
    projector += weight(f"{_PROJECTOR}.linear_2", output, factor * output, bias=True)
    kept = [module for module in base.modules if not module.name.startswith(f"{_PROJECTOR}.")]
    spec = VisionSpec(family=family, modalities=("image",))
    return replace(base, modules=(*as_tower(projector), *kept), vision=spec)


def llava_next_video(config: ConfigView) -> Architecture:
    """LlavaNextVideoForConditionalGeneration: videos only, one a prompt; the projector is plain nn.Linear."""
    text = language_model(text_view(config, "llama"))
    section = config.section("vision_config")
    vision = ConfigView(section.data, section.where, section.model_type or "clip_vision_model", config.files)
    vision.require("model_type", ("clip_vision_model", "siglip_vision_model"), vision.model_type)
    build = clip if vision.model_type == "clip_vision_model" else siglip
    tower = build(vision, "vision_tower", feature_depth(config, vision), False)
    width, output = vision.size("hidden_size"), text.text.hidden_size
    bias = config.flag("multimodal_projector_bias", True)
    projector = weight(f"{_PROJECTOR}.linear_1", output, width, bias=bias)
    projector += weight(f"{_PROJECTOR}.linear_2", output, output, bias=bias)
    spec = VisionSpec(family="LlavaNextVideo", modalities=("video",), limits=(("video", 1),))
    return multimodal(text, [*tower, *as_tower(projector)], vision=spec, prefixes=PREFIXES)


def phi4_siglip(config: ConfigView) -> Architecture:
    """Phi4ForCausalLMV: SigLIP 2 without its last layer, LLaVA's projector, a Phi-3 decoder of the same config."""
    text = llama.phi3(config, "language_model.")
    section = config.section("vision_config", "siglip2_vision_model")
    layers = section.layers("num_hidden_layers") - 1
    vision = ConfigView(
        {**section.data, "num_hidden_layers": layers}, section.where, "siglip2_vision_model", config.files
    )
    tower: list[Module] = [
        module for module in siglip2(vision, "vision_tower") if ".post_layernorm." not in module.name
    ]
    width, output = config.size("mm_hidden_size"), text.text.hidden_size
    projector = [
        column(f"{_PROJECTOR}.linear_1", width, output),
        row(f"{_PROJECTOR}.linear_2", output, output),
    ]
    prefixes = (
        ("model.vision_tower.vision_tower.", "vision_tower."),
        ("model.mm_projector.0.", f"{_PROJECTOR}.linear_1."),
        ("model.mm_projector.2.", f"{_PROJECTOR}.linear_2."),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )
    spec = VisionSpec(family="Phi4Siglip", modalities=("image",))
    return multimodal(text, [*tower, *as_tower(projector)], vision=spec, prefixes=prefixes)
