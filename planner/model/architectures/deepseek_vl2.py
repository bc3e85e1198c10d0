"""DeepSeek-VL2: timm's SigLIP SO400M whose sizes vLLM fixes, a projector of tiles, a DeepSeek decoder.

Source: vLLM 0.26.0 model_executor/models/deepseek_vl2.py, transformers_utils/configs/deepseek_vl2.py.
"""

from __future__ import annotations

from planner.errors import InputError
from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, column, multimodal, row, text_view, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Linear, Module, Parameter
from planner.model.vision_spec import Encoder, Pinpoints, VisionSpec
from planner.values import reject

_WIDTH, _LAYERS, _HEADS, _INNER, _PATCH, _GRID = 1152, 27, 16, 4304, 14, 27
"""vit_so400m_patch14_siglip_384.webli, whatever the config's vision section says (deepseek_vl2.py:396)."""
_PREFIXES = (("language.", "language_model."),)


def deepseek_vl2(config: ConfigView) -> Architecture:
    """DeepseekVLV2ForCausalLM: the tower's MLPs are divided and can be quantized with more than one rank only."""
    if config.text("tile_tag", "tile_tag") != "2D":
        raise reject("flag", f"Only 2D tile_tag is supported currently, got: {config.text('tile_tag', 'tile_tag')}")
    text = language_model(text_view(config, "deepseek_v2", "language_config"))
    projector = config.section("projector_config")
    output = projector.size("n_embed", 2048)
    tower = [*_tower(), *_projector(projector, output)]
    own = [Parameter(name=name, shape=(output,)) for name in ("image_newline", "view_seperator")]
    encoder = Encoder(
        hidden_size=_WIDTH,
        num_layers=_LAYERS,
        num_heads=_HEADS,
        head_size=_WIDTH // _HEADS,
        intermediate_size=_INNER,
        output_size=output,
    )
    spec = VisionSpec(family="DeepseekVL2", modalities=("image",), encoder=encoder, image=_tiles(config, projector))
    return multimodal(text, [*as_tower(tower), *own], vision=spec, prefixes=_PREFIXES)


def _tower(prefix: str = "vision") -> list[Module]:
    """timm's VisionTransformer with its attention pool, which is built and never run; attention is plain nn.Linear."""
    modules: list[Module] = [Parameter(name=f"{prefix}.pos_embed", shape=(1, _GRID**2, _WIDTH))]
    modules += weight(f"{prefix}.patch_embed.proj", _WIDTH, 3, _PATCH, _PATCH, bias=True)
    for layer in range(_LAYERS):
        at = f"{prefix}.blocks.{layer}"
        modules += norm(f"{at}.norm1", _WIDTH, "every", bias=True)
        modules += weight(f"{at}.attn.qkv", 3 * _WIDTH, _WIDTH, bias=True)
        modules += weight(f"{at}.attn.proj", _WIDTH, _WIDTH, bias=True)
        modules += norm(f"{at}.norm2", _WIDTH, "every", bias=True)
        modules += _mlp(f"{at}.mlp")
    modules += norm(f"{prefix}.norm", _WIDTH, "every", bias=True)
    pool = f"{prefix}.attn_pool"
    modules.append(Parameter(name=f"{pool}.latent", shape=(1, 1, _WIDTH)))
    for name, rows in (("q", _WIDTH), ("kv", 2 * _WIDTH), ("proj", _WIDTH)):
        modules += weight(f"{pool}.{name}", rows, _WIDTH, bias=True)
    return [*modules, *norm(f"{pool}.norm", _WIDTH, "every", bias=True), *_mlp(f"{pool}.mlp")]


def _mlp(at: str) -> list[Linear]:
    return [column(f"{at}.fc1", _WIDTH, _INNER), row(f"{at}.fc2", _INNER, _WIDTH)]


def _projector(projector: ConfigView, output: int) -> list[Module]:
    width = projector.size("input_dim", 1152)
    if projector.text("projector_type", "downsample_mlp_gelu") == "linear":
        return weight("projector.layers", output, width, bias=True)
    projector.require("projector_type", ("downsample_mlp_gelu",), "downsample_mlp_gelu")
    inner, depth = output * projector.size("mlp_ratio", 1), projector.size("depth", 2)
    modules = weight("projector.layers.0", inner, width * projector.size("downsample_ratio", 2) ** 2, bias=True)
    for index in range(1, depth - 1):
        modules += weight(f"projector.layers.{2 * index}", inner, inner, bias=True)
    return [*modules, *weight(f"projector.layers.{2 * (depth - 1)}", output, inner, bias=True)]


def _tiles(config: ConfigView, projector: ConfigView) -> Pinpoints:
    given = config.raw("candidate_resolutions", [[384, 384]])
    if not isinstance(given, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in given):
        raise InputError(f"{config.where}: candidate_resolutions must be a list of pairs")
    side = config.section("vision_config").size("image_size", 384)
    tokens = -(-(side // _PATCH) // projector.size("downsample_ratio", 2))
    return Pinpoints(
        image_size=side,
        patch_size=_PATCH,
        patches=_GRID**2,
        tokens=tokens**2,
        pinpoints=tuple((int(height), int(width)) for width, height in given),
    )
