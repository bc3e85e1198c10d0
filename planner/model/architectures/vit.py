"""Vision transformers that several model classes use: CLIP, SigLIP, InternViT, InternS1's and Pixtral's.

Source: vLLM 0.26.0 model_executor/models/clip.py, siglip.py, intern_vit.py, interns1_vit.py, pixtral.py.
Each function returns the tower's modules; `layers` is how many encoder layers are built.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.model.architectures.blocks import gated_mlp, norm, plain_mlp
from planner.model.architectures.vision_blocks import as_tower, fused_qkv, row, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module, Parameter
from planner.model.vision_spec import Encoder

Tower = Callable[[ConfigView, str, int, bool], list[Module]]
_SIGLIP_UNIT = 64


def clip(vision: ConfigView, prefix: str, layers: int, post_norm: bool) -> list[Module]:
    """CLIPVisionModel: a class token, LayerNorm before the encoder."""
    return clip_encoder(vision, f"{prefix}.vision_model", layers, post_norm=post_norm)


def clip_encoder(
    vision: ConfigView, base: str, layers: int, *, encoder: str = "encoder", post_norm: bool
) -> list[Module]:
    """CLIPVisionTransformer at `base`; DeepSeek-OCR's variant calls its layers "transformer"."""
    width, patches = vision.size("hidden_size"), patch_grid(vision) ** 2
    modules: list[Module] = [Parameter(name=f"{base}.embeddings.class_embedding", shape=(width,))]
    modules += _patch_conv(vision, f"{base}.embeddings.patch_embedding", bias=False)
    modules += _positions(f"{base}.embeddings", patches + 1, width)
    modules += norm(f"{base}.pre_layrnorm", width, "every", bias=True)
    modules += _clip_layers(vision, f"{base}.{encoder}", layers)
    if post_norm:
        modules += norm(f"{base}.post_layernorm", width, "every", bias=True)
    return as_tower(modules)


def siglip(vision: ConfigView, prefix: str, layers: int, post_norm: bool) -> list[Module]:
    """SiglipVisionModel without its pooling head. Its MLP is quantized only where both widths are multiples of 64."""
    width = vision.size("hidden_size")
    base = f"{prefix}.vision_model"
    modules = _patch_conv(vision, f"{base}.embeddings.patch_embedding", bias=True)
    modules += _positions(f"{base}.embeddings", patch_grid(vision) ** 2, width)
    aligned = width % _SIGLIP_UNIT == 0 and vision.size("intermediate_size") % _SIGLIP_UNIT == 0
    modules += _clip_layers(vision, f"{base}.encoder", layers, mlp_quantizable=aligned)
    if post_norm:
        modules += norm(f"{base}.post_layernorm", width, "every", bias=True)
    return as_tower(modules)


