"""What must hold of a search whatever the cards and the load: more of anything never makes a plan worse."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.engine.args import EngineArgs
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.search.plan import SearchResult
from planner.search.search import search
from planner.search.space import SearchOptions, Workload
from planner.search.workload import RequestMix, TokenLengths
from planner.sources.gpu_pool import parse_gpus

VERSION = "0.26.0"
EAGER = {"args": EngineArgs(enforce_eager=True), "given": ("enforce_eager", "kv_cache_dtype")}


@cache
def model(layers: int = 4) -> ModelSpec:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096,
        "num_attention_heads": 8, "num_hidden_layers": layers, "num_key_value_heads": 4, "vocab_size": 32000,
        "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "hidden_act": "silu",
    }  # fmt: skip
    return build_model(ModelFiles(name="tiny", config=config))


def found(gpus: str, options: SearchOptions, layers: int = 4) -> SearchResult:
    return search(model(layers), parse_gpus(gpus), options, VERSION)


def best(result: SearchResult) -> tuple[int, int]:
    """(longest context, most requests at once) of the plans."""
    lengths = [plan.args.max_model_len or 0 for plan in result.plans]
    return max(lengths, default=0), max((plan.concurrency for plan in result.plans), default=0)


memories = st.integers(2000, 8000)
loads = st.sampled_from([1, 2, 7, 20, 60])


@settings(max_examples=8, deadline=None)
@given(memory=memories, more=st.integers(2, 60), load=loads)
def test_more_memory_never_gives_a_worse_plan(memory, more, load):
    """From 2 % on: budgets are hundredths of a card, so one that is larger by less may lose a hundredth of itself."""
    options = SearchOptions(objective="context", workload=Workload(concurrency=load), **EAGER)
    small, large = (found(f"l4:1@{size}MiB", options) for size in (memory, memory * (100 + more) // 100))
    assert best(large)[0] >= best(small)[0]
    fixed = SearchOptions(objective="concurrency", **EAGER)
    small, large = (found(f"l4:1@{size}MiB", fixed) for size in (memory, memory * (100 + more) // 100))
    assert best(large)[1] >= best(small)[1]


@settings(max_examples=8, deadline=None)
@given(memory=memories, cards=st.integers(1, 4), more=st.integers(1, 4), load=loads, layers=st.sampled_from([3, 4, 24]))
def test_more_cards_never_make_a_workload_infeasible(memory, cards, more, load, layers):
    options = SearchOptions(objective="context", workload=Workload(concurrency=load, min_model_len=4096), **EAGER)
    few, many = (found(f"l4:{count}@{memory}MiB", options, layers) for count in (cards, cards + more))
    assert many.plans or not few.plans


@settings(max_examples=6, deadline=None)
@given(memory=memories, cards=st.integers(1, 2), machines=st.integers(2, 3), load=loads)
def test_more_machines_never_make_a_workload_infeasible(memory, cards, machines, load):
    options = SearchOptions(objective="context", workload=Workload(concurrency=load, min_model_len=4096), **EAGER)
    one, several = (found(f"l4:{cards}x{nodes}@{memory}MiB", options, 24) for nodes in (1, machines))
    assert several.plans or not one.plans


@settings(max_examples=8, deadline=None)
@given(memory=memories, margins=st.tuples(st.floats(0, 0.4), st.floats(0, 0.4)), load=loads)
def test_a_tighter_margin_never_adds_plans(memory, margins, load):
    loose, tight = sorted(margins)
    options = SearchOptions(workload=Workload(concurrency=load), **EAGER)
    wide, narrow = (
        found(f"l4:1@{memory}MiB", options.model_copy(update={"safety_margin": margin})) for margin in (loose, tight)
    )
    assert narrow.feasible <= wide.feasible
    assert len(narrow.plans) <= len(wide.plans)


@settings(max_examples=6, deadline=None)
@given(memory=st.integers(3000, 9000), load=st.integers(1, 200), more=st.integers(0, 100), tail=st.integers(1, 6))
def test_a_lighter_load_is_never_harder(memory, load, more, tail):
    def options(requests: int, factor: int) -> SearchOptions:
        mix = RequestMix(prompt=TokenLengths(p50=400, p95=400 * factor), output=TokenLengths(p50=100, p95=100))
        return SearchOptions(workload=Workload(concurrency=requests, mix=mix), **EAGER)

    heavy = found(f"l4:1@{memory}MiB", options(load + more, tail))
    for lighter in (options(load, tail), options(load + more, 1)):
        assert found(f"l4:1@{memory}MiB", lighter).plans or not heavy.plans


@pytest.mark.parametrize("cards", ["l4:2", "l4:4", "l4:2x2"])
def test_replicas_fill_the_cards(cards):
    result = found(f"{cards}@6GiB", SearchOptions(objective="concurrency", **EAGER))
    assert any("takes 2 machines" in note for note in result.notes) == cards.endswith("x2")
    for plan in result.plans:
        assert plan.gpus == parse_gpus(cards).world_size
        assert plan.estimate.engine is not None
        assert plan.estimate.engine.data_parallel_size == plan.args.data_parallel_size
