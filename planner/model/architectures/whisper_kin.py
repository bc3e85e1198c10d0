"""Sound beside a text decoder, by Whisper's encoder or a close relative: Ultravox, GLM-ASR, Audio Flamingo 3.

Source: vLLM 0.26.0 model_executor/models/{ultravox,glmasr,audioflamingo3}.py.
"""

from __future__ import annotations

from planner.errors import UnsupportedError
from planner.model.architectures import llama
from planner.model.architectures.audio import whisper_encoder
from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, column, fused_qkv, multimodal, row, text_view, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module
from planner.model.vision_spec import VisionSpec

_PROJECTOR = "multi_modal_projector"
_WHISPER_NAMES = {
    "d_model": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_dim": "intermediate_size",
}


def ultravox(config: ConfigView) -> Architecture:
    """UltravoxModel: transformers' Whisper encoder; stacked frames pass two linears and two norms (ultravox.py:307).

    Raises: UnsupportedError where the config names other repositories for its parts instead of holding them.
    """
    for key in ("audio_model_id", "text_model_id"):
        if config.data.get(key) is not None:
            raise UnsupportedError(
                key, f"{config.where}: {key} names another repository, whose config vLLM reads beside this one"
            )
    if config.count("num_projector_layers", 0):
        raise UnsupportedError("num_projector_layers", "Ultravox's transformer projector is not supported")
    text = language_model(text_view(config, "llama"))
    audio = config.section("audio_config", "whisper")
    inputs, inner = audio.size("d_model") * config.size("stack_factor", 8), config.size("hidden_size", 4096)
    output = text.text.hidden_size
    middle = inner // 2 if config.text("projector_act", "swiglu") == "swiglu" else inner
    projector = norm(f"{_PROJECTOR}.ln_pre", inputs, "every") + weight(f"{_PROJECTOR}.linear_1", inner, inputs)
    projector += weight(f"{_PROJECTOR}.linear_2", output, middle)
    if config.flag("projector_ln_mid"):
        projector += norm(f"{_PROJECTOR}.ln_mid", middle, "every")
    else:
        projector += norm(f"{_PROJECTOR}.ln_post", output, "every")
    tower = as_tower([*whisper_encoder(audio, "audio_tower"), *projector], "audio_tower")
    spec = VisionSpec(family="Ultravox", modalities=("audio",))
    return multimodal(text, tower, vision=spec, prefixes=(("audio_tower.model.encoder.", "audio_tower."),))


def audio_flamingo3(config: ConfigView) -> Architecture:
    """AudioFlamingo3ForConditionalGeneration: Qwen2-Audio's encoder, two plain linears, a Qwen2 decoder."""
    text = llama.qwen2(text_view(config, "qwen2"), "language_model.")
    audio = _as_whisper(config.section("audio_config", "audioflamingo3_encoder"))
    width, output, bias = audio.size("d_model"), text.text.hidden_size, config.flag("projector_bias", True)
    projector = weight(f"{_PROJECTOR}.linear_1", output, width, bias=bias)
    projector += weight(f"{_PROJECTOR}.linear_2", output, output, bias=bias)
    tower = as_tower([*whisper_encoder(audio, "audio_tower"), *projector], "audio_tower")
    spec = VisionSpec(family="AudioFlamingo3", modalities=("audio",), limits=(("audio", 1),))
    return multimodal(text, tower, vision=spec)


def _as_whisper(audio: ConfigView) -> ConfigView:
    """The section under Whisper's key names."""
    named = {name: audio.raw(key) for name, key in _WHISPER_NAMES.items() if audio.raw(key) is not None}
    return ConfigView({**audio.data, **named}, audio.where, audio.model_type, audio.files)


def glm_asr(config: ConfigView) -> Architecture:
    """GlmAsrForConditionalGeneration: rotated, divided attention in vLLM's own encoder; four frames make a token."""
    text = llama.llama(text_view(config, "llama"), "language_model.")
    audio = config.section("audio_config", "glmasr_encoder")
    width, heads, base = audio.size("hidden_size"), audio.size("num_attention_heads"), "audio_tower"
    head, inner = width // heads, audio.size("intermediate_size")
    kv_heads = audio.optional_size("num_key_value_heads") or heads
    if kv_heads != heads:
        raise UnsupportedError("num_key_value_heads", "grouped attention in GLM-ASR's encoder is not supported")
    modules: list[Module] = [
        *weight(f"{base}.conv1", width, audio.size("num_mel_bins"), 3, bias=True),
        *weight(f"{base}.conv2", width, width, 3, bias=True),
    ]
    for layer in range(audio.layers("num_hidden_layers")):
        at = f"{base}.layers.{layer}"
        modules += [
            fused_qkv(f"{at}.self_attn.qkv_proj", width, heads, head),
            row(f"{at}.self_attn.o_proj", width, width),
            column(f"{at}.mlp.fc1", width, inner),
            row(f"{at}.mlp.fc2", inner, width),
            *norm(f"{at}.input_layernorm", width, "every", bias=True),
            *norm(f"{at}.post_attention_layernorm", width, "every", bias=True),
        ]
    modules += norm(f"{base}.norm", width, "every", bias=True)
    rotated = int((audio.optional_size("head_dim") or head) * _rotated_share(audio))
    modules.append(Buffer(name=f"{base}.rotary_emb.inv_freq", shape=(-(-rotated // 2),), dtype="float32"))
    output = text.text.hidden_size
    modules += [
        column(f"{_PROJECTOR}.linear_1", inner, 2 * output),
        row(f"{_PROJECTOR}.linear_2", 2 * output, output),
    ]
    spec = VisionSpec(family="GlmAsr", modalities=("audio",))
    return multimodal(text, as_tower(modules, "audio_tower"), vision=spec)


def _rotated_share(audio: ConfigView) -> float:
    rope = audio.section("rope_parameters")
    return rope.number("partial_rotary_factor", audio.number("partial_rotary_factor", 0.5))