def _clip_layers(vision: ConfigView, base: str, layers: int, *, mlp_quantizable: bool = True) -> list[Module]:
    width, heads = vision.size("hidden_size"), vision.size("num_attention_heads")
    if width % heads:
        raise UnsupportedError(
            "vision_config", f"{vision.where}: hidden_size {width} is not a multiple of {heads} heads"
        )
    modules: list[Module] = []
    for layer in range(layers):
        at = f"{base}.layers.{layer}"
        modules += [
            fused_qkv(f"{at}.self_attn.qkv_proj", width, heads, width // heads),
            row(f"{at}.self_attn.out_proj", width, width),
        ]
        modules += norm(f"{at}.layer_norm1", width, "every", bias=True)
        mlp = plain_mlp(f"{at}.mlp", "every", width, vision.size("intermediate_size"))
        modules += [replace(part, quantizable=mlp_quantizable) for part in mlp]
        modules += norm(f"{at}.layer_norm2", width, "every", bias=True)
    return modules


def intern_vit(vision: ConfigView, prefix: str, layers: int) -> list[Module]:
    """InternVisionModel: layer scales, optional q and k norms over all heads; attention is whole on each rank where its
    heads do not divide by the tensor-parallel size."""
    width, heads = vision.size("hidden_size"), vision.size("num_attention_heads")
    patch, grid = vision.size("patch_size"), patch_grid(vision)
    layer_norm = _is_layer_norm(vision)
    modules: list[Module] = [Parameter(name=f"{prefix}.embeddings.class_embedding", shape=(1, 1, width))]
    modules += weight(f"{prefix}.embeddings.patch_embedding", width, 3, patch, patch, bias=True)
    modules.append(Parameter(name=f"{prefix}.embeddings.position_embedding", shape=(1, grid**2 + 1, width)))
    for layer in range(layers):
        at = f"{prefix}.encoder.layers.{layer}"
        qkv = fused_qkv(
            f"{at}.attn.qkv", width, heads, width // heads, bias=vision.flag("qkv_bias", True), shard_names=()
        )
        modules.append(replace(qkv, whole_unless_divides=heads))
        if vision.flag("qk_normalization"):
            modules += norm(f"{at}.attn.q_norm", width, "every") + norm(f"{at}.attn.k_norm", width, "every")
        modules.append(replace(row(f"{at}.attn.proj", width, width), whole_unless_divides=heads))
        modules += plain_mlp(f"{at}.mlp", "every", width, vision.size("intermediate_size"))
        for name in ("norm1", "norm2"):
            modules += norm(f"{at}.{name}", width, "every", bias=layer_norm)
        modules += [Parameter(name=f"{at}.{name}", shape=(width,)) for name in ("ls1", "ls2")]
    return as_tower(modules)


def interns1_vit(vision: ConfigView, prefix: str, layers: int) -> list[Module]:
    """InternS1VisionModel (InternVL in transformers' format): attention is plain nn.Linear, whole on each rank; the
    encoder gets no quantization config."""
    width = vision.size("hidden_size")
    image, patch = vision.sizes("image_size", count=2), vision.sizes("patch_size", count=2)
    patches = (image[0] // patch[0]) * (image[1] // patch[1])
    layer_norm = _is_layer_norm(vision)
    modules: list[Module] = [Parameter(name=f"{prefix}.embeddings.cls_token", shape=(1, 1, width))]
    if vision.flag("use_mask_token"):
        modules.append(Parameter(name=f"{prefix}.embeddings.mask_token", shape=(1, 1, width)))
    modules += weight(
        f"{prefix}.embeddings.patch_embeddings.projection",
        width,
        vision.size("num_channels"),
        patch[0],
        patch[1],
        bias=True,
    )
    if vision.flag("use_absolute_position_embeddings", True):
        modules.append(Parameter(name=f"{prefix}.embeddings.position_embeddings", shape=(1, patches + 1, width)))
    for layer in range(layers):
        at = f"{prefix}.encoder.layer.{layer}"
        for name in ("q_proj", "k_proj", "v_proj"):
            modules += weight(f"{at}.attention.{name}", width, width, bias=vision.flag("attention_bias"))
        if vision.flag("use_qk_norm"):
            modules += norm(f"{at}.attention.q_norm", width, "every") + norm(f"{at}.attention.k_norm", width, "every")
        modules += weight(f"{at}.attention.projection_layer", width, width, bias=True)
        mlp = plain_mlp(f"{at}.mlp", "every", width, vision.size("intermediate_size"))
        modules += [replace(part, quantizable=False) for part in mlp]
        for name in ("layernorm_before", "layernorm_after"):
            modules += norm(f"{at}.{name}", width, "every", bias=layer_norm)
        modules += [Parameter(name=f"{at}.{name}", shape=(width,)) for name in ("lambda_1", "lambda_2")]
    if not vision.flag("use_mean_pooling", True):
        modules += norm(f"{prefix}.layernorm", width, "every", bias=True)
    return as_tower(modules)


def pixtral_hf(vision: ConfigView, prefix: str, layers: int, post_norm: bool) -> list[Module]:
    """PixtralHFVisionModel: RMSNorm, gated MLP, two float32 rotary tables (transformers modeling_pixtral.py)."""
    width, heads = vision.size("hidden_size"), vision.size("num_attention_heads")
    modules = _patch_conv(vision, f"{prefix}.patch_conv", bias=False) + norm(f"{prefix}.ln_pre", width, "every")
    for layer in range(layers):
        at = f"{prefix}.transformer.layers.{layer}"
        modules += norm(f"{at}.attention_norm", width, "every")
        modules += [
            fused_qkv(f"{at}.attention.qkv_proj", width, heads, width // heads, bias=False),
            row(f"{at}.attention.o_proj", width, width, bias=False),
        ]
        modules += gated_mlp(f"{at}.feed_forward", "every", width, vision.size("intermediate_size"))
        modules += norm(f"{at}.ffn_norm", width, "every")
    rows, head = patch_grid(vision) ** 2, vision.optional_size("head_dim") or width // heads
    for name in ("inv_freq", "original_inv_freq"):
        modules.append(Buffer(name=f"{prefix}.patch_positional_embedding.{name}", shape=(rows, head), dtype="float32"))
    return as_tower(modules)


def patch_grid(vision: ConfigView) -> int:
    """Patches along one side of the native image."""
    return vision.size("image_size") // vision.size("patch_size")


def encoder_of(
    vision: ConfigView,
    layers: int,
    output_size: int,
    *,
    gated: bool = False,
    prefix_tokens: int = 0,
    projector_size: int = 0,
) -> Encoder:
    """The sizes of a tower with CLIP's key names."""
    width, heads = vision.size("hidden_size"), vision.size("num_attention_heads")
    return Encoder(
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        head_size=width // heads,
        output_size=output_size,
        intermediate_size=vision.size("intermediate_size"),
        mlp_shards=2 if gated else 1,
        prefix_tokens=prefix_tokens,
        projector_size=projector_size,
    )


def _patch_conv(vision: ConfigView, name: str, *, bias: bool) -> list[Module]:
    patch = vision.size("patch_size")
    return weight(name, vision.size("hidden_size"), vision.size("num_channels", 3), patch, patch, bias=bias)


def _positions(base: str, rows: int, width: int) -> list[Module]:
    """A learned position table and the index buffer beside it."""
    return [
        *weight(f"{base}.position_embedding", rows, width),
        Buffer(name=f"{base}.position_ids", shape=(1, rows), dtype="int64"),
    ]


def _is_layer_norm(vision: ConfigView) -> bool:
    vision.require("norm_type", ("layer_norm", "rms_norm"), "layer_norm")
    return vision.text("norm_type", "layer_norm") == "layer_norm"
