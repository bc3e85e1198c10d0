"""Step3-VL, Step3-VL-10B and Step-3.7: two encoders whose features are downsampled by convolutions, a Step decoder.

Source: vLLM 0.26.0 model_executor/models/{step3_vl,step_vl,step3p7}.py, transformers_utils/processors/step3_vl.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm, plain_mlp
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, column, fused_qkv, multimodal, row, text_view, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Linear, Module, Parameter
from planner.model.vision_spec import Encoder, Tiles, VisionSpec
from planner.values import reject

_PREFIXES = (("model.", "language_model.model."), ("lm_head.", "language_model.lm_head."))
_STEP37_PREFIXES = (
    ("model.vision_model.", "vision_model."),
    ("model.vit_large_projector.", "vit_large_projector."),
    ("model.language_model.", "language_model.model."),
    *_PREFIXES,
)
_NO_KEY = "'Step3TextConfig' object has no attribute 'tie_word_embeddings'"
"""Its configuration class has no default, and later pipeline stages ask for the key (step3_text.py:323)."""
_VIEW, _VIEW_TOKENS, _MOST_PATCHES = 728, 169, 36
_STEP3_VISION = {
    "hidden_size": 1792,
    "intermediate_size": 3072,
    "output_hidden_size": 4096,
    "num_hidden_layers": 63,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 728,
    "patch_size": 14,
}
"""Defaults of Step3VisionEncoderConfig (transformers_utils/configs/step3_vl.py)."""


def step3_vl(config: ConfigView) -> Architecture:
    """Step3VLForConditionalGeneration: the tower is never quantized, two convolutions and a plain nn.Linear follow."""
    section = config.section("vision_config")
    vision = ConfigView({**_STEP3_VISION, **section.data}, section.where, "", config.files)
    text = language_model(_named(text_view(config, "step3_text"), "Step3TextForCausalLM"))
    width, output = vision.size("hidden_size"), vision.size("output_hidden_size")
    projector = weight("vit_downsampler", output, width, 2, 2, bias=True)
    projector += weight("vit_downsampler2", 2 * output, output, 3, 3, bias=True)
    projector += weight(
        "vit_large_projector", text.text.hidden_size, 2 * output, bias=config.flag("projector_bias", True)
    )
    heads = vision.size("num_attention_heads")
    encoder = Encoder(
        hidden_size=width,
        num_layers=vision.layers(),
        num_heads=heads,
        head_size=width // heads,
        intermediate_size=vision.size("intermediate_size"),
        output_size=text.text.hidden_size,
        projector_size=2 * output,
        prefix_tokens=4,
    )
    spec = VisionSpec(family="Step3VL", modalities=("image",), encoder=encoder, image=_tiles(vision))
    tower = [*_clip_like(vision, "vision_model"), *as_tower(projector)]
    stated = config.stated("tie_word_embeddings") or config.section("text_config").stated("tie_word_embeddings")
    refusal = None if stated else _NO_KEY
    return multimodal(text, tower, vision=spec, prefixes=_PREFIXES, encoder_data=True, pipeline_refusal=refusal)


def step_vl(config: ConfigView) -> Architecture:
    """StepVLForConditionalGeneration: Meta's Perception Encoder with rotary positions, a divided projector."""
    return _perceiving(config, language_model(text_view(config, "qwen3")), _PREFIXES)


def step3p7(config: ConfigView) -> Architecture:
    """Step3p7ForConditionalGeneration: the same tower in front of Step 3.5's decoder."""
    text = language_model(_named(text_view(config, "step3p5"), "Step3p5ForCausalLM"))
    return _perceiving(config, text, _STEP37_PREFIXES)


def _named(section: ConfigView, architecture: str) -> ConfigView:
    """The text section with the class that vLLM's own configuration gives it."""
    if section.strings("architectures"):
        return section
    return ConfigView({**section.data, "architectures": [architecture]}, section.where, section.model_type)


