"""LLaVA, LLaVA-NeXT, LLaVA-OneVision and Mistral 3: a ViT cut at the feature layer, a two-layer projector, any decoder.

Source: vLLM 0.26.0 model_executor/models/llava.py, llava_next.py, llava_onevision.py, mistral3.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.errors import InputError, UnsupportedError
from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, row, text_view, weight
from planner.model.architectures.vit import clip, encoder_of, patch_grid, pixtral_hf, siglip
from planner.model.config_view import ConfigView
from planner.model.modules import Module, PackedNames, Parameter
from planner.model.vision_spec import FixedSize, ImageRule, LongestEdge, Pinpoints, VisionSpec

PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
_LIGHTON_PREFIXES = (
    ("model.vision_encoder.", "vision_tower."),
    ("model.vision_projection.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
)
_NEWLINE = (("model.image_newline", "image_newline"),)
_TOWERS = {"clip_vision_model": clip, "siglip_vision_model": siglip, "pixtral": pixtral_hf}


def llava(config: ConfigView) -> Architecture:
    """LlavaForConditionalGeneration (also Pixtral in transformers' format)."""
    text = language_model(text_view(config, "llama"))
    vision = _vision(config)
    tower = _tower(config, vision)
    tower += _projector(config, vision.size("hidden_size"), text.text.hidden_size)
    return multimodal(
        text,
        tower,
        vision=_spec(config, vision, "Llava", text.text.hidden_size, _single(config, vision)),
        prefixes=PREFIXES,
    )


def llava_next(config: ConfigView) -> Architecture:
    """LlavaNextForConditionalGeneration: several feature layers are concatenated before the projector."""
    text = language_model(text_view(config, "llama"))
    vision = _vision(config)
    layers = config.raw("vision_feature_layer")
    selected = len(layers) if isinstance(layers, list) else 1
    tower = _tower(config, vision)
    tower.append(_newline(text.text.hidden_size))
    tower += _projector(config, vision.size("hidden_size") * selected, text.text.hidden_size)
    spec = _spec(config, vision, "LlavaNext", text.text.hidden_size, _pinpoints(config, vision))
    return multimodal(text, tower, vision=spec, prefixes=PREFIXES + _NEWLINE)


def llava_onevision(config: ConfigView) -> Architecture:
    """LlavaOnevisionForConditionalGeneration: its projector is plain nn.Linear, whole on each rank."""
    text = language_model(text_view(config, "qwen2"))
    vision = _vision(config)
    width, output, bias = (
        vision.size("hidden_size"),
        text.text.hidden_size,
        config.flag("multimodal_projector_bias", True),
    )
    extra = weight("multi_modal_projector.linear_1", output, width, bias=bias)
    extra += weight("multi_modal_projector.linear_2", output, output, bias=bias)
    stride = config.size("spatial_pool_stride", 2)
    image = _pinpoints(config, vision, max_tiles=9, frame_tokens=(-(-patch_grid(vision) // stride)) ** 2)
    spec = _spec(config, vision, "LlavaOnevision", output, image)
    return multimodal(
        text, [*_tower(config, vision), _newline(output), *as_tower(extra)], vision=spec, prefixes=PREFIXES + _NEWLINE
    )


def mistral3(config: ConfigView, text_type: str = "mistral") -> Architecture:
    """Mistral3ForConditionalGeneration: Pixtral tower, a merger of patches before the projector."""
    text = language_model(text_view(config, text_type))
    vision = _vision(config, "pixtral")
    if vision.model_type != "pixtral":
        raise UnsupportedError(
            "vision_config", f"{vision.where}: model_type {vision.model_type!r} is not supported by this planner"
        )
    width, merge = vision.size("hidden_size"), config.size("spatial_merge_size")
    base = "multi_modal_projector"
    extra = norm(f"{base}.norm", width, "every") + weight(f"{base}.patch_merger.merging_layer", width, width * merge**2)
    tower = _tower(config, vision) + as_tower(extra)
    tower += _projector(config, width, text.text.hidden_size, bias=config.flag("multimodal_projector_bias"))
    spec = _spec(config, vision, "Mistral3", text.text.hidden_size, _longest_edge(vision, merge))
    return multimodal(text, tower, vision=spec, prefixes=(*PREFIXES, ("model.", "language_model.model.")))


def lightonocr(config: ConfigView) -> Architecture:
    """LightOnOCRForConditionalGeneration: Mistral 3's tower and projector, no break tokens, a Qwen3 decoder."""
    mistral = mistral3(config, "qwen3")
    assert mistral.vision is not None
    names = PackedNames(fused=mistral.names.fused, prefixes=_LIGHTON_PREFIXES)
    return replace(mistral, vision=replace(mistral.vision, family="LightOnOCR"), names=names)


def _newline(width: int) -> Parameter:
    """A parameter of the model itself: text-only limits drop the towers beside it, not this (interfaces.py:257)."""
    return Parameter(name="image_newline", shape=(width,))


def _vision(config: ConfigView, default: str = "clip_vision_model") -> ConfigView:
    section = config.section("vision_config")
    return ConfigView(section.data, section.where, section.model_type or default, config.files)


def feature_depth(config: ConfigView, vision: ConfigView) -> int:
    """Encoder layers up to the deepest feature layer (llava.py _get_num_hidden_layers)."""
    layers, given = vision.layers("num_hidden_layers"), config.raw("vision_feature_layer", -2)
    indices = given if isinstance(given, list) else [given]
    if not indices or not all(isinstance(index, int) and not isinstance(index, bool) for index in indices):
        raise InputError(
            f"{config.where}: vision_feature_layer must be a whole number or a list of them, found {given!r}"
        )
    depth: int = max(layers + index + 1 if index < 0 else index for index in indices)
    if not 0 < depth <= layers:
        raise InputError(f"{config.where}: vision_feature_layer {given!r} is outside the tower's {layers} layers")
    return depth


def _tower(config: ConfigView, vision: ConfigView) -> list[Module]:
    if vision.model_type not in _TOWERS:
        raise UnsupportedError(
            "vision_config", f"{vision.where}: model_type {vision.model_type!r} is not supported by this planner"
        )
    return _TOWERS[vision.model_type](vision, "vision_tower", feature_depth(config, vision), False)


def _projector(config: ConfigView, width: int, output: int, *, bias: bool | None = None) -> list[Module]:
    biased = config.flag("multimodal_projector_bias", True) if bias is None else bias
    base = "multi_modal_projector"
    return as_tower(
        [column(f"{base}.linear_1", width, output, bias=biased), row(f"{base}.linear_2", output, output, bias=biased)]
    )


def _spec(config: ConfigView, vision: ConfigView, family: str, output: int, image: ImageRule) -> VisionSpec:
    gated = vision.model_type == "pixtral"
    classes = 1 if vision.model_type == "clip_vision_model" else 0
    encoder = encoder_of(
        vision, feature_depth(config, vision), output, gated=gated, prefix_tokens=classes, projector_size=output
    )
    encoder = replace(encoder, keeps_hidden_states=isinstance(config.raw("vision_feature_layer"), list))
    modalities = ("image", "video") if family == "LlavaOnevision" else ("image",)
    return VisionSpec(family=family, modalities=modalities, encoder=encoder, image=image)  # type: ignore[arg-type]


def _single(config: ConfigView, vision: ConfigView) -> ImageRule:
    """LLaVA 1.5: one square an image. Pixtral's tower takes the image's own shape instead."""
    if vision.model_type == "pixtral":
        return _longest_edge(vision, 1)
    patches, tokens = _selected(config, vision)
    return FixedSize(
        image_size=vision.size("image_size"),
        patch_size=vision.size("patch_size"),
        patches=patches,
        tokens=tokens,
        item_tokens=tokens,
    )


def _longest_edge(vision: ConfigView, merge: int) -> ImageRule:
    return LongestEdge(image_size=vision.size("image_size"), patch_size=vision.size("patch_size"), merge_size=merge)


def _pinpoints(config: ConfigView, vision: ConfigView, *, max_tiles: int = 0, frame_tokens: int = 0) -> ImageRule:
    patches, tokens = _selected(config, vision)
    return Pinpoints(
        image_size=vision.size("image_size"),
        patch_size=vision.size("patch_size"),
        patches=patches,
        tokens=tokens,
        pinpoints=tuple((height, width) for height, width in config.numbers("image_grid_pinpoints", 2)),
        max_tiles=max_tiles,
        video_frame_tokens=frame_tokens,
    )


def _selected(config: ConfigView, vision: ConfigView) -> tuple[int, int]:
    """(sequence length in the encoder, tokens kept): "default" drops the class token (vision.py)."""
    patches = patch_grid(vision) ** 2 + (1 if vision.model_type == "clip_vision_model" else 0)
    strategy = config.text("vision_feature_select_strategy", "default")
    return patches, patches - 1 if strategy == "default" else patches
