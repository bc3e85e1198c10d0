"""Which layers share a block table: vLLM's KV cache groups, their page sizes, and what a block of the pool costs.

Source: vLLM 0.26.0 v1/core/kv_cache_utils.py:1728 get_kv_cache_groups and what it calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.memory.kv_counts import ceil_div, round_up
from planner.memory.kv_pages import CacheSpec
from planner.values import reject

Specs = Mapping[str, CacheSpec]
"""Layer name to spec, in the order in which the layers are built."""

_FULL_FAMILY = frozenset({"full_attention", "mla_attention"})
_WINDOW_FAMILY = frozenset({"sliding_window", "sliding_window_mla"})


class LayerGroup(Struct, frozen=True):
    """Layers with one block table. `mixed`: their pages differ in size (vLLM UniformTypeKVCacheSpecs), so a block
    of the group is one page of every layer; otherwise all pages are equal."""

    specs: Specs
    mixed: bool = False

    @property
    def first(self) -> CacheSpec:
        return next(iter(self.specs.values()))

    @property
    def page_size_bytes(self) -> int:
        """One page of each layer for a mixed group, else the page that all layers have."""
        if self.mixed:
            return sum(spec.page_size_bytes for spec in self.specs.values())
        return self.first.page_size_bytes

    @property
    def tuples(self) -> int:
        """Layers of the most frequent page size (vLLM get_num_layer_tuples)."""
        return Counter(spec.page_size_bytes for spec in self.specs.values()).most_common(1)[0][1]


def group_layers(specs: Specs, *, hybrid_manager: bool) -> list[LayerGroup]:
    """The groups of the whole model; none for a model without cache.

    `hybrid_manager` False: windows and chunks are kept in full (--disable-hybrid-kv-cache-manager). Raises
    Rejected where vLLM cannot unify the page sizes.
    """
    if not hybrid_manager:
        specs = _keep_windows_in_full(specs)
    if not specs:
        return []
    if _are_equal(list(specs.values())):
        return [LayerGroup(specs)]
    if _are_one_type(list(specs.values())):
        return [LayerGroup(specs, mixed=True)]
    packed = any(spec.kind == "sliding_window_mla" for spec in specs.values())
    if packed and len({spec.page_size_bytes for spec in specs.values()}) > 1:
        return _packed_groups(specs)
    return _equal_page_groups(_unify_pages(specs))


def project(groups: Sequence[LayerGroup], layer_names: frozenset[str]) -> list[LayerGroup | None]:
    """The groups as one pipeline stage sees them; None where the stage has no layer of a group
    (vLLM 0.26.0 kv_cache_utils.py:1997 _project_kv_cache_groups_to_worker)."""
    projected: list[LayerGroup | None] = []
    for group in groups:
        held = {name: spec for name, spec in group.specs.items() if name in layer_names}
        projected.append(LayerGroup(held, group.mixed) if held else None)
    return projected


def _are_equal(specs: Sequence[CacheSpec]) -> bool:
    """vLLM is_kv_cache_spec_uniform: full-attention layers may differ in their value size alone."""
    if all(spec.kind == "full_attention" for spec in specs):
        specs = [replace(spec, head_size_v=0) for spec in specs]
    return all(spec == specs[0] for spec in specs)


def _are_one_type(specs: Sequence[CacheSpec]) -> bool:
    """vLLM UniformTypeKVCacheSpecs.is_uniform_type: every layer needs the same number of token slots."""
    first = specs[0]
    if len({spec.block_size for spec in specs}) > 1:
        return False
    if first.kind in _FULL_FAMILY:
        return all(spec.kind in _FULL_FAMILY for spec in specs)
    if first.kind == "mamba":
        return all(
            spec.kind == "mamba" and spec.num_speculative_blocks == first.num_speculative_blocks for spec in specs
        )
    kinds = _WINDOW_FAMILY if first.kind == "sliding_window" else {first.kind}
    return all(spec.kind in kinds and spec.window == first.window for spec in specs)


def _keep_windows_in_full(specs: Specs) -> Specs:
    """vLLM 0.26.0 kv_cache_utils.py:1429 unify_hybrid_kv_cache_specs: without the hybrid manager, windows and chunks
    beside full attention become full attention. A converted layer loses the stride mark, and a chunk its scheme."""
    values = list(specs.values())
    if not values or _are_equal(values) or _are_one_type(values):
        return specs
    full = next((spec for spec in values if spec.kind in _FULL_FAMILY), None)
    kept = {name: _in_full(spec, full.block_size) for name, spec in specs.items()} if full else specs
    if not _are_equal(list(kept.values())) and not _are_one_type(list(kept.values())):
        raise reject(
            "flag", "Hybrid KV cache manager is disabled but failed to convert the KV cache specs to one unified type."
        )
    return kept


def _in_full(spec: CacheSpec, block_size: int) -> CacheSpec:
    if spec.kind == "sliding_window_mla":
        return replace(spec, kind="mla_attention", window=None, block_size=block_size, strided_pages=False)
    if spec.kind == "sliding_window":
        return replace(spec, kind="full_attention", window=None, strided_pages=False)
    if spec.kind == "chunked_local_attention":
        return replace(spec, kind="full_attention", window=None, cache_dtype="auto", strided_pages=False)
    return spec


def _unify_pages(specs: Specs) -> Specs:
    """vLLM unify_kv_cache_spec_page_size: larger blocks, or padding, until every page is as large as the largest."""
    page_bytes = max(spec.page_size_bytes for spec in specs.values())
    return {name: _enlarge(name, spec, page_bytes) for name, spec in specs.items()}


def _enlarge(name: str, spec: CacheSpec, page_bytes: int) -> CacheSpec:
    if spec.page_size_bytes == page_bytes:
        return spec
    if spec.kind != "mamba" and page_bytes % spec.page_size_bytes == 0:
        return replace(spec, block_size=spec.block_size * (page_bytes // spec.page_size_bytes))
    if spec.kind == "mamba" or spec.strided_pages:
        return replace(spec, page_size_padded=page_bytes)
    raise reject(
        "attention_backend",
        f"Layer {name}: page size is not divisible by the maximum page size and cannot be padded. Padding is only "
        "supported for attention layers whose backend indexes KV pages by the block stride "
        "(indexes_kv_by_block_stride is True).",
    )


def _equal_page_groups(specs: Specs) -> list[LayerGroup]:
    """vLLM 0.26.0 kv_cache_utils.py:1137: each type of layer is dealt out to groups of one common size."""
    by_type: dict[CacheSpec, list[str]] = {}
    for name, spec in specs.items():
        by_type.setdefault(spec, []).append(name)
    fewest = min(len(names) for names in by_type.values())
    most = max(len(names) for names in by_type.values())
    group_size = most if 2 * most < 3 * fewest else fewest
    groups: list[LayerGroup] = []
    for names in by_type.values():
        count = ceil_div(len(names), group_size)
        groups.extend(LayerGroup({name: specs[name] for name in names[i::count]}) for i in range(count))
    return groups


def _packed_groups(specs: Specs) -> list[LayerGroup]:
    """vLLM 0.26.0 kv_cache_utils.py:1507-1710 (DeepSeek-V4): full MLA layers in one group, windows split so that
    each group fits the same column of pages, every page padded to one of the full group's sizes."""
    full = LayerGroup({name: spec for name, spec in specs.items() if spec.kind == "mla_attention"}, mixed=True)
    windows: dict[tuple[int, int | None], dict[str, CacheSpec]] = {}
    for name, spec in specs.items():
        if spec.kind == "sliding_window_mla":
            windows.setdefault((spec.block_size, spec.window), {})[name] = spec
    if not full.specs or len(full.specs) + sum(map(len, windows.values())) != len(specs):
        raise UnsupportedError("kv_cache", "latent sliding windows mixed with layers other than MLA")
    kinds = [full, *(LayerGroup(layers, mixed=True) for layers in windows.values())]
    height = _least_padding([group.tuples for group in kinds])
    sizes = sorted({spec.page_size_bytes for spec in full.specs.values()})
    groups = [full]
    for group in kinds[1:]:
        groups.extend(_split_windows(group, sizes, height))
    return groups


