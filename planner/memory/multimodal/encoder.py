"""The encoder's run over a batch of media on one rank: at startup where vLLM profiles it, and while serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.memory.linear import CUBLAS, CUBLASLT, CUBLASLT_WORKSPACE_BYTES, cublas_workspace_bytes, linear_runs
from planner.memory.multimodal.budget import encoder_budget
from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.plain_tower import PlainRun, Projector, write_plain
from planner.memory.multimodal.qwen_tower import QwenMerger, write_qwen
from planner.memory.multimodal.styles import TowerStyle, tower_of
from planner.memory.multimodal.tower import TowerRun
from planner.memory.program import Program
from planner.model.modules import Linear, QKVLinear
from planner.model.spec import ModelSpec
from planner.model.vision_spec import DynamicPatches, Encoder, LongestEdge, Slices, VisionSpec
from planner.releases.choose import release_for
from planner.sharding.rank import RankShare
from planner.values import DTYPE_BYTES

_SOUND = ("Qwen2Audio", "Qwen2_5Omni")
_STYLES: dict[str, TowerStyle] = {
    "Qwen2VL": "qwen2",
    "Qwen2_5_VL": "qwen2_5",
    "Qwen2_5Omni": "qwen2_5",
    "Qwen3VL": "qwen3",
    "Qwen3_5": "qwen3",
    "Glm4v": "glm4v",
    "Llava": "plain",
    "LlavaNext": "plain",
    "LlavaOnevision": "plain",
    "Gemma3": "plain",
    "InternVL": "plain",
    "InternS1": "plain",
    "Idefics3": "plain",
    "MiniCPMV": "plain",
    "Mllama4": "moonvit",
    "KimiVL": "moonvit",
    "Mistral3": "pixtral",
    "PaddleOCRVL": "rotated",
}


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """What a profiled batch leaves alive: handles of its input and its embeddings, to free after the language model."""

    handles: tuple[int, ...]


def encoder_program(
    model: ModelSpec, share: RankShare, config: EngineConfig, items: Sequence[MediaItem], *, warm: bool = True
) -> Program:
    """One embed_multimodal call over `items`, its input included. Stage.bytes(0, 0) gives bytes: nothing scales.

    `warm`: the kernels' workspaces exist already, as they do while serving. Raises UnsupportedError for towers whose
    forward pass is not known here.
    """
    program = Program()
    batch = _write(program, model, share, config, items, warm=warm)
    program.free(*batch.handles)
    return program


def encoder_peak_bytes(model: ModelSpec, share: RankShare, config: EngineConfig, items: Sequence[MediaItem]) -> int:
    """The highest moment of one call over `items`, input included, beyond what a serving rank holds anyway."""
    if not items:
        return 0
    stages = encoder_program(model, share, config, items).stages()
    return max(int(stage.bytes(0, 0)) for stage in stages)


def profiles_encoder(model: ModelSpec, share: RankShare, config: EngineConfig) -> bool:
    """Whether the profile run of this rank encodes a dummy batch.

    The V1 runner does on every rank; the V2 runner of 0.26.0 never does, that of 0.33.0 on the first pipeline stage.
    Source: vLLM 0.26.0 v1/worker/gpu_model_runner.py:6364, v1/worker/gpu/model_runner.py:673; 0.33.0
    v1/worker/gpu/model_runner.py:1022.
    """
    if model.vision is None or config.skip_mm_profiling:
        return False
    if config.model_runner == "v1":
        return True
    return release_for(config.vllm_version).release.v2_profiles_encoder and share.pp_rank == 0


def profiled_encoder(program: Program, model: ModelSpec, share: RankShare, config: EngineConfig) -> EncodedBatch | None:
    """Write the profile run's dummy batch into `program`, before the language model's run.

    Its embeddings, and under the V1 runner its input, stay until the run ends: free `handles` then. None where nothing
    is profiled. Source: vLLM 0.26.0 v1/worker/gpu_model_runner.py:6364-6440.
    """
    if not profiles_encoder(model, share, config):
        return None
    batch = encoder_budget(model, config).profiled_batch
    if batch is None:
        return None
    largest, count = batch
    return _write(program, model, share, config, [largest.item] * count, warm=False)


def _write(
    program: Program,
    model: ModelSpec,
    share: RankShare,
    config: EngineConfig,
    items: Sequence[MediaItem],
    *,
    warm: bool,
) -> EncodedBatch:
    vision = model.vision
    if vision is None:
        raise UnsupportedError("encoder", "a text model has no encoder")
    item = DTYPE_BYTES[config.dtype]
    program.stage("media input")
    pixels = program.alloc("pixel values", constant=sum(entry.input_values for entry in items) * item)
    if not warm:
        program.keep(CUBLAS, constant=cublas_workspace_bytes(config.compute_capability))
        program.keep(CUBLASLT, constant=CUBLASLT_WORKSPACE_BYTES)
    if config.mm_encoder_tp_mode == "data" and config.tensor_parallel_size > 1:
        embeddings = _data_parallel(program, model, share, config, items, item)
    else:
        embeddings = _run_tower(program, model, share, config, items, config.tensor_parallel_size)
    if config.model_runner == "v1":
        return EncodedBatch((pixels, embeddings))
    program.free(pixels)
    return EncodedBatch((embeddings,))


def _data_parallel(
    p: Program, model: ModelSpec, share: RankShare, config: EngineConfig, items: Sequence[MediaItem], item: int
) -> int:
    """Each rank encodes its share of the items; the fullest rank's is written. All ranks' embeddings are gathered.

    Source: vLLM 0.26.0 model_executor/models/vision.py:330 get_load_balance_assignment, :395
    run_dp_sharded_mrope_vision_model.
    """
    ranks = config.tensor_parallel_size
    loads: list[list[MediaItem]] = [[] for _ in range(ranks)]
    for entry in sorted(items, key=lambda entry: entry.patches, reverse=True):
        min(loads, key=lambda load: sum(other.patches for other in load)).append(entry)
    fullest = max(loads, key=lambda load: sum(entry.patches for entry in load))
    local = p.alloc("pixel values of this rank", constant=sum(entry.input_values for entry in fullest) * item)
    own = _run_tower(p, model, share, config, fullest, 1)
    width = _output_size(model.vision)
    gathered = p.alloc(
        "embeddings of all ranks", constant=ranks * sum(entry.tokens for entry in fullest) * width * item
    )
    p.free(local, own)
    return gathered


def _run_tower(
    p: Program, model: ModelSpec, share: RankShare, config: EngineConfig, items: Sequence[MediaItem], tp: int
) -> int:
    vision = model.vision
    assert vision is not None
    sound = items[0].modality == "audio"
    encoder = vision.audio_encoder if sound else vision.encoder
    style = "audio" if sound and vision.family in _SOUND else None if sound else _style(vision)
    if encoder is None or style is None:
        raise UnsupportedError("encoder", f"the encoder of {vision.family} models is not supported by this planner")
    quantized = _quantizes_inputs(model, share, config)
    tower = tower_of(encoder, style, config, items, 1 if style == "audio" else tp, quantized=quantized)
    run = TowerRun(p, tower, sum(entry.patches for entry in items))
    if style in ("qwen2", "qwen2_5", "qwen3", "glm4v"):
        assert isinstance(vision.image, DynamicPatches)
        return write_qwen(run, _merger(encoder, vision.image), items)
    return write_plain(run, _plain(encoder, style, config), _projector(vision, encoder, style, items, tower.tp), items)


def _style(vision: VisionSpec) -> TowerStyle | None:
    if vision.family == "Llava" and isinstance(vision.image, LongestEdge):
        return "pixtral"
    return _STYLES.get(vision.family)


def _merger(encoder: Encoder, image: DynamicPatches) -> QwenMerger:
    levels = encoder.deepstack_levels
    return QwenMerger(
        merge=image.merge_size,
        output=encoder.output_size // (1 + levels),
        deepstack=levels,
        windowed=encoder.window_pixels is not None,
        position_table=encoder.max_positions > 0,
    )


def _plain(encoder: Encoder, style: TowerStyle, config: EngineConfig) -> PlainRun:
    if style == "pixtral":
        return PlainRun(mask="batch", rotary_bytes=2 * encoder.head_size * DTYPE_BYTES[config.dtype])
    if style == "moonvit":
        return PlainRun(rotary_bytes=4 * encoder.head_size)
    return PlainRun(mask="sequence" if style == "audio" else "none", all_states=encoder.keeps_hidden_states)


def _projector(
    vision: VisionSpec, encoder: Encoder, style: TowerStyle, items: Sequence[MediaItem], tp: int
) -> Projector:
    """The features of a token are those of the patches that it stands for."""
    patches, tokens = sum(item.patches for item in items), sum(item.tokens for item in items)
    merged = max(1, patches // max(tokens, 1))
    single = vision.family in ("Gemma3", "Idefics3") or style == "audio"
    return Projector(
        features=encoder.hidden_size * merged,
        inner=0 if single else encoder.projector_size or encoder.output_size,
        output=encoder.output_size,
        tp=tp if vision.family in ("Llava", "LlavaNext", "Mistral3", "Mllama4") else 1,
        shuffles=merged > 1,
        resamples=isinstance(vision.image, Slices) and style == "plain",
    )


def _quantizes_inputs(model: ModelSpec, share: RankShare, config: EngineConfig) -> bool:
    runs = linear_runs(model, share, config)
    return any(
        runs[module.name].kind == "fp8"
        for module in model.modules
        if module.component == "vision_tower" and isinstance(module, Linear | QKVLinear)
    )


def _output_size(vision: VisionSpec | None) -> int:
    encoder = None if vision is None else vision.encoder
    return 0 if encoder is None else encoder.output_size
