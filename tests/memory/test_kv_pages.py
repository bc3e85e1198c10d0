"""Pages of single layers, and what each attention backend asks of them."""

from __future__ import annotations

from typing import Any

import pytest
from kv_cases import engine

from planner.errors import UnsupportedError
from planner.memory.kv_blocks import align_block_sizes
from planner.memory.kv_groups import LayerGroup, group_layers
from planner.memory.kv_pages import (
    SMALLEST_KERNEL_BLOCK,
    CacheSpec,
    cache_spec,
    indexes_by_block_stride,
    smallest_kernel_block,
    turboquant_slot_bytes,
)
from planner.memory.kv_pool import build_pool
from planner.sharding.rank import LayerKVSpec

BLOCKS = {
    16: {
        "FLASH_ATTN", "FLASH_ATTN_DIFFKV", "TRITON_ATTN", "TRITON_ATTN_DIFFKV", "FLEX_ATTENTION", "FLASHINFER",
        "TURBOQUANT", "FLASH_ATTN_MLA", "TRITON_MLA",
    },
    32: {"FLASHINFER_MLA", "FLASHINFER_MLA_SPARSE"},
    64: {"FLASHMLA", "FLASHMLA_SPARSE", "FLASH_ATTN_MLA_SPARSE"},
    128: {"CUTLASS_MLA", "MINIMAX_M3_SPARSE"},
    256: {"FLASHMLA_SPARSE_DSV4", "FLASHINFER_MLA_SPARSE_DSV4"},
}  # fmt: skip
"""vLLM 0.26.0 v1/attention/backends: the least of get_supported_kernel_block_sizes."""
WITHOUT_STRIDE = {
    "TURBOQUANT", "FLASHINFER_MLA_SPARSE", "FLASHMLA_SPARSE", "FLASH_ATTN_MLA_SPARSE", "MINIMAX_M3_SPARSE",
    "FLASHMLA_SPARSE_DSV4", "FLASHINFER_MLA_SPARSE_DSV4",
}  # fmt: skip


def test_smallest_blocks_of_the_backends() -> None:
    assert set(SMALLEST_KERNEL_BLOCK) == set().union(*BLOCKS.values())
    for size, names in BLOCKS.items():
        assert {smallest_kernel_block(name) for name in names} == {size}
    assert {name for name in SMALLEST_KERNEL_BLOCK if not indexes_by_block_stride(name)} == WITHOUT_STRIDE
    with pytest.raises(UnsupportedError, match="its kernel block sizes are not known"):
        smallest_kernel_block("OTHER")


@pytest.mark.parametrize(
    ("scheme", "key_bytes", "value_bytes"),
    [
        ("turboquant_k8v4", 128, 64),
        ("turboquant_4bit_nc", 64 + 2, 64),
        ("turboquant_k3v4_nc", 48 + 2, 64),
        ("turboquant_3bit_nc", 48 + 2, 48),
    ],
)
def test_slots_of_turboquant(scheme: str, key_bytes: int, value_bytes: int) -> None:
    """Key with its norm, value with scale and zero, rounded up to even (turboquant/config.py:123-169)."""
    assert turboquant_slot_bytes(scheme, 128) == key_bytes + value_bytes + 4
    assert turboquant_slot_bytes("turboquant_3bit_nc", 9) == 4 + 2 + 4 + 4
    assert turboquant_slot_bytes("turboquant_k8v4", 9) == 9 + 5 + 4
    assert turboquant_slot_bytes("turboquant_k8v4", 11) == 11 + 6 + 4 + 1