def _split_windows(group: LayerGroup, sizes: Sequence[int], height: int) -> list[LayerGroup]:
    columns: dict[int, list[str]] = {}
    padded: dict[str, CacheSpec] = {}
    for name, spec in group.specs.items():
        page_bytes = next((size for size in sizes if size >= spec.page_size_bytes), None)
        if page_bytes is None:
            raise UnsupportedError("kv_cache", f"Layer {name}: page is larger than every full-attention page")
        columns.setdefault(page_bytes, []).append(name)
        padded[name] = replace(spec, page_size_padded=page_bytes) if page_bytes != spec.page_size_bytes else spec
    if len({len(names) for names in columns.values()}) != 1:
        raise UnsupportedError("kv_cache", "latent sliding windows of one kind with unequal numbers of page sizes")
    rows = list(zip(*columns.values(), strict=True))
    count = ceil_div(len(rows), height)
    return [
        LayerGroup({name: padded[name] for row in rows[i::count] for name in row}, mixed=True) for i in range(count)
    ]


def _least_padding(heights: Sequence[int]) -> int:
    """The column height, not below the first, that rounds all heights up with the least padding; ties take the
    larger (vLLM _approximate_gcd)."""

    def padding(height: int) -> int:
        return sum(round_up(value, height) - value for value in heights)

    return min(range(heights[0], max(heights) + 1), key=lambda height: (padding(height), -height))
