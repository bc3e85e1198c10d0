"""MiDashengLM: Dasheng's transformer over spectrogram patches, a subsampling projector, Qwen2.5-Omni's decoder.

Source: vLLM 0.26.0 model_executor/models/midashenglm.py, transformers_utils/configs/midashenglm.py.
"""

from __future__ import annotations

from planner.model.architectures import llama
from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.granite_speech import batch_norm
from planner.model.architectures.vision_blocks import as_tower, column, fused_qkv, multimodal, row, text_view, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module, Parameter
from planner.model.vision_spec import VisionSpec

_POSITIONS = ("rope_parameters", "rope_scaling")


def midashenglm(config: ConfigView) -> Architecture:
    """MiDashengLMModel. vLLM drops the decoder's rope section: positions have one part (configs/midashenglm.py:101)."""
    section = text_view(config, "qwen2_5_omni_text")
    data = {key: value for key, value in section.data.items() if key not in _POSITIONS}
    text = llama.qwen2(ConfigView(data, section.where, "qwen2_5_omni_text", config.files), "decoder.")
    audio = config.section("audio_encoder_config")
    width, output = audio.size("embed_dim", 768), text.text.hidden_size
    modules = _dasheng(audio, "audio_encoder", width)
    modules += [
        column("audio_projector.net.0", width * config.size("subsample_factor", 5), output),
        row("audio_projector.net.2", output, output),
    ]
    spec = VisionSpec(family="MiDashengLM", modalities=("audio",))
    return multimodal(text, as_tower(modules, "audio_tower"), vision=spec)


def _dasheng(audio: ConfigView, prefix: str, width: int) -> list[Module]:
    mels, heads = audio.size("n_mels", 64), audio.size("num_heads", 12)
    patch, stride = _pair(audio, "patch_size"), _pair(audio, "patch_stride")
    inner = int(width * audio.number("mlp_ratio", 4.0))
    modules: list[Module] = [
        Buffer(name=f"{prefix}.front_end.spectrogram_window", shape=(audio.size("win_length", 512),)),
        Buffer(name=f"{prefix}.front_end.melscale_fbanks", shape=(audio.size("n_fft", 512) // 2 + 1, mels)),
        *batch_norm(f"{prefix}.init_bn", mels),
        *weight(f"{prefix}.patch_embed.proj", width, audio.size("input_channels", 1), *patch, bias=True),
    ]
    grid = (mels // stride[0], audio.size("target_length", 1012) // stride[1])
    modules.append(Parameter(name=f"{prefix}.time_pos_embed", shape=(1, width, 1, grid[1])))
    modules.append(Parameter(name=f"{prefix}.freq_pos_embed", shape=(1, width, grid[0], 1)))
    for layer in range(audio.layers("depth") if "depth" in audio else 12):
        at = f"{prefix}.blocks.{layer}"
        modules += norm(f"{at}.norm1", width, "every", bias=True) + norm(f"{at}.norm2", width, "every", bias=True)
        modules += [
            fused_qkv(
                f"{at}.attn.qkv", width, heads, width // heads, bias=audio.flag("qkv_bias", True), shard_names=()
            ),
            row(f"{at}.attn.proj", width, width),
            column(f"{at}.mlp.fc1", width, inner),
            row(f"{at}.mlp.fc2", inner, width),
        ]
        if audio.raw("init_values"):
            modules += [Parameter(name=f"{at}.{name}.gamma", shape=(width,)) for name in ("ls1", "ls2")]
    return [*modules, *norm(f"{prefix}.norm", width, "every", bias=True)]


def _pair(audio: ConfigView, key: str) -> tuple[int, int]:
    """One size for both axes, or one for each."""
    if isinstance(audio.raw(key), list):
        first, second = audio.sizes(key, count=2)
        return first, second
    size = audio.size(key, 16)
    return size, size
