"""ERNIE 4.5 VL: text and vision experts side by side, a plain ViT, a resampler over space and time.

Source: vLLM 0.26.0 model_executor/models/{ernie45_vl,ernie45_vl_moe}.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.assemble import assemble
from planner.model.architectures.blocks import (
    Architecture,
    gated_mlp,
    norm,
    plain_mlp,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.experts import experts, router
from planner.model.architectures.qwen_vl import pixel_bounds
from planner.model.architectures.vision_blocks import as_tower, column, fused_qkv, multimodal, row, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module, Parameter
from planner.model.rope import rope_parameters
from planner.model.vision_spec import DynamicPatches, Encoder, VisionSpec

_PREFIXES = (
    ("lm_head.", "language_model.lm_head."),
    ("model.resampler_model.", "resampler_model."),
    ("model.", "language_model.model."),
)
_NO_TABLE = "'PPMissingLayer' object has no attribute 'weight'"
"""A tied head asks each stage for the embedding, which only the first one has (ernie45_vl_moe.py:613)."""


def ernie45_vl(config: ConfigView) -> Architecture:
    """Ernie4_5_VLMoeForConditionalGeneration: the decoder's keys are the config's own."""
    vision = config.section("vision_config", "ernie4_5_vl_moe_vision")
    width, heads = vision.size("embed_dim", vision.size("hidden_size")), vision.size("num_heads")
    merge, temporal = config.size("spatial_conv_size"), config.size("temporal_conv_size")
    low, high = pixel_bounds(config, "preprocessor", (56 * 56, 6177 * 28 * 28))
    image = DynamicPatches(
        patch_size=vision.size("patch_size"),
        merge_size=merge,
        temporal_patch_size=temporal,
        min_pixels=low,
        max_pixels=high,
        video_min_pixels=low,
        video_max_pixels=high,
        max_video_frames=0,
    )
    encoder = Encoder(
        hidden_size=width,
        num_layers=vision.layers("depth"),
        num_heads=heads,
        head_size=width // heads,
        intermediate_size=int(width * vision.number("mlp_ratio")),
        output_size=config.size("hidden_size"),
        projector_size=width * merge**2,
    )
    spec = VisionSpec(family="Ernie4_5_VL", modalities=("image", "video"), encoder=encoder, image=image)
    tower = _tower(vision, width, heads) + _resampler(config, width)
    text = _decoder(config, "language_model.")
    refusal = _NO_TABLE if text.tie_word_embeddings else None
    return multimodal(text, tower, vision=spec, prefixes=_PREFIXES, pipeline_refusal=refusal)


def _decoder(config: ConfigView, prefix: str) -> Architecture:
    heads = read_heads(config)
    dims = text_dims(config, heads)
    hidden, bias = dims.hidden_size, config.flag("use_bias")
    counts, widths = _pair(config, "moe_num_experts"), _pair(config, "moe_intermediate_size")
    last = dims.num_hidden_layers - 1
    starts, ends = _pair(config, "moe_layer_start_index"), _pair(config, "moe_layer_end_index", (last, last))
    interval, top_k = config.size("moe_layer_interval", 1), config.size("moe_k")
    shared = config.count("moe_num_shared_experts", 0)
    rope = rope_parameters(config)
    position = config.size("max_position_embeddings", 131072)

    def attention(at: str, layer: int) -> list[Module]:
        """Its rotary class is called by itself: each layer has a table of four times the positions."""
        parts = self_attention(at, layer, heads, qkv_bias=bias, rope=rope, max_position=position, interleaved=True)
        return [
            replace(part, shape=(4 * position, heads.head_size), shared_key=f"mrope_section {at}")
            if isinstance(part, Buffer)
            else part
            for part in parts
        ]

    def feed_forward(at: str, layer: int) -> list[Module]:
        if (layer + 1) % interval or not min(starts) <= layer <= max(ends):
            return gated_mlp(at, layer, hidden, dims.intermediate_size, bias=bias)
        correction = Parameter(
            name=f"{at}.e_score_correction_bias", placement=layer, shape=(2, counts[0]), dtype="float32"
        )
        modules: list[Module] = [correction]
        if shared:
            modules += gated_mlp(f"{at}.shared_experts", layer, hidden, widths[0] * shared)
        for index, kind in enumerate(("text", "vision")):
            if not starts[index] <= layer <= ends[index]:
                modules += gated_mlp(f"{at}.{kind}_experts", layer, hidden, dims.intermediate_size, bias=bias)
                continue
            gate = f"{at}.{kind}_experts_gate"
            modules.append(router(gate, layer, hidden, counts[index], dtype="float32", quantizable=True))
            routed = experts(at, layer, count=counts[index], top_k=top_k, hidden=hidden, inner=widths[index])
            modules.append(replace(routed, name=f"{at}.{kind}_experts"))
        return modules

    return assemble(
        dims,
        prefix=prefix,
        tied=config.flag("tie_word_embeddings"),
        feed_forward=feed_forward,
        num_experts=max(counts),
        attention=attention,
    )


def _pair(config: ConfigView, key: str, default: Sequence[int] | None = None) -> tuple[int, int]:
    """Text's and vision's number."""
    value = config.raw(key, default)
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(item, int) for item in value):
        raise InputError(f"{config.where}: {key} must be two whole numbers, found {value!r}")
    return value[0], value[1]


def _tower(vision: ConfigView, width: int, heads: int, prefix: str = "vision_model") -> list[Module]:
    """Ernie4_5_VisionTransformer: its rotary frequencies are no buffer."""
    patch = vision.size("patch_size")
    modules = weight(f"{prefix}.patch_embed.proj", width, vision.size("in_channels", 3) * patch**2)
    for layer in range(vision.layers("depth")):
        at = f"{prefix}.blocks.{layer}"
        modules += norm(f"{at}.norm1", width, "every", bias=True) + norm(f"{at}.norm2", width, "every", bias=True)
        modules += [
            fused_qkv(f"{at}.attn.qkv", width, heads, width // heads, shard_names=()),
            row(f"{at}.attn.proj", width, width),
        ]
        modules += plain_mlp(f"{at}.mlp", "every", width, int(width * vision.number("mlp_ratio")))
    return as_tower([*modules, *norm(f"{prefix}.ln", vision.size("hidden_size"), "every", bias=True)])


def _resampler(config: ConfigView, width: int, prefix: str = "resampler_model") -> list[Module]:
    """Linears divided by output, gathered after each (ernie45_vl.py:602)."""
    merged = config.size("pixel_hidden_size", width) * config.size("spatial_conv_size") ** 2
    sizes = [("spatial", merged)]
    if config.flag("use_temporal_conv", True):
        sizes.append(("temporal", merged * config.size("temporal_conv_size")))
    modules: list[Module] = []
    for name, inputs in sizes:
        modules.append(column(f"{prefix}.{name}_linear1", inputs, merged, quantizable=False))
        modules.append(column(f"{prefix}.{name}_linear2", merged, merged, quantizable=False))
        modules += norm(f"{prefix}.{name}_norm", merged, "every", bias=True)
    modules.append(column(f"{prefix}.mlp", merged, config.size("hidden_size"), quantizable=False))
    return as_tower([*modules, *norm(f"{prefix}.after_norm", config.size("hidden_size"), "every")])
