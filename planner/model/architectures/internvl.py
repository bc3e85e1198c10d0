"""InternVL in its own format (InternVLChatModel and its kin) and in transformers' (InternVLForConditionalGeneration,
Intern-S1).

Source: vLLM 0.26.0 model_executor/models/{internvl,interns1,h2ovl,nvlm_d,qianfan_ocr,skyworkr1v}.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.llava import PREFIXES
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, multimodal, replicated, text_view, weight
from planner.model.architectures.vit import encoder_of, intern_vit, interns1_vit, patch_grid
from planner.model.config_view import ConfigView
from planner.model.modules import Linear, LMHead, Module, Parameter, QKVLinear
from planner.model.quantization import read_quantization
from planner.model.vision_spec import Modality, Tiles, VisionSpec

_NVLM_DUMMY_HEADS = 7
_VIDEO_TEXTS = ("qwen2", "qwen3", "qwen3_moe", "gpt_oss")


def internvl_chat(config: ConfigView) -> Architecture:
    """InternVLChatModel: InternViT up to select_layer; the projector is plain nn.Linear."""
    section = text_view(config, "", "llm_config" if isinstance(config.data.get("llm_config"), dict) else "text_config")
    text = language_model(section)
    vision = config.section("vision_config", "intern_vit_6b")
    select = config.integer("select_layer", -1)
    depth = vision.layers("num_hidden_layers") + select + 1 if select < 0 else select + 1
    width, output = _merged_width(config, vision), text.text.hidden_size
    projector = norm("mlp1.0", width, "every", bias=True)
    projector += weight("mlp1.1", output, width, bias=True) + weight("mlp1.3", output, output, bias=True)
    image_size = config.optional_size("force_image_size") or vision.size("image_size")
    dynamic = config.flag("dynamic_image_size", True)
    image = Tiles(
        image_size=image_size,
        patch_size=vision.size("patch_size"),
        patches=patch_grid(vision) ** 2,
        tokens=_tokens(config, image_size, vision.size("patch_size")),
        min_tiles=config.size("min_dynamic_patch", 1) if dynamic else 1,
        max_tiles=config.size("max_dynamic_patch", 1) if dynamic else 1,
        thumbnail=config.flag("use_thumbnail"),
        extra_tokens=2,
    )
    modalities: tuple[Modality, ...] = ("image", "video") if section.model_type in _VIDEO_TEXTS else ("image",)
    encoder = encoder_of(vision, depth, output, prefix_tokens=1, projector_size=width)
    spec = VisionSpec(family="InternVL", modalities=modalities, encoder=encoder, image=image)
    tower = intern_vit(vision, "vision_model", depth) + as_tower(projector)
    return multimodal(text, tower, vision=spec, fused={"qkv": ("qkv",)}, encoder_data=True)


def h2ovl(config: ConfigView) -> Architecture:
    """H2OVLChatModel: InternVL whose processor adds views of its own."""
    return _of_family(internvl_chat(config), "H2OVL")


def qianfan_ocr(config: ConfigView) -> Architecture:
    """QianfanOCRForConditionalGeneration: InternVL; with FP8 the tower, the projector and the head stay as they are."""
    defaults = {"force_image_size": 448, "max_dynamic_patch": 12, "use_thumbnail": True}
    built = internvl_chat(ConfigView({**defaults, **config.data}, config.where, config.model_type, config.files))
    files = config.files
    quantization = read_quantization(config.data, files.hf_quant if files is not None else {})
    if quantization is None or quantization.method != "fp8":
        return built
    kept = ("vision_model.", "language_model.lm_head")
    return replace(built, modules=tuple(_unquantized(part, kept) for part in built.modules))


def _unquantized(part: Module, kept: tuple[str, ...]) -> Module:
    quantized = isinstance(part, (Linear, LMHead, QKVLinear)) and part.name.startswith(kept)
    return replace(part, quantizable=False) if quantized else part


def nvlm_d(config: ConfigView) -> Architecture:
    """NVLM_D: seven more heads than the tower has, so that they divide, and a projector as wide as the decoder's MLP
    without biases (nvlm_d.py:158)."""
    built = internvl_chat(config)
    vision = config.section("vision_config", "intern_vit_6b")
    width, heads = vision.size("hidden_size"), vision.size("num_attention_heads")
    total = heads + _NVLM_DUMMY_HEADS
    wide = total * (width // heads)
    modules: list[Module] = []
    for part in built.modules:
        if part.name.startswith(("mlp1.1.", "mlp1.3.")):
            continue
        if isinstance(part, QKVLinear) and part.name.startswith("vision_model."):
            part = replace(part, num_heads=total, num_kv_heads=total, whole_unless_divides=total)
        elif isinstance(part, Linear) and part.name.endswith(".attn.proj"):
            part = replace(part, input_size=wide, whole_unless_divides=total)
        elif isinstance(part, Parameter) and part.name.endswith((".q_norm.weight", ".k_norm.weight")):
            part = replace(part, shape=(wide,)) if part.name.startswith("vision_model.") else part
        modules.append(part)
    inner, output = built.text.intermediate_size, built.text.hidden_size
    projector = weight("mlp1.1", inner, _merged_width(config, vision)) + weight("mlp1.3", output, inner)
    return _of_family(replace(built, modules=(*as_tower(projector), *modules)), "NVLM")


def _of_family(built: Architecture, family: str) -> Architecture:
    assert built.vision is not None
    return replace(built, vision=replace(built.vision, family=family, modalities=("image",)))


def skywork_r1v(config: ConfigView) -> Architecture:
    """SkyworkR1VChatModel: InternVL whose projector's first layer can be quantized (skyworkr1v.py:238)."""
    whole = internvl_chat(config)
    assert whole.vision is not None
    merged = [part for part in whole.modules if not part.name.startswith("mlp1.1.")]
    width, output = _merged_width(config, config.section("vision_config", "intern_vit_6b")), whole.text.hidden_size
    first = as_tower([replicated("mlp1.1", width, output), replicated("mlp1.3", output, output)])
    kept = [part for part in merged if not part.name.startswith("mlp1.3.")]
    return replace(
        whole,
        modules=(*first, *kept),
        vision=replace(whole.vision, modalities=("image",)),
        supports_encoder_tp_data=False,
    )


