"""MiniCPM-V 2.5, 2.6, 4.0 and 4.5: a NaViT-style SigLIP and a perceiver resampler behind a dense decoder.

Source: vLLM 0.26.0 model_executor/models/minicpmv.py, idefics2_vision_model.py, layers/resampler.py.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.architectures import llama
from planner.model.architectures.audio import whisper_encoder
from planner.model.architectures.blocks import Architecture, norm, plain_mlp
from planner.model.architectures.vision_blocks import as_tower, fused_qkv, multimodal, replicated, row, weight
from planner.model.architectures.vit import encoder_of, patch_grid
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module, Parameter
from planner.model.vision_spec import Modality, Slices, VisionSpec
from planner.values import reject

_TEXT: dict[tuple[int, ...], Callable[[ConfigView, str], Architecture]] = {
    (2, 5): llama.llama,
    (2, 6): llama.qwen2,
    (4, 0): llama.llama,
    (4, 5): llama.qwen3,
}
_TEXT_TYPES: dict[tuple[int, ...], str] = {(2, 5): "llama", (2, 6): "qwen2", (4, 0): "llama", (4, 5): "qwen3"}
_POSITION_SIDE = 70
_TEMPORAL_ROWS = 36000


def minicpm_v(config: ConfigView) -> Architecture:
    """MiniCPMV: the version decides the decoder and the resampler."""
    version = _version(config)
    if version == (2, 0):
        raise UnsupportedError("version", "MiniCPM-V 2.0 (a timm tower) is not supported by this planner")
    if version not in _TEXT:
        found = ", ".join(str(part) for part in version)
        raise reject(
            "flag", f"Currently, MiniCPMV only supports versions 2.0, 2.5, 2.6, 4.0, 4.5. Got version: ({found})"
        )
    config.require("drop_vision_last_layer", (False, True), False)
    text_config = ConfigView(config.data, config.where, _TEXT_TYPES[version], config.files)
    text = _TEXT[version](text_config, "llm.")
    vision = config.section("vision_config", "siglip_vision_model")
    vision = ConfigView(vision.data, vision.where, "siglip_vision_model", config.files)
    layers = vision.layers("num_hidden_layers") - (1 if config.flag("drop_vision_last_layer") else 0)
    tower = idefics2_tower(vision, "vpm", layers) + _resampler(config, vision, version)
    modalities: tuple[Modality, ...] = ("image",) if version == (2, 5) else ("image", "video")
    spec = VisionSpec(
        family="MiniCPMV",
        modalities=modalities,
        image=_slices(config, vision),
        encoder=encoder_of(vision, layers, text.text.hidden_size, projector_size=text.text.hidden_size),
    )
    return multimodal(text, (), after=tower, vision=spec, encoder_data=True)


def minicpm_o(config: ConfigView) -> Architecture:
    """MiniCPMO: MiniCPM-V, and Whisper's encoder as transformers writes it, where init_audio asks for it; the speech
    generator is not built (minicpmo.py:520, 611)."""
    whole = minicpm_v(config)
    if not config.flag("init_audio", True):
        return whole
    assert whole.vision is not None
    audio = config.section("audio_config", "whisper")
    output = whole.text.hidden_size
    tower = whisper_encoder(audio, "apm")
    projection = weight("audio_projection_layer.linear1", output, audio.size("encoder_ffn_dim") // 4, bias=True)
    projection += weight("audio_projection_layer.linear2", output, output, bias=True)
    modules = (*whole.modules, *as_tower([*projection, *tower], "audio_tower"))
    return replace(whole, modules=modules, vision=replace(whole.vision, modalities=(*whole.vision.modalities, "audio")))


def idefics2_tower(vision: ConfigView, prefix: str, layers: int) -> list[Module]:
    """Idefics2VisionTransformer: SigLIP whose position table serves any aspect ratio."""
    width, heads = vision.size("hidden_size"), vision.size("num_attention_heads")
    patch = vision.size("patch_size")
    modules = weight(
        f"{prefix}.embeddings.patch_embedding", width, vision.size("num_channels", 3), patch, patch, bias=True
    )
    modules += weight(f"{prefix}.embeddings.position_embedding", patch_grid(vision) ** 2, width)
    for layer in range(layers):
        at = f"{prefix}.encoder.layers.{layer}"
        modules += [
            fused_qkv(f"{at}.self_attn.qkv_proj", width, heads, width // heads),
            row(f"{at}.self_attn.out_proj", width, width),
        ]
        modules += norm(f"{at}.layer_norm1", width, "every", bias=True)
        modules += plain_mlp(f"{at}.mlp", "every", width, vision.size("intermediate_size"))
        modules += norm(f"{at}.layer_norm2", width, "every", bias=True)
    return as_tower([*modules, *norm(f"{prefix}.post_layernorm", width, "every", bias=True)])


def _resampler(config: ConfigView, vision: ConfigView, version: tuple[int, ...]) -> list[Module]:
    """query_num queries attend to the patches; built in float16, then cast to the model's dtype with its buffers."""
    width, kv_width = config.size("hidden_size"), vision.size("hidden_size")
    base = "resampler"
    modules: list[Module] = [Parameter(name=f"{base}.query", shape=(config.size("query_num"), width))]
    if kv_width != width:
        modules.append(replicated(f"{base}.kv_proj", kv_width, width, bias=False))
    modules += [
        Parameter(name=f"{base}.attn.in_proj_weight", shape=(3 * width, width)),
        Parameter(name=f"{base}.attn.in_proj_bias", shape=(3 * width,)),
        *weight(f"{base}.attn.out_proj", width, width, bias=True),
    ]
    for name in ("ln_q", "ln_kv", "ln_post"):
        modules += norm(f"{base}.{name}", width, "every", bias=True)
    modules.append(Parameter(name=f"{base}.proj", shape=(width, width)))
    modules.append(Buffer(name=f"{base}.pos_embed", shape=(_POSITION_SIDE, _POSITION_SIDE, width)))
    if version == (4, 5):
        modules.append(Buffer(name=f"{base}.temporal_pos_embed", shape=(_TEMPORAL_ROWS, width)))
    return as_tower(modules)


def _slices(config: ConfigView, vision: ConfigView) -> Slices:
    """The dummy image is image_size wide and image_size * max_slice_num high (minicpmv.py MiniCPMVProcessingInfo)."""
    side, patch = config.size("image_size", 448), vision.size("patch_size")
    return Slices(
        patch_size=patch,
        scale_resolution=side,
        patches=(side // patch) ** 2,
        tokens=config.size("query_num"),
        max_slices=config.size("max_slice_num", 9),
    )


def _version(config: ConfigView) -> tuple[int, ...]:
    """`version`, or what hidden_size and query_num tell (minicpmv.py get_version_by_config)."""
    given = config.raw("version")
    if given is None:
        return (2, 0) if config.size("hidden_size") == 2304 and config.size("query_num") == 64 else (2, 5)
    try:
        return tuple(int(part) for part in str(given).split("."))
    except ValueError:
        raise UnsupportedError("version", f"{config.where}: version {given!r} is not a MiniCPM-V version") from None
