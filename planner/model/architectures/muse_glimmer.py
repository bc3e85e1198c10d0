"""Muse-Glimmer, which vLLM runs through transformers' own class: gated attention, a window-attention tower.

The gate of the attention reads what query, key and value read, so that the backend leaves those three apart; the
tower's are fused, in heads as wide as the language model's.
Source: vLLM 0.26.0 model_executor/models/transformers/base.py, fusers/qkv.py, multimodal.py; transformers 5.23.0
models/muse_glimmer/modeling_muse_glimmer.py, configuration_muse_glimmer.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from planner.model.architectures.assemble import Names, assemble
from planner.model.architectures.blocks import Architecture, Heads, gated_mlp, norm, read_heads, text_dims
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, row, text_view, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, Buffer, Module, QKVLinear
from planner.model.vision_spec import DynamicPatches, Encoder, VisionSpec

_NAMES = Names(
    model="model.language_model",
    norms=("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
_MOST_TOKENS = 4096


def muse_glimmer(config: ConfigView) -> Architecture:
    """MuseGlimmerForConditionalGeneration. Every layer's cache is whole: the backend asks the outer config, which has
    no layer_types, for windows (base.py:553)."""
    text = text_view(config, "muse_glimmer_text")
    vision = config.section("vision_config", "muse_glimmer_vision")
    heads = read_heads(text)
    language = _decoder(text, heads)
    width, output = config.size("projector_hidden_size", 4096), heads.hidden_size
    merged = config.size("out_hidden_size", 6144)
    tower = _tower(vision, heads.head_size)
    tower += as_tower(
        [
            column("model.vision_adapter.fc1", merged, width, bias=False),
            row("model.vision_adapter.fc2", width, width, bias=False),
            column("model.vision_projection", width, output, bias=False),
        ]
    )
    spec = VisionSpec(
        family="MuseGlimmer",
        modalities=("image",),
        dropped_with=(),
        encoder=_encoder(vision, output, width),
        image=_patches(config, vision),
    )
    return multimodal(language, tower, vision=spec)


def _decoder(config: ConfigView, heads: Heads) -> Architecture:
    dims = text_dims(config, heads)
    bias = config.flag("attention_bias")
    query, keys = heads.num_heads * heads.head_size, heads.num_kv_heads * heads.head_size

    def attention(at: str, layer: int) -> list[Module]:
        linears = [
            column(f"{at}.q_proj", heads.hidden_size, query, bias=bias),
            column(f"{at}.k_proj", heads.hidden_size, keys, bias=bias),
            column(f"{at}.v_proj", heads.hidden_size, keys, bias=bias),
            row(f"{at}.o_proj", query, heads.hidden_size, bias=bias),
            column(f"{at}.gate_proj", heads.hidden_size, query, bias=False),
        ]
        cache = Attention(
            name=f"{layer}.attn",
            placement=layer,
            kind="full_attention",
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=heads.head_size,
            softcap=config.raw("attn_logit_softcapping") is not None,
        )
        return [*(replace(linear, placement=layer) for linear in linears), cache]

    frequencies = [
        Buffer(name=f"model.language_model.rotary_emb.{name}", shape=(heads.head_size // 2,), dtype="float32")
        for name in ("inv_freq", "original_inv_freq")
    ]
    return assemble(
        dims,
        names=_NAMES,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=lambda at, layer: gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size),
        fused={"gate_up_proj": ("gate_proj", "up_proj")},
        extra=frequencies,
    )


def _tower(vision: ConfigView, head_size: int) -> list[Module]:
    """MuseGlimmerVisionModel."""
    prefix, width, inner = (
        "model.vision_tower",
        vision.size("hidden_size", 1536),
        vision.size("intermediate_size", 8960),
    )
    patch, temporal = vision.size("patch_size", 14), vision.size("patch_temporal", 2)
    positions = vision.size("pos_emb_height", 32) * vision.size("pos_emb_width", 32)
    own_head = width // vision.size("num_attention_heads", 16)
    modules: list[Module] = [
        column(f"{prefix}.patch_embedder.patch_embedding", temporal * 3 * patch**2, width, bias=False),
        *weight(f"{prefix}.patch_embedder.position_embedding_table", positions, width),
        *(
            Buffer(name=f"{prefix}.rotary_emb.{name}", shape=(-(-own_head // 2 // 2),), dtype="float32")
            for name in ("inv_freq", "original_inv_freq")
        ),
        *norm(f"{prefix}.ln_pre", width, "every", bias=True),
    ]
    for layer in range(vision.layers("num_hidden_layers")):
        at = f"{prefix}.layers.{layer}"
        modules += norm(f"{at}.norm1", width, "every", bias=True) + norm(f"{at}.norm2", width, "every", bias=True)
        modules += [
            *_vision_qkv(f"{at}.attn", width, head_size),
            row(f"{at}.attn.proj", width, width),
            column(f"{at}.mlp.fc1", width, inner),
            row(f"{at}.mlp.fc2", inner, width),
        ]
    return as_tower([*modules, *norm(f"{prefix}.ln_post", width, "every", bias=True)])


def _vision_qkv(at: str, width: int, head_size: int) -> Sequence[Module]:
    """Fused where the width is whole heads of the language model's size (fusers/qkv.py:148), else three layers."""
    if width % head_size:
        return [column(f"{at}.{name}", width, width) for name in ("q_proj", "k_proj", "v_proj")]
    heads = width // head_size
    return [
        QKVLinear(
            name=f"{at}.qkv_proj",
            hidden_size=width,
            num_heads=heads,
            num_kv_heads=heads,
            head_size=head_size,
            bias=True,
        )
    ]


def _encoder(vision: ConfigView, output: int, projector: int) -> Encoder:
    width, heads = vision.size("hidden_size", 1536), vision.size("num_attention_heads", 16)
    patch, rows = vision.size("patch_size", 14), vision.size("pos_emb_height", 32)
    layers = vision.layers("num_hidden_layers")
    types = vision.strings("layer_types")
    return Encoder(
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        head_size=width // heads,
        intermediate_size=vision.size("intermediate_size", 8960),
        output_size=output,
        projector_size=projector,
        window_pixels=rows * patch,
        full_attention_layers=tuple(index for index, kind in enumerate(types) if kind == "full_attention"),
        max_positions=rows * vision.size("pos_emb_width", 32),
    )


def _patches(config: ConfigView, vision: ConfigView) -> DynamicPatches:
    """An image becomes at most max_image_tokens cells of merge_size x merge_size patches."""
    files = config.files
    settings = ConfigView(files.preprocessor if files is not None else {}, "preprocessor_config.json")
    patch = settings.size("patch_size", 14)
    merge = settings.size("merge_size", vision.size("merge_size", 2))
    cell = (patch * merge) ** 2
    most = settings.size("max_image_tokens", _MOST_TOKENS) * cell
    return DynamicPatches(
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=settings.size("temporal_patch_size", 2),
        min_pixels=cell,
        max_pixels=most,
        video_min_pixels=cell,
        video_max_pixels=most,
        max_video_frames=0,
    )
