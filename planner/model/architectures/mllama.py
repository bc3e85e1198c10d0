"""Llama 3.2 Vision, which vLLM 0.26.0 runs through its Transformers backend.

Source: vLLM 0.26.0 model_executor/models/transformers/base.py, multimodal.py, fusion.py; transformers 5.14.1
models/mllama/modeling_mllama.py, whose modules are built; self-attention and gated MLPs are fused and divided, all else
is replicated. Cross-attention layers get a full cache like the others (create_attention_instances).
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.blocks import LLAMA_FUSED, Architecture, Heads, gated_mlp, norm, read_heads, text_dims
from planner.model.architectures.vision_blocks import as_tower, multimodal, replicated, row, text_view, weight
from planner.model.architectures.vit import patch_grid
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, Buffer, LMHead, Module, PackedNames, Parameter, QKVLinear, VocabEmbedding
from planner.model.vision_spec import Encoder, Tiles, VisionSpec


def mllama(config: ConfigView) -> Architecture:
    """MllamaForConditionalGeneration (TransformersMultiModalForCausalLM): no tower is dropped by limits of zero."""
    section = text_view(config, "mllama_text_model")
    heads = read_heads(section, section.size("hidden_size") // section.size("num_attention_heads"))
    dims = text_dims(section, heads)
    vision = config.section("vision_config", "mllama_vision_model")
    tied = section.flag("tie_word_embeddings")
    embed = "model.language_model.embed_tokens"
    modules: list[Module] = [
        VocabEmbedding(name=embed, placement="first", num_embeddings=dims.vocab_size, hidden_size=heads.hidden_size)
    ]
    crossed = frozenset(section.sizes("cross_attention_layers", ()))
    for layer in range(dims.num_hidden_layers):
        modules += _layer(
            f"model.language_model.layers.{layer}", layer, heads, dims.intermediate_size, cross=layer in crossed
        )
    modules += norm("model.language_model.norm", heads.hidden_size, "last")
    for name in ("inv_freq", "original_inv_freq"):
        modules.append(
            Buffer(name=f"model.language_model.rotary_emb.{name}", shape=(heads.head_size // 2,), dtype="float32")
        )
    modules.append(
        LMHead(
            name="lm_head",
            placement="last",
            num_embeddings=dims.vocab_size,
            hidden_size=heads.hidden_size,
            tied_to=embed if tied else None,
        )
    )
    text = Architecture(
        modules=tuple(modules), text=dims, names=PackedNames(fused=LLAMA_FUSED), tie_word_embeddings=tied
    )
    tower = _vision_tower(vision, "model.vision_model")
    tower += as_tower([replicated("model.multi_modal_projector", vision.size("vision_output_dim"), heads.hidden_size)])
    return multimodal(text, tower, vision=_spec(vision, heads.hidden_size))


def _layer(at: str, layer: int, heads: Heads, inner: int, *, cross: bool) -> list[Module]:
    """A decoder layer: self-attention divided, or cross-attention whole on each rank with norms and two gates."""
    width, queries, keys = heads.hidden_size, heads.num_heads * heads.head_size, heads.num_kv_heads * heads.head_size
    modules: list[Module] = [
        Attention(
            name=f"{layer}.attn",
            placement=layer,
            kind="full_attention",
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=heads.head_size,
            registered=False,
        )
    ]
    if cross:
        sizes = {
            "q_proj": (width, queries),
            "k_proj": (width, keys),
            "v_proj": (width, keys),
            "o_proj": (queries, width),
        }
        for name, (inputs, outputs) in sizes.items():
            modules.append(_at(layer, replicated(f"{at}.cross_attn.{name}", inputs, outputs, bias=False)))
        modules += norm(f"{at}.cross_attn.q_norm", heads.head_size, layer) + norm(
            f"{at}.cross_attn.k_norm", heads.head_size, layer
        )
        modules += [
            Parameter(name=f"{at}.{name}", placement=layer, shape=(1,))
            for name in ("cross_attn_attn_gate", "cross_attn_mlp_gate")
        ]
    else:
        modules.append(
            QKVLinear(
                name=f"{at}.self_attn.qkv_proj",
                placement=layer,
                hidden_size=width,
                num_heads=heads.num_heads,
                num_kv_heads=heads.num_kv_heads,
                head_size=heads.head_size,
            )
        )
        modules.append(_at(layer, row(f"{at}.self_attn.o_proj", queries, width, bias=False)))
    modules += gated_mlp(f"{at}.mlp", layer, width, inner)
    return modules + norm(f"{at}.input_layernorm", width, layer) + norm(f"{at}.post_attention_layernorm", width, layer)


def _vision_tower(vision: ConfigView, prefix: str) -> list[Module]:
    """MllamaVisionModel: positions for patches, tiles and aspect ratios; local layers, then gated global ones."""
    width, tiles = vision.size("hidden_size"), vision.size("max_num_tiles")
    patches, ratios = patch_grid(vision) ** 2 + 1, len(vision.raw("supported_aspect_ratios", [])) + 1
    patch = vision.size("patch_size")
    modules = weight(f"{prefix}.patch_embedding", width, vision.size("num_channels"), patch, patch)
    modules.append(Parameter(name=f"{prefix}.class_embedding", shape=(width,)))
    base = f"{prefix}.gated_positional_embedding"
    modules += [Parameter(name=f"{base}.gate", shape=(1,)), Parameter(name=f"{base}.embedding", shape=(patches, width))]
    modules += weight(f"{base}.tile_embedding", ratios, tiles * patches * width)
    for name in ("pre_tile_positional_embedding", "post_tile_positional_embedding"):
        modules += [
            *weight(f"{prefix}.{name}.embedding", ratios, tiles * width),
            Parameter(name=f"{prefix}.{name}.gate", shape=(1,)),
        ]
    for name in ("layernorm_pre", "layernorm_post"):
        modules += norm(f"{prefix}.{name}", width, "every", bias=True)
    for encoder, key, gates in (
        ("transformer", "num_hidden_layers", ()),
        ("global_transformer", "num_global_layers", ("gate_attn", "gate_ffn")),
    ):
        for layer in range(vision.layers(key)):
            modules += _vision_layer(vision, f"{prefix}.{encoder}.layers.{layer}", width, gates)
    return as_tower(modules)


def _vision_layer(vision: ConfigView, at: str, width: int, gates: tuple[str, ...]) -> list[Module]:
    inner = vision.size("intermediate_size")
    modules: list[Module] = [
        replicated(f"{at}.self_attn.{name}", width, width, bias=False)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    ]
    modules += [replicated(f"{at}.mlp.fc1", width, inner), replicated(f"{at}.mlp.fc2", inner, width)]
    for name in ("input_layernorm", "post_attention_layernorm"):
        modules += norm(f"{at}.{name}", width, "every", bias=True)
    return modules + [Parameter(name=f"{at}.{name}", shape=(1,)) for name in gates]


def _at(layer: int, module: Module) -> Module:
    return replace(module, placement=layer)


def _spec(vision: ConfigView, output: int) -> VisionSpec:
    width, heads, patches = vision.size("hidden_size"), vision.size("attention_heads"), patch_grid(vision) ** 2 + 1
    tiles = vision.size("max_num_tiles")
    image = Tiles(
        image_size=vision.size("image_size"),
        patch_size=vision.size("patch_size"),
        patches=patches,
        tokens=1,
        min_tiles=1,
        max_tiles=tiles,
        thumbnail=False,
    )
    encoder = Encoder(
        hidden_size=width,
        num_layers=vision.layers("num_hidden_layers") + vision.layers("num_global_layers"),
        num_heads=heads,
        head_size=width // heads,
        intermediate_size=vision.size("intermediate_size"),
        output_size=output,
        prefix_tokens=1,
    )
    return VisionSpec(family="Transformers", modalities=("image",), dropped_with=(), encoder=encoder, image=image)
