"""Phi-4-multimodal: SigLIP for images, a Conformer for sound, a Phi-3 decoder. Its LoRA weights are adapters that
`--lora-modules` loads; the class builds none of them.

Source: vLLM 0.26.0 model_executor/models/{phi4mm,phi4mm_audio,phi4mm_utils}.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import UnsupportedError
from planner.model.architectures import llama
from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.minicpm_v import idefics2_tower
from planner.model.architectures.vision_blocks import as_tower, multimodal, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module, Parameter
from planner.model.vision_spec import VisionSpec

_SIGLIP = {
    "hidden_size": 1152,
    "image_size": 448,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
"""What vLLM builds, whatever the config says (phi4mm.py:91)."""
_AUDIO = "model.embed_tokens_extend.audio_embed."
_PREFIXES = (
    (f"{_AUDIO}audio_projection.vision.", "embed_tokens_extend.audio_projection_for_vision."),
    (f"{_AUDIO}audio_projection.speech.", "embed_tokens_extend.audio_projection."),
    (_AUDIO, "embed_tokens_extend."),
    ("model.embed_tokens_extend.image_embed.", "vision_encoder."),
)
_KERNEL = 3


def phi4mm(config: ConfigView) -> Architecture:
    """Phi4MMForCausalLM: no pipeline parallelism; its processor's crops are not modelled, so media are limited to 0."""
    text = llama.phi3(ConfigView(config.data, config.where, "phi3", config.files))
    images = _image_encoder(config, text.text.hidden_size)
    sounds = _audio_encoder(config, text.text.hidden_size)
    return multimodal(
        text,
        [*as_tower(images), *as_tower(sounds, "audio_tower")],
        vision=VisionSpec(family="Phi4MM", modalities=("audio", "image")),
        prefixes=_PREFIXES,
        fused=llama.PHI3_FUSED,
        supports_pp=False,
    )


def _image_encoder(config: ConfigView, hidden: int) -> list[Module]:
    vision = ConfigView(_SIGLIP, "Phi-4-multimodal's SigLIP", "siglip_vision_model", config.files)
    settings = config.raw("img_processor")
    index = settings.get("layer_idx", -2) if isinstance(settings, Mapping) else -2
    depth = vision.layers() + index + 1 if index < 0 else index + 1
    width = vision.size("hidden_size")
    modules: list[Module] = [
        Parameter(name="vision_encoder.glb_GN", shape=(1, 1, width)),
        Parameter(name="vision_encoder.sub_GN", shape=(1, 1, 1, width)),
    ]
    tower = idefics2_tower(vision, "vision_encoder.img_processor", depth)
    modules += [part for part in tower if ".post_layernorm" not in part.name]
    modules += weight("vision_encoder.img_projection.0", hidden, width, bias=True)
    return modules + weight("vision_encoder.img_projection.2", hidden, hidden, bias=True)


def _audio_encoder(config: ConfigView, hidden: int, prefix: str = "embed_tokens_extend") -> list[Module]:
    """Plain PyTorch on each rank: strided convolutions, relative positions, Conformer blocks, two projections."""
    settings = config.section("audio_processor").section("config")
    layer = config.section("embd_layer").section("audio_embd_layer")
    for key in ("use_qformer", "use_conv_downsample"):
        layer.require(key, (False,), False)
    layer.require("projection_cls", ("mlp",), "linear")
    width, bins = settings.size("attention_dim"), settings.size("input_size")
    at = f"{prefix}.encoder"
    channels = settings.section("nemo_conv_settings").size("conv_channels", 256)
    reduction = settings.size("time_reduction", 4)
    modules = _convolutions(f"{at}.embed", channels, reduction)
    modules += weight(f"{at}.embed.out", width, channels * -(-bins // reduction), bias=True)
    bias = settings.section("relative_attention_bias_args")
    distance = bias.size("t5_bias_max_distance", 1000) * (1 if bias.flag("t5_bias_symmetric") else 2)
    modules += weight(f"{at}.relative_attention_bias_layer.bias_values", distance, settings.size("attention_heads"))
    for name in ("global_mean", "global_invstd"):
        modules.append(Parameter(name=f"{at}.encoder_embedding.{name}", shape=(bins,)))
    modules.append(Buffer(name=f"{at}.dev_type", shape=()))
    for index in range(settings.layers("num_blocks")):
        modules += _conformer_block(settings, f"{at}.encoders.{index}", width)
    inputs = width * layer.size("downsample_rate", 1)
    for name in ("audio_projection", "audio_projection_for_vision"):
        modules += weight(f"{prefix}.{name}.0", hidden, inputs, bias=True)
        modules += weight(f"{prefix}.{name}.2", hidden, hidden, bias=True)
    return modules


def _convolutions(at: str, channels: int, reduction: int) -> list[Module]:
    """One strided convolution, then pairs of a depthwise and a pointwise one, each halving the frames."""
    steps = reduction.bit_length() - 1
    modules = weight(f"{at}.conv.0", channels, 1, _KERNEL, _KERNEL, bias=True)
    for step in range(1, steps):
        modules += weight(f"{at}.conv.{3 * step - 1}", channels, 1, _KERNEL, _KERNEL, bias=True)
        modules += weight(f"{at}.conv.{3 * step}", channels, channels, 1, 1, bias=True)
    return modules


def _conformer_block(settings: ConfigView, at: str, width: int) -> list[Module]:
    inner, kernel = settings.size("linear_units"), settings.size("kernel_size", _KERNEL)
    outputs = {key: settings.size(key, width) for key in ("ext_pw_out_channel", "depthwise_seperable_out_channel")}
    if set(outputs.values()) != {width} or not _is_plain(settings.data):
        raise UnsupportedError("audio_processor", "this Conformer's convolutions are not supported by this planner")
    modules: list[Module] = []
    for name in ("feed_forward_in", "feed_forward_out"):
        modules += norm(f"{at}.{name}.layer_norm", width, "every", bias=True)
        modules += weight(f"{at}.{name}.net.0.linear", 2 * inner, width, bias=True)
        modules += weight(f"{at}.{name}.net.2", width, inner, bias=True)
    for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
        modules += weight(f"{at}.self_attn.{name}", width, width, bias=True)
    modules += norm(f"{at}.conv.layer_norm", width, "every", bias=True)
    modules += [Parameter(name=f"{at}.conv.glu.{name}", shape=(1, width, 1)) for name in ("b1", "b2")]
    external = settings.size("ext_pw_kernel_size", 1)
    modules += weight(f"{at}.conv.glu.ext_pw_conv_1d", 2 * width, width, external, bias=True)
    modules += weight(f"{at}.conv.ext_pw_conv_1d", width, width, external, bias=True)
    modules += weight(f"{at}.conv.dw_sep_conv_1d.dw_conv", width, 1, kernel, bias=True)
    modules += weight(f"{at}.conv.dw_sep_conv_1d.pw_conv", width, width, 1, bias=True)
    for name in ("layer_norm_att", "layer_norm"):
        modules += norm(f"{at}.{name}", width, "every", bias=True)
    return modules


def _is_plain(data: Mapping[str, Any]) -> bool:
    """The switches under which a block has the tensors above."""
    return (
        data.get("batch_norm") is False
        and data.get("depthwise_multiplier", 1) == 1
        and data.get("bias_in_glu", True) is True
        and not data.get("linear_glu_in_convm", False)
        and data.get("input_layer") == "nemo_conv"
    )
