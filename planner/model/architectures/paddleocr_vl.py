"""PaddleOCR-VL: a SigLIP with rotary positions, a two-by-two merger, an ERNIE 4.5 decoder.

Source: vLLM 0.26.0 model_executor/models/paddleocr_vl.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import Architecture, norm
from planner.model.architectures.llama import ernie4_5
from planner.model.architectures.qwen_vl import pixel_bounds
from planner.model.architectures.vision_blocks import as_tower, multimodal, text_view, weight
from planner.model.architectures.vit import siglip
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Module
from planner.model.vision_spec import DynamicPatches, Encoder, VisionSpec

_MERGE = 2


def paddleocr_vl(config: ConfigView) -> Architecture:
    """PaddleOCRVLForConditionalGeneration: no pipeline parallelism; the projector is plain nn.Linear."""
    text = ernie4_5(text_view(config, "paddleocr_vl_text"), "language_model.")
    vision = config.section("vision_config")
    vision = ConfigView(vision.data, vision.where, "paddleocr_vl_vision", config.files)
    width, heads, layers = (
        vision.size("hidden_size"),
        vision.size("num_attention_heads"),
        vision.layers("num_hidden_layers"),
    )
    merged, output = width * _MERGE**2, text.text.hidden_size
    tower = siglip(vision, "visual", layers, True)
    extra: list[Module] = [
        Buffer(
            name="visual.vision_model.encoder.rotary_pos_emb.inv_freq", shape=(width // heads // 4,), dtype="float32"
        )
    ]
    extra += norm("mlp_AR.pre_norm", width, "every", bias=True)
    extra += weight("mlp_AR.linear_1", merged, merged, bias=True) + weight("mlp_AR.linear_2", output, merged, bias=True)
    low, high = pixel_bounds(config, "preprocessor", (384 * 384, 1536 * 1536))
    image = DynamicPatches(
        patch_size=vision.size("patch_size"),
        merge_size=vision.size("spatial_merge_size", _MERGE),
        temporal_patch_size=1,
        min_pixels=low,
        max_pixels=high,
        video_min_pixels=low,
        video_max_pixels=high,
        max_video_frames=0,
    )
    encoder = Encoder(
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        head_size=width // heads,
        projector_size=merged,
        intermediate_size=vision.size("intermediate_size"),
        output_size=output,
    )
    spec = VisionSpec(family="PaddleOCRVL", modalities=("image",), encoder=encoder, image=image)
    return multimodal(
        text,
        [*tower, *as_tower(extra)],
        vision=spec,
        supports_pp=False,
        prefixes=(("model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")),
    )
