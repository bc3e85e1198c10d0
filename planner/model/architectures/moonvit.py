"""MoonViT: the towers of Kimi-VL and Kimi-K2.5, for the language models of other files.

Source: vLLM 0.26.0 model_executor/models/moonvit.py, kimi_vl.py, kimi_k25.py, kimi_k25_vit.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.blocks import Architecture, norm, plain_mlp
from planner.model.architectures.vision_blocks import as_tower, fused_qkv, multimodal, replicated, row, weight
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Linear, Module, Parameter, QKVLinear
from planner.model.quantization import read_quantization
from planner.model.vision_spec import DynamicPatches, Encoder, VisionSpec

K25_PREFIXES = (
    ("language_model.layers.", "language_model.model.layers."),
    ("mm_projector.proj.0", "mm_projector.linear_1"),
    ("mm_projector.proj.2", "mm_projector.linear_2"),
)
_DEFAULTS = {
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
}
_FRAMES = 4
_LIMITS = (4096, 16384)
"""Patches of an image where no processor file says: of Kimi-VL, of Kimi-K2.5."""


def with_kimi_vl_tower(config: ConfigView, text: Architecture) -> Architecture:
    """KimiVLForConditionalGeneration around `text` (prefix "language_model."): nothing in the tower is quantized."""
    vision = config.section("vision_config", "moonvit")
    output = text.text.hidden_size
    tower = moonvit(vision, "vision_tower", quantizable=False, whole=False)
    tower += _projector(vision, "multi_modal_projector", output, quantizable=False)
    spec = VisionSpec(
        family="KimiVL", modalities=("image",), encoder=_encoder(vision, output), image=_patches(config, vision, 1)
    )
    return multimodal(text, tower, vision=spec, encoder_data=True)


def with_kimi_k25_tower(config: ConfigView, text: Architecture) -> Architecture:
    """KimiK25ForConditionalGeneration around `text`: images and videos are chunks of up to four frames."""
    files = config.files
    quantization = read_quantization(config.data, files.hf_quant if files is not None else {})
    quantizable = quantization is not None and quantization.method != "compressed-tensors"
    vision = config.section("vision_config", "kimi_k25_vision")
    vision.require("pos_emb_type", ("divided_fixed",), "divided_fixed")
    width = _size(vision, "hidden_size")
    named = vision.size("mm_hidden_size", width)
    output = text.text.hidden_size if named == width else named
    tower = moonvit(vision, "vision_tower", quantizable=quantizable, whole=True)
    frames = vision.size("init_pos_emb_time", _FRAMES)
    # Cast to the model's dtype only where the tower gets no quantization config (kimi_k25.py:352).
    time = Buffer(
        name="vision_tower.patch_embed.pos_emb.time_weight",
        shape=(frames, 1, width),
        dtype="float32" if quantizable else None,
    )
    tower += as_tower([time]) + _projector(vision, "mm_projector", output, quantizable=quantizable)
    spec = VisionSpec(
        family="KimiK25",
        modalities=("vision_chunk",),
        encoder=_encoder(vision, output),
        image=_patches(config, vision, frames),
    )
    return multimodal(text, tower, vision=spec, prefixes=K25_PREFIXES, encoder_data=True)


def moonvit(vision: ConfigView, prefix: str, *, quantizable: bool, whole: bool) -> list[Module]:
    """Patch convolution, learned positions, blocks, final LayerNorm. `whole`: each rank holds the blocks whole where
    tensor parallelism does not divide the heads; else vLLM asserts the division."""
    width, heads, inner = (_size(vision, key) for key in ("hidden_size", "num_attention_heads", "intermediate_size"))
    patch = _size(vision, "patch_size")
    modules = weight(f"{prefix}.patch_embed.proj", width, 3, patch, patch, bias=True)
    grid = (vision.size("init_pos_emb_height", 64), vision.size("init_pos_emb_width", 64), width)
    modules.append(Parameter(name=f"{prefix}.patch_embed.pos_emb.weight", shape=grid))
    for layer in range(
        vision.layers("num_hidden_layers") if "num_hidden_layers" in vision else _DEFAULTS["num_hidden_layers"]
    ):
        at = f"{prefix}.encoder.blocks.{layer}"
        modules += norm(f"{at}.norm0", width, "every", bias=True) + norm(f"{at}.norm1", width, "every", bias=True)
        linears = [
            *plain_mlp(f"{at}.mlp", "every", width, inner, names=("fc0", "fc1")),
            fused_qkv(f"{at}.wqkv", width, heads, width // heads, shard_names=()),
            row(f"{at}.wo", width, width),
        ]
        for linear in linears:
            assert isinstance(linear, Linear | QKVLinear)
            modules.append(replace(linear, quantizable=quantizable, whole_unless_divides=heads if whole else None))
    return as_tower([*modules, *norm(f"{prefix}.encoder.final_layernorm", width, "every", bias=True)])


def _projector(vision: ConfigView, prefix: str, output: int, *, quantizable: bool) -> list[Module]:
    width = _size(vision, "hidden_size")
    merged = width * _merge(vision)
    return as_tower(
        [
            *norm(f"{prefix}.pre_norm", width, "every", bias=True),
            replicated(f"{prefix}.linear_1", merged, merged, quantizable=quantizable),
            replicated(f"{prefix}.linear_2", merged, output, quantizable=quantizable),
        ]
    )


def _size(vision: ConfigView, key: str) -> int:
    """A key with the default of vLLM's own classes (transformers_utils/configs/moonvit.py, kimi_k25.py)."""
    return vision.size(key, _DEFAULTS[key])


def _merge(vision: ConfigView) -> int:
    height, width = vision.sizes("merge_kernel_size", (2, 2), count=2)
    return height * width


def _encoder(vision: ConfigView, output: int) -> Encoder:
    width, heads = _size(vision, "hidden_size"), _size(vision, "num_attention_heads")
    return Encoder(
        hidden_size=width,
        num_layers=_size(vision, "num_hidden_layers"),
        num_heads=heads,
        head_size=width // heads,
        intermediate_size=_size(vision, "intermediate_size"),
        output_size=output,
        projector_size=width * _merge(vision),
    )


def _patches(config: ConfigView, vision: ConfigView, frames: int) -> DynamicPatches:
    """The processor bounds the patches of an image, or of a frame of a chunk (in_token_limit / in_patch_limit)."""
    settings = ConfigView(config.files.preprocessor if config.files is not None else {}, "preprocessor_config.json")
    media = settings.section("media_proc_cfg")
    patch = _size(vision, "patch_size")
    limit = media.optional_size("in_patch_limit") or settings.size("in_token_limit", _LIMITS[frames > 1])
    in_frame = media.optional_size("in_patch_limit_each_frame") or (limit if "in_patch_limit" in media else 4096)
    pixels, merge = limit * patch**2, vision.sizes("merge_kernel_size", (2, 2), count=2)[0]
    return DynamicPatches(
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=frames,
        min_pixels=(patch * merge) ** 2,
        max_pixels=pixels,
        video_min_pixels=(patch * merge) ** 2,
        video_max_pixels=in_frame * patch**2,
        max_video_frames=media.size("temporal_merge_kernel_size", frames),
        max_side_patches=media.size("patch_limit_on_one_side", 512) if frames > 1 else 0,
        video_sum_pixels=(media.optional_size("in_patch_limit_video") or 0) * patch**2,
    )
