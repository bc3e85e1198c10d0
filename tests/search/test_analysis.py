"""What a flag is worth, what would make a workload fit, and other layouts: each claim checked by an estimate."""

from __future__ import annotations

import pytest

from planner.engine.args import EngineArgs
from planner.memory.assess import assess
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.search.analysis import analyse
from planner.search.layouts import data_parallel_sizes, engine_updates, pipeline_parallel_sizes
from planner.search.near_misses import HARMS, near_misses
from planner.search.search import search
from planner.search.sensitivity import sensitivity
from planner.search.space import SearchOptions, Workload
from planner.sources.gpu_pool import parse_gpus
from tests.search.small_models import experts

VERSION = "0.26.0"


def dense(layers: int = 8, **more: object) -> ModelSpec:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_attention_heads": 16, "num_hidden_layers": layers, "num_key_value_heads": 8, "vocab_size": 64000,
        "max_position_embeddings": 65536, "torch_dtype": "bfloat16", "hidden_act": "silu", **more,
    }  # fmt: skip
    return build_model(ModelFiles(name="dense", config=config))


def test_each_difference_is_that_of_two_estimates():
    gpus, options = parse_gpus("l4:2"), SearchOptions()
    plan = search(dense(), gpus, options, VERSION).plans[0]
    changes = {change.flag: change for change in sensitivity(dense(), gpus, plan, options, VERSION)}
    assert len(changes) >= 8
    before = plan.estimate.per_gpu
    assert before is not None
    eager = assess(dense(), gpus, plan.args.model_copy(update={"enforce_eager": True}), VERSION).estimate.per_gpu
    assert eager is not None
    change = changes["--enforce-eager"]
    assert change.kv_cache_bytes == eager.available_kv_cache_bytes - before.available_kv_cache_bytes
    assert change.headroom_bytes == before.used_after_startup_bytes - eager.used_after_startup_bytes
    fp8 = changes["--kv-cache-dtype fp8"]
    assert fp8.tokens == pytest.approx(plan.estimate.kv_cache.capacity_tokens * plan.args.data_parallel_size, rel=0.01)
    fewer = changes["--data-parallel-size 1" if plan.args.data_parallel_size == 2 else "--tensor-parallel-size 1"]
    assert fewer.usd_per_hour is not None
    assert fewer.usd_per_hour < 0


def test_a_refused_change_says_why():
    gpus, options = parse_gpus("l4:4"), SearchOptions()
    spec = dense(num_attention_heads=6, num_key_value_heads=2, hidden_size=768)
    args = EngineArgs(tensor_parallel_size=2)
    plan = search(spec, gpus, SearchOptions(args=args, given=("tensor_parallel_size",)), VERSION).plans[0]
    changes = {change.flag: change for change in sensitivity(spec, gpus, plan, options, VERSION)}
    assert "must be divisible by tensor parallel size (4)" in (changes["--tensor-parallel-size 4"].refused or "")


def test_what_is_offered_fits_and_comes_by_harm():
    gpus = parse_gpus("l4:1@6GiB")
    options = SearchOptions(
        args=EngineArgs(max_model_len=65536, kv_cache_dtype="auto"), given=("max_model_len", "kv_cache_dtype"),
        workload=Workload(concurrency=4),
    )  # fmt: skip
    assert not search(dense(), gpus, options, VERSION).plans
    misses = near_misses(dense(), gpus, options, VERSION)
    assert [miss.harm for miss in misses] == sorted((miss.harm for miss in misses), key=HARMS.index)
    kinds = {miss.harm: miss for miss in misses}
    assert {"a shorter context", "more cards"} <= set(kinds)
    for miss in misses:
        pool = parse_gpus(miss.gpus) if miss.gpus else gpus
        assert assess(dense(), pool, miss.plan.args, VERSION).estimate.starts
    shorter = kinds["a shorter context"].plan.args.max_model_len
    assert shorter is not None
    assert shorter < 65536
    longer = options.args.model_copy(update={"max_model_len": shorter + 256})
    assert not search(dense(), gpus, options.model_copy(update={"args": longer}), VERSION).plans


