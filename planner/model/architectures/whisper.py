"""Whisper: an encoder of sound, and a decoder whose layers also attend to what it heard.

Source: vLLM 0.26.0 model_executor/models/whisper.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.audio import audio_encoder
from planner.model.architectures.blocks import Architecture, Heads, norm, plain_mlp
from planner.model.architectures.vision_blocks import as_tower, column, fused_qkv, multimodal, row, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, AttentionKind, Module, PackedNames, Parameter, VocabEmbedding
from planner.model.spec import TextDims
from planner.model.vision_spec import AudioFrames, VisionSpec

_CHUNK_FRAMES = 3000
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "kv_proj": ("k_proj", "v_proj")}


def whisper(config: ConfigView) -> Architecture:
    """WhisperForConditionalGeneration: one sound a prompt; embeddings and head are one table, whole on each rank."""
    width, heads = config.size("d_model"), config.size("decoder_attention_heads")
    sizes = Heads(hidden_size=width, num_heads=heads, num_kv_heads=heads, head_size=width // heads)
    dims = TextDims(
        hidden_size=width,
        num_hidden_layers=config.layers("decoder_layers"),
        vocab_size=config.size("vocab_size"),
        num_attention_heads=heads,
        num_kv_heads=heads,
        head_size=sizes.head_size,
        intermediate_size=config.size("decoder_ffn_dim"),
        max_position_embeddings=config.size("max_target_positions"),
    )
    positions = config.size("max_source_positions")
    audio = AudioFrames(
        mel_bins=config.size("num_mel_bins"),
        max_frames=_CHUNK_FRAMES,
        encoder_positions=positions,
        tokens=positions,
    )
    spec = VisionSpec(
        family="Whisper",
        modalities=("audio",),
        limits=(("audio", 1),),
        dropped_with=(),
        audio_encoder=audio_encoder(config, width),
        audio=audio,
    )
    text = Architecture(
        modules=tuple(_decoder(config, dims, sizes)),
        text=dims,
        names=PackedNames(fused=_FUSED),
        tie_word_embeddings=True,
        supports_pp=False,
    )
    return multimodal(text, _encoder(config, width, positions), vision=spec, fused=_FUSED, supports_pp=False)


def _encoder(config: ConfigView, width: int, positions: int, prefix: str = "model.encoder") -> list[Module]:
    heads = config.size("encoder_attention_heads")
    modules = weight(f"{prefix}.conv1", width, config.size("num_mel_bins"), 3, bias=True)
    modules += weight(f"{prefix}.conv2", width, width, 3, bias=True)
    for layer in range(config.layers("encoder_layers")):
        at = f"{prefix}.layers.{layer}"
        modules += [
            fused_qkv(f"{at}.self_attn.qkv_proj", width, heads, width // heads),
            row(f"{at}.self_attn.out_proj", width, width),
            *norm(f"{at}.self_attn_layer_norm", width, "every", bias=True),
            *plain_mlp(f"{at}.mlp", "every", width, config.size("encoder_ffn_dim")),
            *norm(f"{at}.final_layer_norm", width, "every", bias=True),
        ]
    modules += norm(f"{prefix}.layer_norm", width, "every", bias=True)
    return as_tower([*modules, *weight(f"{prefix}.embed_positions", positions, width)], "audio_tower")


def _decoder(config: ConfigView, dims: TextDims, heads: Heads, prefix: str = "model.decoder") -> list[Module]:
    width = dims.hidden_size
    modules: list[Module] = [
        VocabEmbedding(
            name=f"{prefix}.embed_tokens",
            num_embeddings=dims.vocab_size,
            hidden_size=width,
            padding=1,
            tensor_parallel=False,
            quantizable=False,
        ),
        Parameter(name=f"{prefix}.embed_positions.weight", shape=(dims.max_position_embeddings, width)),
    ]
    for layer in range(dims.num_hidden_layers):
        at = f"{prefix}.layers.{layer}"
        parts: list[Module] = [
            fused_qkv(f"{at}.self_attn.qkv_proj", width, heads.num_heads, heads.head_size),
            row(f"{at}.self_attn.out_proj", width, width),
            _cache(f"{at}.self_attn.attn", heads, "full_attention"),
            *norm(f"{at}.self_attn_layer_norm", width, layer, bias=True),
            column(f"{at}.encoder_attn.q_proj", width, width),
            column(f"{at}.encoder_attn.kv_proj", width, width, width, shard_names=("k_proj", "v_proj")),
            row(f"{at}.encoder_attn.out_proj", width, width),
            _cache(f"{at}.encoder_attn.attn", heads, "cross_attention"),
            *norm(f"{at}.encoder_attn_layer_norm", width, layer, bias=True),
            *plain_mlp(f"{at}.mlp", layer, width, dims.intermediate_size),
            *norm(f"{at}.final_layer_norm", width, layer, bias=True),
        ]
        modules += [replace(part, placement=layer) for part in parts]
    return [*modules, *norm(f"{prefix}.layer_norm", width, "every", bias=True)]


def _cache(name: str, heads: Heads, kind: AttentionKind) -> Attention:
    return Attention(
        name=name,
        kind=kind,
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_size=heads.head_size,
        has_rope=False,
    )
