"""Gemma 3n: alternating updates over several streams, per-layer embeddings, low-rank residuals, shared keys and values.

Source: vLLM 0.26.0 model_executor/models/gemma3n.py, gemma3n_mm.py; transformers 5.14.1 models/gemma3n.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.errors import InputError, UnsupportedError
from planner.model.architectures.assemble import SLIDING, Names, alternate, assemble
from planner.model.architectures.blocks import Architecture, gated_mlp, norm, read_heads, self_attention, text_dims
from planner.model.architectures.experts import by_layer
from planner.model.architectures.gemma import nested_rope
from planner.model.architectures.gemma4 import per_layer_embeddings, per_layer_input, sharing, weightless_norm
from planner.model.architectures.mobilenet import ENCODERS, mobilenet
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, row, text_view, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Linear, LMHead, Module, Parameter, TokenBuffer, VocabEmbedding
from planner.model.vision_spec import AudioFrames, FixedSize, VisionSpec

_NAMES = Names(
    norms=(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
)
_TEXT_PREFIXES = tuple(
    (f"{name}.", f"self_decoder.{name}.")
    for name in (
        "embed_tokens",
        "embed_tokens_per_layer",
        "per_layer_model_projection",
        "per_layer_projection_norm",
        "altup_projections",
    )
)
_PREFIXES = (
    ("model.embed_audio.", "embed_audio."),
    ("model.embed_vision.", "embed_vision."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.audio_tower.", "audio_tower."),
    ("lm_head.", "language_model.lm_head."),
)
_IMAGE_TOKENS, _IMAGE_MARKERS, _SOUND_TOKENS = 256, 4, 188
_TILE, _SIDE = 48, 768


def gemma3n(config: ConfigView, prefix: str = "") -> Architecture:
    """Gemma3nForCausalLM: no pipeline parallelism, no head of its own (gemma3n.py:573, 1058)."""
    heads = read_heads(config)
    layers = config.layers()
    dims = text_dims(config, heads, by_layer(config, "intermediate_size", 0))
    given = config.strings("layer_types", ())
    types = tuple(given) if given else tuple(alternate(layers, 5))
    if len(types) < layers:
        raise InputError(f"{config.where}: layer_types has {len(types)} entries for {layers} layers")
    first_shared = layers - config.count("num_kv_shared_layers", 0)
    hidden, streams, bias = dims.hidden_size, config.size("altup_num_inputs"), config.flag("attention_bias")
    width, rank = config.size("hidden_size_per_layer_input"), config.size("laurel_rank")

    def attention(at: str, layer: int) -> list[Module]:
        slides = types[layer] == SLIDING
        window = config.size("sliding_window") if slides else None
        parts = self_attention(
            at,
            layer,
            heads,
            qkv_bias=bias,
            out_bias=bias,
            rope=nested_rope(config, slides),
            max_position=dims.max_position_embeddings,
            qk_norm=True,
            kind="sliding_window" if slides else "full_attention",
            window=window,
        )
        target = first_shared - (2 if slides else 1)
        if layer >= first_shared and target >= 0:
            parts = [sharing(part, f"{at.partition('.layers.')[0]}.layers.{target}") for part in parts]
        block = at.rpartition(".")[0]
        return [
            *_streams(block, layer, hidden, streams),
            *parts,
            weightless_norm(f"{at}.v_norm", heads.head_size, layer),
        ]

    def feed_forward(at: str, layer: int) -> list[Module]:
        block = at.rpartition(".")[0]
        return [
            *gated_mlp(at, layer, hidden, by_layer(config, "intermediate_size", layer)),
            *_low_rank(block, layer, hidden, rank),
            *per_layer_input(block, layer, hidden, width),
        ]

    text = assemble(
        dims,
        prefix=prefix,
        attention=attention,
        feed_forward=feed_forward,
        tied=True,
        names=_NAMES,
        every_stage=True,
        supports_pp=False,
        extra=[
            *per_layer_embeddings(config, f"{prefix}model.self_decoder", width),
            *_projections(f"{prefix}model.altup_unembed_projections", hidden, streams),
            *_projections(f"{prefix}model.self_decoder.altup_projections", hidden, streams),
        ],
        prefixes=() if prefix else _TEXT_PREFIXES,
    )
    kept = [_renamed(part, prefix) for part in text.modules if not isinstance(part, LMHead)]
    return replace(text, modules=tuple(kept))


def gemma3n_mm(config: ConfigView) -> Architecture:
    """Gemma3nForConditionalGeneration: MobileNetV5 for images and a Conformer for sound, both transformers' own."""
    vision = config.section("vision_config", "gemma3n_vision")
    audio = config.section("audio_config", "gemma3n_audio")
    section = text_view(config, "gemma3n_text")
    text = gemma3n(section, "language_model.")
    name = vision.text("architecture", "mobilenetv5_300m_enc")
    if name not in ENCODERS:
        raise UnsupportedError("vision_config", f"{vision.where}: timm's {name!r} is not supported by this planner")
    hidden = text.text.hidden_size
    tower = as_tower([*mobilenet("vision_tower.timm_model", name), *_embedder("embed_vision", vision, hidden)])
    sound = as_tower([*_conformer(audio), *_embedder("embed_audio", audio, hidden)], "audio_tower")
    table = TokenBuffer(
        name="per_layer_embeddings", columns=section.layers() * section.size("hidden_size_per_layer_input")
    )
    image = FixedSize(
        image_size=_SIDE,
        patch_size=_TILE,
        patches=_IMAGE_TOKENS,
        tokens=_IMAGE_TOKENS,
        item_tokens=_IMAGE_TOKENS + _IMAGE_MARKERS,
    )
    frames = AudioFrames(
        mel_bins=audio.size("input_feat_size"),
        max_frames=_SOUND_TOKENS * 16,
        encoder_positions=_SOUND_TOKENS,
        tokens=_SOUND_TOKENS,
    )
    spec = VisionSpec(family="Gemma3n", modalities=("image", "audio"), image=image, audio=frames)
    return multimodal(text, tower + sound, after=(table,), vision=spec, prefixes=_PREFIXES, supports_pp=False)