def test_the_most_requests_that_fit_are_found():
    gpus = parse_gpus("l4:1@8GiB")
    options = SearchOptions(
        args=EngineArgs(max_model_len=16384),
        given=("max_model_len", "kv_cache_dtype"),
        workload=Workload(concurrency=500),
    )
    miss = next(item for item in near_misses(dense(), gpus, options, VERSION) if item.harm == "fewer requests at once")
    held = int(miss.change.split()[0])
    for load, fits in ((held, True), (held + 1, False)):
        asked = options.model_copy(update={"workload": Workload(concurrency=load)})
        assert bool(search(dense(), gpus, asked, VERSION).plans) is fits


def test_a_flag_that_is_too_tight_is_named():
    gpus = parse_gpus("l4:1@8GiB")
    options = SearchOptions(args=EngineArgs(gpu_memory_utilization=0.2), given=("gpu_memory_utilization",))
    first = near_misses(dense(), gpus, options, VERSION)[0]
    assert first.harm == "flags"
    assert first.change.startswith("--gpu-memory-utilization 0.")


def test_checkpoints_are_searched_only_when_nothing_fits_or_when_asked():
    gpus, options, asked = parse_gpus("l4:1"), SearchOptions(), []

    def checkpoints():
        asked.append(1)
        return [("awq", "small", dense(layers=2))]

    result = search(dense(), gpus, options, VERSION)
    plain = analyse(dense(), gpus, options, VERSION, result, checkpoints, pareto=False, sensitive=False, variants=False)
    assert not asked
    assert plain.front is plain.variants is plain.near_misses is None
    full = analyse(dense(), gpus, options, VERSION, result, checkpoints, pareto=True, sensitive=True, variants=True)
    assert full.variants is not None
    assert [item.name for item in full.variants] == ["small"]
    assert full.front is not None
    names = {point.variant for point in full.front}
    assert names == {"", "small"}
    tiny = parse_gpus("l4:1@1GiB")
    misses = analyse(
        dense(), tiny, options, VERSION, search(dense(), tiny, options, VERSION), checkpoints, pareto=False,
        sensitive=False, variants=False,
    ).near_misses  # fmt: skip
    assert misses is not None


def test_replicas_and_stages_of_a_pool():
    pool, options = parse_gpus("l4:8x2"), SearchOptions()
    assert [data_parallel_sizes(pool, options, dense(), tp, 1) for tp in (1, 2, 8)] == [(16,), (8,), (2,)]
    assert data_parallel_sizes(pool, options, dense(), 8, 2) == (1,)
    assert data_parallel_sizes(parse_gpus("l4:3"), options, dense(), 2, 1) == (1,)
    assert data_parallel_sizes(pool, options, experts(), 2, 1) == (1,)
    wide = SearchOptions(vary=("data-parallel",))
    assert data_parallel_sizes(pool, wide, experts(), 8, 1) == (1, 2)
    assert pipeline_parallel_sizes(pool, 8, dense()) == (2,)
    fixed = SearchOptions(args=EngineArgs(tensor_parallel_size=2), given=("tensor_parallel_size",))
    assert data_parallel_sizes(pool, fixed, dense(), 2, 1) == (1,)


def test_what_is_varied():
    assert engine_updates(dense(), SearchOptions()) == ({},)
    eager = engine_updates(dense(), SearchOptions(vary=("eager", "expert-parallel")))
    assert eager == ({}, {"enforce_eager": True})
    assert {"enable_expert_parallel": True} in engine_updates(experts(), SearchOptions(vary=("expert-parallel",)))
    given = SearchOptions(vary=("block-size",), args=EngineArgs(block_size=32), given=("block_size",))
    assert engine_updates(dense(), given) == ({},)


def test_expert_parallel_replicas_split_the_experts():
    gpus, options = parse_gpus("l4:2"), SearchOptions(vary=("expert-parallel", "data-parallel"), max_plans=50)
    plans = search(experts(), gpus, options, VERSION).plans
    layouts = {
        (plan.args.tensor_parallel_size, plan.args.data_parallel_size, plan.args.enable_expert_parallel): plan
        for plan in plans
        if plan.args.kv_cache_dtype == "auto"
    }
    assert {(1, 2, True), (2, 1, True), (1, 2, False), (2, 1, False)} <= set(layouts)
    alone, split = layouts[1, 1, False].estimate.per_gpu, layouts[1, 2, True].estimate.per_gpu
    assert alone is not None
    assert split is not None
    assert split.parameter_bytes < alone.parameter_bytes
