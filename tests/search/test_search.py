"""What a search promises: maximal lengths, honest counts, flags respected, the same answer every time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.engine.args import EngineArgs
from planner.hardware.spec import GpuPool
from planner.memory.assess import assess
from planner.memory.kv_capacity import whole_requests
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.search.search import search
from planner.search.space import SearchOptions, Workload, ladder
from planner.sources.gpu_pool import parse_gpus

VERSION = "0.26.0"


def tiny(layers: int = 4, heads: int = 8, kv_heads: int = 4, hidden: int = 1024, vocab: int = 32000) -> ModelSpec:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": 32768, "torch_dtype": "bfloat16", "hidden_act": "silu",
    }  # fmt: skip
    return build_model(ModelFiles(name="tiny", config=config))


def pool(memory: str, count: int = 1) -> GpuPool:
    return parse_gpus(f"l4:{count}@{memory}")


def holds(model: ModelSpec, gpus: GpuPool, args: EngineArgs, concurrency: int) -> bool:
    found = assess(model, gpus, args, VERSION, confidence="expected")
    if not found.estimate.starts or found.deployment is None or found.config is None or found.estimate.kv_cache is None:
        return False
    requests = whole_requests(
        found.deployment.pool,
        found.estimate.kv_cache.num_gpu_blocks,
        found.config.max_model_len,
        found.config.max_num_batched_tokens,
    )
    return int(requests) >= concurrency


@pytest.mark.parametrize("objective", ["context", "balanced"])
@pytest.mark.parametrize("concurrency", [1, 4, 33])
def test_the_chosen_length_is_maximal(objective, concurrency):
    model, gpus = tiny(), pool("3GiB")
    options = SearchOptions(objective=objective, workload=Workload(concurrency=concurrency), confidence="expected")
    plans = search(model, gpus, options, VERSION).plans
    assert plans
    for plan in plans:
        chosen = plan.args
        assert holds(model, gpus, chosen, concurrency)
        assert chosen.max_model_len is not None
        if chosen.max_model_len == model.derived_max_model_len:
            continue
        assert plan.estimate.engine is not None
        longer = chosen.model_copy(update={"max_model_len": chosen.max_model_len + plan.estimate.engine.block_size})
        assert not holds(model, gpus, longer, concurrency)


def test_every_candidate_is_counted():
    result = search(tiny(), pool("3GiB", 2), SearchOptions(), VERSION)
    assert result.evaluated == result.feasible + sum(item.count for item in result.rejected)
    assert result.evaluated >= 20_000


def test_refused_layouts_are_counted_with_vllms_sentence():
    result = search(tiny(heads=6, kv_heads=2, hidden=768), pool("8GiB", 4), SearchOptions(), VERSION)
    reasons = {item.reason: item for item in result.rejected}
    assert "heads_divisibility" in reasons
    assert "must be divisible by tensor parallel size (4)" in reasons["heads_divisibility"].example.message


def test_fixed_flags_are_respected():
    args = EngineArgs(tensor_parallel_size=2, max_num_seqs=16, max_num_batched_tokens=4096, max_model_len=2048,
                      kv_cache_dtype="auto", gpu_memory_utilization=0.55, enforce_eager=True)  # fmt: skip
    given_names = (
        "tensor_parallel_size",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_model_len",
        "kv_cache_dtype",
        "gpu_memory_utilization",
        "enforce_eager",
    )
    result = search(tiny(), pool("6GiB", 4), SearchOptions(args=args, given=given_names), VERSION)
    assert [plan.args for plan in result.plans] == [args]


def test_the_concurrency_objective_serves_more_at_once():
    model, gpus = tiny(), pool("4GiB")
    context, concurrency = (
        search(model, gpus, SearchOptions(objective=name), VERSION).plans[0] for name in ("context", "concurrency")
    )
    assert concurrency.concurrency > context.concurrency
    assert concurrency.args.max_num_seqs >= min(concurrency.concurrency, 1024)
    assert concurrency.args.max_model_len < context.args.max_model_len


@pytest.mark.parametrize(("wanted", "least"), [(12, 12), (100, 100), (3000, 1024)])
def test_stated_requests_may_all_run(wanted, least):
    options = SearchOptions(args=EngineArgs(max_model_len=512), given=("max_model_len",),
                            workload=Workload(concurrency=wanted))  # fmt: skip
    plans = search(tiny(), pool("20GiB"), options, VERSION).plans
    assert plans
    assert all((plan.args.max_num_seqs or 0) >= least for plan in plans)


def test_fp8_cache_never_comes_before_the_models_own():
    dtypes = [plan.args.kv_cache_dtype for plan in search(tiny(), pool("4GiB", 2), SearchOptions(), VERSION).plans]
    assert dtypes == sorted(dtypes, key=["auto", "fp8"].index)


def test_the_device_keeps_the_margin_free():
    for margin in (0.0, 0.1, 0.2):
        plans = search(tiny(), pool("3GiB"), SearchOptions(safety_margin=margin), VERSION).plans
        for plan in plans:
            per_gpu = plan.estimate.per_gpu
            assert per_gpu is not None
            need = per_gpu.used_after_startup_bytes + per_gpu.vision_encoder_runtime_peak_bytes
            assert need * (1 + margin) <= per_gpu.total_memory_bytes
            assert plan.headroom_bytes == per_gpu.total_memory_bytes - need


def test_nothing_fits_says_why():
    result = search(tiny(layers=64, hidden=4096, heads=32, kv_heads=8), pool("4GiB"), SearchOptions(), VERSION)
    assert result.plans == ()
    assert {item.reason for item in result.rejected} <= {"weights", "kv_cache", "device_memory", "startup_memory"}


def test_deterministic():
    first, second = (search(tiny(), pool("3GiB", 2), SearchOptions(), VERSION) for _ in range(2))
    assert [plan.args for plan in first.plans] == [plan.args for plan in second.plans]
    assert first.rejected == second.rejected


@settings(max_examples=12, deadline=None)
@given(small=st.integers(2500, 6000), more=st.integers(0, 3000))
def test_more_memory_never_gives_a_shorter_plan(small, more):
    model, options = (
        tiny(),
        SearchOptions(objective="context", args=EngineArgs(enforce_eager=True), given=("enforce_eager",)),
    )

    def longest(mib: int) -> int:
        plans = search(model, pool(f"{mib}MiB"), options, VERSION).plans
        return max((plan.args.max_model_len or 0 for plan in plans), default=0)

    assert longest(small + more) >= longest(small) * 0.99


@given(low=st.integers(1, 5000), high=st.integers(1, 10**6), steps=st.integers(2, 40))
def test_ladder_climbs_to_its_end(low, high, steps):
    rungs = ladder(low, high, steps, 16)
    assert rungs[-1] == high
    assert list(rungs) == sorted(set(rungs))


def test_a_safe_search_promises_no_more_than_an_expected_one():
    model, gpus = tiny(), pool("3GiB")
    longest = {}
    for confidence in ("safe", "expected"):
        options = SearchOptions(objective="context", workload=Workload(concurrency=33), confidence=confidence)
        plan = search(model, gpus, options, VERSION).plans[0]
        assert holds(model, gpus, plan.args, 33)
        longest[confidence] = plan.args.max_model_len
    assert 0 < longest["safe"] < longest["expected"]
