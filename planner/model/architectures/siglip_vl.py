"""SigLIP in front of other decoders: PaliGemma, Command A Vision, Eagle 2.5.

Source: vLLM 0.26.0 model_executor/models/{paligemma,cohere2_vision,eagle2_5_vl}.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, row, text_view, weight
from planner.model.architectures.vit import encoder_of, patch_grid, siglip
from planner.model.config_view import ConfigView
from planner.model.vision_spec import FixedSize, Tiles, VisionSpec

_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
_SIGLIP = "siglip_vision_model"


def paligemma(config: ConfigView) -> Architecture:
    """PaliGemmaForConditionalGeneration: one square an image, one linear projection, Gemma or Gemma 2."""
    section = text_view(config, "gemma")
    name = "GemmaForCausalLM" if section.model_type == "gemma" else "Gemma2ForCausalLM"
    text = language_model(
        ConfigView({**section.data, "architectures": [name]}, section.where, section.model_type, section.files)
    )
    vision = config.section("vision_config", _SIGLIP)
    layers, width = vision.layers("num_hidden_layers"), vision.size("hidden_size")
    output = vision.size("projection_dim", text.text.hidden_size)
    patches = patch_grid(vision) ** 2
    image = FixedSize(
        image_size=vision.size("image_size"),
        patch_size=vision.size("patch_size"),
        patches=patches,
        tokens=patches,
        item_tokens=patches,
    )
    spec = VisionSpec(
        family="PaliGemma",
        modalities=("image",),
        limits=(("image", 1),),
        encoder=encoder_of(vision, layers, output),
        image=image,
    )
    tower = siglip(vision, "vision_tower", layers, True)
    tower += as_tower(weight("multi_modal_projector.linear", output, width, bias=True))
    return multimodal(text, tower, vision=spec, prefixes=_PREFIXES)


def cohere2_vision(config: ConfigView) -> Architecture:
    """Cohere2VisionForConditionalGeneration: tiles, pixel shuffle, a gated projector without quantization."""
    text = language_model(text_view(config, "cohere2"))
    vision = config.section("vision_config", _SIGLIP)
    layers, factor = vision.layers("num_hidden_layers"), config.size("downsample_factor")
    width, inner = vision.size("hidden_size") * factor**2, config.size("alignment_intermediate_size") // 2
    projector = [
        column("multi_modal_projector.linear_1", width, inner, inner, quantizable=False),
        row("multi_modal_projector.linear_2", inner, text.text.hidden_size, quantizable=False),
    ]
    settings = ConfigView(config.files.preprocessor if config.files is not None else {}, "preprocessor_config.json")
    side = settings.section("size").size("height", 512)
    grid = side // vision.size("patch_size")
    image = Tiles(
        image_size=side,
        patch_size=vision.size("patch_size"),
        patches=grid**2,
        tokens=(-(-grid // factor)) ** 2,
        min_tiles=settings.size("min_patches", 1),
        max_tiles=settings.size("max_patches", 12),
        thumbnail=True,
        extra_tokens=2,
    )
    encoder = encoder_of(vision, layers, text.text.hidden_size, projector_size=inner)
    spec = VisionSpec(family="Cohere2Vision", modalities=("image",), encoder=encoder, image=image)
    tower = siglip(vision, "vision_tower", layers, True) + as_tower(projector)
    return multimodal(text, tower, vision=spec, prefixes=_PREFIXES)


def eagle2_5_vl(config: ConfigView) -> Architecture:
    """Eagle2_5_VLForConditionalGeneration: SigLIP up to select_layer, InternVL's tiles and projector."""
    text = language_model(text_view(config, "qwen2"))
    vision = config.section("vision_config", _SIGLIP)
    select = config.raw("select_layer", -1)
    depth = vision.layers("num_hidden_layers") + select + 1 if select < 0 else select + 1
    ratio = config.fraction("downsample_ratio", 0.5)
    width, output = vision.size("hidden_size") * int(1 / ratio) ** 2, text.text.hidden_size
    projector = norm("mlp1.0", width, "every", bias=True)
    projector += weight("mlp1.1", output, width, bias=True) + weight("mlp1.3", output, output, bias=True)
    side, patch = config.optional_size("force_image_size") or vision.size("image_size"), vision.size("patch_size")
    dynamic = config.flag("dynamic_image_size", True)
    image = Tiles(
        image_size=side,
        patch_size=patch,
        patches=(side // patch) ** 2,
        tokens=int((side // patch) ** 2 * ratio**2),
        min_tiles=config.size("min_dynamic_patch", 1) if dynamic else 1,
        max_tiles=config.size("max_dynamic_patch", 1) if dynamic else 1,
        thumbnail=config.flag("use_thumbnail"),
        extra_tokens=2,
    )
    encoder = encoder_of(vision, depth, output, projector_size=width)
    spec = VisionSpec(family="InternVL", modalities=("image",), encoder=encoder, image=image)
    full = depth == vision.layers("num_hidden_layers")
    tower = siglip(vision, "vision_model", depth, full) + as_tower(projector)
    return multimodal(text, tower, vision=spec, encoder_data=True)
