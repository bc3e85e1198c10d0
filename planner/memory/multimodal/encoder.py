"""The encoder's run over a batch of media on one rank: at startup where vLLM profiles it, and while serving."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.memory.layers import batchless
from planner.memory.linear import CUBLAS, CUBLASLT, CUBLASLT_WORKSPACE_BYTES, cublas_workspace_bytes
from planner.memory.multimodal.budget import encoder_budget
from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.run_tower import quantizes_inputs, reads_free_memory, run_tower
from planner.memory.program import Program
from planner.model.spec import ModelSpec
from planner.model.vision_spec import VisionSpec
from planner.once import once
from planner.releases.choose import release_for
from planner.sharding.rank import RankShare
from planner.values import DTYPE_BYTES


class EncodedBatch(Struct, frozen=True):
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
    return _highest(encoder_program(model, share, config, items))


def repeated_peak_bytes(model: ModelSpec, share: RankShare, config: EngineConfig, item: MediaItem, count: int) -> int:
    """`encoder_peak_bytes` of `count` equal items, worked out once for all batch sizes and layouts of a tower."""
    if model.vision is None or reads_free_memory(model.vision):
        return encoder_peak_bytes(model, share, config, [item] * count)
    common = batchless(model, config)
    known = _peaks(model.vision, common, quantizes_inputs(model, share, config))
    peak = known.get((item, count))
    if peak is None:
        peak = known[item, count] = encoder_peak_bytes(model, share, common, [item] * count)
    return peak


@once
def _peaks(vision: VisionSpec, config: EngineConfig, quantized: bool) -> dict[tuple[MediaItem, int], int]:
    return {}


def _highest(program: Program) -> int:
    """The most bytes at once: as Program.stages() finds it, where every size is fixed."""
    live: dict[int | str, int] = {}
    total = most = 0
    for event in program.events:
        if event.kind == "free":
            total -= live.pop(event.handle)
            continue
        key: int | str = event.tensor.name if event.kind == "keep" else event.handle
        size = event.tensor.constant_bytes
        held = live.get(key, 0)
        if size > held or key not in live:
            live[key] = size
            total += size - held
            most = max(most, total)
    return most


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
    if config.mm_encoder_tp_mode == "data" and config.tensor_parallel_size > 1 and items[0].modality != "audio":
        embeddings = _data_parallel(program, model, share, config, items, item, warm=warm)
    else:
        embeddings = run_tower(program, model, share, config, items, config.tensor_parallel_size, warm=warm)
    if config.model_runner == "v1":
        return EncodedBatch((pixels, embeddings))
    program.free(pixels)
    return EncodedBatch((embeddings,))


def _data_parallel(
    p: Program,
    model: ModelSpec,
    share: RankShare,
    config: EngineConfig,
    items: Sequence[MediaItem],
    item: int,
    *,
    warm: bool,
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
    own = run_tower(p, model, share, config, fullest, 1, warm=warm)
    width = _output_size(model.vision)
    gathered = p.alloc(
        "embeddings of all ranks", constant=ranks * sum(entry.tokens for entry in fullest) * width * item
    )
    p.free(local, own)
    return gathered


def _output_size(vision: VisionSpec | None) -> int:
    encoder = None if vision is None else vision.encoder
    return 0 if encoder is None else encoder.output_size
