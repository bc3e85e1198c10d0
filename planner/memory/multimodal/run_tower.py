"""Which tower a batch of one modality runs through, and its projector: chosen by vLLM's processing class."""

from __future__ import annotations

from collections.abc import Sequence

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.memory.multimodal.deepseek_ocr import write_ocr
from planner.memory.multimodal.gemma4_tower import Gemma4Vision, encoder_chunk, write_gemma4_audio
from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.plain_tower import PlainRun, Projector, write_one_by_one, write_plain
from planner.memory.multimodal.qwen_tower import QwenMerger, write_qwen
from planner.memory.multimodal.rule import CHANNELS
from planner.memory.multimodal.sound_stem import write_stem
from planner.memory.multimodal.styles import TowerStyle, tower_of
from planner.memory.multimodal.tower import TowerRun
from planner.memory.program import Program
from planner.model.modules import Linear, Module, QKVLinear
from planner.model.spec import ModelSpec
from planner.model.vision_spec import DynamicPatches, Encoder, FixedSize, LongestEdge, Tiles, VisionSpec
from planner.once import once
from planner.sharding.rank import RankShare, Tensor
from planner.values import DTYPE_BYTES

_SQUARE_OF_TWO = 4
_MOONVIT_POSITIONS = 512 * 512
"""Complex numbers for each, made with the first image (vLLM 0.26.0 model_executor/models/moonvit.py:271)."""
_MERGES_FOUR = ("MiniCPMV4_6", "DeepseekVL2", "Lfm2VL")
_MINIMAX_TABLES = 3
"""Frequencies, cosines and sines of each patch live together, in float32 (minimax_m3/common/vision_tower.py:560)."""
_DIVIDED_PROJECTORS = ("Llava", "LlavaNext", "Mistral3", "LightOnOCR", "Mllama4", "MiniMaxM3", "Cohere2Vision")
_FP8 = ("float8_e4m3fn", "float8_e5m2")
_FP8_FROM = (8, 9)
_WHISPER = ("Qwen2Audio", "Qwen2_5Omni")
_STYLES: dict[str, TowerStyle] = {
    "Qwen2VL": "qwen2",
    "Qwen2_5_VL": "qwen2_5",
    "Qwen2_5Omni": "qwen2_5",
    "Qwen3VL": "qwen3",
    "Qwen3_5": "qwen3",
    "Qwen3OmniMoe": "qwen3",
    "Glm4v": "glm4v",
    "DotsOCR": "dots",
    "Ernie4_5_VL": "dots",
    "Aria": "plain",
    "Llava": "plain",
    "LlavaNext": "plain",
    "LlavaOnevision": "plain",
    "Gemma3": "plain",
    "PaliGemma": "plain",
    "Cohere2Vision": "plain",
    "InternVL": "plain",
    "InternS1": "plain",
    "Idefics3": "plain",
    "MiniCPMV": "plain",
    "MiniCPMV4_6": "plain",
    "DeepseekVL2": "plain",
    "Lfm2VL": "plain",
    "Step3VL": "rotated",
    "Mllama4": "moonvit",
    "KimiVL": "moonvit",
    "KimiK25": "moonvit",
    "Mistral3": "pixtral",
    "LightOnOCR": "pixtral",
    "Pixtral": "pixtral_native",
    "PaddleOCRVL": "paddle",
    "MiniMaxM3": "minimax",
}


