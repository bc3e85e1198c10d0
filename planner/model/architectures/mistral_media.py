"""Mistral's models of images and sound in Mistral's own format: Pixtral and Voxtral.

Source: vLLM 0.26.0 model_executor/models/{pixtral,voxtral,whisper}.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.architectures.blocks import Architecture, gated_mlp, norm, plain_mlp
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import (
    as_tower,
    fused_qkv,
    multimodal,
    replicated,
    row,
    text_view,
    weight,
)
from planner.model.architectures.vit import encoder_of
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, Buffer, Linear, Module, Parameter, QKVLinear
from planner.model.rope import rotary_cache
from planner.model.vision_spec import LongestEdge, VisionSpec

_PIXTRAL_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_encoder."),
    ("model.multi_modal_projector.", "vision_language_adapter."),
)
_NO_STAGES = (
    "Pipeline parallelism is not supported for this model. Supported models implement the `SupportsPP` interface."
)
_NO_FULL_GRAPHS = "Voxtral realtime doesn't support full cudagraphs yet. Please use PIECEWISE."
_ROTATION = {"rope_type": "default", "rope_theta": 1e6}
_SOUNDS = 5
_POSITIONS = 1500


def pixtral(config: ConfigView) -> Architecture:
    """PixtralForConditionalGeneration: a tower without quantization, a merger where mm_projector_id names one, an
    adapter that each rank has whole."""
    vision = config.section("vision_config")
    vision.require("mm_projector_id", ("", "patch_merge"), "")
    text = language_model(_part(config))
    width, merge, output = vision.size("hidden_size"), vision.size("spatial_merge_size", 1), text.text.hidden_size
    modules = _pixtral_tower(vision, "vision_encoder")
    if vision.flag("add_pre_mm_projector_layer_norm"):
        modules += norm("pre_mm_projector_norm", width, "every")
    if vision.text("mm_projector_id", ""):
        modules.append(replicated("patch_merger.merging_layer", width * merge**2, width, bias=False, quantizable=False))
    bias = vision.flag("adapter_bias", True)
    modules += [
        replicated("vision_language_adapter.w_in", width, output, bias=bias, quantizable=False),
        replicated("vision_language_adapter.w_out", output, output, bias=bias, quantizable=False),
    ]
    image = LongestEdge(
        image_size=vision.size("max_image_size", vision.size("image_size")),
        patch_size=vision.size("patch_size"),
        merge_size=merge,
    )
    encoder = encoder_of(vision, vision.layers("num_hidden_layers"), output, gated=True, projector_size=output)
    spec = VisionSpec(family="Pixtral", modalities=("image",), encoder=encoder, image=image)
    return multimodal(text, as_tower(modules), vision=spec, prefixes=_PIXTRAL_PREFIXES)


def _part(config: ConfigView) -> ConfigView:
    """The decoder's section, whose own word on tied embeddings stands where the file has it."""
    section = config.data.get("text_config")
    view = text_view(config, "mistral")
    if isinstance(section, Mapping) and "tie_word_embeddings" in section:
        return ConfigView(section, view.where, view.model_type, config.files)
    return view


