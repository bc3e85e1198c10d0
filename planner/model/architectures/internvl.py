"""InternVL in its own format (InternVLChatModel) and in transformers' (InternVLForConditionalGeneration, Intern-S1).

Source: vLLM 0.26.0 model_executor/models/internvl.py, interns1.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.llava import PREFIXES
from planner.model.architectures.text_part import language_model
from planner.model.architectures.vision_blocks import as_tower, multimodal, replicated, text_view, weight
from planner.model.architectures.vit import encoder_of, intern_vit, interns1_vit, patch_grid
from planner.model.config_view import ConfigView
from planner.model.modules import Module
from planner.model.vision_spec import Modality, Tiles, VisionSpec

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
        tokens=int((image_size // vision.size("patch_size")) ** 2 * config.number("downsample_ratio", 0.5) ** 2),
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
        tokens=int((image_size // patch) ** 2 * config.number("downsample_ratio", 0.5) ** 2),
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
    return vision.size("hidden_size") * int(1 / config.number("downsample_ratio", 0.5)) ** 2
