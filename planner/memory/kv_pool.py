"""KVPool: the cache of one deployment before any byte is given to it. Independent of length, batch and memory.

Source: vLLM 0.26.0 v1/core/kv_cache_utils.py:1344 get_kv_cache_config_from_groups, :2036 get_kv_cache_configs.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from planner.engine.config import EngineConfig
from planner.memory.kv_blocks import BlockSizes, align_block_sizes
from planner.memory.kv_groups import LayerGroup, group_layers, project
from planner.memory.kv_pages import CacheSpec, cache_spec, indexes_by_block_stride, smallest_kernel_block
from planner.sharding.rank import LayerKVSpec
from planner.values import reject

_DRAFTS_WITH_TARGET_STATES = frozenset({"eagle", "eagle3", "mtp", "dflash", "dspark"})


class KVGroup(Struct, frozen=True, kw_only=True):
    """Layers of one rank that share a block table.

    `kind` is vLLM's name of the cache ("unknown" for a group of several kinds). `page_size_bytes` is one layer's
    page, or the sum over the group's layers when `mixed_pages`. `num_kv_heads` and `head_size` are those of the
    layer with the largest page, 0 for recurrent states. A request of length L needs (in blocks)
    ceil(ceil(L / `shards`) / `block_size`) + `extra_blocks` when `grows`, else `extra_blocks` alone; with a `window`
    (sliding window or chunk, in tokens), L is first cut to `window_tokens` plus the tokens in flight. An
    `encoder` group holds the encoder's tokens instead of L.
    """

    kind: str
    num_layers: int
    num_kv_heads: int
    head_size: int
    block_size: int
    page_size_bytes: int
    mixed_pages: bool = False
    window: int | None = None
    window_tokens: int | None = None
    grows: bool = True
    encoder: bool = False
    extra_blocks: int = 0
    shards: int = 1


class StagePool(Struct, frozen=True):
    """One pipeline stage's share. `bytes_per_block`: what a block of the pool takes on a rank of the stage.
    `bytes_per_needed_block`: what vLLM counts for it when it asks whether one request fits (they differ only for
    packed layouts)."""

    groups: tuple[KVGroup, ...]
    bytes_per_block: int
    bytes_per_needed_block: int


class KVPool(Struct, frozen=True, kw_only=True):
    """The pool of one deployment. `stages` has one entry for each pipeline stage, in order.

    `block_size` is vLLM's block size in tokens after enlargement for hybrids; a group may have another one.
    `mamba_cache_mode` is "none", "all" or "align". `max_concurrent_batches` is EngineConfig's.
    """

    stages: tuple[StagePool, ...]
    block_size: int
    max_concurrent_batches: int
    mamba_cache_mode: str = "none"
    num_gpu_blocks_override: int | None = None

    @property
    def fullest(self) -> StagePool:
        """The stage with the most bytes per block: the one that the ledger of a rank shows."""
        return max(self.stages, key=lambda stage: stage.bytes_per_block)

    @property
    def groups(self) -> tuple[KVGroup, ...]:
        """Groups of the fullest stage; empty for a model without cache."""
        return self.fullest.groups

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block over all layers of a rank of the fullest stage."""
        return self.fullest.bytes_per_block

    @property
    def smallest_block_size(self) -> int:
        """The least block size of the groups, which vLLM keeps as its block size once the cache exists."""
        return min((group.block_size for group in self.groups), default=self.block_size)

    @property
    def has_states(self) -> bool:
        """Whether some group holds recurrent states."""
        return any(group.kind == "mamba" for group in self.groups)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one more token of a long request takes on a rank of the fullest stage, rounded up.

        Windowed and recurrent groups stop growing and do not count, unless no group grows without end: then it is
        the cost of a token within the window. 0 for purely recurrent models.
        """
        endless = [group for group in self.groups if group.grows and group.window is None and not group.encoder]
        growing = endless or [group for group in self.groups if group.grows and not group.encoder]
        tokens = [group.block_size * group.shards for group in growing]
        return sum(-(-self.bytes_per_block // size) for size in tokens)


def build_pool(stages: Sequence[tuple[LayerKVSpec, ...]], config: EngineConfig) -> KVPool:
    """Groups, block sizes and bytes per block of the caches that the stages' layers register.

    `stages`: the layers of one rank of each pipeline stage, in the order in which vLLM builds them; layers that
    reuse another's cache are left out, encoder-only layers are ignored. Raises Rejected where vLLM refuses the
    combination and UnsupportedError where its rule is not known.
    """
    cached = [[layer for layer in stage if layer.kind != "encoder_only"] for stage in stages]
    layers = [layer for stage in cached for layer in stage]
    _check_parallelism(layers, config)
    sizes = align_block_sizes(layers, config)
    specs = _specs(layers, sizes, config)
    groups = group_layers(specs, hybrid_manager=_hybrid_manager(layers, config))
    return KVPool(
        stages=tuple(_stage_pool(groups, frozenset(layer.layer_name for layer in stage), config) for stage in cached),
        block_size=sizes.block_size,
        max_concurrent_batches=config.max_concurrent_batches,
        mamba_cache_mode=config.mamba_cache_mode,
        num_gpu_blocks_override=config.num_gpu_blocks_override,
    )


def _check_parallelism(layers: Sequence[LayerKVSpec], config: EngineConfig) -> None:
    windowed = any(layer.kind in ("sliding_window", "sliding_window_mla") for layer in layers)
    if config.decode_context_parallel_size > 1 and windowed:
        raise reject("parallelism", "DCP not support sliding window.")


def _hybrid_manager(layers: Sequence[LayerKVSpec], config: EngineConfig) -> bool:
    """vLLM 0.26.0 config/vllm.py:1571-1637: chunked local attention turns it off beside a draft model, or by env."""
    if not any(layer.kind == "chunked_local_attention" for layer in layers):
        return True
    if config.speculative_method in _DRAFTS_WITH_TARGET_STATES:
        return False
    return config.environment("VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE", "1") != "0"


def _specs(layers: Sequence[LayerKVSpec], sizes: BlockSizes, config: EngineConfig) -> dict[str, CacheSpec]:
    has_windows = any(layer.kind == "sliding_window" for layer in layers)
    window_block_size = smallest_kernel_block(config.attention_backend) if has_windows else sizes.block_size
    return {
        layer.layer_name: cache_spec(
            layer,
            block_size=sizes.block_size,
            window_block_size=window_block_size,
            mamba_block_size=sizes.mamba_block_size,
            mamba_page_padded_bytes=sizes.mamba_page_padded_bytes,
            strided_pages=indexes_by_block_stride(config.attention_backend),
        )
        for layer in layers
    }


def _stage_pool(groups: Sequence[LayerGroup], layer_names: frozenset[str], config: EngineConfig) -> StagePool:
    if not groups:
        return StagePool((), 0, 0)
    held = project(groups, layer_names)
    kept = [part or whole for part, whole in zip(held, groups, strict=True)]
    counts = [len(part.specs) if part else 0 for part in held]
    described = tuple(_describe(group, count, config) for group, count in zip(kept, counts, strict=True))
    group_size = max(counts)
    if group_size == 0:
        mixed = all(group.mixed for group in kept)
        message = "integer division or modulo by zero" if mixed else "group_size must be greater than 0"
        raise reject("parallelism", message, fix=("a pipeline stage without a single cached layer cannot start",))
    if len(kept) == 1 and kept[0].mixed:
        return StagePool(described, kept[0].page_size_bytes, kept[0].page_size_bytes)
    if all(group.mixed for group in kept):
        return StagePool(described, _packed_block_bytes(held), _packed_needed_bytes(kept))
    bytes_per_block = kept[0].page_size_bytes * group_size
    return StagePool(described, bytes_per_block, bytes_per_block)


def _packed_block_bytes(held: Sequence[LayerGroup | None]) -> int:
    """vLLM 0.26.0 kv_cache_utils.py:1240 _bucket_layers_by_page_size: groups reuse each other's pages of one size."""
    slots: dict[int, int] = {}
    for group in held:
        pages = [spec.page_size_bytes for spec in group.specs.values()] if group else []
        for page_bytes in set(pages):
            slots[page_bytes] = max(slots.get(page_bytes, 0), pages.count(page_bytes))
    return sum(page_bytes * count for page_bytes, count in slots.items())