def _streams(block: str, layer: int, hidden: int, streams: int) -> list[Module]:
    """The predictor and corrector of the streams, whole on each rank (gemma3n.py:64)."""
    at = f"{block}.altup"
    sizes = (("correction_coefs", streams, streams), ("prediction_coefs", streams, streams**2))
    modules: list[Module] = [
        Linear(name=f"{at}.{name}", placement=layer, input_size=inner, output_sizes=(output,))
        for name, inner, output in (*sizes, ("modality_router", hidden, streams))
    ]
    modules += norm(f"{at}.router_norm", hidden, layer)
    modules.append(Parameter(name=f"{at}.correct_output_scale", placement=layer, shape=(hidden,), dtype="float32"))
    return [*modules, Buffer(name=f"{at}.router_input_scale", placement=layer, shape=(), registered=False)]


def _low_rank(block: str, layer: int, hidden: int, rank: int) -> list[Module]:
    at = f"{block}.laurel"
    parts = [column(f"{at}.linear_left", hidden, rank, bias=False), row(f"{at}.linear_right", rank, hidden, bias=False)]
    return [*(replace(part, placement=layer) for part in parts), *norm(f"{at}.post_laurel_norm", hidden, layer)]


def _projections(at: str, hidden: int, streams: int) -> list[Module]:
    return [column(f"{at}.{index}", hidden, hidden, bias=False) for index in range(streams - 1)]


def _renamed(part: Module, prefix: str) -> Module:
    """The embedding is the self-decoder's."""
    embed = f"{prefix}model.embed_tokens"
    return replace(part, name=f"{prefix}model.self_decoder.embed_tokens") if part.name == embed else part


def _embedder(at: str, section: ConfigView, hidden: int) -> list[Module]:
    """Soft tokens and the tower's own vocabulary, brought to the language model's width (gemma3n_mm.py:388)."""
    width = section.size("hidden_size")
    table = VocabEmbedding(
        name=f"{at}.embedding", num_embeddings=section.size("vocab_size"), hidden_size=width, quantizable=False
    )
    modules: list[Module] = [table]
    modules += norm(f"{at}.hard_embedding_norm", width, "every") + norm(f"{at}.soft_embedding_norm", width, "every")
    modules.append(row(f"{at}.embedding_projection", width, hidden, bias=False, quantizable=False))
    return [*modules, Buffer(name=f"{at}.embedding_post_projection_norm.weight", shape=(hidden,), registered=False)]