def spec(**changes: Any) -> CacheSpec:
    values: dict[str, Any] = {
        "kind": "full_attention", "block_size": 16, "num_kv_heads": 4, "head_size": 128, "head_size_v": 64,
    }  # fmt: skip
    return CacheSpec(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 16 * 4 * 192 * 2),
        ({"dtype": "uint8"}, 16 * 4 * 192),
        ({"dtype": "uint8", "cache_dtype": "fp8_per_token_head"}, 16 * 4 * 192 + 2 * 16 * 4 * 4),
        ({"dtype": "uint8", "cache_dtype": "int4_per_token_head"}, 16 * 4 * 96 + 2 * 16 * 4 * 4),
        (
            {"dtype": "uint8", "cache_dtype": "int4_per_token_head", "kind": "sliding_window"},
            16 * 4 * 192 + 2 * 16 * 4 * 4,
        ),
        ({"dtype": "uint8", "cache_dtype": "nvfp4"}, 16 * 4 * (64 + 8 + 32 + 4)),
        ({"dtype": "uint8", "cache_dtype": "turboquant_k8v4"}, 16 * 4 * (128 + 64 + 4)),
        ({"kind": "sliding_window", "cache_dtype": "turboquant_k8v4", "dtype": "uint8"}, 16 * 4 * 192),
        ({"kind": "mla_attention", "num_kv_heads": 1, "head_size": 576}, 16 * 576 * 2),
        ({"kind": "mla_attention", "num_kv_heads": 1, "head_size": 576, "compress_ratio": 4}, 4 * 576 * 2),
        ({"kind": "mla_attention", "num_kv_heads": 1, "cache_dtype": "fp8_ds_mla"}, 16 * 656),
        (
            {"kind": "sliding_window_mla", "cache_dtype": "fp8_ds_mla", "model_version": "deepseek_v4"},
            16 * 584,
        ),
        (
            {"kind": "mla_attention", "num_kv_heads": 1, "cache_dtype": "int4_per_token_head", "dtype": "uint8"},
            16 * 64 + 2 * 16 * 4,
        ),
        ({"page_size_padded": 123_456}, 123_456),
        ({"kind": "mamba", "state_shapes": ((3, 5), (7,)), "state_dtypes": ("float32", "bfloat16")}, 60 + 14),
    ],
)  # fmt: skip
def test_bytes_of_a_page(changes: dict[str, Any], size: int) -> None:
    assert spec(**changes).page_size_bytes == size


def layer(**changes: Any) -> LayerKVSpec:
    values: dict[str, Any] = {"layer_name": "one", "kind": "full_attention", "num_kv_heads": 4, "head_size": 128}
    return LayerKVSpec(**(values | changes))


def registered(one: LayerKVSpec, **changes: Any) -> CacheSpec:
    sizes: dict[str, Any] = {"block_size": 48, "window_block_size": 16, "mamba_block_size": 1000}
    return cache_spec(one, **(sizes | changes))


def test_block_sizes_and_widths_that_layers_register() -> None:
    assert registered(layer()).block_size == 48
    assert registered(layer(kind="sliding_window", window=8)).block_size == 16
    assert registered(layer(block_size=32)).block_size == 32
    assert registered(layer(kind="mamba", state_shapes=((4,),), state_dtypes=("uint8",))).block_size == 1000
    assert registered(layer(head_size_v=64)).head_size_v == 64
    assert registered(layer()).head_size_v == 128
    for symmetric in (
        {"kind": "chunked_local_attention"},
        {"kind": "cross_attention"},
        {"cache_dtype": "turboquant_k8v4"},
    ):
        assert registered(layer(head_size_v=64, **symmetric)).head_size_v == 128
    for kind in ("full_attention", "mla_attention", "cross_attention"):
        assert registered(layer(kind=kind, window=99)).window is None
    for kind in ("sliding_window", "sliding_window_mla", "chunked_local_attention"):
        assert registered(layer(kind=kind, window=99)).window == 99
    with pytest.raises(UnsupportedError, match="no cache"):
        registered(layer(kind="encoder_only"))


