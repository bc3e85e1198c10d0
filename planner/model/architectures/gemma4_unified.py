"""Gemma 4 without towers: patches and sound enter the decoder through a few linears.

Source: vLLM 0.26.0 model_executor/models/gemma4_unified.py, gemma4_mm.py:908.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.gemma4 import gemma4
from planner.model.architectures.gemma4_vision import PREFIXES
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, replicated
from planner.model.config_view import ConfigView
from planner.model.modules import Module, Parameter, TokenBuffer
from planner.model.vision_spec import Modality, VisionSpec


def gemma4_unified(config: ConfigView) -> Architecture:
    """Gemma4UnifiedForConditionalGeneration: what reads media is built whatever the limits."""
    text = gemma4(config, "language_model.")
    output = text.text.hidden_size
    modalities: tuple[Modality, ...] = ("image", "video")
    modules: list[Module] = []
    if config.data.get("vision_config") is not None:
        vision = config.section("vision_config", "gemma4_unified_vision")
        modules += _patches(vision)
        modules.append(_projection("embed_vision", vision.size("output_proj_dims"), output))
    if config.data.get("audio_config") is not None:
        audio = config.section("audio_config", "gemma4_unified_audio")
        modules.append(_projection("embed_audio", audio.size("audio_embed_dim"), output))
        modalities = ("image", "audio", "video")
    width = config.section("text_config", "gemma4_unified_text").explicit("hidden_size_per_layer_input") or 0
    after: list[Module] = []
    if width:
        after.append(TokenBuffer(name="per_layer_embeddings", columns=text.text.num_hidden_layers * width))
    spec = VisionSpec(family="Gemma4Unified", modalities=modalities, dropped_with=())
    return multimodal(text, as_tower(modules), vision=spec, after=after, prefixes=PREFIXES)


def _patches(vision: ConfigView, base: str = "vision_embedder") -> list[Module]:
    """Gemma4UnifiedVisionEmbedder: a linear divided by columns between two norms, a position table for each axis."""
    side, width = vision.size("patch_size") * vision.size("pooling_kernel_size"), vision.size("mm_embed_dim")
    side = vision.optional_size("model_patch_size") or side
    pixels = 3 * side**2
    modules = norm(f"{base}.patch_ln1", pixels, "every", bias=True)
    modules.append(column(f"{base}.patch_dense", pixels, width))
    modules += norm(f"{base}.patch_ln2", width, "every", bias=True)
    modules.append(Parameter(name=f"{base}.pos_embedding", shape=(vision.size("mm_posemb_size"), 2, width)))
    return modules + norm(f"{base}.pos_norm", width, "every", bias=True)


def _projection(name: str, width: int, output: int) -> Module:
    return replicated(f"{name}.embedding_projection", width, output, bias=False, quantizable=False)
