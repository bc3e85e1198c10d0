"""Gemma, Gemma 2 and Gemma 3, and Gemma 3 with images.

Source: vLLM 0.26.0 model_executor/models/gemma.py, gemma2.py, gemma3.py, gemma3_mm.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.assemble import Names, Windows, alternate, assemble
from planner.model.architectures.blocks import Architecture, gated_mlp, read_heads, self_attention, text_dims
from planner.model.architectures.vision_blocks import as_tower, multimodal, text_view
from planner.model.architectures.vit import encoder_of, patch_grid, siglip
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, LMHead, Module, Parameter
from planner.model.rope import rope_parameters
from planner.model.vision_spec import FixedSize, VisionSpec
from planner.values import reject

_FOUR_NORMS = Names(
    norms=("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
)
_GEMMA3_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)


def gemma(config: ConfigView, prefix: str = "") -> Architecture:
    """GemmaForCausalLM: two norms a layer, no biases, the head always tied (gemma.py:341)."""
    return _decoder(config, prefix, names=Names(), bias=False, rope_by_type=False)


def gemma2(config: ConfigView, prefix: str = "") -> Architecture:
    """Gemma2ForCausalLM: four norms, sliding and full layers in turn, soft-capped attention."""
    types = alternate(config.layers(), 2)
    return _decoder(
        config,
        prefix,
        names=_FOUR_NORMS,
        bias=config.flag("attention_bias"),
        types=types,
        rope_by_type=False,
        softcap=config.raw("attn_logit_softcapping") is not None,
    )


def gemma3(config: ConfigView, prefix: str = "") -> Architecture:
    """Gemma3ForCausalLM: q and k norms, one full layer in six, a rotary table for each kind of layer."""
    config.require("use_bidirectional_attention", (False, None), False)
    config.require("is_causal", (True,), True)
    types = alternate(config.layers(), config.size("sliding_window_pattern", 6))
    return _decoder(
        config,
        prefix,
        names=_FOUR_NORMS,
        bias=config.flag("attention_bias"),
        types=types,
        rope_by_type=True,
        qk_norm=True,
        own_head=True,
    )


def gemma3_mm(config: ConfigView) -> Architecture:
    """Gemma3ForConditionalGeneration: SigLIP, average pooling to mm_tokens_per_image, one projection matrix."""
    vision = config.section("vision_config", "siglip_vision_model")
    text = gemma3(text_view(config, "gemma3_text"), "language_model.")
    width, layers = vision.size("hidden_size"), vision.layers("num_hidden_layers")
    projector: list[Module] = [
        Parameter(name="multi_modal_projector.mm_input_projection_weight", shape=(width, text.text.hidden_size)),
        Parameter(name="multi_modal_projector.mm_soft_emb_norm.weight", shape=(width,)),
    ]
    tokens = config.size("mm_tokens_per_image")
    image = FixedSize(
        image_size=vision.size("image_size"),
        patch_size=vision.size("patch_size"),
        patches=patch_grid(vision) ** 2,
        tokens=tokens,
        item_tokens=tokens,
        max_crops=_pan_and_scan_crops(config),
    )
    spec = VisionSpec(
        family="Gemma3", modalities=("image",), encoder=encoder_of(vision, layers, text.text.hidden_size), image=image
    )
    tower = siglip(vision, "vision_tower", layers, True) + as_tower(projector)
    return multimodal(text, tower, vision=spec, prefixes=_GEMMA3_PREFIXES)


def _pan_and_scan_crops(config: ConfigView) -> int:
    """Crops of the dummy image: the processor's bound where do_pan_and_scan is on (gemma3_mm.py get_num_crops)."""
    settings = ConfigView(config.files.preprocessor if config.files is not None else {}, "preprocessor_config.json")
    return settings.size("pan_and_scan_max_num_crops", 4) if settings.flag("do_pan_and_scan") else 0


def _decoder(
    config: ConfigView,
    prefix: str,
    *,
    names: Names,
    bias: bool,
    rope_by_type: bool,
    types: list[str] | None = None,
    qk_norm: bool = False,
    softcap: bool = False,
    own_head: bool = False,
) -> Architecture:
    heads = read_heads(config)
    dims = text_dims(config, heads)
    tied = config.flag("tie_word_embeddings", True)
    if not tied and not own_head:
        raise reject("flag", "assert config.tie_word_embeddings")
    windows = Windows(config, types=types)

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        rope = nested_rope(config, kind == "sliding_window") if rope_by_type else rope_parameters(config)
        return self_attention(
            at,
            layer,
            heads,
            qkv_bias=bias,
            out_bias=bias,
            rope=rope,
            max_position=dims.max_position_embeddings,
            qk_norm=qk_norm,
            kind=kind,
            window=window,
            softcap=softcap,
        )

    def feed_forward(at: str, layer: int) -> list[Module]:
        return gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size)

    normalizer = Buffer(name=f"{prefix}model.normalizer", shape=())
    text = assemble(
        dims,
        prefix=prefix,
        attention=attention,
        feed_forward=feed_forward,
        tied=tied,
        names=names,
        extra=(normalizer,),
        every_stage=True,
    )
    if own_head:
        return text
    # Gemma 1 and 2 have no head of their own: logits come from the embedding, which each stage has (gemma2.py:370).
    return replace(text, modules=tuple(module for module in text.modules if not isinstance(module, LMHead)))


def nested_rope(config: ConfigView, sliding: bool) -> Mapping[str, Any]:
    """The parameters of one kind of layer, as transformers 5 nests them (its Gemma3TextConfig)."""
    nested = config.raw("rope_parameters")
    kind = "sliding_attention" if sliding else "full_attention"
    if isinstance(nested, Mapping) and not isinstance(nested.get(kind), Mapping):
        raise InputError(f"{config.where}: rope_parameters must have an object for {kind}")
    if isinstance(nested, Mapping):
        return rope_parameters(config, kind)
    if sliding:
        return {"rope_type": "default", "rope_theta": config.number("rope_local_base_freq", 10_000.0)}
    return {**rope_parameters(config), "rope_theta": config.number("rope_theta", 1_000_000.0)}
