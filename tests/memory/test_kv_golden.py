"""The KV cache arithmetic against vLLM's own: recorded runs of its code, and real boots."""

from __future__ import annotations

import pytest
from kv_cases import Case, read_cases

from planner.memory import kv_capacity as capacity
from planner.memory.kv_pool import build_pool

GOLDEN = read_cases("kv_golden.json")
MODELS = [case for case in GOLDEN if "capacity_tokens" in case.expected]
LAYOUTS = [case for case in GOLDEN if "request_bytes" in case.expected]


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_block_sizes_groups_and_bytes_per_block(case: Case) -> None:
    pool = build_pool(case.stages, case.config)
    assert pool.block_size == case.expected["block_size"]
    assert [stage.bytes_per_block for stage in pool.stages] == case.expected["bytes_per_block"]
    for stage, groups in zip(pool.stages, case.expected["groups"], strict=True):
        found = [[group.num_layers, group.block_size, group.page_size_bytes] for group in stage.groups]
        assert sorted(found) == sorted(groups)


@pytest.mark.parametrize("case", MODELS, ids=str)
def test_blocks_and_reported_capacity_of_a_model(case: Case) -> None:
    pool = build_pool(case.stages, case.config)
    length, batch = case.config.max_model_len, case.config.max_num_batched_tokens
    blocks = capacity.num_blocks(pool, case.available_bytes)
    assert blocks == case.expected["num_blocks"]
    assert capacity.max_concurrency(pool, blocks, length, batch) == case.expected["max_concurrency"]
    assert capacity.capacity_tokens(pool, blocks, length, batch) == case.expected["capacity_tokens"]


@pytest.mark.parametrize("case", LAYOUTS, ids=str)
def test_request_bytes_refusal_and_capacity_of_a_layout(case: Case) -> None:
    pool = build_pool(case.stages, case.config)
    length, batch = case.config.max_model_len, case.config.max_num_batched_tokens
    assert [group.kind for group in pool.stages[0].groups] == case.expected["kinds"]
    assert capacity.request_bytes(pool, length, batch) == max(case.expected["request_bytes"])
    if "largest_len" in case.expected:
        longest = capacity.largest_max_model_len(pool, case.available_bytes, batch, length)
        assert longest == case.expected["largest_len"]
    refusal = capacity.check_fits(pool, case.available_bytes, case.config)
    if case.expected["rejection"] is None and refusal is not None:
        assert refusal.bottleneck == "batched_tokens"
    else:
        assert (refusal.message if refusal else None) == case.expected["rejection"]
    if "num_blocks" in case.expected:
        blocks = capacity.num_blocks(pool, case.available_bytes)
        assert blocks == case.expected["num_blocks"]
        tokens = capacity.capacity_tokens(pool, blocks, length, batch)
        assert [tokens, capacity.max_concurrency(pool, blocks, length, batch)] in case.expected["reported"]


@pytest.mark.parametrize("case", read_cases("kv_measured.json"), ids=str)
def test_real_boots(case: Case) -> None:
    pool = build_pool(case.stages, case.config)
    length, batch = case.config.max_model_len, case.config.max_num_batched_tokens
    blocks = capacity.num_blocks(pool, case.available_bytes)
    assert pool.block_size == case.expected["block_size"]
    assert len(pool.groups) == case.expected["num_groups"]
    assert blocks == case.expected["num_blocks"]
    assert blocks * pool.bytes_per_block == case.expected["kv_cache_bytes"]
    assert capacity.capacity_tokens(pool, blocks, length, batch) == case.expected["capacity_tokens"]
    concurrency = capacity.max_concurrency(pool, blocks, length, batch)
    assert round(concurrency, 2) == case.expected["max_concurrency"]
    assert capacity.check_fits(pool, case.available_bytes, case.config) is None
