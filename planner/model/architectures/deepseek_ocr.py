"""DeepSeek-OCR and DeepSeek-OCR-2: SAM ViT-B and a second encoder whose sizes vLLM fixes, a DeepSeek decoder.

Source: vLLM 0.26.0 model_executor/models/deepseek_ocr.py, deepseek_ocr2.py, deepencoder.py, deepencoder2.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, multimodal, text_view, weight
from planner.model.architectures.vit import clip_encoder
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module, Parameter
from planner.model.vision_spec import Encoder, Tiles, VisionSpec

_SAM_WIDTH, _SAM_LAYERS, _SAM_HEAD, _SAM_PATCH, _SAM_GRID, _SAM_NECK = 768, 12, 64, 16, 64, 256
_SAM_GLOBAL, _SAM_WINDOW = (2, 5, 8, 11), 14
_CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
}
_QWEN_WIDTH, _QWEN_LAYERS, _QWEN_HEAD, _QWEN_KV_HEADS, _QWEN_INNER = 896, 24, 64, 2, 4864
_TILES = {"DeepseekOCR": 640, "DeepseekOCR2": 768}
_QUERIES = {"query_768": 144, "query_1024": 256}
_PREFIXES = (
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.layers.", "language_model.model.layers."),
    ("model.norm.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", ""),
)


def deepseek_ocr(config: ConfigView) -> Architecture:
    """DeepseekOCRForCausalLM: SAM, then CLIP-L on its features."""
    clip = ConfigView(_CLIP, "DeepSeek-OCR CLIP", "clip_vision_model", config.files)
    second = clip_encoder(clip, "vision_model", _CLIP["num_hidden_layers"], encoder="transformer", post_norm=False)
    encoder = Encoder(
        hidden_size=1024,
        num_layers=24,
        num_heads=16,
        head_size=64,
        intermediate_size=4096,
        output_size=_projector(config).size("n_embed"),
        prefix_tokens=1,
    )
    return _ocr(config, _CLIP["hidden_size"], second, encoder, "DeepseekOCR", ("image_newline", "view_seperator"))


def deepseek_ocr2(config: ConfigView) -> Architecture:
    """DeepseekOCR2ForCausalLM: SAM, then a Qwen2-0.5B used as encoder with 144 or 256 queries."""
    encoder = Encoder(
        hidden_size=_QWEN_WIDTH,
        num_layers=_QWEN_LAYERS,
        num_heads=14,
        head_size=_QWEN_HEAD,
        intermediate_size=_QWEN_INNER,
        output_size=_projector(config).size("n_embed"),
        mlp_shards=2,
    )
    return _ocr(config, _QWEN_WIDTH, _qwen2_encoder("qwen2_model"), encoder, "DeepseekOCR2", ("view_seperator",))


def _ocr(
    config: ConfigView,
    sam_output: int,
    second: list[Module],
    encoder: Encoder,
    family: str,
    separators: tuple[str, ...],
) -> Architecture:
    """`separators` are parameters of the model itself, which text-only limits do not drop (interfaces.py:257)."""
    text = language_model(text_view(config, "deepseek_v2", "language_config"))
    projector = _projector(config)
    projector.require("projector_type", ("linear",), "linear")
    output = projector.size("n_embed")
    tower = _sam("sam_model", sam_output) + second
    tower += weight("projector.layers", output, projector.size("input_dim"), bias=True)
    own = [Parameter(name=name, shape=(output,)) for name in separators]
    tile = _TILES[family]
    image = Tiles(
        image_size=tile,
        patch_size=_SAM_PATCH,
        patches=(1024 // _SAM_PATCH) ** 2,
        tokens=(tile // _SAM_PATCH // 4) ** 2,
        min_tiles=2,
        max_tiles=6,
        thumbnail=True,
    )
    spec = VisionSpec(family=family, modalities=("image",), encoder=encoder, image=image)
    return multimodal(text, [*as_tower(tower), *own], vision=spec, prefixes=_PREFIXES)


def _projector(config: ConfigView) -> ConfigView:
    return config.section("projector_config")


def _sam(prefix: str, output: int) -> list[Module]:
    """ImageEncoderViT: windows with relative positions, a neck, two strided convolutions; whole on each rank."""
    width = _SAM_WIDTH
    modules = weight(f"{prefix}.patch_embed.proj", width, 3, _SAM_PATCH, _SAM_PATCH, bias=True)
    modules.append(Parameter(name=f"{prefix}.pos_embed", shape=(1, _SAM_GRID, _SAM_GRID, width)))
    for layer in range(_SAM_LAYERS):
        at, side = f"{prefix}.blocks.{layer}", _SAM_GRID if layer in _SAM_GLOBAL else _SAM_WINDOW
        modules += norm(f"{at}.norm1", width, "every", bias=True) + norm(f"{at}.norm2", width, "every", bias=True)
        modules += weight(f"{at}.attn.qkv", 3 * width, width, bias=True) + weight(
            f"{at}.attn.proj", width, width, bias=True
        )
        modules += [
            Parameter(name=f"{at}.attn.{name}", shape=(2 * side - 1, _SAM_HEAD)) for name in ("rel_pos_h", "rel_pos_w")
        ]
        modules += weight(f"{at}.mlp.lin1", 4 * width, width, bias=True) + weight(
            f"{at}.mlp.lin2", width, 4 * width, bias=True
        )
    modules += weight(f"{prefix}.neck.0", _SAM_NECK, width, 1, 1) + norm(
        f"{prefix}.neck.1", _SAM_NECK, "every", bias=True
    )
    modules += weight(f"{prefix}.neck.2", _SAM_NECK, _SAM_NECK, 3, 3) + norm(
        f"{prefix}.neck.3", _SAM_NECK, "every", bias=True
    )
    return [*modules, *weight(f"{prefix}.net_2", 512, 256, 3, 3), *weight(f"{prefix}.net_3", output, 512, 3, 3)]


def _qwen2_encoder(prefix: str) -> list[Module]:
    """transformers' Qwen2Model without its embedding, as nn.Linear on each rank, and two query tables."""
    width, keys = _QWEN_WIDTH, _QWEN_KV_HEADS * _QWEN_HEAD
    base = f"{prefix}.model.model"
    modules: list[Module] = []
    for layer in range(_QWEN_LAYERS):
        at = f"{base}.layers.{layer}"
        for name, rows in (("q_proj", width), ("k_proj", keys), ("v_proj", keys)):
            modules += weight(f"{at}.self_attn.{name}", rows, width, bias=True)
        modules += weight(f"{at}.self_attn.o_proj", width, width)
        modules += weight(f"{at}.mlp.gate_proj", _QWEN_INNER, width) + weight(f"{at}.mlp.up_proj", _QWEN_INNER, width)
        modules += weight(f"{at}.mlp.down_proj", width, _QWEN_INNER)
        modules += norm(f"{at}.input_layernorm", width, "every") + norm(
            f"{at}.post_attention_layernorm", width, "every"
        )
    modules += norm(f"{base}.norm", width, "every")
    for name in ("inv_freq", "original_inv_freq"):
        modules.append(Buffer(name=f"{base}.rotary_emb.{name}", shape=(_QWEN_HEAD // 2,), dtype="float32"))
    for name, rows in _QUERIES.items():
        modules += weight(f"{prefix}.{name}", rows, width)
    return modules
