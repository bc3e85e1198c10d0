"""What the engine takes at run time beside weights and cache, for one rank under one configuration."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.memory.device import Boot, cuda_context_bytes, non_torch_bytes
from planner.memory.graphs import cuda_graph_actual_bytes, cuda_graph_estimate_bytes
from planner.memory.intervals import Spreads, spreads
from planner.memory.kv_pool import KVPool, StagePool
from planner.memory.ledger import also_counted_bytes, counted_peak_bytes
from planner.memory.multimodal.encoder import profiles_encoder
from planner.memory.multimodal.workload import MediaWorkload, encoder_runtime_peak_bytes
from planner.model.spec import ModelSpec
from planner.once import once
from planner.sharding.rank import RankShare, Tensor


class RuntimeTerms(Struct, frozen=True, kw_only=True):
    """The terms of both ledgers for one rank, in bytes: expected values, and how far each may be off.

    `also_counted_bytes`: what this release's ledger subtracts beside weights, peak, non-torch and graphs.
    """

    weights_memory_bytes: int
    peak_activation_bytes: int
    non_torch_bytes: int
    cuda_graph_estimate_bytes: int
    runner_state_bytes: int
    cuda_graph_actual_bytes: int
    cuda_context_bytes: int
    encoder_runtime_peak_bytes: int
    also_counted_bytes: int
    spreads: Spreads

    @property
    def non_kv_bytes(self) -> int:
        """What the engine subtracts from its budget."""
        return (
            self.weights_memory_bytes
            + self.peak_activation_bytes
            + self.non_torch_bytes
            + self.cuda_graph_estimate_bytes
            + self.also_counted_bytes
        )

    @property
    def device_bytes_beside_cache(self) -> int:
        """What the device holds after startup, the cache and what the allocator retains aside."""
        return (
            self.cuda_context_bytes + self.non_torch_bytes + self.weights_memory_bytes + self.runner_state_bytes
            + self.cuda_graph_actual_bytes
        )  # fmt: skip

    @property
    def profile_peak_bytes(self) -> int:
        """What the device holds at the height of the profile run."""
        return (
            self.cuda_context_bytes + self.non_torch_bytes + self.weights_memory_bytes + self.runner_state_bytes
            + self.peak_activation_bytes
        )  # fmt: skip


def runtime_terms(boot: Boot, workload: MediaWorkload | None = None) -> RuntimeTerms:
    """All terms of the rank that `boot` replayed. `workload` None: the worst media that limits and budget allow."""
    model, share, config = boot.model, boot.share, boot.config
    context = cuda_context_bytes(model, config)
    peak, actual = counted_peak_bytes(boot), cuda_graph_actual_bytes(model, share, config)
    return RuntimeTerms(
        weights_memory_bytes=boot.weights_memory_bytes,
        peak_activation_bytes=peak,
        non_torch_bytes=non_torch_bytes(config),
        cuda_graph_estimate_bytes=cuda_graph_estimate_bytes(model, share, config),
        runner_state_bytes=boot.runner_state_bytes,
        cuda_graph_actual_bytes=actual,
        cuda_context_bytes=context.value,
        encoder_runtime_peak_bytes=encoder_peak(model, share, config, workload)[0],
        also_counted_bytes=also_counted_bytes(boot, context.value),
        spreads=spreads(model, share, config, boot.weights_memory_bytes, peak, actual, context.value),
    )


def encoder_peak(
    model: ModelSpec, share: RankShare, config: EngineConfig, workload: MediaWorkload | None
) -> tuple[int, str | None]:
    """The encoder's peak at run time in bytes, or 0 with the reason why it is not known.

    The V2 runner of 0.26 has the encoder in no term of its ledger, so an unknown tower leaves that ledger whole. Where
    the engine profiles the encoder, UnsupportedError goes through: then every figure depends on it.
    """
    try:
        return encoder_runtime_peak_bytes(model, share, config, workload), None
    except UnsupportedError as unknown:
        if profiles_encoder(model, share, config):
            raise
        return 0, f"the vision encoder's run-time memory is not counted: {unknown}"


def retained_bytes(boot: Boot, pool: KVPool, stage: StagePool, blocks: int) -> int:
    """What the allocator holds after startup beyond weights, runner state and cache."""
    before = boot.weights_memory_bytes + boot.runner_state_bytes
    reserved = boot.finish(kv_tensor_bytes(stage, blocks), tuple(group.block_size for group in pool.groups), blocks)
    return reserved - before - blocks * stage.bytes_per_block


def kv_tensor_bytes(stage: StagePool, blocks: int) -> list[int]:
    """The pool's tensors on a rank: as many as the largest group has layers, each `blocks` pages.

    Layers with pages of their own sizes count as tensors of equal size.
    """
    count = max((group.num_layers for group in stage.groups), default=0)
    return [stage.bytes_per_block // count * blocks] * count if count else []


def thin(model: ModelSpec, share: RankShare) -> tuple[ModelSpec, RankShare]:
    """The model with no more than two layers of each kind: its runs allocate, free and peak as the whole model's do,
    because every further layer of a kind finds the blocks of the one before it. Shares of the same weights have the
    same thin share, which names no caches."""
    sizes = share.tp_rank, share.pp_rank, share.tensor_parallel_size, share.pipeline_parallel_size
    return _thin(model, share.layers, share.created, share.loaded, share.adapters, *sizes)


@once
def _thin(
    model: ModelSpec,
    layers: range | tuple[int, ...],
    created: tuple[Tensor, ...],
    loaded: tuple[Tensor, ...],
    adapters: tuple[Tensor, ...],
    tp_rank: int,
    pp_rank: int,
    tp: int,
    pp: int,
) -> tuple[ModelSpec, RankShare]:
    kinds: dict[int, list[tuple[object, ...]]] = {}
    for tensor in created:
        if tensor.layer is not None:
            kinds.setdefault(tensor.layer, []).append((tensor.name, tensor.shape, tensor.dtype))
    seen: dict[tuple[object, ...], int] = {}
    dropped: set[int] = set()
    for layer, tensors in sorted(kinds.items()):
        signature = tuple(tensors)
        seen[signature] = seen.get(signature, 0) + 1
        if seen[signature] > 2:
            dropped.add(layer)
    return (
        replace(model, modules=tuple(item for item in model.modules if item.placement not in dropped)),
        RankShare(
            tp_rank=tp_rank, pp_rank=pp_rank, tensor_parallel_size=tp, pipeline_parallel_size=pp,
            layers=tuple(layer for layer in layers if layer not in dropped),
            created=tuple(tensor for tensor in created if tensor.layer not in dropped),
            loaded=tuple(tensor for tensor in loaded if tensor.layer not in dropped),
            kv_layers=(),
            adapters=tuple(tensor for tensor in adapters if tensor.layer not in dropped),
        ),
    )  # fmt: skip