def _packed_needed_bytes(kept: Sequence[LayerGroup]) -> int:
    """vLLM 0.26.0 kv_cache_utils.py:1832: every group reserves a full column of the first group's page sizes."""
    row_bytes = sum({spec.page_size_bytes for spec in kept[0].specs.values()})
    return row_bytes * max(group.tuples for group in kept)


def _describe(group: LayerGroup, num_layers: int, config: EngineConfig) -> KVGroup:
    widest = max(group.specs.values(), key=lambda spec: spec.page_size_bytes)
    kinds = {spec.kind for spec in group.specs.values()}
    window_offset = {"sliding_window": -1, "sliding_window_mla": -1, "chunked_local_attention": 0}
    window_tokens = None if widest.window is None else widest.window + window_offset[widest.kind]
    extra = 0
    grows = True
    if widest.kind == "mamba":
        grows = config.mamba_cache_mode == "all"
        extra = {"none": 1, "align": 2, "all": 0}[config.mamba_cache_mode] + widest.num_speculative_blocks
    elif widest.kind in ("sliding_window", "sliding_window_mla"):
        extra = 1
    sharded = widest.kind in ("full_attention", "mla_attention")
    return KVGroup(
        kind=kinds.pop() if len(kinds) == 1 else "unknown",
        num_layers=num_layers,
        num_kv_heads=widest.num_kv_heads,
        head_size=widest.head_size,
        block_size=widest.block_size,
        page_size_bytes=group.page_size_bytes,
        mixed_pages=group.mixed,
        window=widest.window,
        window_tokens=window_tokens,
        grows=grows,
        encoder=widest.kind == "cross_attention",
        extra_blocks=extra,
        shards=config.decode_context_parallel_size if sharded else 1,
    )
