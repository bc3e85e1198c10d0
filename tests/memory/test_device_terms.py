"""Terms outside PyTorch by number of GPUs and release, and CUDA graphs by their formulas."""

from __future__ import annotations

from typing import Any

import pytest
from kv_cases import engine

from planner.memory import measured_constants as measured
from planner.memory.device import cuda_context_bytes, non_torch_bytes, non_torch_terms
from planner.memory.graphs import (
    captured_graphs,
    cuda_graph_actual_bytes,
    cuda_graph_estimate_bytes,
    draft_graph_bytes,
    estimate_terms,
    graph_node_bytes,
    split_buffer_bytes,
)
from planner.units import GIB, KIB, MIB
from tests.memory.pass_cases import model_of, set_up

DENSE, MOE = "memory/boots.json q25-7b-l4", "memory/boots.json mixtral-l4"
CONTEXT, PAIR, MOE_PAIR, STAGES = 552_402_944, 1_640_890_368, 2_150_498_304, 1_529_741_312
V1: dict[str, Any] = {"env": (("VLLM_USE_V2_MODEL_RUNNER", "0"),)}
EAGLE: dict[str, Any] = {"speculative_config": '{"method": "eagle", "model": "head", "num_speculative_tokens": 3}'}


@pytest.mark.parametrize(
    ("source", "tp", "pp", "value", "allowance"),
    [
        (DENSE, 1, 1, CONTEXT, 0),
        (DENSE, 2, 1, PAIR, 0),
        (MOE, 2, 1, MOE_PAIR, 0),
        (DENSE, 1, 2, STAGES, 0),
        (MOE, 1, 2, STAGES, 0),
        (DENSE, 4, 1, 1_609_433_088, GIB),
        (MOE, 4, 1, 2_116_943_872, GIB),
        (DENSE, 2, 2, 2_150_498_304, GIB),
        # two custom all-reduce buffers (8 MiB; 512 KiB for 6 GPUs, 256 KiB for 8) and one in symmetric memory (64 MiB)
        (DENSE, 8, 1, PAIR + 2 * (256 * KIB - 8 * MIB), GIB),
        (DENSE, 6, 1, PAIR + 2 * (512 * KIB - 8 * MIB), GIB),
        (DENSE, 3, 1, PAIR - 2 * 8 * MIB - 64 * MIB, GIB),
        (MOE, 8, 1, MOE_PAIR + 2 * (256 * KIB - 8 * MIB), GIB),
        (MOE, 2, 2, MOE_PAIR + (STAGES - CONTEXT) // 2, GIB),
        (DENSE, 4, 2, PAIR - 32 * MIB + (STAGES - CONTEXT) // 2, GIB),
        (DENSE, 1, 4, STAGES, GIB),
    ],
)
def test_context_and_communicators_by_number_of_gpus(source: str, tp: int, pp: int, value: int, allowance: int) -> None:
    found = cuda_context_bytes(model_of(source), engine(tensor_parallel_size=tp, pipeline_parallel_size=pp))
    assert (found.value, found.high) == (value, value + allowance)
    assert found.low == value
    derived = tp * pp > 2 and (tp, pp) not in ((4, 1), (2, 2))
    assert (found.count == 0) == (derived or (source == MOE and pp == 2 and tp == 2))


@pytest.mark.parametrize(
    ("flags", "terms"),
    [
        ({}, [measured.NON_TORCH]),
        ({"tensor_parallel_size": 2}, [measured.NON_TORCH_TP2]),
        ({"pipeline_parallel_size": 2}, [measured.NON_TORCH_TP2]),
        ({"vllm_version": "0.16.0"}, [measured.NON_TORCH_FEW_MODULES]),
        ({"vllm_version": "0.16.0", "tensor_parallel_size": 2}, [measured.NON_TORCH_TP2]),
        ({"compute_capability": (8, 9)}, [measured.NON_TORCH_BEFORE_HOPPER]),
        ({"compute_capability": (8, 9), "tensor_parallel_size": 2}, [measured.NON_TORCH_TP2]),
        ({"cudagraph_mode": "FULL_AND_PIECEWISE"}, [measured.NON_TORCH, measured.NON_TORCH_GRAPH_PROFILE]),
        (
            {"cudagraph_mode": "FULL_AND_PIECEWISE", "tensor_parallel_size": 2},
            [measured.NON_TORCH_TP2, measured.NCCL_GRAPH_BUFFERS],
        ),
        (
            {"cudagraph_mode": "FULL_AND_PIECEWISE", "pipeline_parallel_size": 2},
            [measured.NON_TORCH_TP2, measured.NON_TORCH_GRAPH_PROFILE],
        ),
        ({"cudagraph_mode": "FULL_AND_PIECEWISE", "model_runner": "v2"}, [measured.NON_TORCH]),
        ({"cudagraph_mode": "FULL_AND_PIECEWISE", "vllm_version": "0.33.0"}, [measured.NON_TORCH]),
        ({"cudagraph_mode": "FULL_AND_PIECEWISE", "vllm_version": "0.16.0"}, [measured.NON_TORCH_FEW_MODULES]),
    ],
)
def test_growth_outside_pytorch(flags: dict[str, Any], terms: list[Any]) -> None:
    """V1 profiles its graphs before vLLM measures, where the release has that estimate and adds its terms up."""
    config = engine(**flags)
    assert list(non_torch_terms(config)) == terms
    assert non_torch_bytes(config) == sum(term.value for term in terms)
    calibrated = engine(**flags, calibrated=(("non_torch_bytes", 12345),))
    assert non_torch_bytes(calibrated) == non_torch_bytes(config) + 12345


@pytest.mark.parametrize(
    ("changes", "mixed", "whole"),
    [
        ({"cudagraph_mode": "FULL_AND_PIECEWISE"}, (1, 2, 4, 8, 16), (1, 2, 4, 8)),
        ({"cudagraph_mode": "FULL_DECODE_ONLY"}, (), (1, 2, 4, 8)),
        ({"cudagraph_mode": "PIECEWISE"}, (1, 2, 4, 8, 16), ()),
        ({"cudagraph_mode": "FULL"}, (), (1, 2, 4, 8, 16)),
        ({"cudagraph_mode": "NONE"}, (), ()),
        ({"cudagraph_mode": "FULL", "enforce_eager": True}, (), ()),
        ({"cudagraph_mode": "FULL_DECODE_ONLY", "num_speculative_tokens": 1}, (), (1, 2, 4, 8, 16)),
        ({"cudagraph_mode": "PIECEWISE", "lora_capture_cases": 2}, (1, 1, 2, 2, 4, 4, 8, 8, 16, 16), ()),
    ],
)
def test_sizes_that_each_mode_captures(changes: dict[str, Any], mixed: tuple[int, ...], whole: tuple[int, ...]) -> None:
    """Decode graphs end at max_num_seqs requests of one token and their drafts."""
    sizes = {"enforce_eager": False, "max_num_seqs": 8, "cudagraph_capture_sizes": (1, 2, 4, 8, 16)}
    assert captured_graphs(engine(**(sizes | changes))) == (mixed, whole)


def test_captured_graphs_are_nodes_streams_splits_and_activations() -> None:
    model, share, config = set_up(DENSE, **V1)
    mixed, whole = captured_graphs(config)
    assert max(whole) == 64 < max(mixed) == 128
    parts = 4 * (len(mixed) + len(whole)) * 110_000 + 26 * MIB + split_buffer_bytes(model, config, 64)
    pool = cuda_graph_actual_bytes(model, share, config) - parts
    assert pool > 0
    assert pool % (2 * MIB) == 0
    model, share, config = set_up(DENSE)
    assert config.model_runner == "v2"
    assert sum(map(len, captured_graphs(config))) == len(mixed) + len(whole)
    more = 32 * MIB + (len(mixed) + len(whole)) * 370_000
    assert cuda_graph_actual_bytes(model, share, config) == parts + pool + more
    added = config.model_copy(update={"calibrated": (("cuda_graph_actual_bytes", 777),)})
    assert cuda_graph_actual_bytes(model, share, added) == parts + pool + more + 777


def test_nodes_of_expert_layers_are_larger() -> None:
    assert graph_node_bytes(*set_up(DENSE)) == 110_000
    assert graph_node_bytes(*set_up(MOE)) == 135_000
    assert graph_node_bytes(*set_up("memory/boots.json gptoss-20b-l4")) == 135_000


@pytest.mark.parametrize(
    ("source", "flags", "first", "node"),
    [
        (DENSE, V1, 50 * MIB, 64_500),
        (MOE, {}, 50 * MIB, 84_000),
        ("memory/boots.json gptoss-20b-l4", {}, 132 * MIB, 106_000),
    ],
)
def test_the_estimate_of_v1(source: str, flags: dict[str, Any], first: int, node: int) -> None:
    """The first capture and, for each further one, its nodes or 1 MiB where they are less; the splits beside them."""
    model, share, config = set_up(source, **flags)
    mixed, whole = captured_graphs(config)
    further = len(mixed) - 1 + len(whole) - 1
    terms = [(constant.value, times) for constant, times in estimate_terms(model, share, config)]
    assert terms == [(first, 1), (node, further * 4)]
    assert 4 * node < MIB
    splits = split_buffer_bytes(model, config, max(whole))
    assert cuda_graph_estimate_bytes(model, share, config) == splits + first + further * MIB


def test_the_estimate_of_deep_models_is_their_nodes() -> None:
    model, share, config = set_up("Qwen__Qwen3-8B", **V1)
    mixed, whole = captured_graphs(config)
    further = len(mixed) - 1 + len(whole) - 1
    expected = split_buffer_bytes(model, config, max(whole)) + 50 * MIB + further * 36 * 64_500
    assert cuda_graph_estimate_bytes(model, share, config) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, []),
        ({"version": "0.33.0"}, [("V2_NODE", 1)]),
        ({"version": "0.33.0", "gpus": "l4:1"}, [("V2_NODE_BEFORE_HOPPER", 1)]),
        ({"version": "0.33.0", "gpus": "h200:2", "tensor_parallel_size": 2}, [("NCCL", 0), ("V2_NODE", 1)]),
        ({"version": "0.33.0", "env": (("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", "0"),)}, []),
        ({"version": "0.16.0"}, []),
    ],
)
def test_the_estimate_of_v2(flags: dict[str, Any], expected: list[tuple[str, int]]) -> None:
    constants = {
        "V2_NODE": measured.GRAPH_ESTIMATE_V2_NODE,
        "V2_NODE_BEFORE_HOPPER": measured.GRAPH_ESTIMATE_V2_NODE_BEFORE_HOPPER,
        "NCCL": measured.NCCL_GRAPH_BUFFERS,
    }
    model, share, config = set_up(DENSE, **flags)
    whole = len(captured_graphs(config)[1])
    wanted = [(constants[name], whole * 4 if nodes else 1) for name, nodes in expected]
    assert list(estimate_terms(model, share, config)) == wanted
    floor = max(0, whole * MIB - 4 * whole * wanted[-1][0].value) if wanted else 0
    assert cuda_graph_estimate_bytes(model, share, config) == floor + sum(one.value * times for one, times in wanted)