def run_tower(
    p: Program,
    model: ModelSpec,
    share: RankShare,
    config: EngineConfig,
    items: Sequence[MediaItem],
    tp: int,
    *,
    warm: bool,
) -> int:
    """Write the run over `items` of one modality, divided among `tp` ranks; the handle of their embeddings.

    `warm`: the engine serves, its cache allocated. UnsupportedError for towers whose forward pass is not known here.
    """
    vision = model.vision
    assert vision is not None
    sound = items[0].modality == "audio"
    encoder = vision.audio_encoder if sound else vision.encoder
    if encoder is not None and reads_free_memory(vision):
        return _gemma4(p, vision, encoder, share, config, items, warm=warm)
    if encoder is not None and vision.family in ("DeepseekOCR", "DeepseekOCR2"):
        assert isinstance(vision.image, Tiles)
        return write_ocr(p, encoder, vision.image, items, DTYPE_BYTES[config.dtype])
    style = _sound_style(vision) if sound else _style(vision)
    if encoder is None or style is None:
        raise UnsupportedError("encoder", f"the encoder of {vision.family} models is not supported by this planner")
    if sound and vision.audio is not None and vision.audio.stem_window:
        write_stem(p, vision.audio, items, DTYPE_BYTES[config.dtype])
    quantized = not sound and quantizes_inputs(model, share, config)
    tp = tp if encoder.num_heads % tp == 0 and vision.family != "DeepseekVL2" else 1
    tower = tower_of(encoder, style, config, items, 1 if style == "audio" else tp, quantized=quantized)
    run = TowerRun(p, tower, sum(entry.patches for entry in items))
    if style in ("qwen2", "qwen2_5", "qwen3", "glm4v", "dots"):
        assert isinstance(vision.image, DynamicPatches)
        return write_qwen(run, _merger(vision.family, encoder, vision.image), items)
    if vision.family == "KimiVL" and not (warm and config.model_runner == "v1"):
        p.keep("rotary table of the tower", constant=_MOONVIT_POSITIONS * (encoder.head_size // 2) * 8)
    plain, projector = _plain(encoder, style, config), _projector(vision, encoder, style, items, tower.tp)
    if style == "paddle":
        towers = [tower_of(encoder, style, config, [item], tp, quantized=quantized) for item in items]
        runs = [TowerRun(p, each, item.patches) for each, item in zip(towers, items, strict=True)]
        return write_one_by_one(runs, plain, projector, items)
    held = _masked_tiles(p, vision, items, DTYPE_BYTES[config.dtype])
    out = write_plain(run, plain, projector, items)
    p.free(*held)
    return out


def _masked_tiles(p: Program, vision: VisionSpec, items: Sequence[MediaItem], item: int) -> list[int]:
    """Idefics 3's mask of each pixel, in 64 bits, and copies of pixels and mask without padding tiles
    (vLLM 0.26.0 model_executor/models/idefics3.py:505); Aria's mask in bytes."""
    if vision.family == "Aria" and isinstance(vision.image, FixedSize):
        size = vision.image.image_size
        return [p.alloc("pixel mask", constant=sum(entry.sequences for entry in items) * size**2)]
    if vision.family != "Idefics3" or not isinstance(vision.image, Tiles):
        return []
    cells = sum(entry.sequences for entry in items) * vision.image.image_size**2
    return [
        p.alloc("pixel mask", constant=8 * cells),
        p.alloc("pixel values of real tiles", constant=CHANNELS * cells * item),
        p.alloc("pixel mask of real tiles", constant=8 * cells),
    ]


def _gemma4(
    p: Program,
    vision: VisionSpec,
    encoder: Encoder,
    share: RankShare,
    config: EngineConfig,
    items: Sequence[MediaItem],
    *,
    warm: bool,
) -> int:
    """The tower reads the free memory to choose how much to encode at once: what the weights leave while the engine
    profiles, what its budget leaves while it serves."""
    item = DTYPE_BYTES[config.dtype]
    if items[0].modality == "audio":
        assert vision.audio is not None
        return write_gemma4_audio(p, encoder, vision.audio, items, item)
    total = config.gpu_memory_bytes
    free = int(total * (1 - config.gpu_memory_utilization)) if warm else max(0, total - share.parameter_bytes)
    rows = items[0].patches // items[0].sequences
    chunk = encoder_chunk(rows, encoder.max_positions, free, total)
    return Gemma4Vision(p, encoder, item, chunk).write(items)


def _sound_style(vision: VisionSpec) -> TowerStyle | None:
    if vision.family in _WHISPER:
        return "audio"
    return "plain" if vision.audio is not None and vision.audio.stem_window else None


def _style(vision: VisionSpec) -> TowerStyle | None:
    if vision.family == "Llava" and isinstance(vision.image, LongestEdge):
        return "pixtral"
    return _STYLES.get(vision.family)


def _merger(family: str, encoder: Encoder, image: DynamicPatches) -> QwenMerger:
    levels = encoder.deepstack_levels
    return QwenMerger(
        merge=image.merge_size,
        output=encoder.output_size // (1 + levels),
        deepstack=levels,
        merges_last=family == "Qwen3OmniMoe",
        windowed=encoder.window_pixels is not None,
        position_table=encoder.max_positions > 0,
    )


def _plain(encoder: Encoder, style: TowerStyle, config: EngineConfig) -> PlainRun:
    if style == "pixtral":
        return PlainRun(mask="batch", rotary_bytes=2 * encoder.head_size * DTYPE_BYTES[config.dtype])
    if style == "pixtral_native":
        return PlainRun(mask="batch", rotary_bytes=4 * encoder.head_size)
    if style == "moonvit":
        return PlainRun(rotary_bytes=4 * encoder.head_size)
    if style == "minimax":
        return PlainRun(rotary_bytes=_MINIMAX_TABLES * 3 * (encoder.head_size // 3 // 2) * 4)
    return PlainRun(mask="sequence" if style == "audio" else "none", all_states=encoder.keeps_hidden_states)


def _projector(
    vision: VisionSpec, encoder: Encoder, style: TowerStyle, items: Sequence[MediaItem], tp: int
) -> Projector:
    """The features of a token are those of the patches that it stands for."""
    patches, tokens = sum(item.patches for item in items), sum(item.tokens for item in items)
    merged = max(1, patches // max(tokens, 1))
    if isinstance(vision.image, DynamicPatches):
        merged = vision.image.merge_size**2
    if vision.family in _MERGES_FOUR:
        merged = _SQUARE_OF_TWO
    sound = items[0].modality == "audio"
    merged = 1 if sound and style == "plain" else merged
    single = vision.family in ("Gemma3", "Idefics3", "PaliGemma") or style == "audio"
    return Projector(
        features=encoder.hidden_size * merged,
        inner=0 if single else encoder.projector_size or encoder.output_size,
        output=encoder.output_size,
        tp=tp if vision.family in _DIVIDED_PROJECTORS else 1,
        each_patch=vision.family == "MiniMaxM3",
        shuffles=merged > 1,
        resamples=vision.family in ("MiniCPMV", "Aria"),
        cross_heads=encoder.num_heads if vision.family == "Aria" else 0,
        sequence=patches // sum(item.sequences for item in items),
    )


def reads_free_memory(vision: VisionSpec) -> bool:
    """Whether the run depends on the GPU's budget: Gemma 4's tower chooses by it how much to encode at once."""
    return vision.family == "Gemma4"


def quantizes_inputs(model: ModelSpec, share: RankShare, config: EngineConfig) -> bool:
    """Whether a linear of the tower is stored in FP8 and multiplied so."""
    if config.quantization is None or config.compute_capability < _FP8_FROM:
        return False
    return _has_fp8_tower(model.modules, share.loaded)


@once
def _has_fp8_tower(modules: tuple[Module, ...], loaded: tuple[Tensor, ...]) -> bool:
    stored = {tensor.module for tensor in loaded if tensor.dtype in _FP8 and tensor.name == "weight"}
    return bool(stored) and any(
        module.component == "vision_tower" and module.name in stored and isinstance(module, Linear | QKVLinear)
        for module in modules
    )
