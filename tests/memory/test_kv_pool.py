"""Pages, groups and block sizes of single layouts, each by hand."""

from __future__ import annotations

import pytest
from kv_cases import engine, full, pool_of, recurrent, sliding, stage

from planner.errors import UnsupportedError
from planner.memory.kv_pages import turboquant_slot_bytes
from planner.memory.kv_pool import build_pool
from planner.values import Rejected

TOKENS = 16


@pytest.mark.parametrize(
    ("layer", "token_bytes"),
    [
        (full(4), 2 * 4 * 128 * 2),
        (full(4, dtype="uint8"), 2 * 4 * 128),
        (full(4, 192, head_size_v=128), 4 * (192 + 128) * 2),
        (full(4, dtype="int8", cache_dtype="int8_per_token_head"), 4 * (2 * 128 + 8)),
        (full(4, dtype="uint8", cache_dtype="fp8_per_token_head"), 4 * (2 * 128 + 8)),
        (full(4, dtype="uint8", cache_dtype="int4_per_token_head"), 4 * (2 * 64 + 8)),
        (sliding(128, 4, dtype="uint8", cache_dtype="int4_per_token_head"), 4 * (2 * 128 + 8)),
        (full(4, dtype="uint8", cache_dtype="nvfp4"), 4 * 2 * (64 + 8)),
        (full(4, dtype="uint8", cache_dtype="turboquant_k8v4"), 4 * (128 + 64 + 4)),
        (full(1, 576, kind="mla_attention"), 576 * 2),
        (full(1, 132, kind="mla_attention", dtype="uint8"), 132),
        (full(1, 576, kind="mla_attention", dtype="uint8", cache_dtype="fp8_ds_mla"), 656),
    ],
)
def test_page_of_one_layer(layer: dict[str, object], token_bytes: int) -> None:
    pool = pool_of(layer)
    assert pool.bytes_per_block == TOKENS * token_bytes
    assert pool.bytes_per_token == token_bytes


@pytest.mark.parametrize(
    ("cache_dtype", "head_size", "slot_bytes"),
    [("turboquant_k8v4", 128, 196), ("turboquant_4bit_nc", 128, 134), ("turboquant_k3v4_nc", 128, 118),
     ("turboquant_3bit_nc", 128, 102), ("turboquant_3bit_nc", 80, 66)],
)  # fmt: skip
def test_turboquant_slots(cache_dtype: str, head_size: int, slot_bytes: int) -> None:
    assert turboquant_slot_bytes(cache_dtype, head_size) == slot_bytes


def test_compressed_latents_are_aligned() -> None:
    latent = {"dtype": "uint8", "cache_dtype": "fp8_ds_mla", "model_version": "deepseek_v4", "alignment_bytes": 576}
    pool = pool_of(full(1, 512, kind="mla_attention", compress_ratio=4, **latent), block_size=256)
    assert pool.bytes_per_block == 37_440
    assert 64 * 584 < 37_440 == 65 * 576


@pytest.mark.parametrize(
    ("windows", "fulls", "layers_per_group"),
    [(12, 12, [12, 12]), (12, 13, [12, 13]), (52, 10, [10, 9, 9, 9, 9, 8, 8]), (3, 2, [1, 2, 2]), (20, 14, [20, 14])],
)
def test_layers_are_dealt_to_groups_of_one_size(windows: int, fulls: int, layers_per_group: list[int]) -> None:
    pool = pool_of(*[full()] * fulls, *[sliding(1024)] * windows)
    assert sorted(group.num_layers for group in pool.groups) == sorted(layers_per_group)
    assert pool.bytes_per_block == max(layers_per_group) * 65_536


def test_smaller_pages_get_longer_blocks() -> None:
    pool = pool_of(full(2, 512), sliding(1024, 8, 256))
    assert {group.kind: group.block_size for group in pool.groups} == {"full_attention": 32, "sliding_window": 16}
    assert {group.page_size_bytes for group in pool.groups} == {131_072}


def test_pages_that_do_not_divide_are_padded_or_refused() -> None:
    layers = [full(4, 192, head_size_v=128), sliding(1024, 4, 128)]
    assert {group.page_size_bytes for group in pool_of(*layers).groups} == {40_960}
    with pytest.raises(Rejected, match="page size is not divisible by the maximum page size"):
        pool_of(*layers, attention_backend="TURBOQUANT")


def test_windows_ignore_the_block_size_flag() -> None:
    pool = pool_of(*[sliding(1024)] * 4, block_size=64)
    assert (pool.block_size, pool.groups[0].block_size, pool.smallest_block_size) == (64, 16, 16)


@pytest.mark.parametrize(
    ("mode", "block_size", "state_block_size"), [("none", 544, 8192), ("align", 544, 544), ("all", 768, 768)]
)
def test_attention_block_grows_to_the_state(mode: str, block_size: int, state_block_size: int) -> None:
    layers = [recurrent(1_097_728, chunk_size=256), full(2, 256)]
    pool = pool_of(*layers, mamba_cache_mode=mode, enable_prefix_caching=mode != "none")
    assert pool.block_size == block_size
    assert {group.kind: group.block_size for group in pool.groups} == {
        "full_attention": block_size,
        "mamba": state_block_size,
    }
    assert {group.page_size_bytes for group in pool.groups} == {block_size * 2048}


def test_unquantized_boundary_layers_lengthen_the_block() -> None:
    packed = full(4, dtype="uint8", cache_dtype="turboquant_4bit_nc")
    pool = pool_of(
        *[full(4)] * 2, *[packed] * 24, *[full(4)] * 2,
        attention_backend="TURBOQUANT", kv_cache_dtype="turboquant_4bit_nc", kv_torch_dtype="uint8",
    )  # fmt: skip
    assert pool.block_size == 32
    assert pool.bytes_per_block == 32 * 4 * (4 * 2 * 128 * 2 + 24 * 134)
    assert len(pool.groups) == 1


def test_draft_beside_chunks_keeps_everything() -> None:
    layers = ([full(kind="chunked_local_attention", window=8192)] * 3 + [full()]) * 2
    assert len(pool_of(*layers).groups) == 4
    drafted = pool_of(*layers, speculative_method="eagle")
    assert [(group.num_layers, group.kind) for group in drafted.groups] == [(8, "full_attention")]


def test_context_parallel_refuses_windows() -> None:
    with pytest.raises(Rejected, match="DCP not support sliding window"):
        pool_of(sliding(128), decode_context_parallel_size=2)


def test_a_stage_without_cached_layers_is_refused() -> None:
    with pytest.raises(Rejected, match="group_size must be greater than 0"):
        build_pool([stage(full()), stage(number=1)], engine())


def test_unknown_backend_is_not_guessed() -> None:
    with pytest.raises(UnsupportedError, match="NEW_BACKEND"):
        pool_of(sliding(128), full(), attention_backend="NEW_BACKEND")


def test_bytes_per_token_of_windows_alone() -> None:
    pool = pool_of(*[sliding(2047)] * 32)
    assert pool.bytes_per_token == 32 * 4096