def _pixtral_tower(vision: ConfigView, prefix: str) -> list[Module]:
    width, heads, patch = vision.size("hidden_size"), vision.size("num_attention_heads"), vision.size("patch_size")
    modules = weight(f"{prefix}.patch_conv", width, vision.size("num_channels", 3), patch, patch)
    modules += norm(f"{prefix}.ln_pre", width, "every")
    for layer in range(vision.layers("num_hidden_layers")):
        at = f"{prefix}.transformer.layers.{layer}"
        parts: list[Module] = [
            fused_qkv(f"{at}.attention.qkv_proj", width, heads, width // heads, bias=False),
            row(f"{at}.attention.o_proj", width, width, bias=False),
            *gated_mlp(f"{at}.feed_forward", "every", width, vision.size("intermediate_size")),
        ]
        modules += [
            replace(part, quantizable=False) if isinstance(part, Linear | QKVLinear) else part for part in parts
        ]
        modules += norm(f"{at}.attention_norm", width, "every") + norm(f"{at}.ffn_norm", width, "every")
    return modules


def voxtral(config: ConfigView) -> Architecture:
    """VoxtralForConditionalGeneration: vLLM's Whisper encoder, its positions in float32; at most five sounds a prompt.
    Pipeline parallelism fails where the encoder is built, whose class does not know it (config/model.py:1224).

    Raises: UnsupportedError for a config that is not made of params.json, from which alone vLLM serves it.
    """
    audio = config.section("audio_config")
    if "downsample_factor" not in audio:
        raise UnsupportedError("config_format", "vLLM serves Voxtral from params.json, which is not beside config.json")
    if config.data.get("quantization_config") is not None:
        raise UnsupportedError("quantization_config", "quantized checkpoints of Voxtral are not supported")
    audio.require("pos_embed", ("sinusoidal", "learned"), "sinusoidal")
    text = language_model(_part(config))
    width, output = audio.size("d_model"), text.text.hidden_size
    modules = _whisper(audio, "whisper_encoder.whisper_encoder", width)
    modules += weight("audio_language_adapter.w_in", output, width * audio.size("downsample_factor"))
    modules += weight("audio_language_adapter.w_out", output, output)
    spec = VisionSpec(family="Voxtral", modalities=("audio",), limits=(("audio", _SOUNDS),))
    tower = as_tower(modules, "audio_tower")
    return multimodal(text, (), after=tower, vision=spec, pipeline_refusal=_NO_STAGES)


def voxtral_realtime(config: ConfigView) -> Architecture:
    """VoxtralRealtimeGeneration: the encoder attends as a decoder does, to a window, and has caches of its own.

    One block of its cache holds block_pool_size tokens of sound for each token of text (whisper_causal.py:336).
    """
    audio = config.section("audio_config")
    if config.data.get("quantization_config") is not None:
        raise UnsupportedError("quantization_config", "quantized checkpoints of Voxtral are not supported")
    audio.require("pos_embed", ("rope",))
    text = language_model(_part(config))
    width, output = audio.size("d_model"), text.text.hidden_size
    position = audio.size("block_pool_size") * text.text.max_position_embeddings
    modules = _causal_whisper(audio, "whisper_encoder.whisper_encoder", width, position)
    modules += weight("audio_language_adapter.w_in", output, width * audio.size("downsample_factor"))
    modules += weight("audio_language_adapter.w_out", output, output)
    time = Buffer(name="time_embedding.inv_freq", shape=(output // 2,), dtype="float32")
    spec = VisionSpec(family="VoxtralRealtime", modalities=("audio",), limits=(("audio", _SOUNDS),))
    after = [*as_tower(modules, "audio_tower"), time]
    whole = multimodal(text, (), after=after, vision=spec, pipeline_refusal=_NO_STAGES)
    return replace(whole, full_graph_refusal=_NO_FULL_GRAPHS)


def _causal_whisper(audio: ConfigView, prefix: str, width: int, position: int) -> list[Module]:
    heads, size, pool = (
        audio.size("encoder_attention_heads"),
        audio.size("encoder_head_dim"),
        audio.size("block_pool_size"),
    )
    window = -(-audio.size("sliding_window") // pool) + 1
    modules = weight(f"{prefix}.conv1", width, audio.size("num_mel_bins"), 3, bias=True)
    modules += weight(f"{prefix}.conv2", width, width, 3, bias=True)
    for layer in range(audio.layers("encoder_layers")):
        at = f"{prefix}.layers.{layer}"
        up, down = gated_mlp(f"{at}.layers.mlp", "every", width, audio.size("encoder_ffn_dim"))
        modules += [
            fused_qkv(f"{at}.layers.self_attn.qkv_proj", width, heads, size),
            row(f"{at}.layers.self_attn.out_proj", heads * size, width),
            rotary_cache(f"{at}.layers.self_attn.rotary_emb", size, position, _ROTATION, interleaved=True),
            Attention(
                name=f"{at}.layers.self_attn.attn",
                kind="sliding_window",
                num_heads=heads,
                num_kv_heads=heads * pool,
                head_size=size,
                window=window,
            ),
            *norm(f"{at}.self_attn_layer_norm", width, "every"),
            up,
            replace(down, bias=True) if isinstance(down, Linear) else down,
            *norm(f"{at}.final_layer_norm", width, "every"),
        ]
    return [*modules, *norm(f"{prefix}.layer_norm", width, "every")]


def _whisper(audio: ConfigView, prefix: str, width: int) -> list[Module]:
    heads = audio.size("encoder_attention_heads")
    modules = weight(f"{prefix}.conv1", width, audio.size("num_mel_bins"), 3, bias=True)
    modules += weight(f"{prefix}.conv2", width, width, 3, bias=True)
    for layer in range(audio.layers("encoder_layers")):
        at = f"{prefix}.layers.{layer}"
        parts: list[Module] = [
            fused_qkv(f"{at}.layers.self_attn.qkv_proj", width, heads, width // heads),
            row(f"{at}.layers.self_attn.out_proj", width, width),
            *norm(f"{at}.self_attn_layer_norm", width, "every", bias=True),
            *plain_mlp(f"{at}.layers.mlp", "every", width, audio.size("encoder_ffn_dim")),
            *norm(f"{at}.final_layer_norm", width, "every", bias=True),
        ]
        modules += parts
    modules += norm(f"{prefix}.layer_norm", width, "every", bias=True)
    positions = audio.size("max_source_positions", _POSITIONS)
    modules.append(Parameter(name=f"{prefix}.embed_positions.weight", shape=(positions, width), dtype="float32"))
    return modules
