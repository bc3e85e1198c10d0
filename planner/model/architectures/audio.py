"""Qwen2-Audio, Qwen2.5-Omni's thinker and Qwen3-ASR: Whisper-like audio encoders, and the models around them.

Source: vLLM 0.26.0 model_executor/models/qwen2_audio.py, qwen2_5_omni_thinker.py, qwen3_asr.py,
qwen3_omni_moe_thinker.py; transformers 5.14.1 models/qwen2_audio, models/qwen2_5_omni (towers built from there).
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures import llama
from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.qwen_vl import frame_patches, qwen2_5_encoder, qwen2_5_vision_tower
from planner.model.architectures.vision_blocks import (
    as_tower,
    column,
    fused_qkv,
    multimodal,
    replicated,
    row,
    text_view,
    weight,
)
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module
from planner.model.vision_spec import AudioFrames, Encoder, VisionSpec

_CHUNK_FRAMES = 3000
THINKER_PREFIXES = (
    ("thinker.lm_head.", "language_model.lm_head."),
    ("thinker.model.", "language_model.model."),
    ("thinker.", ""),
)


def qwen2_audio(config: ConfigView) -> Architecture:
    """Qwen2AudioForConditionalGeneration: transformers' encoder and projector, unsharded and unquantized."""
    audio = config.section("audio_config", "qwen2_audio_encoder")
    text = llama.qwen2(text_view(config, "qwen2"), "language_model.")
    width = audio.size("d_model")
    tower = _whisper_stem(audio) + weight("audio_tower.embed_positions", audio.size("max_source_positions"), width)
    tower += _hf_layers(audio) + norm("audio_tower.layer_norm", width, "every", bias=True)
    tower += weight("multi_modal_projector.linear", text.text.hidden_size, width, bias=True)
    spec = VisionSpec(
        family="Qwen2Audio",
        modalities=("audio",),
        audio_encoder=audio_encoder(audio, text.text.hidden_size),
        audio=audio_frames(audio),
    )
    return multimodal(text, as_tower(tower, "audio_tower"), vision=spec)


def qwen2_5_omni(config: ConfigView) -> Architecture:
    """Qwen2_5OmniThinkerForConditionalGeneration: talker and token2wav are not built."""
    thinker = config.section("thinker_config", "qwen2_5_omni_thinker")
    audio, vision = (
        thinker.section("audio_config", "qwen2_5_omni_audio_encoder"),
        thinker.section("vision_config", "qwen2_5_omni_vision_encoder"),
    )
    text = llama.qwen2(thinker_text(config, thinker, "qwen2_5_omni_text"), "language_model.")
    width = audio.size("d_model")
    tower = _whisper_stem(audio)
    tower.append(_sinusoids(audio))
    tower += weight("audio_tower.audio_bos_eos_token", 2, audio.size("output_dim"))
    tower += _hf_layers(audio) + norm("audio_tower.ln_post", width, "every", bias=True)
    tower += weight("audio_tower.proj", audio.size("output_dim"), width, bias=True)
    spec = VisionSpec(
        family="Qwen2_5Omni",
        modalities=("audio", "image", "video"),
        encoder=qwen2_5_encoder(vision),
        image=frame_patches(config, vision),
        audio_encoder=audio_encoder(audio, audio.size("output_dim")),
        audio=audio_frames(audio),
    )
    return multimodal(
        text,
        as_tower(tower, "audio_tower") + qwen2_5_vision_tower(vision),
        vision=spec,
        prefixes=THINKER_PREFIXES,
        fused={"attn.qkv": ("attn.q", "attn.k", "attn.v")},
    )


def qwen3_asr(config: ConfigView) -> Architecture:
    """Qwen3ASRForConditionalGeneration: Qwen3-Omni's audio encoder, a dense Qwen3 decoder."""
    thinker = config.section("thinker_config", "qwen3_asr_thinker")
    audio = thinker.section("audio_config", "qwen3_omni_moe_audio_encoder")
    text = llama.qwen3(thinker_text(config, thinker, "qwen3"), "language_model.")
    encoder = audio_encoder(audio, audio.size("output_dim"))
    spec = VisionSpec(family="Qwen3ASR", modalities=("audio",), audio_encoder=encoder, audio=convolved_frames(audio))
    prefixes = (
        *THINKER_PREFIXES,
        ("model.audio_tower.", "audio_tower."),
        ("model.language_model.", "language_model.model."),
        ("model.multi_modal_projector.linear_1.", "audio_tower.proj1."),
        ("model.multi_modal_projector.linear_2.", "audio_tower.proj2."),
    )
    return multimodal(text, qwen3_audio_tower(audio), vision=spec, prefixes=prefixes)


def whisper_encoder(audio: ConfigView, prefix: str) -> list[Module]:
    """transformers' WhisperEncoder, whole on each rank."""
    width = audio.size("d_model")
    tower = _whisper_stem(audio, prefix)
    tower += weight(f"{prefix}.embed_positions", audio.size("max_source_positions"), width)
    return [*tower, *_hf_layers(audio, prefix), *norm(f"{prefix}.layer_norm", width, "every", bias=True)]


