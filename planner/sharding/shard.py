"""Split a model over tensor and pipeline parallel ranks, tensor by tensor, as vLLM creates them."""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.model.modules import Attention, Component, IndexerCache, Module, PackedCache, StateSpace
from planner.model.spec import ModelSpec
from planner.once import once
from planner.sharding.builder import RankBuilder
from planner.sharding.pipeline import is_on_stage, layer_range
from planner.sharding.quantization.base import Shard
from planner.sharding.quantization.select import selector_for
from planner.sharding.rank import LayerKVSpec, RankShare, Tensor
from planner.values import reject

_TOWERS: tuple[Component, ...] = ("vision_tower", "audio_tower")
_CACHED = (Attention, IndexerCache, PackedCache, StateSpace)


def shard(model: ModelSpec, config: EngineConfig, pp_rank: int = 0) -> RankShare:
    """What one rank of pipeline stage `pp_rank` holds. Tensor-parallel ranks of a stage hold the same bytes.

    Raises: Rejected where vLLM refuses the split (heads, vocabulary, quantization alignment), UnsupportedError.
    """
    if config.pipeline_parallel_size > 1 and model.pipeline_refusal is not None:
        raise reject("parallelism", model.pipeline_refusal)
    if model.refusal is not None:
        raise reject("flag", model.refusal)
    if model.full_graph_refusal is not None and "FULL" in config.cudagraph_mode:
        raise reject("flag", model.full_graph_refusal)
    layers = layer_range(model.text.num_hidden_layers, pp_rank, config)
    builder = _built(model, config, pp_rank, model.modules)
    return RankShare(
        tp_rank=0,
        pp_rank=pp_rank,
        tensor_parallel_size=config.tensor_parallel_size,
        pipeline_parallel_size=config.pipeline_parallel_size,
        layers=layers,
        created=tuple(builder.created),
        loaded=tuple(builder.loaded),
        kv_layers=tuple(builder.kv_layers),
        adapters=_adapters(model, config, builder.wrappable) if config.enable_lora else (),
    )


def _adapters(model: ModelSpec, config: EngineConfig, layers: list[tuple[Module, Shard]]) -> tuple[Tensor, ...]:
    """The slots of LoRA adapters. Raises Rejected for a class that takes none, as vLLM does once it has loaded it."""
    from planner.sharding.adapters import Slots, adapter_traits

    return Slots(adapter_traits(model, config), config).of(layers)


def kv_layers(model: ModelSpec, config: EngineConfig, pp_rank: int = 0) -> tuple[LayerKVSpec, ...]:
    """The caches of one rank of a stage, without its weights."""
    return tuple(_built(model, config, pp_rank, _cached_modules(model.modules)).kv_layers)


def shard_stages(model: ModelSpec, config: EngineConfig) -> tuple[RankShare, ...]:
    """One share for each pipeline stage."""
    return tuple(shard(model, config, rank) for rank in range(config.pipeline_parallel_size))


@once
def _cached_modules(modules: tuple[Module, ...]) -> tuple[Module, ...]:
    return tuple(module for module in modules if isinstance(module, _CACHED))


def _built(model: ModelSpec, config: EngineConfig, pp_rank: int, modules: tuple[Module, ...]) -> RankBuilder:
    layers = layer_range(model.text.num_hidden_layers, pp_rank, config)
    builder = RankBuilder(model, config, pp_rank, selector_for(model, config))
    add, dropped = builder.add, [tower for tower in _TOWERS if _dropped(tower, model, config)]
    for module in modules:
        if module.component not in dropped and is_on_stage(module, pp_rank, config.pipeline_parallel_size, layers):
            builder.take(module, add)
    return builder


def _dropped(tower: Component, model: ModelSpec, config: EngineConfig) -> bool:
    """Towers whose modalities are all limited to zero are not built (vLLM models/interfaces.py _mark_tower_model)."""
    if model.vision is None:
        return False
    limits = dict(config.mm_limits)
    modalities: tuple[str, ...] = ("audio",)
    if tower == "vision_tower":
        visual = tuple(name for name in model.vision.modalities if name != "audio")
        modalities = visual if model.vision.dropped_with is None else model.vision.dropped_with
    if config.language_model_only:
        return bool(modalities)
    return bool(modalities) and all(limits.get(name) == 0 for name in modalities)
