"""CUDA graphs: captured sizes, V1's estimate and the memory capturing takes, against real boots."""

from __future__ import annotations

from typing import Any

import pytest

from planner.memory.graphs import (
    captured_graphs,
    cuda_graph_actual_bytes,
    cuda_graph_estimate_bytes,
    split_buffer_bytes,
)
from planner.units import GIB, MIB
from tests.memory.boots import COMPILED, label, named, set_up

KNOWN_LOOSE = {"cg.mixtral-l4": 104}


@pytest.mark.parametrize("boot", COMPILED, ids=label)
def test_actual_memory(boot: dict[str, Any]) -> None:
    slack = KNOWN_LOOSE.get(boot["name"], 45) * MIB
    assert abs(cuda_graph_actual_bytes(*set_up(boot)) - boot["graph_gib"] * GIB) <= slack


@pytest.mark.parametrize("boot", COMPILED, ids=label)
def test_estimate(boot: dict[str, Any]) -> None:
    assert abs(cuda_graph_estimate_bytes(*set_up(boot)) - boot["cuda_graph_estimate_bytes"]) <= 4 * MIB


def test_decode_graphs_end_at_max_num_seqs() -> None:
    _, _, config = set_up(named("cg.q3-8b-l4"))
    mixed, whole = captured_graphs(config)
    assert (len(mixed), max(mixed)) == (51, 512)
    assert (len(whole), max(whole)) == (35, 256)


def test_eager_captures_nothing() -> None:
    model, share, config = set_up(named("q3-8b-l4"))
    assert captured_graphs(config) == ((), ())
    assert cuda_graph_actual_bytes(model, share, config) == 0


def test_split_buffers_are_32_float32_outputs() -> None:
    model, _, config = set_up(named("cg.q25-7b-l4"))
    assert split_buffer_bytes(model, config, 256) == 112 * MIB
