"""What plans are compared by, what changes to them are worth, and the nearest misses: each rule where it decides."""

from __future__ import annotations

from typing import Any

import pytest

from planner.hardware.spec import GpuPool
from planner.memory.assess import assess
from planner.model.spec import ModelSpec
from planner.search.analysis import analyse
from planner.search.near_misses import near_misses
from planner.search.pareto import Merits, front, labelled, point_of, speed_of, unbeaten
from planner.search.plan import SearchResult
from planner.search.recommend import recommendations
from planner.search.search import search
from planner.search.sensitivity import sensitivity
from planner.search.space import BATCHED_TOKENS, SearchOptions
from planner.sources.gpu_pool import parse_gpus
from tests.search.small_models import FIXED, asked, dense, experts

VERSION = "0.26.0"


def merits(**more: Any) -> Merits:
    known = {
        "accuracy": 0, "context": 4096, "requests": 64, "tokens_per_s": 1000.0, "gpus": 1, "headroom_bytes": 55,
        "total_memory_bytes": 100,
    }  # fmt: skip
    return Merits(**{**known, **more})


def test_merits_are_compared_in_steps():
    """Requests and speed in quarters of an octave, headroom in tenths of the card."""
    assert merits().steps() == (0, 4096, 24, 39, -1, 5)
    assert merits(requests=76).steps()[2] == 24 + 0
    assert merits(requests=77).steps()[2] == 24 + 1
    assert merits(requests=128).steps()[2] == 28
    assert [merits(requests=one).steps()[2] for one in (0, 1, 2)] == [0, 0, 4]
    assert [merits(headroom_bytes=free).steps()[5] for free in (9, 10, 59, 60)] == [0, 1, 5, 6]
    assert [merits(tokens_per_s=rate).steps()[3] for rate in (0.5, 1.0, 1.5, 2.0)] == [0, 0, 2, 4]
    assert merits().steps(5)[5] == 6
    assert merits().steps(-6)[5] == 4
    assert merits(accuracy=3, gpus=4).exact() == (-3, 4096, 64, 1000.0, -4, 55)