def test_pages_of_a_layer_are_aligned() -> None:
    size = 48 * 4 * 256 * 2
    assert registered(layer(alignment_bytes=None)).page_size_padded is None
    assert registered(layer(alignment_bytes=size)).page_size_padded is None
    assert registered(layer(alignment_bytes=size // 3)).page_size_bytes == size
    assert registered(layer(alignment_bytes=size - 1)).page_size_bytes == 2 * (size - 1)


def test_layers_of_the_most_frequent_page() -> None:
    pages = {"a": spec(), "b": spec(), "c": spec(head_size=64)}
    group = LayerGroup(pages, mixed=True)
    assert group.tuples == 2
    assert group.page_size_bytes == 2 * spec().page_size_bytes + spec(head_size=64).page_size_bytes
    assert LayerGroup({"a": spec(), "b": spec()}).page_size_bytes == spec().page_size_bytes


@pytest.mark.parametrize(
    ("windowed", "kept"),
    [
        ({"kind": "sliding_window", "cache_dtype": "fp8"}, {"kind": "full_attention", "cache_dtype": "fp8"}),
        ({"kind": "chunked_local_attention", "cache_dtype": "fp8"}, {"kind": "full_attention"}),
        ({"kind": "sliding_window_mla"}, {"kind": "mla_attention"}),
    ],
)
def test_windows_are_kept_in_full_without_the_hybrid_manager(windowed: dict[str, Any], kept: dict[str, Any]) -> None:
    """kv_cache_utils.py:1429: the window goes, the stride mark too, and a chunk's scheme."""
    latent = windowed["kind"] == "sliding_window_mla"
    full = spec(kind="mla_attention" if latent else "full_attention", block_size=64 if latent else 16)
    window = spec(**windowed, window=100, strided_pages=True)
    (group,) = group_layers({"a": full, "w": window}, hybrid_manager=False)
    assert group.specs == {"a": full, "w": spec(**kept, block_size=full.block_size)}
    apart = group_layers({"a": full, "w": window}, hybrid_manager=True)
    assert sorted(name for group in apart for name in group.specs) == ["a", "w"]
    assert len(apart) == 2


def test_windows_alone_stay_windows() -> None:
    windows = {"a": spec(kind="sliding_window", window=100), "b": spec(kind="sliding_window", window=100)}
    assert [group.specs for group in group_layers(windows, hybrid_manager=False)] == [windows]
    assert group_layers({}, hybrid_manager=False) == []


def test_a_packed_pool_reserves_the_longest_column() -> None:
    """kv_cache_utils.py:1832 (DeepSeek-V4): windows lie in pages of the latent layers, three to a column."""
    size = 16 * 512 * 2
    latent = [layer(layer_name=f"l{n}", kind="mla_attention", num_kv_heads=1, head_size=512) for n in range(3)]
    windows = [
        layer(layer_name=f"w{n}", kind="sliding_window_mla", num_kv_heads=1, head_size=300, window=64) for n in range(2)
    ]
    stage = build_pool([(*latent, *windows)], engine()).stages[0]
    assert [group.num_layers for group in stage.groups] == [3, 2]
    assert (stage.bytes_per_block, stage.bytes_per_needed_block) == (3 * size, 3 * size)
    lone = build_pool([(latent[0], *windows)], engine()).stages[0]
    assert [group.num_layers for group in lone.groups] == [1, 1, 1]
    assert (lone.bytes_per_block, lone.bytes_per_needed_block) == (size, size)


def test_a_state_beside_latent_attention_is_padded_to_the_wider_cache() -> None:
    """Sparse latent attention has an indexer's narrower cache beside its own: 576 numbers a token are 1152 bytes."""
    latent = layer(kind="mla_attention", num_kv_heads=1, head_size=576)
    narrow = layer(layer_name="indexer", kind="mla_attention", num_kv_heads=1, head_size=132)
    state = layer(layer_name="state", kind="mamba", state_shapes=((100_000,),), state_dtypes=("uint8",))
    for order in ((latent, narrow, state), (narrow, latent, state)):
        sizes = align_block_sizes(order, engine(attention_backend="FLASH_ATTN_MLA"))
        assert sizes.block_size == 16 * 6 == -(-100_000 // (16 * 1152)) * 16
        assert sizes.mamba_page_padded_bytes == 96 * 1152


@pytest.mark.parametrize(
    ("layers", "token_bytes"),
    [
        (({"kind": "sliding_window", "window": 64},), 2 * 4 * 128 * 2),
        (({"kind": "cross_attention"},), 0),
        (({"kind": "cross_attention"}, {"kind": "sliding_window", "window": 64}), 2 * 4 * 128 * 2),
        (({}, {"kind": "sliding_window", "window": 64}), 2 * 4 * 128 * 2),
        (({"kind": "mamba", "state_shapes": ((4096,),), "state_dtypes": ("uint8",)},), 0),
    ],
)
def test_a_token_costs_what_grows_without_end(layers: tuple[dict[str, Any], ...], token_bytes: int) -> None:
    stage = tuple(layer(layer_name=f"{place}", **one) for place, one in enumerate(layers))
    assert build_pool([stage], engine()).bytes_per_token == token_bytes
