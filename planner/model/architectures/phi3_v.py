"""Phi-3 and Phi-3.5 Vision: CLIP ViT-L/14-336 whose sizes vLLM fixes, an HD projection, a Llama-like decoder.

Source: vLLM 0.26.0 model_executor/models/phi3v.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.errors import InputError
from planner.model.architectures import llama
from planner.model.architectures.blocks import Architecture
from planner.model.architectures.vision_blocks import as_tower, multimodal, weight
from planner.model.architectures.vit import clip, encoder_of, patch_grid
from planner.model.config_view import ConfigView
from planner.model.modules import Module, Parameter, VocabEmbedding
from planner.model.vision_spec import Tiles, VisionSpec

_CLIP = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
}
_PREFIXES = (
    ("model.vision_embed_tokens.wte", "embed_tokens"),
    ("model.vision_embed_tokens.", "vision_embed_tokens."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)


def phi3_v(config: ConfigView) -> Architecture:
    """Phi3VForCausalLM: the tower has a token embedding of its own beside the decoder's (phi3v.py:627)."""
    text = llama.llama(ConfigView(config.data, config.where, "phi3", config.files))
    hidden = text.text.hidden_size
    processor = _object(config, "img_processor")
    features, index = processor.size("image_dim_out") * 4, _layer_index(processor)
    vision = ConfigView(_CLIP, "CLIP ViT-L/14-336", "clip_vision_model", config.files)
    layers = _CLIP["num_hidden_layers"] + index + 1 if index < 0 else index + 1
    base = "model.vision_embed_tokens"
    tower: list[Module] = [
        VocabEmbedding(name="model.embed_tokens", num_embeddings=text.text.vocab_size, hidden_size=hidden)
    ]
    tower += clip(vision, f"{base}.img_processor", layers, layers == _CLIP["num_hidden_layers"])
    tower.append(Parameter(name=f"{base}.glb_GN", shape=(1, 1, features)))
    tower.append(Parameter(name=f"{base}.sub_GN", shape=(1, 1, 1, features)))
    tower += weight(f"{base}.img_projection.0", hidden, features, bias=True) + weight(
        f"{base}.img_projection.2", hidden, hidden, bias=True
    )
    settings = ConfigView(config.files.preprocessor if config.files is not None else {}, "preprocessor_config.json")
    image = Tiles(
        image_size=vision.size("image_size"),
        patch_size=vision.size("patch_size"),
        patches=patch_grid(vision) ** 2 + 1,
        tokens=patch_grid(vision) ** 2 // 4,
        min_tiles=1,
        max_tiles=settings.size("num_crops", 16),
        thumbnail=True,
        extra_tokens=1,
    )
    spec = VisionSpec(
        family="Phi3V",
        modalities=("image",),
        image=image,
        encoder=encoder_of(vision, layers, hidden, prefix_tokens=1, projector_size=hidden),
    )
    return multimodal(text, as_tower(tower), vision=spec, prefixes=_PREFIXES)


def _object(config: ConfigView, key: str) -> ConfigView:
    value = config.raw(key)
    if not isinstance(value, Mapping):
        raise InputError(f"{config.where}: {key} must be an object")
    return ConfigView(value, f"{config.where}: {key}")


def _layer_index(processor: ConfigView) -> int:
    value = processor.raw("layer_idx", -2)
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not -_CLIP["num_hidden_layers"] <= value < _CLIP["num_hidden_layers"]
    ):
        raise InputError(f"{processor.where}: layer_idx must be a layer of the tower, found {value!r}")
    return value