def internvl(config: ConfigView) -> Architecture:
    """InternVLForConditionalGeneration and InternS1ForConditionalGeneration."""
    text = language_model(text_view(config, "qwen2"))
    vision = config.section("vision_config", "internvl_vision")
    layers = vision.layers("num_hidden_layers")
    width, output = _merged_width(config, vision), text.text.hidden_size
    base = "multi_modal_projector"
    projector: list[Module] = norm(f"{base}.layer_norm", width, "every", bias=True)
    projector += weight(f"{base}.linear_1", output, width, bias=True) + weight(
        f"{base}.linear_2", output, output, bias=True
    )
    image_size, patch = vision.sizes("image_size", count=2)[0], vision.sizes("patch_size", count=2)[0]
    settings = ConfigView(config.files.preprocessor if config.files is not None else {}, "preprocessor_config.json")
    image = Tiles(
        image_size=image_size,
        patch_size=patch,
        patches=(image_size // patch) ** 2,
        tokens=_tokens(config, image_size, patch),
        min_tiles=settings.size("min_patches", 1),
        max_tiles=settings.size("max_patches", 12),
        thumbnail=True,
        extra_tokens=2,
    )
    encoder = encoder_of(vision, layers, output, prefix_tokens=1, projector_size=width)
    spec = VisionSpec(family="InternS1", modalities=("image", "video"), encoder=encoder, image=image)
    tower = interns1_vit(vision, "vision_tower", layers) + as_tower(projector)
    return multimodal(text, tower, vision=spec, prefixes=PREFIXES)


def _merged_width(config: ConfigView, vision: ConfigView) -> int:
    return vision.size("hidden_size") * int(1 / config.fraction("downsample_ratio", 0.5)) ** 2


def _tokens(config: ConfigView, side: int, patch: int) -> int:
    """Tokens of one square image."""
    tokens = int((side // patch) ** 2 * config.fraction("downsample_ratio", 0.5) ** 2)
    if tokens < 1:
        raise InputError(f"{config.where}: an image of {side} pixels in patches of {patch} leaves no token")
    return tokens