def qwen3_audio_tower(audio: ConfigView, prefix: str = "audio_tower") -> list[Module]:
    """Qwen3OmniMoeAudioEncoder: three strided 2-D convolutions, sharded attention and MLP, no quantization config."""
    width, heads, down = (
        audio.size("d_model"),
        audio.size("encoder_attention_heads"),
        audio.size("downsample_hidden_size"),
    )
    modules: list[Module] = [_sinusoids(audio, prefix)]
    for index, channels in enumerate((1, down, down), 1):
        modules += weight(f"{prefix}.conv2d{index}", down, channels, 3, 3, bias=True)
    height = (((audio.size("num_mel_bins") + 1) // 2 + 1) // 2 + 1) // 2
    modules.append(replicated(f"{prefix}.conv_out", down * height, width, bias=False, quantizable=False))
    for layer in range(audio.layers("encoder_layers")):
        at = f"{prefix}.layers.{layer}"
        modules += [
            fused_qkv(f"{at}.self_attn.qkv", width, heads, width // heads, quantizable=False),
            row(f"{at}.self_attn.out_proj", width, width, quantizable=False),
            *norm(f"{at}.self_attn_layer_norm", width, "every", bias=True),
            column(f"{at}.fc1", width, audio.size("encoder_ffn_dim"), quantizable=False),
            row(f"{at}.fc2", audio.size("encoder_ffn_dim"), width, quantizable=False),
            *norm(f"{at}.final_layer_norm", width, "every", bias=True),
        ]
    modules += norm(f"{prefix}.ln_post", width, "every", bias=True)
    modules += [
        replicated(f"{prefix}.proj1", width, width, quantizable=False),
        replicated(f"{prefix}.proj2", width, audio.size("output_dim"), quantizable=False),
    ]
    return as_tower(modules, "audio_tower")


def _whisper_stem(audio: ConfigView, prefix: str = "audio_tower") -> list[Module]:
    width = audio.size("d_model")
    return weight(f"{prefix}.conv1", width, audio.size("num_mel_bins"), 3, bias=True) + weight(
        f"{prefix}.conv2", width, width, 3, bias=True
    )


def _hf_layers(audio: ConfigView, prefix: str = "audio_tower") -> list[Module]:
    """transformers' Whisper layers: nn.Linear on each rank, no bias on the keys."""
    width, inner = audio.size("d_model"), audio.size("encoder_ffn_dim")
    modules: list[Module] = []
    for layer in range(audio.layers("encoder_layers")):
        at = f"{prefix}.layers.{layer}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            modules += weight(f"{at}.self_attn.{name}", width, width, bias=name != "k_proj")
        modules += norm(f"{at}.self_attn_layer_norm", width, "every", bias=True)
        modules += weight(f"{at}.fc1", inner, width, bias=True) + weight(f"{at}.fc2", width, inner, bias=True)
        modules += norm(f"{at}.final_layer_norm", width, "every", bias=True)
    return modules


def _sinusoids(audio: ConfigView, prefix: str = "audio_tower") -> Buffer:
    return Buffer(
        name=f"{prefix}.positional_embedding.positional_embedding",
        shape=(audio.size("max_source_positions"), audio.size("d_model")),
        dtype="float32",
    )


def thinker_text(config: ConfigView, thinker: ConfigView, text_type: str) -> ConfigView:
    """The text section under thinker_config; only the outermost tie_word_embeddings is copied into it."""
    section = thinker.section("text_config", text_type)
    return text_view(
        ConfigView({**config.data, "text_config": section.data}, config.where, config.model_type, config.files),
        text_type,
    )


def audio_encoder(audio: ConfigView, output: int) -> Encoder:
    width, heads = audio.size("d_model"), audio.size("encoder_attention_heads")
    return Encoder(
        hidden_size=width,
        num_layers=audio.layers("encoder_layers"),
        num_heads=heads,
        head_size=width // heads,
        intermediate_size=audio.size("encoder_ffn_dim"),
        output_size=output,
        max_positions=audio.size("max_source_positions"),
    )


def audio_frames(audio: ConfigView) -> AudioFrames:
    """30 seconds are 3000 mel frames; two strided steps halve them twice."""
    positions = (_CHUNK_FRAMES - 1) // 2 + 1
    return AudioFrames(
        mel_bins=audio.size("num_mel_bins"),
        max_frames=_CHUNK_FRAMES,
        encoder_positions=positions,
        tokens=(positions - 2) // 2 + 1,
    )


def convolved_frames(audio: ConfigView) -> AudioFrames:
    """Qwen3-Omni's: three strided 2-D convolutions over windows of 2 * n_window frames."""
    return replace(
        audio_frames(audio),
        stem_channels=audio.size("downsample_hidden_size"),
        stem_window=2 * audio.size("n_window"),
        stem_batch=audio.size("conv_chunksize", 500),
    )
