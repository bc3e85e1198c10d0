"""Buffers of the runner beside the weights, against real boots."""

from __future__ import annotations

from typing import Any

import pytest

from planner.memory.device import Boot
from planner.memory.runner_state import kv_tables, runner_buffers, sampler_buffers, total_bytes
from tests.memory.boots import BOOTS, label, named, set_up

SLACK_BYTES = 20_000


@pytest.mark.parametrize("boot", BOOTS, ids=label)
def test_allocated_before_the_profile_run(boot: dict[str, Any]) -> None:
    replayed = Boot(*set_up(boot))
    predicted = replayed.weights_memory_bytes + replayed.runner_state_bytes
    assert abs(predicted - boot["allocated_before_profile_bytes"]) <= SLACK_BYTES


def test_penalty_counts_lead_the_sampler_state() -> None:
    model, _, config = set_up(named("q25-7b-l4.s1024"))
    tensors = sampler_buffers(model, config)
    largest = max(tensors, key=lambda tensor: tensor.bytes(8192, 1024))
    assert (largest.name, largest.bytes(8192, 1024)) == ("output token counts", 1024 * 152064 * 4)
    assert total_bytes(tensors, 8192, 1024) == 680_140_800


def test_v1_keeps_no_sampler_state_but_input_embeddings() -> None:
    model, _, config = set_up(named("v1.q25-7b-l4"))
    assert sampler_buffers(model, config) == ()
    names = {tensor.name: tensor.bytes(8192, 256) for tensor in runner_buffers(model, config)}
    assert names["input embeddings"] == 8192 * 3584 * 2
    assert names["block table"] == 256 * (8192 // 16) * 4


def test_block_tables_are_twofold_and_whole_kernel_blocks() -> None:
    model, _, config = set_up(named("q25-7b-l4"))
    tensors = {tensor.name: tensor.bytes(8192, 256) for tensor in kv_tables(model, config, (16,))}
    assert tensors["block table 0"] == tensors["block table 0 of the batch"] == 256 * 512 * 4
    assert tensors["slot mappings"] == 8192 * 8
