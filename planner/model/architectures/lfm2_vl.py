"""LFM2-VL: SigLIP 2 over packed patches, a pixel-unshuffling projector, an LFM2 decoder.

Source: vLLM 0.26.0 model_executor/models/lfm2_vl.py, lfm2_siglip2.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm, plain_mlp
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, fused_qkv, multimodal, row, text_view, weight
from planner.model.architectures.vit import encoder_of
from planner.model.config_view import ConfigView
from planner.model.modules import Module
from planner.model.vision_spec import PackedTiles, VisionSpec
from planner.values import reject

_PREFIXES = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def lfm2_vl(config: ConfigView) -> Architecture:
    """Lfm2VlForConditionalGeneration: the projector is plain nn.Linear."""
    text = language_model(text_view(config, "lfm2"))
    vision = config.section("vision_config", "siglip2_vision_model")
    if vision.model_type != "siglip2_vision_model":
        raise reject("flag", f"Unsupported visual tokenizer type: {vision.model_type}")
    merged = vision.size("hidden_size") * config.size("downsample_factor") ** 2
    inner, bias = config.size("projector_hidden_size"), config.flag("projector_bias")
    base = "multi_modal_projector"
    projector: list[Module] = []
    if config.flag("projector_use_layernorm"):
        projector += norm(f"{base}.layer_norm", merged, "every", bias=True)
    projector += weight(f"{base}.linear_1", inner, merged, bias=bias)
    projector += weight(f"{base}.linear_2", text.text.hidden_size, inner, bias=bias)
    encoder = encoder_of(vision, vision.layers("num_hidden_layers"), text.text.hidden_size, projector_size=inner)
    spec = VisionSpec(family="Lfm2VL", modalities=("image",), encoder=encoder, image=_tiles(config))
    return multimodal(text, [*siglip2(vision, "vision_tower"), *as_tower(projector)], vision=spec, prefixes=_PREFIXES)


def _tiles(config: ConfigView) -> PackedTiles:
    """The processor's settings, with its class's defaults (transformers 5.14.1 image_processing_lfm2_vl.py:195)."""
    given = config.files.preprocessor if config.files is not None else {}
    settings = ConfigView(given, "preprocessor_config.json")
    splits = settings.flag("do_image_splitting", True)
    return PackedTiles(
        patch_size=settings.size("encoder_patch_size", 16),
        merge_size=settings.size("downsample_factor", 2),
        tile_size=settings.size("tile_size", 512),
        min_tiles=settings.size("min_tiles", 2) if splits else 1,
        max_tiles=settings.size("max_tiles", 10) if splits else 1,
        min_tokens=settings.size("min_image_tokens", 64),
        max_tokens=settings.size("max_image_tokens", 256),
        tolerance=settings.number("max_pixels_tolerance", 2.0),
        thumbnail=settings.flag("use_thumbnail", True),
    )


def siglip2(vision: ConfigView, prefix: str) -> list[Module]:
    """Siglip2Model: patches come as rows, positions from a table of num_patches that is resampled."""
    width, heads = vision.size("hidden_size"), vision.size("num_attention_heads")
    base = f"{prefix}.vision_model"
    pixels = vision.size("num_channels") * vision.size("patch_size") ** 2
    modules = weight(f"{base}.embeddings.patch_embedding", width, pixels, bias=True)
    modules += weight(f"{base}.embeddings.position_embedding", vision.size("num_patches"), width)
    for layer in range(vision.layers("num_hidden_layers")):
        at = f"{base}.encoder.layers.{layer}"
        modules += norm(f"{at}.layer_norm1", width, "every", bias=True)
        modules += [
            fused_qkv(f"{at}.self_attn.qkv_proj", width, heads, width // heads),
            row(f"{at}.self_attn.out_proj", width, width),
        ]
        modules += norm(f"{at}.layer_norm2", width, "every", bias=True)
        modules += plain_mlp(f"{at}.mlp", "every", width, vision.size("intermediate_size"))
    return as_tower([*modules, *norm(f"{base}.post_layernorm", width, "every", bias=True)])
