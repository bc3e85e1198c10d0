"""Llama 4's vision tower, for the language model of another file.

Source: vLLM 0.26.0 model_executor/models/mllama4.py, layers/rotary_embedding/llama4_vision_rope.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.blocks import Architecture, norm, plain_mlp
from planner.model.architectures.vision_blocks import as_tower, column, fused_qkv, multimodal, row
from planner.model.architectures.vit import encoder_of, patch_grid
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Linear, Module, Parameter, QKVLinear
from planner.model.vision_spec import Tiles, VisionSpec


def with_llama4_tower(config: ConfigView, text: Architecture) -> Architecture:
    """Llama4ForConditionalGeneration around `text` (prefix "language_model."): image tiles, no quantization."""
    vision = config.section("vision_config", "llama4_vision_model")
    output, layers = text.text.hidden_size, vision.layers("num_hidden_layers")
    patches = patch_grid(vision) ** 2
    shrink = round(1.0 / vision.number("pixel_shuffle_ratio") ** 2)
    settings = ConfigView(config.files.preprocessor if config.files is not None else {}, "preprocessor_config.json")
    image = Tiles(
        image_size=vision.size("image_size"),
        patch_size=vision.size("patch_size"),
        patches=patches + 1,
        tokens=patches // shrink,
        min_tiles=1,
        max_tiles=settings.size("max_patches", 16),
        thumbnail=True,
        extra_tokens=2,
    )
    encoder = encoder_of(vision, layers, output, prefix_tokens=1, projector_size=vision.size("projector_input_dim"))
    spec = VisionSpec(family="Mllama4", modalities=("image",), encoder=encoder, image=image)
    projector = column(
        "multi_modal_projector.linear_1", vision.size("vision_output_dim"), output, bias=False, quantizable=False
    )
    tower = llama4_vision_tower(vision) + as_tower([replace(projector, follows_encoder_mode=False)])
    return multimodal(text, tower, vision=spec, encoder_data=True)


def llama4_vision_tower(vision: ConfigView, prefix: str = "vision_model") -> list[Module]:
    """Llama4VisionModel: unfolded patches through a linear layer, one complex rotary table, a pixel-shuffle MLP."""
    width, heads = vision.size("hidden_size"), vision.size("num_attention_heads")
    patch, patches = vision.size("patch_size"), patch_grid(vision) ** 2
    modules: list[Module] = [
        column(f"{prefix}.patch_embedding.linear", vision.size("num_channels") * patch**2, width, bias=False)
    ]
    modules.append(Parameter(name=f"{prefix}.class_embedding", shape=(width,)))
    modules.append(Parameter(name=f"{prefix}.positional_embedding_vlm", shape=(patches + 1, width)))
    for name in ("layernorm_pre", "layernorm_post"):
        modules += norm(f"{prefix}.{name}", width, "every", bias=True)
    # complex64: two float32 for each of head_size / 2 frequencies, one row for each patch and one for the class token.
    modules.append(
        Buffer(name=f"{prefix}.rotary_emb.cos_sin_cache", shape=(patches + 1, width // heads // 2, 2), dtype="float32")
    )
    for layer in range(vision.layers("num_hidden_layers")):
        at = f"{prefix}.model.layers.{layer}"
        modules += [
            fused_qkv(f"{at}.self_attn.qkv_proj", width, heads, width // heads),
            row(f"{at}.self_attn.o_proj", width, width),
        ]
        modules += plain_mlp(f"{at}.mlp", "every", width, vision.size("intermediate_size"))
        for name in ("input_layernorm", "post_attention_layernorm"):
            modules += norm(f"{at}.{name}", width, "every", bias=True)
    bias, inner = vision.flag("multi_modal_projector_bias"), vision.size("projector_input_dim")
    modules.append(column(f"{prefix}.vision_adapter.mlp.fc1", vision.size("intermediate_size"), inner, bias=bias))
    modules.append(row(f"{prefix}.vision_adapter.mlp.fc2", inner, vision.size("projector_output_dim"), bias=bias))
    return as_tower(
        replace(part, quantizable=False) if isinstance(part, Linear | QKVLinear) else part for part in modules
    )