def test_graphs_of_a_draft_head() -> None:
    """V2: the target's sizes, and those up to max_num_seqs again for the later drafts; the largest's logits. V1: pieces
    only, of its one layer."""
    model, _, config = set_up("llama", **EAGLE)
    assert config.model_runner == "v2"
    mixed, whole = captured_graphs(config)
    steps = [size for size in config.cudagraph_capture_sizes if size <= 64]
    rows = max(max(whole) // 4, *steps)
    assert rows == 64
    nodes = (len(mixed) + len(whole) + len(steps)) * (110_000 + 370_000)
    assert draft_graph_bytes(model, config) == nodes + rows * 32000 * 2
    model, _, config = set_up("llama", **EAGLE, **V1)
    assert draft_graph_bytes(model, config) == len(captured_graphs(config)[0]) * 110_000
    model, _, config = set_up("llama", **EAGLE, enforce_eager=True)
    assert draft_graph_bytes(model, config) == 0
    one: dict[str, Any] = {"speculative_config": '{"method": "eagle", "model": "head", "num_speculative_tokens": 1}'}
    model, _, config = set_up("llama", **one)
    mixed, whole = captured_graphs(config)
    expected = (len(mixed) + len(whole)) * (110_000 + 370_000) + max(whole) // 2 * 32000 * 2
    assert draft_graph_bytes(model, config) == expected
    pieces = config.model_copy(update={"cudagraph_mode": "PIECEWISE"})
    assert draft_graph_bytes(model, pieces) == len(mixed) * (110_000 + 370_000)
