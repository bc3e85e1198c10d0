"""How far terms may be off: the arithmetic of both ledgers, and the margins where nothing was measured."""

from __future__ import annotations

from typing import Any

import pytest

from planner.memory import measured_constants as measured
from planner.memory.graphs import captured_graphs, draft_graph_bytes
from planner.memory.intervals import Spread, Spreads, is_verified, spreads
from planner.units import MIB
from tests.memory.pass_cases import set_up

QWEN, LLAMA = "memory/boots.json q25-7b-l4", "llama"
EAGER: dict[str, Any] = {"enforce_eager": True}
EAGLE: dict[str, Any] = {"speculative_config": '{"method": "eagle", "model": "head", "num_speculative_tokens": 3}'}
DRAFT_MODEL: dict[str, Any] = {
    "speculative_config": '{"method": "draft_model", "model": "small llama", "num_speculative_tokens": 3}'
}
WEIGHTS, PEAK, ACTUAL, CONTEXT = 8000 * MIB, 500 * MIB, 200 * MIB, 400 * MIB


def spread_of(constant: Any, times: int = 1) -> Spread:
    return Spread(times * (constant.value - constant.low), times * (constant.high - constant.value))


def found(source: str, **flags: Any) -> Spreads:
    return spreads(*set_up(source, **flags), WEIGHTS, PEAK, ACTUAL, CONTEXT)


def test_an_interval_lies_around_its_value() -> None:
    spread = Spread(30, 5)
    assert spread.around(100) == (70, 105)
    assert spread.around(10) == (0, 15)
    assert spread.around(0) == (0, 5)
    assert spread.around(-10) == (-40, -5)
    assert Spread().around(100) is None
    assert Spread(0, 1).around(100) == (100, 101)
    assert Spread(1, 0).around(100) == (99, 100)


def test_each_ledger_adds_its_own_terms() -> None:
    """Powers of ten name the terms: down in ones, up in twos."""
    names = (
        "weights", "peak", "non_torch", "graph_estimate", "graph_actual", "context", "residual", "unexplained",
    )  # fmt: skip
    all_terms = Spreads(**{name: Spread(10**place, 2 * 10**place) for place, name in enumerate(names)})
    assert all_terms.engine == Spread(10001111, 20002222)
    assert all_terms.device == Spread(1112020, 2221010)
    assert all_terms.held == 20002222 + 2221010
    assert all_terms.profile == Spread(100111, 200222)


def test_what_was_measured_spreads_as_it_did() -> None:
    """Qwen2.5-7B on an H200 with 0.26.0: weights, peak and context to the byte; each node of 4 layers in each graph."""
    _, _, config = set_up(QWEN)
    assert is_verified(config)
    terms = found(QWEN)
    assert (terms.weights, terms.peak, terms.context) == (Spread(), Spread(), Spread())
    assert terms.non_torch == spread_of(measured.NON_TORCH)
    assert terms.graph_estimate == Spread()
    graphs = sum(map(len, captured_graphs(config)))
    nodes = spread_of(measured.GRAPH_NODE_BYTES, 4 * graphs)
    assert terms.graph_actual == nodes + spread_of(measured.GRAPH_STREAM_BYTES)
    assert terms.residual == Spread(360 * MIB, 80 * MIB)
    assert terms.unexplained == Spread(9 * MIB, 19 * MIB)
    assert found(QWEN, **EAGER).graph_actual == Spread()


@pytest.mark.parametrize("flags", [{"gpus": "l4:1"}, {"version": "0.33.0"}])
def test_elsewhere_margins_are_shares(flags: dict[str, Any]) -> None:
    """0.5 % and 32 MiB of weights, 6 % and 32 MiB of the peak, 40 % of graphs, half and a quarter of the context."""
    terms = found(QWEN, **flags)
    assert not is_verified(set_up(QWEN, **flags)[2])
    assert terms.weights == Spread(72 * MIB, 72 * MIB)
    assert terms.peak == Spread(62 * MIB, 62 * MIB)
    assert terms.graph_actual == Spread(80 * MIB, 80 * MIB)
    assert terms.context == Spread(200 * MIB, 100 * MIB)


@pytest.mark.parametrize(
    ("source", "flags", "states"),
    [
        (QWEN, {}, 0),
        (QWEN, {"enable_lora": True}, 2),
        (QWEN, EAGER | {"enable_lora": True}, 0),
        (LLAMA, EAGER | EAGLE, 2),
        (LLAMA, EAGLE, 2),
        (LLAMA, EAGER | DRAFT_MODEL, 0),
        (LLAMA, DRAFT_MODEL, 2),
    ],
)
def test_passes_that_no_boot_had_may_be_off_by_two_hidden_states(
    source: str, flags: dict[str, Any], states: int
) -> None:
    model, _, config = set_up(source, **flags)
    size = states * model.text.hidden_size * 2 * config.max_num_batched_tokens
    terms = found(source, **flags)
    assert terms.peak == Spread(size, size)
    assert terms.weights == (Spread(2 * MIB, 2 * MIB) if model.draft is not None else Spread())


def test_compiled_recurrent_layers_may_be_off_by_more() -> None:
    """They are written as they run eagerly: four hidden states more, and the flush of inductor's timer."""
    source = "hybrid_configs.json granite-4-tiny"
    model, _, config = set_up(source)
    size = 2 * model.text.hidden_size * 2 * config.max_num_batched_tokens
    assert found(source).peak == Spread(size, 60 * MIB + 2 * size)
    assert found(source, **EAGER).peak == Spread()


def test_graphs_of_drafts_and_adapters_may_cost_as_much_again() -> None:
    model, _, config = set_up(LLAMA, **EAGLE)
    graphs = sum(map(len, captured_graphs(config)))
    measured_part = spread_of(measured.GRAPH_NODE_BYTES, 8 * graphs) + spread_of(measured.GRAPH_STREAM_BYTES)
    draft = draft_graph_bytes(model, config)
    assert draft > 0
    assert found(LLAMA, **EAGLE).graph_actual == measured_part + Spread(draft, draft)
    config = set_up(QWEN, enable_lora=True)[2]
    graphs = sum(map(len, captured_graphs(config)))
    measured_part = spread_of(measured.GRAPH_NODE_BYTES, 4 * graphs) + spread_of(measured.GRAPH_STREAM_BYTES)
    adapters = 4 * graphs * measured.GRAPH_NODE_BYTES.value
    assert found(QWEN, enable_lora=True).graph_actual == measured_part + Spread(0, adapters)
