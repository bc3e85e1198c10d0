"""Idefics3 and SmolVLM: SigLIP tiles, a pixel-shuffle projection, a Llama decoder.

Source: vLLM 0.26.0 model_executor/models/idefics3.py, smolvlm.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.architectures import llama
from planner.model.architectures.assemble import Names
from planner.model.architectures.blocks import Architecture
from planner.model.architectures.minicpm_v import idefics2_tower
from planner.model.architectures.vision_blocks import as_tower, multimodal, replicated, text_view
from planner.model.architectures.vit import encoder_of, patch_grid
from planner.model.config_view import ConfigView
from planner.model.modules import LMHead
from planner.model.vision_spec import Tiles, VisionSpec


def idefics3(config: ConfigView) -> Architecture:
    """Idefics3ForConditionalGeneration and SmolVLMForConditionalGeneration: no pipeline parallelism."""
    section = text_view(config, "llama")
    if section.model_type != "llama":
        raise UnsupportedError(
            "text_config", f"Idefics3 around {section.model_type!r} is not supported by this planner"
        )
    qkv_bias, out_bias = llama.llama_biases(section)
    text = llama.decoder(
        section,
        "model.",
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=section.flag("mlp_bias"),
        names=Names(model="text_model"),
        tied=_tied(config, section),
    )
    text = replace(
        text,
        modules=tuple(replace(part, name="lm_head") if isinstance(part, LMHead) else part for part in text.modules),
    )
    vision = config.section("vision_config", "idefics3_vision")
    layers, scale = vision.layers("num_hidden_layers"), config.size("scale_factor")
    width, output = vision.size("hidden_size") * scale**2, text.text.hidden_size
    tower = idefics2_tower(vision, "model.vision_model", layers)
    tower += as_tower([replicated("model.connector.modality_projection.proj", width, output, bias=False)])
    patches = patch_grid(vision) ** 2
    image = Tiles(
        image_size=vision.size("image_size"),
        patch_size=vision.size("patch_size"),
        patches=patches,
        tokens=patches // scale**2,
        min_tiles=1,
        max_tiles=_max_tiles(config, vision.size("image_size")),
        thumbnail=True,
    )
    spec = VisionSpec(family="Idefics3", modalities=("image",), encoder=encoder_of(vision, layers, output), image=image)
    return multimodal(text, tower, vision=spec, supports_pp=False)


def _tied(config: ConfigView, section: ConfigView) -> bool:
    """The class asks text_config itself (idefics3.py:630); the outer value reaches it only where the section names its
    own class (config/vllm.py:722 copies the section otherwise)."""
    if section.strings("architectures"):
        return section.flag("tie_word_embeddings")
    inner = config.section("text_config", "llama")
    return inner.flag("tie_word_embeddings")


def _max_tiles(config: ConfigView, image_size: int) -> int:
    """size.longest_edge of the processor over the tile's side, both ways."""
    settings = ConfigView(config.files.preprocessor if config.files is not None else {}, "preprocessor_config.json")
    edge = settings.section("size").size("longest_edge", 4 * 364)
    tile = settings.section("max_image_size").size("longest_edge", image_size)
    return (-(-edge // tile)) ** 2