def test_what_points_are_worth():
    """The requests that sequences let run, the cheapest price of all cards, and dollars per million tokens."""
    gpus, options = parse_gpus("l4:2@6GiB"), asked({**FIXED, "max_model_len": 4096})
    plan = search(dense(), gpus, options, VERSION).plans[0]
    assert plan.gpus == 2
    assert plan.concurrency > 32
    assert plan.assessment.deployment is not None
    speed = speed_of(plan.assessment.deployment, options)
    point = point_of(plan, speed, 0)
    assert point.requests == 32
    assert point.tokens_per_s == speed.tokens_per_s(32)
    assert speed.tokens_per_s(31) == speed.tokens_per_s(32)
    assert speed.tokens_per_s(30) < speed.tokens_per_s(31)
    assert speed.tokens_per_s(0) == speed.tokens_per_s(2)
    price = min(offer.usd_per_gpu_hour for offer in gpus.gpu.prices)
    assert point.usd_per_hour == pytest.approx(2 * price)
    assert point.usd_per_million_tokens == pytest.approx(2 * price * 1e6 / 3600 / point.tokens_per_s)
    (other,) = labelled([point], "small", 3)
    assert (other.variant, other.accuracy, other.plan) == ("small", 3, plan)
    assert unbeaten([point, other]) == (point,)
    assert recommendations([]) == ()
    from planner.search.roofline import cache_read_bytes

    pool = plan.assessment.deployment.pool
    assert speed.load.cache_bytes == cache_read_bytes(pool, 4096 // 2 + 1)
    plain = speed_of(plan.assessment.deployment, asked())
    assert plain.load.cache_bytes == cache_read_bytes(pool, 4096)


def test_replicas_of_experts_are_replayed_each():
    """Whole experts are split among replicas, so that a front may not count one engine twice."""
    gpus = parse_gpus("l4:2@8GiB")
    options = asked({**FIXED, "enforce_eager": True, "tensor_parallel_size": 1, "enable_expert_parallel": True},
                    vary=("data-parallel",))  # fmt: skip
    points = front(experts(), gpus, options, VERSION)
    for point in points:
        found = assess(experts(), gpus, point.plan.args, VERSION).estimate
        assert found.per_gpu == point.plan.estimate.per_gpu
    assert {point.plan.args.data_parallel_size for point in points} == {1, 2}


def test_replicas_of_one_engine_are_that_engine_many_times():
    gpus, options = parse_gpus("l4:3@6GiB"), asked({**FIXED, "enforce_eager": True}, vary=("data-parallel",))
    points = front(dense(), gpus, options, VERSION)
    assert {1, 3} <= {point.plan.args.data_parallel_size for point in points}
    for point in points:
        plan = point.plan
        one = assess(dense(), gpus, plan.args.model_copy(update={"data_parallel_size": 1}), VERSION).estimate
        assert plan.estimate.per_gpu == one.per_gpu
        assert one.kv_cache is not None
        assert plan.concurrency % plan.args.data_parallel_size == 0
        assert plan.concurrency == pytest.approx(int(one.kv_cache.max_concurrency) * plan.gpus, abs=plan.gpus)
        assert plan.assessment.config is not None
        assert plan.assessment.config.data_parallel_size == plan.args.data_parallel_size
        assert plan.estimate.engine is not None
        assert plan.estimate.engine.data_parallel_size == plan.args.data_parallel_size


def test_steps_from_a_plan():
    """One step down and up of each ladder, half the length, and layouts that the pool has cards for."""
    gpus = parse_gpus("l4:4@12GiB")
    options = asked({"tensor_parallel_size": 2, "data_parallel_size": 2, "max_num_seqs": 48, "max_model_len": 4097})
    plan = search(dense(), gpus, options, VERSION).plans[0]
    utilization, batched = plan.args.gpu_memory_utilization, plan.args.max_num_batched_tokens
    assert utilization is not None
    assert batched is not None
    offered = {change.flag for change in sensitivity(dense(), gpus, plan, options, VERSION)}
    around = [size for size in (batched // 2, batched * 2) if size in BATCHED_TOKENS]
    assert offered == {
        f"--gpu-memory-utilization {utilization + 0.01:g}", f"--gpu-memory-utilization {utilization - 0.01:g}",
        "--max-num-seqs 32", "--max-num-seqs 64", *(f"--max-num-batched-tokens {size}" for size in around),
        "--max-model-len 2048", "--enforce-eager", "--kv-cache-dtype fp8",
        "--tensor-parallel-size 1 --data-parallel-size 4", "--tensor-parallel-size 1", "--data-parallel-size 1",
        "--tensor-parallel-size 4 --data-parallel-size 1",
    }  # fmt: skip
    wide = parse_gpus("l4:8@12GiB")
    more = {change.flag for change in sensitivity(dense(), wide, plan, options, VERSION)}
    assert more - offered == {"--tensor-parallel-size 4"}


def test_the_parts_that_were_asked_for():
    """Other checkpoints are searched with the same question and join the front by the accuracy that they give up."""
    model, gpus, options = dense(), parse_gpus("l4:1@6GiB"), asked(FIXED)
    result = search(model, gpus, options, VERSION)
    checkpoints = [("unquantized", "same", dense()), ("fp8", "eight", dense(3)), ("awq", "four", dense(2))]
    found = analyse(
        model, gpus, options, VERSION, result, lambda: checkpoints, pareto=True, sensitive=True, variants=True
    )
    assert [item.name for item in found.variants or ()] == ["same", "eight", "four"]
    assert found.near_misses is None
    assert found.sensitivity is not None
    ranks = {point.variant: point.accuracy for point in found.front or ()}
    assert (ranks[""], ranks["eight"], ranks["four"]) == (0, 8, 16)
    assert "same" not in ranks, "it is no better than the model itself"
    assert found.recommended is not None
    lighter = [("unquantized", "lighter", dense(1))]
    other = analyse(model, gpus, options, VERSION, result, lambda: lighter, pareto=True, sensitive=False, variants=True)
    assert {point.accuracy for point in other.front or () if point.variant == "lighter"} == {0}
    alone = analyse(model, gpus, options, VERSION, result, lambda: 1 // 0, pareto=True, sensitive=False, variants=False)
    assert {point.variant for point in alone.front or ()} == {""}
    assert (alone.variants, alone.sensitivity) == (None, None)
    tiny = parse_gpus("l4:1@1GiB")
    nothing = search(model, tiny, options, VERSION)
    missed = analyse(model, tiny, options, VERSION, nothing, tuple, pareto=False, sensitive=True, variants=False)
    assert missed.sensitivity is None
    assert missed.near_misses is not None


def test_the_fewest_cards_that_would_do(monkeypatch):
    """Twice as many in the machine up to eight, then more machines, and no more than 64."""
    pools: list[GpuPool] = []

    def nothing(spec: ModelSpec, gpus: GpuPool, *rest: object) -> SearchResult:
        pools.append(gpus)
        return SearchResult(plans=(), feasible=0, rejected=(), evaluated=0)

    monkeypatch.setattr("planner.search.near_misses.search", nothing)
    for asked_for, expected in (
        ("l4:2@1GiB", ["l4:2@1GiB", "l4:4@1GiB", "l4:8@1GiB", "l4:8x2@1GiB", "l4:8x4@1GiB", "l4:8x8@1GiB"]),
        ("l4:3x4", ["l4:3x4", "l4:6x4", "l4:12x4", "l4:12x8"]),
        ("l4:8x8", ["l4:8x8"]),
    ):
        pools.clear()
        assert near_misses(dense(), parse_gpus(asked_for), asked(FIXED), VERSION) == ()
        assert list(dict.fromkeys(pool.spelling for pool in pools)) == expected
        assert list(dict.fromkeys((pool.count, pool.nodes) for pool in pools)) == [
            (parse_gpus(spelling).count, parse_gpus(spelling).nodes) for spelling in expected
        ]


def test_the_most_requests_are_found_in_few_searches(monkeypatch):
    """Doubled from one, then by halves: whatever fits of the 100 asked for is found, and no more is offered."""
    model, gpus, options = dense(), parse_gpus("l4:1@8GiB"), asked(FIXED, load={"concurrency": 100})
    plan = search(model, gpus, asked(FIXED), VERSION).plans[0]
    tried: list[int] = []
    most = 0

    def up_to(spec: ModelSpec, gpus: GpuPool, options: SearchOptions, *rest: object) -> SearchResult:
        load = options.workload.concurrency or 0
        tried.append(load)
        fits = load <= most and not options.args.enforce_eager and gpus.count == 1 and options.objective != "context"
        return SearchResult(plans=(plan,) if fits else (), feasible=0, rejected=(), evaluated=0)

    monkeypatch.setattr("planner.search.near_misses.search", up_to)
    for most in (0, 1, 2, 3, 31, 32, 33, 63, 64, 98, 99):
        tried.clear()
        found = [miss for miss in near_misses(model, gpus, options, VERSION) if miss.harm == "fewer requests at once"]
        said = [] if not most else ["1 request at once" if most == 1 else f"{most} requests at once"]
        assert [miss.change for miss in found] == said
        assert len([load for load in tried if load < 100]) <= 13
    most = 0
    for load in ({"concurrency": 1}, {"request_rate": 3.0, "concurrency": 100}):
        tried.clear()
        near_misses(model, gpus, asked(FIXED, load=load), VERSION)
        assert set(tried) <= {load["concurrency"]}


def test_flags_are_freed_one_by_one_then_all(monkeypatch):
    """What the user fixed and what changes no answer: each alone, the layout as one, then all soft flags at once."""
    model, gpus = dense(), parse_gpus("l4:1@8GiB")
    given = {
        "gpu_memory_utilization": 0.3, "max_num_seqs": 16, "tensor_parallel_size": 2, "kv_cache_dtype": "auto",
        "max_model_len": 4096,
    }  # fmt: skip
    freed: list[set[str]] = []

    def nothing(spec: ModelSpec, gpus: GpuPool, options: SearchOptions, *rest: object) -> SearchResult:
        freed.append(set(given) - set(options.given))
        return SearchResult(plans=(), feasible=0, rejected=(), evaluated=0)

    monkeypatch.setattr("planner.search.near_misses.search", nothing)
    near_misses(model, gpus, asked(given), VERSION)
    assert freed[:6] == [
        {"gpu_memory_utilization"}, {"max_num_seqs"}, {"tensor_parallel_size"},
        {"gpu_memory_utilization", "max_num_seqs"}, set(), set(),
    ]  # fmt: skip
    assert freed[6] == {"max_model_len"}
