"""Molmo: a CLIP-like backbone whose sizes vLLM fixes, attention pooling, and a decoder of its own.

Source: vLLM 0.26.0 model_executor/models/molmo.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.assemble import assemble
from planner.model.architectures.blocks import Architecture, Heads, gated_mlp, norm, self_attention, text_dims
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, row, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Module, Parameter, VocabEmbedding
from planner.model.rope import rope_parameters
from planner.model.vision_spec import Encoder, Tiles, VisionSpec

_WIDTH, _HEADS, _LAYERS, _INNER, _POSITIONS, _IMAGE, _PATCH = 1024, 16, 23, 4096, 577, 336, 14
_FEATURE_LAYERS = 2
_EXTRA_VOCABULARY = 128
_FUSED = {"qkv_proj": ("qkv_proj",), "gate_up_proj": ("gate_up_proj",), "merged_linear": ("gate_proj", "up_proj")}
_PREFIXES = (
    ("model.vision_backbone.", "vision_backbone."),
    ("model.transformer.blocks.", "model.layers."),
    ("model.transformer.ln_f.", "model.norm."),
    ("model.transformer.mlp.down_proj.", "lm_head."),
)


def molmo(config: ConfigView) -> Architecture:
    """MolmoForCausalLM: 128 more embeddings than the vocabulary; intermediate_size counts gate and up together."""
    config.require("weight_tying", (False,), False)
    config.require("layer_norm_type", ("rms",), "rms")
    hidden, count = config.size("hidden_size"), config.size("num_attention_heads")
    heads = Heads(
        hidden_size=hidden,
        num_heads=count,
        num_kv_heads=config.optional_size("num_key_value_heads") or count,
        head_size=hidden // count,
    )
    inner = config.size("intermediate_size") // 2
    rows = config.optional_size("embedding_size") or config.size("vocab_size")
    dims = replace(text_dims(config, heads, inner), vocab_size=rows)
    rope = rope_parameters(config)

    def attention(at: str, layer: int) -> list[Module]:
        modules = self_attention(
            at, layer, heads, qkv_bias=config.flag("qkv_bias"), rope=rope, max_position=dims.max_position_embeddings
        )
        if config.flag("attention_layer_norm"):
            modules += norm(f"{at}.k_norm", heads.num_kv_heads * heads.head_size, layer) + norm(
                f"{at}.q_norm", hidden, layer
            )
        return modules

    def feed_forward(at: str, layer: int) -> list[Module]:
        return gated_mlp(at, layer, hidden, inner)

    text = assemble(dims, attention=attention, feed_forward=feed_forward, tied=False, fused=_FUSED)
    embedding = text.modules[0]
    assert isinstance(embedding, VocabEmbedding)
    larger = VocabEmbedding(
        name=embedding.name, placement="first", num_embeddings=rows + _EXTRA_VOCABULARY, hidden_size=hidden
    )
    modules = (*as_tower(_backbone(hidden, inner)), larger, *text.modules[1:])
    return multimodal(
        Architecture(modules=modules, text=dims, names=text.names),
        (),
        vision=_spec(config, hidden),
        prefixes=_PREFIXES,
        fused=_FUSED,
    )


def _backbone(hidden: int, inner: int, prefix: str = "vision_backbone") -> list[Module]:
    vit = f"{prefix}.image_vit"
    modules: list[Module] = [
        Parameter(name=f"{vit}.class_embedding", shape=(_WIDTH,)),
        Parameter(name=f"{vit}.positional_embedding", shape=(_POSITIONS, _WIDTH)),
        *weight(f"{vit}.patch_embedding", _WIDTH, 3 * _PATCH**2),
        *norm(f"{vit}.pre_ln", _WIDTH, "every", bias=True),
    ]
    for layer in range(_LAYERS):
        at = f"{vit}.transformer.resblocks.{layer}"
        modules += _attention(f"{at}.attention", _WIDTH)
        modules += [column(f"{at}.feed_forward.w1", _WIDTH, _INNER), row(f"{at}.feed_forward.w2", _INNER, _WIDTH)]
        modules += norm(f"{at}.attention_norm", _WIDTH, "every", bias=True) + norm(
            f"{at}.ffn_norm", _WIDTH, "every", bias=True
        )
    modules += _attention(f"{prefix}.image_pooling_2d", _FEATURE_LAYERS * _WIDTH)
    modules.append(
        column(
            f"{prefix}.image_projector.merged_linear",
            _WIDTH,
            inner,
            inner,
            bias=False,
            shard_names=("gate_proj", "up_proj"),
        )
    )
    modules.append(row(f"{prefix}.image_projector.down_proj", inner, hidden, bias=False))
    modules.append(Parameter(name=f"{prefix}.pad_embed", shape=(2, _FEATURE_LAYERS * _WIDTH)))
    return modules


def _attention(prefix: str, inputs: int) -> list[Module]:
    return [
        *(column(f"{prefix}.{name}", inputs, _WIDTH, num_heads=_HEADS) for name in ("wq", "wk", "wv")),
        row(f"{prefix}.wo", _WIDTH, _WIDTH),
    ]


def _spec(config: ConfigView, hidden: int) -> VisionSpec:
    settings = ConfigView(config.files.preprocessor if config.files is not None else {}, "preprocessor_config.json")
    side = _IMAGE // _PATCH
    image = Tiles(
        image_size=_IMAGE,
        patch_size=_PATCH,
        patches=_POSITIONS,
        tokens=(side // 2) ** 2,
        min_tiles=1,
        max_tiles=settings.size("max_crops", 12),
        thumbnail=True,
        extra_tokens=4,
    )
    encoder = Encoder(
        hidden_size=_WIDTH,
        num_layers=_LAYERS,
        num_heads=_HEADS,
        head_size=_WIDTH // _HEADS,
        intermediate_size=_INNER,
        output_size=hidden,
        projector_size=config.size("intermediate_size") // 2,
        prefix_tokens=1,
    )
    return VisionSpec(family="Molmo", modalities=("image",), encoder=encoder, image=image)
