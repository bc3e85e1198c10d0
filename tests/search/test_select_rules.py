"""Rules of a selection, each on a made-up model small enough to be worked through, and the figures of its engines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner import api
from planner.engine.args import EngineArgs
from planner.hardware.spec import GpuPool, GpuSpec
from planner.memory.assess import assess
from planner.memory.kv_capacity import whole_requests
from planner.model.spec import ModelSpec
from planner.search.search import search
from planner.search.select import Choice, select
from planner.search.select_judge import TENSOR_PARALLEL, EngineFit, Judge, best_budget, judge_of
from planner.search.space import UTILIZATIONS, SearchOptions, Workload
from planner.sources.hardware_catalog import load_hardware_catalog
from planner.units import GIB, MIB
from planner.values import Rejection
from tests.search.small_models import dense

VERSION = "0.26.0"


def card(name: str, gib: int | None = None) -> GpuSpec:
    found = load_hardware_catalog().find(name)
    return found if gib is None else found.model_copy(update={"total_memory_bytes": gib * GIB})


def asked(concurrency: int | None = 4, confidence: str = "safe", **flags: object) -> SearchOptions:
    flags = {"max_model_len": 8192, **flags}
    return SearchOptions(
        args=EngineArgs(**flags), given=tuple(flags), workload=Workload(concurrency=concurrency), confidence=confidence
    )  # type: ignore[arg-type]


def engines(
    model: ModelSpec, gpu: GpuSpec, options: SearchOptions, stages: int = 1
) -> dict[int, EngineFit | Rejection]:
    judge = judge_of(model, [gpu], options, VERSION)
    return {tp: judge.engine(gpu, tp, stages) for tp in TENSOR_PARALLEL}


@pytest.mark.parametrize("confidence", ["safe", "expected"])
@pytest.mark.parametrize(("tp", "stages"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_an_engine_is_that_of_an_estimate(tp, stages, confidence):
    """Weights of the fullest stage, the requests of its cache, and what the device keeps free."""
    model, gpu = dense(layers=6), card("l4", 20)
    options = asked(confidence=confidence)
    engine = judge_of(model, [gpu], options, VERSION).engine(gpu, tp, stages)
    assert isinstance(engine, EngineFit)
    assert (engine.tensor_parallel_size, engine.pipeline_parallel_size) == (tp, stages)
    assert engine.gpu_memory_utilization in UTILIZATIONS
    args = options.args.model_copy(
        update={
            "tensor_parallel_size": tp, "pipeline_parallel_size": stages, "max_num_seqs": 4,
            "gpu_memory_utilization": engine.gpu_memory_utilization,
        }
    )  # fmt: skip
    pool = GpuPool(spelling="l4", gpu=gpu, count=tp, nodes=stages)
    found = assess(model, pool, args, VERSION, confidence=confidence)
    assert found.estimate.starts
    assert found.deployment is not None
    assert found.estimate.per_gpu is not None
    assert found.estimate.kv_cache is not None
    assert engine.config == found.deployment.config.model_copy(
        update={"warnings": (), "gpu_memory_bytes": 0, "gpu_memory_utilization": engine.config.gpu_memory_utilization}
    )
    assert engine.weights_memory_bytes == max(term.weights_memory_bytes for term in found.terms)
    blocks = found.estimate.kv_cache.num_gpu_blocks
    held = int(whole_requests(found.deployment.pool, blocks, 8192, engine.config.max_num_batched_tokens))
    assert held - (6 if confidence == "safe" else 1) <= engine.requests <= held
    free = gpu.total_memory_bytes - found.estimate.per_gpu.used_after_startup_bytes
    if stages == 1:
        assert engine.headroom_bytes == pytest.approx(free, abs=(700 if confidence == "safe" else 64) * MIB)
    assert engine.headroom_bytes >= gpu.total_memory_bytes - gpu.total_memory_bytes / 1.1


def test_the_largest_budget_that_holds_is_taken():
    """One hundredth more would be refused or break the margin; the cache of each that holds is no larger."""
    model, gpu = dense(), card("l4", 6)
    judge = judge_of(model, [gpu], asked(), VERSION)
    grid = judge.judged(gpu, judge.shared(judge.config(gpu, 1, 1), gpu))
    best, requests = best_budget(grid)
    holding = [place for place, verdict in enumerate(grid.verdicts[0, :, 0]) if verdict == 0]
    assert best == holding[-1] < len(grid.utilizations) - 1
    pool, config = grid.deployment.pool, grid.deployment.config
    assert requests == int(whole_requests(pool, int(grid.blocks[0, best]), 8192, config.max_num_batched_tokens))
    assert int(grid.blocks[0, best]) == max(int(grid.blocks[0, place]) for place in holding)


@pytest.mark.parametrize("concurrency", [1, 60, 900])
def test_a_choice_is_the_layout_that_holds_most(concurrency):
    """As many engines as the cards hold, side by side; less tensor parallelism where two layouts hold as many."""
    assert tuple(2**power for power in range(5)) == TENSOR_PARALLEL, "a machine has 16 cards at most"
    model, gpu, options = dense(), card("l4", 12), asked(concurrency)
    alone = engines(model, gpu, options)
    for choice in select(model, [gpu], options, VERSION, max_count=9, nodes=(1, 3)):
        held = {
            tp: engine.requests * (choice.count // tp) * choice.nodes
            for tp, engine in alone.items()
            if isinstance(engine, EngineFit) and tp <= choice.count
        }
        best = min(tp for tp, requests in held.items() if requests == max(held.values()))
        assert choice.engine is not None
        assert choice.engine.tensor_parallel_size == best
        assert choice.engine.config.max_num_seqs == {1: 1, 60: 64, 900: 1024}[concurrency]
        assert choice.replicas == choice.count // best * choice.nodes
        assert choice.requests == max(held.values())
        if choice.requests < concurrency:
            assert choice.rejection is not None
            assert choice.rejection.message == f"holds {choice.requests} of {concurrency} requests"
        else:
            assert choice.rejection is None
    chosen = select(model, [gpu], options, VERSION, max_count=9, nodes=(1, 3))
    assert [(choice.count, choice.nodes) for choice in chosen] == [(n, many) for many in (1, 3) for n in range(1, 10)]


def test_less_tensor_parallelism_where_layouts_hold_as_many(monkeypatch):
    gpu = card("l4", 12)
    one = judge_of(dense(), [gpu], asked(), VERSION).engine(gpu, 1, 1)
    assert isinstance(one, EngineFit)
    for held, expected in (({1: 10, 2: 20, 4: 40}, 1), ({1: 9, 2: 20, 4: 40}, 2), ({1: 10, 2: 20, 4: 41}, 4)):

        def engine(self: Judge, gpu: GpuSpec, tp: int, pp: int, held: dict[int, int] = held) -> EngineFit:
            return replace(one, tensor_parallel_size=tp, requests=held[tp])

        monkeypatch.setattr(Judge, "engine", engine)
        choice = select(dense(), [gpu], asked(40), VERSION, max_count=4)[3]
        assert choice.engine is not None
        assert choice.engine.tensor_parallel_size == expected
        assert choice.replicas == 4 // expected
        assert (choice.rejection is None) is (choice.requests >= 40)


def test_machines_share_a_model_that_none_holds_alone():
    """Stages across machines only then, and no replicas of them."""
    large, gpu, options = dense(layers=200, heads=16), card("l4"), asked(1, max_model_len=2048)
    alone, three = engines(large, gpu, options), engines(large, gpu, options, 3)
    assert isinstance(alone[1], Rejection)
    assert isinstance(three[1], EngineFit)
    chosen = {
        (choice.count, choice.nodes): choice
        for choice in select(large, [gpu], options, VERSION, max_count=1, nodes=(1, 2, 3))
    }
    assert chosen[1, 1].engine is None
    assert chosen[1, 1].requests == 0
    staged = chosen[1, 3]
    assert staged.engine is not None
    assert (staged.engine.pipeline_parallel_size, staged.replicas) == (3, 1)
    assert staged.requests == three[1].requests
    assert three[2].requests > 0
    wider = select(large, [gpu], options, VERSION, max_count=4, nodes=(1, 3))
    shown = {(choice.count, choice.nodes): choice for choice in wider}
    assert shown[1, 3] == staged, "whatever larger machines would hold"
    assert shown[4, 1].engine is not None
    assert shown[4, 3].engine.pipeline_parallel_size == 1
    assert shown[4, 3].requests == 3 * shown[4, 1].requests
    single = select(dense(), [gpu], options, VERSION, max_count=2, nodes=(2,))
    assert [choice.engine.pipeline_parallel_size for choice in single if choice.engine] == [1, 1]


def test_why_no_layout_holds():
    """What speaks against the largest layout that lacks memory, else against the largest of all."""
    odd = dense(heads=6, kv_heads=2)
    reasons = {
        (choice.gpu.name, choice.count): choice.rejection
        for choice in select(odd, [card("l4", 1), card("mi300x")], asked(1), VERSION, max_count=8)
    }
    assert all(rejection is not None for rejection in reasons.values())
    small = engines(odd, card("l4", 1), asked(1))
    assert isinstance(small[4], Rejection)
    assert small[4].bottleneck == "heads_divisibility"
    assert reasons["L4", 8] == reasons["L4", 2] == small[2]
    assert reasons["L4", 1] == small[1]
    assert reasons[card("mi300x").name, 8].message.startswith("AMD card")
    amd = select(odd, [card("mi300x")], asked(1), VERSION, max_count=3, nodes=(1, 2))
    assert [(choice.count, choice.nodes, choice.replicas) for choice in amd] == [
        (count, many, 0) for many in (1, 2) for count in (1, 2, 3)
    ]


def test_weights_above_the_card_are_told_with_their_bytes():
    large = dense(layers=60, heads=16)
    refused = engines(large, card("l4", 7), asked(1))[1]
    assert isinstance(refused, Rejection)
    assert refused.bottleneck == "weights"
    assert refused.have_bytes == 7 * GIB
    found = engines(large, card("l4", 20), asked(1))[1]
    assert isinstance(found, EngineFit)
    assert refused.need_bytes == found.weights_memory_bytes


def test_the_heaviest_stage_must_fit_the_card():
    """The embedding and the output head make stages unlike: the card holds the lighter one and not the other."""
    model = dense(layers=7, heads=16)
    whole = engines(model, card("l4"), asked(1), 2)[1]
    assert isinstance(whole, EngineFit)
    deployment = judge_of(model, [card("l4")], asked(1), VERSION).split(
        GpuPool(spelling="l4", gpu=card("l4"), count=1, nodes=2), whole.config
    )
    stages = deployment.weights_bytes(whole.config)
    assert len(set(stages)) == 2
    between = card("l4").model_copy(update={"total_memory_bytes": sum(stages) // 2})
    refused = engines(model, between, asked(1), 2)[1]
    assert isinstance(refused, Rejection)
    assert (refused.bottleneck, refused.need_bytes) == ("weights", max(stages))


@pytest.mark.parametrize(("name", "own"), [("google/gemma-4-E2B-it", True), ("Qwen/Qwen2.5-VL-7B-Instruct", False)])
def test_towers_that_read_the_cards_memory_share_no_work(name, own):
    model = api.load_spec(api.Request(model=name, gpus="", offline=True))
    gpu = card("l4")
    judge = judge_of(model, [gpu], asked(1), VERSION)
    shared = judge.shared(judge.config(gpu, 1, 1), gpu)
    assert shared.gpu_memory_bytes == (gpu.total_memory_bytes if own else 0)


def test_cards_alike_share_the_work_and_keep_their_own_memory():
    """Of one compute capability: the engine is replayed once, at the largest SM count, and judged on each card."""
    model, options = dense(), asked()
    cards = [card("l4", 6), card("l20"), card("l40s")]
    judge = judge_of(model, cards, options, VERSION)
    most = max(gpu.sm_count or 0 for gpu in cards)
    assert judge.most_sms == {(8, 9): most}
    shared = {judge.shared(judge.config(gpu, 1, 1), gpu) for gpu in cards}
    assert {config.sm_count for config in shared} == {most}
    for gpu in cards:
        config = judge.config(gpu, 1, 1)
        assert (config.sm_count, config.gpu_memory_bytes) == (gpu.sm_count, gpu.total_memory_bytes)
        assert judge.shared(config, gpu).gpu_memory_bytes == 0
    found = [judge.engine(gpu, 1, 1) for gpu in cards]
    assert [fit.requests for fit in found] == sorted(fit.requests for fit in found)
    assert len(judge.costs) == len(shared)
    assert sum(map(len, judge.splits.values())) == 1
    blind = [gpu.model_copy(update={"sm_count": None}) for gpu in cards[:1]]
    assert judge_of(model, blind, options, VERSION).most_sms == {}


def test_what_the_user_gives_stays():
    model, gpu = dense(), card("l4", 6)
    fixed = judge_of(model, [gpu], asked(60, max_num_seqs=7, gpu_memory_utilization=0.6), VERSION)
    engine = fixed.engine(gpu, 1, 1)
    assert isinstance(engine, EngineFit)
    assert engine.config.max_num_seqs == 7
    assert engine.gpu_memory_utilization == 0.6
    assert judge_of(model, [gpu], asked(None), VERSION).args.max_num_seqs == 1
    assert judge_of(model, [gpu], asked(1024), VERSION).args.max_num_seqs == 1024
    assert judge_of(model, [gpu], asked(5000), VERSION).args.max_num_seqs == 1024


def told(choice: Choice) -> str:
    where = f"{choice.count} x {choice.nodes} {choice.gpu.name}: "
    if choice.engine is None:
        assert choice.rejection is not None
        return f"{where}{choice.rejection.bottleneck}: {choice.rejection.message}"
    engine = choice.engine
    ranks = f"{engine.tensor_parallel_size} x {engine.pipeline_parallel_size}, {choice.replicas} of them"
    return (
        f"{where}{ranks}, at {engine.gpu_memory_utilization:g} {choice.requests} requests; weights "
        f"{engine.weights_memory_bytes}, free {engine.headroom_bytes}"
        + ("" if choice.rejection is None else f": {choice.rejection.message}")
    )


def test_a_whole_selection(golden):
    """Written anew by `pytest --rewrite`: read the difference then."""
    cards = [card("t4"), card("l4", 20), card("l20", 20), card("h200", 20), card("b200", 20)]
    chosen = select(dense(layers=130, heads=16), cards, asked(30), VERSION, max_count=5, nodes=(1, 2))
    golden("search/selection.json", [told(choice) for choice in chosen])


def test_a_search_holds_what_a_selection_holds():
    """On one card with the same sizes, the search finds a plan where the selection has an engine, and no other."""
    model = dense(layers=8)
    for gib in (3, 4, 5, 8):
        gpu = card("l4", gib)
        (choice,) = select(model, [gpu], asked(8), VERSION, max_count=1)
        sizes = {"max_num_seqs": 8, "max_num_batched_tokens": 2048, "kv_cache_dtype": "auto"}
        pool = GpuPool(spelling="l4", gpu=gpu, count=1, nodes=1)
        plans = search(model, pool, asked(8, **sizes), VERSION).plans
        assert bool(plans) is (choice.rejection is None), gib
    assert isinstance(choice, Choice)