def _conformer(audio: ConfigView) -> list[Module]:
    """Two strided convolutions, a projection, and Conformer blocks of nn.Linear (modeling_gemma3n.py:731, 900)."""
    width, bins = audio.size("hidden_size"), audio.size("input_feat_size")
    stem, before = "audio_tower.subsample_conv_projection", 1
    modules: list[Module] = []
    kernels, strides = _pairs(audio, "sscp_conv_kernel_size", 3), _pairs(audio, "sscp_conv_stride_size", 2)
    for index, channels in enumerate(audio.sizes("sscp_conv_channel_size", (128, 32))):
        high, wide = kernels[index]
        modules += weight(f"{stem}.conv_{index}.conv", channels, before, high, wide)
        modules += norm(f"{stem}.conv_{index}.norm", channels, "every")
        bins, before = (bins + 2 - wide) // strides[index][1] + 1, channels
    modules += weight(f"{stem}.input_proj_linear", width, before * bins)
    for layer in range(audio.layers("conf_num_hidden_layers")):
        modules += _conformer_block(audio, f"audio_tower.conformer.{layer}", width)
    return modules


def _conformer_block(audio: ConfigView, at: str, width: int) -> list[Module]:
    head = width // audio.size("conf_num_attention_heads")
    chunk, past = audio.size("conf_attention_chunk_size"), max(0, audio.count("conf_attention_context_left") - 1)
    modules: list[Module] = [Buffer(name=f"{at}.gradient_clipping", shape=())]
    for name in ("ffw_layer_start", "ffw_layer_end"):
        modules += norm(f"{at}.{name}.pre_layer_norm", width, "every")
        modules += weight(f"{at}.{name}.ffw_layer_1", 4 * width, width)
        modules += weight(f"{at}.{name}.ffw_layer_2", width, 4 * width)
        modules += norm(f"{at}.{name}.post_layer_norm", width, "every")
    modules += norm(f"{at}.attention.pre_attn_norm", width, "every")
    modules.append(Parameter(name=f"{at}.attention.attn.per_dim_scale", shape=(head,)))
    for name in ("relative_position_embedding.pos_proj", "q_proj", "k_proj", "v_proj"):
        modules += weight(f"{at}.attention.attn.{name}", width, width)
    modules += weight(f"{at}.attention.post", width, width) + norm(f"{at}.attention.post_norm", width, "every")
    modules += norm(f"{at}.lconv1d.pre_layer_norm", width, "every")
    modules += weight(f"{at}.lconv1d.linear_start", 2 * width, width)
    modules += weight(f"{at}.lconv1d.depthwise_conv1d", width, 1, audio.size("conf_conv_kernel_size"))
    modules += norm(f"{at}.lconv1d.conv_norm", width, "every")
    modules += weight(f"{at}.lconv1d.linear_end", width, width) + norm(f"{at}.norm", width, "every")
    for name in ("ffw_layer_start", "attention", "lconv1d", "ffw_layer_end"):
        modules.append(Buffer(name=f"{at}.{name}.gradient_clipping", shape=()))
    inner = f"{at}.attention.attn"
    context = chunk + past + audio.count("conf_attention_context_right", 0)
    return [
        *modules,
        Buffer(name=f"{inner}.q_scale", shape=()),
        Buffer(name=f"{inner}.local_causal_valid_mask", shape=(chunk, context), dtype="uint8"),
        Buffer(name=f"{inner}.softcap", shape=(), dtype="float32"),
        Buffer(name=f"{inner}.relative_position_embedding.inv_timescales", shape=(1, 1, width // 2), dtype="float32"),
    ]


def _pairs(audio: ConfigView, key: str, default: int) -> list[tuple[int, int]]:
    given = audio.raw(key, [[default, default], [default, default]])
    if not isinstance(given, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in given):
        raise InputError(f"{audio.where}: {key} must be a list of pairs")
    return [(int(high), int(wide)) for high, wide in given]