def _tiles(vision: ConfigView) -> Tiles:
    """One view of 728 pixels, 169 tokens; windows of 504 pixels where enable_patch allows them."""
    patch = vision.size("patch_size")
    return Tiles(
        image_size=_VIEW,
        patch_size=patch,
        patches=(_VIEW // patch) ** 2,
        tokens=_VIEW_TOKENS,
        min_tiles=0,
        max_tiles=_MOST_PATCHES if vision.flag("enable_patch", True) else 0,
        thumbnail=True,
        extra_tokens=2,
    )


def _clip_like(vision: ConfigView, prefix: str) -> list[Module]:
    width, heads, patch = vision.size("hidden_size"), vision.size("num_attention_heads"), vision.size("patch_size")
    positions = (vision.size("image_size") // patch) ** 2 + 1
    modules: list[Module] = [Parameter(name=f"{prefix}.embeddings.class_embedding", shape=(1, width))]
    modules += weight(
        f"{prefix}.embeddings.patch_embedding", width, vision.size("num_channels"), patch, patch, bias=True
    )
    modules += weight(f"{prefix}.embeddings.position_embedding", positions, width)
    modules.append(Buffer(name=f"{prefix}.embeddings.position_ids", shape=(1, positions), dtype="int64"))
    for layer in range(vision.layers()):
        at = f"{prefix}.transformer.layers.{layer}"
        modules += [
            fused_qkv(f"{at}.self_attn.qkv_proj", width, heads, width // heads, quantizable=False),
            row(f"{at}.self_attn.out_proj", width, width, quantizable=False),
            *norm(f"{at}.layer_norm1", width, "every", bias=True),
            column(f"{at}.mlp.fc1", width, vision.size("intermediate_size"), quantizable=False),
            row(f"{at}.mlp.fc2", vision.size("intermediate_size"), width, quantizable=False),
            *norm(f"{at}.layer_norm2", width, "every", bias=True),
        ]
    return as_tower(modules)


def _perceiving(config: ConfigView, text: Architecture, prefixes: tuple[tuple[str, str], ...]) -> Architecture:
    vision = config.section("vision_config")
    width, heads, output = vision.size("width"), vision.size("heads"), text.text.hidden_size
    projector = Linear(
        name="vit_large_projector",
        input_size=4 * width,
        output_sizes=(output,),
        parallelism="column",
        bias=config.flag("projector_bias"),
    )
    encoder = Encoder(
        hidden_size=width,
        num_layers=vision.layers("layers"),
        num_heads=heads,
        head_size=width // heads,
        intermediate_size=int(width * vision.number("mlp_ratio")),
        output_size=output,
        projector_size=4 * width,
        prefix_tokens=1 if vision.flag("use_cls_token") else 0,
    )
    spec = VisionSpec(family="Step3VL", modalities=("image",), encoder=encoder, image=_tiles(vision))
    tower = [*_perception_encoder(vision, "vision_model"), *as_tower([projector])]
    return multimodal(text, tower, vision=spec, prefixes=prefixes, encoder_data=True)


def _perception_encoder(vision: ConfigView, prefix: str) -> list[Module]:
    """Each block keeps a rotary table of its own (step_vl.py:65)."""
    if not vision.flag("use_rope2d"):
        raise reject("flag", "use_rope2d must be True")
    width, heads, patch = vision.size("width"), vision.size("heads"), vision.size("patch_size")
    classes, grid = 1 if vision.flag("use_cls_token") else 0, vision.size("image_size") // patch
    modules: list[Module] = weight(f"{prefix}.conv1", width, 3, patch, patch)
    if classes:
        modules.append(Parameter(name=f"{prefix}.class_embedding", shape=(width,)))
    if vision.flag("use_abs_posemb"):
        modules.append(Parameter(name=f"{prefix}.positional_embedding", shape=(classes + grid**2, width)))
    for name in ("ln_pre", "ln_post"):
        if vision.flag(f"use_{name}"):
            modules += norm(f"{prefix}.{name}", width, "every", bias=True)
    for layer in range(vision.layers("layers")):
        at = f"{prefix}.transformer.resblocks.{layer}"
        modules += [
            fused_qkv(f"{at}.attn.qkv_proj", width, heads, width // heads),
            row(f"{at}.attn.out_proj", width, width),
            Buffer(
                name=f"{at}.attn.rope.freqs_cache",
                shape=(1, 1, classes + grid**2, width // heads),
                dtype="float32",
            ),
        ]
        if vision.raw("ls_init_value") is not None:
            modules += [Parameter(name=f"{at}.{name}.gamma", shape=(width,)) for name in ("ls_1", "ls_2")]
        modules += norm(f"{at}.ln_1", width, "every", bias=True) + norm(f"{at}.ln_2", width, "every", bias=True)
        modules += plain_mlp(f"{at}.mlp", "every", width, int(width * vision.number("mlp_ratio")))
    modules += weight(f"{prefix}.vit_downsampler1", 2 * width, width, 3, 3, bias=True)
    return as_tower([*modules, *weight(f"{prefix}.vit_downsampler2", 4 * width, 2 * width, 3, 3, bias=True)])
