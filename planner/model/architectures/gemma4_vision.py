"""Gemma 4's vision and audio towers, for the language model of another file.

Source: vLLM 0.26.0 model_executor/models/gemma4_mm.py; transformers 5.14.1 models/gemma4/modeling_gemma4.py, whose
modules vLLM builds and whose nn.Linear layers it replaces by replicated ones.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.vision_blocks import as_tower, multimodal, replicated, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module, Parameter, TokenBuffer
from planner.model.quantization import read_quantization
from planner.model.vision_spec import AudioFrames, DynamicPatches, Encoder, Modality, VisionSpec

PREFIXES = (
    ("model.vision_tower", "vision_tower"),
    ("model.embed_vision", "embed_vision"),
    ("model.audio_tower.", "audio_tower."),
    ("model.embed_audio.", "embed_audio."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model", "language_model.model"),
)
_ANY_SIZE = ("bitsandbytes", "torchao", "compressed-tensors")
_UNIT = 64
_CLIP_BOUNDS = ("input_min", "input_max", "output_min", "output_max")


def with_gemma4_towers(config: ConfigView, text: Architecture) -> Architecture:
    """Gemma4ForConditionalGeneration around `text` (prefix "language_model."); audio where the config has some."""
    vision = config.section("vision_config", "gemma4_vision")
    quantizable = towers_quantizable(config, vision)
    output = text.text.hidden_size
    tower = gemma4_vision_tower(vision, quantizable=quantizable)
    tower += as_tower(
        [
            replicated(
                "embed_vision.embedding_projection",
                vision.size("hidden_size"),
                output,
                bias=False,
                quantizable=quantizable,
            )
        ]
    )
    modalities: tuple[Modality, ...] = ("image", "video")
    audio_encoder, frames = None, None
    if config.data.get("audio_config") is not None:
        audio = config.section("audio_config", "gemma4_audio")
        tower += gemma4_audio_tower(audio, quantizable=quantizable)
        dims = audio.size("output_proj_dims")
        tower += as_tower(
            [replicated("embed_audio.embedding_projection", dims, output, bias=False, quantizable=quantizable)],
            "audio_tower",
        )
        modalities = ("image", "audio", "video")
        audio_encoder, frames = _audio_encoder(audio, output), _frames(config, audio)
    spec = VisionSpec(
        family="Gemma4",
        modalities=modalities,
        encoder=_encoder(vision, output),
        image=_patches(config, vision),
        audio_encoder=audio_encoder,
        audio=frames,
    )
    return multimodal(text, tower, vision=spec, after=_per_layer_inputs(config, text), prefixes=PREFIXES)


def _per_layer_inputs(config: ConfigView, text: Architecture) -> list[Module]:
    """One input batch of per-layer embeddings where the decoder has them (gemma4_mm.py:1088)."""
    width = config.section("text_config", "gemma4_text").explicit("hidden_size_per_layer_input") or 0
    return [TokenBuffer(name="per_layer_embeddings", columns=text.text.num_hidden_layers * width)] if width else []


def towers_quantizable(config: ConfigView, vision: ConfigView) -> bool:
    """Whether the towers get the quantization config: most methods need multiples of 64 (gemma4_mm.py:1028)."""
    files = config.files
    quantization = read_quantization(config.data, files.hf_quant if files is not None else {})
    if quantization is not None and quantization.method in _ANY_SIZE:
        return True
    return vision.size("hidden_size") % _UNIT == 0 and vision.size("intermediate_size") % _UNIT == 0


def gemma4_vision_tower(vision: ConfigView, prefix: str = "vision_tower", *, quantizable: bool = True) -> list[Module]:
    """Gemma4VisionModel: a position table for each axis, gated MLP, q and k norms, four norms a layer."""
    width, inner, head = vision.size("hidden_size"), vision.size("intermediate_size"), vision.size("head_dim")
    heads, kv_heads = vision.size("num_attention_heads"), vision.size("num_key_value_heads")
    clipped = vision.flag("use_clipped_linears")
    modules: list[Module] = [
        replicated(
            f"{prefix}.patch_embedder.input_proj",
            3 * vision.size("patch_size") ** 2,
            width,
            bias=False,
            quantizable=quantizable,
        ),
        Parameter(
            name=f"{prefix}.patch_embedder.position_embedding_table",
            shape=(2, vision.size("position_embedding_size"), width),
        ),
    ]
    for name in ("inv_freq", "original_inv_freq"):
        modules.append(Buffer(name=f"{prefix}.encoder.rotary_emb.{name}", shape=(-(-head // 4),), dtype="float32"))
    for layer in range(vision.layers("num_hidden_layers")):
        at = f"{prefix}.encoder.layers.{layer}"
        sizes = {
            "self_attn.q_proj": (width, heads * head),
            "self_attn.k_proj": (width, kv_heads * head),
            "self_attn.v_proj": (width, kv_heads * head),
            "self_attn.o_proj": (heads * head, width),
            "mlp.gate_proj": (width, inner),
            "mlp.up_proj": (width, inner),
            "mlp.down_proj": (inner, width),
        }
        for name, (inputs, outputs) in sizes.items():
            modules += _clippable(f"{at}.{name}", inputs, outputs, clipped, quantizable)
        modules += norm(f"{at}.self_attn.q_norm", head, "every") + norm(f"{at}.self_attn.k_norm", head, "every")
        for name in (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ):
            modules += norm(f"{at}.{name}", width, "every")
    if vision.flag("standardize"):
        modules += [Buffer(name=f"{prefix}.{name}", shape=(width,)) for name in ("std_bias", "std_scale")]
    return as_tower(modules)


def gemma4_audio_tower(audio: ConfigView, prefix: str = "audio_tower", *, quantizable: bool = True) -> list[Module]:
    """Gemma4AudioModel: two strided convolutions, Conformer layers with two half-step MLPs."""
    width, heads = audio.size("hidden_size"), audio.size("num_attention_heads")
    first, second = audio.sizes("subsampling_conv_channels", count=2)
    stem = f"{prefix}.subsample_conv_projection"
    modules: list[Module] = []
    for index, (inputs, outputs) in enumerate(((1, first), (first, second))):
        modules += weight(f"{stem}.layer{index}.conv", outputs, inputs, 3, 3) + norm(
            f"{stem}.layer{index}.norm", outputs, "every"
        )
    modules.append(
        replicated(f"{stem}.input_proj_linear", first // 4 * second, width, bias=False, quantizable=quantizable)
    )
    modules.append(Buffer(name=f"{prefix}.rel_pos_enc.inv_timescales", shape=(1, 1, width // 2)))
    for layer in range(audio.layers("num_hidden_layers")):
        modules += _audio_layer(audio, f"{prefix}.layers.{layer}", width, width // heads, quantizable)
    modules.append(replicated(f"{prefix}.output_proj", width, audio.size("output_proj_dims"), quantizable=quantizable))
    return as_tower(modules, "audio_tower")


def _audio_layer(audio: ConfigView, at: str, width: int, head: int, quantizable: bool) -> list[Module]:
    clipped = audio.flag("use_clipped_linears")
    modules: list[Module] = []
    for mlp in ("feed_forward1", "feed_forward2"):
        modules += _clippable(f"{at}.{mlp}.ffw_layer_1", width, 4 * width, clipped, quantizable)
        modules += _clippable(f"{at}.{mlp}.ffw_layer_2", 4 * width, width, clipped, quantizable)
        modules += norm(f"{at}.{mlp}.pre_layer_norm", width, "every") + norm(
            f"{at}.{mlp}.post_layer_norm", width, "every"
        )
    for name in ("q_proj", "k_proj", "v_proj", "post"):
        modules += _clippable(f"{at}.self_attn.{name}", width, width, clipped, quantizable)
    modules.append(replicated(f"{at}.self_attn.relative_k_proj", width, width, bias=False, quantizable=quantizable))
    modules.append(Parameter(name=f"{at}.self_attn.per_dim_scale", shape=(head,)))
    modules.append(Buffer(name=f"{at}.self_attn.softcap", shape=()))
    modules += _clippable(f"{at}.lconv1d.linear_start", width, 2 * width, clipped, quantizable)
    modules += _clippable(f"{at}.lconv1d.linear_end", width, width, clipped, quantizable)
    modules += weight(f"{at}.lconv1d.depthwise_conv1d", width, 1, audio.size("conv_kernel_size"))
    modules += norm(f"{at}.lconv1d.pre_layer_norm", width, "every") + norm(f"{at}.lconv1d.conv_norm", width, "every")
    for name in ("norm_pre_attn", "norm_post_attn", "norm_out"):
        modules += norm(f"{at}.{name}", width, "every")
    return modules


def _clippable(name: str, inputs: int, outputs: int, clipped: bool, quantizable: bool) -> list[Module]:
    """Gemma4ClippableLinear: a linear layer and, where the config asks for it, four scalar bounds."""
    modules: list[Module] = [replicated(f"{name}.linear", inputs, outputs, bias=False, quantizable=quantizable)]
    if clipped:
        modules += [Buffer(name=f"{name}.{bound}", shape=()) for bound in _CLIP_BOUNDS]
    return modules


def _encoder(vision: ConfigView, output: int) -> Encoder:
    return Encoder(
        hidden_size=vision.size("hidden_size"),
        num_layers=vision.layers("num_hidden_layers"),
        mlp_shards=2,
        num_heads=vision.size("num_attention_heads"),
        head_size=vision.size("head_dim"),
        intermediate_size=vision.size("intermediate_size"),
        output_size=output,
        max_positions=vision.size("position_embedding_size"),
    )


def _audio_encoder(audio: ConfigView, output: int) -> Encoder:
    width, heads = audio.size("hidden_size"), audio.size("num_attention_heads")
    return Encoder(
        hidden_size=width,
        num_layers=audio.layers("num_hidden_layers"),
        num_heads=heads,
        head_size=width // heads,
        intermediate_size=4 * width,
        output_size=output,
        projector_size=audio.size("output_proj_dims"),
    )


def _patches(config: ConfigView, vision: ConfigView) -> DynamicPatches:
    """An image becomes at most default_output_length tokens of pooling_kernel_size**2 patches, a video frame at most 70
    (gemma4_mm.py get_mm_max_tokens_per_item)."""
    patch, pool = vision.size("patch_size"), vision.size("pooling_kernel_size")
    unit = (patch * pool) ** 2
    tokens = vision.size("default_output_length", config.size("vision_soft_tokens_per_image", 280))
    return DynamicPatches(
        patch_size=patch,
        merge_size=pool,
        temporal_patch_size=1,
        min_pixels=unit,
        max_pixels=tokens * unit,
        video_min_pixels=unit,
        video_max_pixels=70 * unit,
        max_video_frames=32,
    )


def _frames(config: ConfigView, audio: ConfigView) -> AudioFrames:
    settings = ConfigView(config.files.processor if config.files is not None else {}, "processor_config.json")
    tokens = settings.size("audio_seq_length", 750)
    return AudioFrames(
        mel_bins=settings.section("feature_extractor").size("feature_size", 128),
        max_frames=4 * tokens,
        encoder_positions=tokens,
        tokens=tokens,
        stem_channels=audio.sizes("subsampling_conv_channels", count=2)[0],
    )
