"""Aria: Idefics 3's tower, a projector of learned queries, a Llama decoder whose layers are mixtures of experts.

Source: vLLM 0.26.0 model_executor/models/aria.py; transformers 5.14.1 models/aria/modeling_aria.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.assemble import assemble
from planner.model.architectures.blocks import Architecture, gated_mlp, norm, read_heads, self_attention, text_dims
from planner.model.architectures.experts import experts
from planner.model.architectures.llama import llama_biases
from planner.model.architectures.minicpm_v import idefics2_tower
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, row, text_view, weight
from planner.model.architectures.vit import encoder_of, patch_grid
from planner.model.config_view import ConfigView
from planner.model.modules import LMHead, Module, Parameter
from planner.model.rope import rope_parameters
from planner.model.vision_spec import FixedSize, VisionSpec

_PREFIXES = (
    ("model.language_model.", "language_model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("language_model.model.", "language_model."),
    ("language_model.lm_head.", "lm_head."),
)


def aria(config: ConfigView) -> Architecture:
    """AriaForConditionalGeneration: no pipeline parallelism; the tower has no norm behind it."""
    section = text_view(config, "aria_text")
    text = _decoder(section)
    vision = config.section("vision_config", "idefics3_vision")
    vision = ConfigView(vision.data, vision.where, "idefics3_vision", config.files)
    layers, width, output = vision.layers("num_hidden_layers"), vision.size("hidden_size"), text.text.hidden_size
    tower = [part for part in idefics2_tower(vision, "vision_tower", layers) if ".post_layernorm" not in part.name]
    queries = _queries(config)
    image = FixedSize(
        image_size=vision.size("image_size"),
        patch_size=vision.size("patch_size"),
        patches=patch_grid(vision) ** 2,
        tokens=queries,
        item_tokens=queries,
    )
    encoder = encoder_of(vision, layers, output, projector_size=output)
    spec = VisionSpec(family="Aria", modalities=("image",), encoder=encoder, image=image)
    return multimodal(
        text, [*tower, *_projector(width, output, queries)], vision=spec, prefixes=_PREFIXES, supports_pp=False
    )


def _queries(config: ConfigView) -> int:
    given = config.raw("projector_patch_to_query_dict", {"1225": 128, "4900": 256})
    if not isinstance(given, dict) or not given or not all(isinstance(value, int) for value in given.values()):
        raise InputError(f"{config.where}: projector_patch_to_query_dict must map patches to queries")
    most: int = max(given.values())
    return most


def _projector(width: int, output: int, queries: int, base: str = "multi_modal_projector") -> list[Module]:
    """Cross attention as PyTorch writes it, whole on each rank, then a divided MLP."""
    modules: list[Module] = [Parameter(name=f"{base}.query", shape=(queries, width))]
    for name in ("q_proj", "k_proj", "v_proj"):
        modules += weight(f"{base}.cross_attn.{name}", width, width)
    at = f"{base}.cross_attn.multihead_attn"
    modules += [
        Parameter(name=f"{at}.in_proj_weight", shape=(3 * width, width)),
        Parameter(name=f"{at}.in_proj_bias", shape=(3 * width,)),
    ]
    modules += weight(f"{at}.out_proj", width, width, bias=True)
    modules += weight(f"{base}.cross_attn.linear", width, width, bias=True)
    for name in ("cross_attn.layer_norm", "cross_attn.layer_norm_kv", "layer_norm"):
        modules += norm(f"{base}.{name}", width, "every", bias=True)
    modules.append(column(f"{base}.feed_forward.linear_in", width, output, bias=False, quantizable=False))
    modules.append(row(f"{base}.feed_forward.linear_out", output, output, bias=False, quantizable=False))
    return as_tower(modules)


def _decoder(config: ConfigView) -> Architecture:
    heads = read_heads(config)
    dims = text_dims(config, heads)
    qkv_bias, out_bias = llama_biases(config)
    rope, hidden, count = rope_parameters(config), dims.hidden_size, config.size("moe_num_experts")
    shared = dims.intermediate_size * config.size("moe_num_shared_experts")

    def feed_forward(at: str, layer: int) -> list[Module]:
        return [
            Parameter(name=f"{at}.router_weight", placement=layer, shape=(count, hidden)),
            *gated_mlp(f"{at}.shared_experts", layer, hidden, shared, bias=config.flag("mlp_bias")),
            experts(
                at,
                layer,
                count=count,
                top_k=config.size("moe_topk"),
                hidden=hidden,
                inner=dims.intermediate_size,
            ),
        ]

    text = assemble(
        dims,
        prefix="language_model.",
        tied=False,
        supports_pp=False,
        feed_forward=feed_forward,
        num_experts=count,
        attention=lambda at, layer: self_attention(
            at,
            layer,
            heads,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            rope=rope,
            max_position=dims.max_position_embeddings,
        ),
    )
    return replace(text, modules=tuple(_placed(part) for part in text.modules))


def _placed(part: Module) -> Module:
    """The class has the decoder itself as language_model, and the head beside it."""
    if isinstance(part, LMHead):
        return replace(part, name="lm_head")
    return replace(part, name=part.name.replace("language_model.model.", "language_model.", 1))
