"""Rules by which a search counts, chooses and refuses, each where it decides."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

import pytest
from msgspec import structs

from planner.engine.args import EngineArgs
from planner.hardware.spec import GpuPool
from planner.memory.assess import assess
from planner.model.spec import ModelSpec
from planner.search.explorer import Explorer, Tally, tally_grid, wanted_concurrency
from planner.search.grid import VERDICTS, candidates_of_a_pair, evaluate, size_pairs
from planner.search.layouts import (
    BLOCK_SIZES,
    cache_dtypes,
    data_parallel_sizes,
    pipeline_parallel_sizes,
    tensor_parallel_sizes,
)
from planner.search.media import media_of, too_long
from planner.search.search import _score_of, all_candidates, search
from planner.search.space import BATCHED_TOKENS, LENGTH_STEPS, SEQUENCES, UTILIZATIONS, SearchOptions
from planner.search.workload import RequestMix, TokenLengths
from planner.sources.gpu_pool import parse_gpus
from planner.units import GIB
from tests.search.small_models import FIXED, asked, dense, experts

VERSION = "0.26.0"


def explored(model: ModelSpec, gpus: GpuPool, options: SearchOptions) -> Explorer:
    return Explorer(model, gpus, options, VERSION, Tally())


def test_what_is_tried():
    """Powers of two with one size between; vLLM's own defaults among them; hundredths from 0.70 to 0.98."""
    powers = {2**power for power in range(15)}
    assert all(size in powers or size * 2 // 3 in powers for size in SEQUENCES)
    assert {1, 128, 256, 1024} <= set(SEQUENCES)
    assert set(BATCHED_TOKENS) == {2048, 4096, 8192, 16384}
    assert (UTILIZATIONS[0], UTILIZATIONS[-1], len(UTILIZATIONS)) == (0.70, 0.98, 29)
    assert BLOCK_SIZES == (32, 64, 128)
    options = asked()
    pairs = size_pairs(explored_config(), options)
    assert len(pairs) == len(set(pairs)) == len(SEQUENCES) * len(BATCHED_TOKENS)
    config = explored_config().model_copy(update={"max_num_seqs": 3000, "max_num_batched_tokens": 64})
    assert size_pairs(config, asked({"max_num_seqs": 3000})) == [(3000, size) for size in BATCHED_TOKENS[1:]]
    fewest = [(size, 64) for size in SEQUENCES if size <= 64]
    assert size_pairs(config, asked({"max_num_batched_tokens": 64})) == fewest


def explored_config() -> Any:
    found = assess(dense(), parse_gpus("l4:1"), EngineArgs(), VERSION).config
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("pool", "given", "expected"),
    [
        ("l4:1", (), (1,)), ("l4:6", (), (1, 2, 4, 6)), ("l4:8", (), (1, 2, 4, 8)), ("l4:8x2", (), (1, 2, 4, 8)),
        ("l4:64", (), (1, 2, 4, 8, 16, 32, 64)), ("l4:8", ("tensor_parallel_size",), (3,)),
    ],
)  # fmt: skip
def test_tensor_parallel_sizes(pool, given, expected):
    options = SearchOptions(args=EngineArgs(tensor_parallel_size=3), given=given)
    assert tensor_parallel_sizes(parse_gpus(pool), options) == expected


@pytest.mark.parametrize(
    ("pool", "tp", "layers", "expected"),
    [
        ("l4:1", 1, 4, ()), ("l4:2", 1, 4, (2,)), ("l4:8", 2, 30, (2, 3, 4)), ("l4:8", 1, 3, (2, 3)),
        ("l4:8x2", 1, 99, (*range(2, 9), 16)), ("l4:9x2", 1, 99, (*range(2, 9), 9, 18)),
        ("l4:10", 1, 99, (*range(2, 9), 10)), ("l4:8x2", 1, 13, (*range(2, 9), 13)),
    ],
)  # fmt: skip
def test_stages(pool, tp, layers, expected):
    """All up to eight that leave each a layer, and of deeper ones those that use every card."""
    assert pipeline_parallel_sizes(parse_gpus(pool), tp, dense(layers=layers)) == expected


@pytest.mark.parametrize(
    ("pool", "tp", "stages", "vary", "expected"),
    [
        ("l4:8", 2, 1, (), (4,)), ("l4:7", 2, 1, (), (3,)), ("l4:8x3", 8, 1, (), (3,)), ("l4:8", 8, 1, (), (1,)),
        ("l4:4x4", 4, 2, (), (2,)), ("l4:4x5", 4, 2, (), (2,)), ("l4:4x3", 4, 2, (), (1,)), ("l4:8", 2, 2, (), (2,)),
        ("l4:8", 1, 1, ("data-parallel",), (1, 2, 4, 8)), ("l4:6", 1, 1, ("data-parallel",), (1, 2, 3, 6)),
        ("l4:2", 2, 1, ("data-parallel",), (1,)), ("l4:4", 2, 1, ("data-parallel",), (1, 2)),
    ],
)  # fmt: skip
def test_replicas(pool, tp, stages, vary, expected):
    """Whole engines on each node, or on as many whole nodes as one needs."""
    options = SearchOptions(vary=vary)
    assert data_parallel_sizes(parse_gpus(pool), options, dense(), tp, stages) == expected
    if not vary:
        assert data_parallel_sizes(parse_gpus(pool), options, experts(), tp, stages) == (1,)
    fixed = SearchOptions(args=EngineArgs(data_parallel_size=5), given=("data_parallel_size",), vary=vary)
    assert data_parallel_sizes(parse_gpus(pool), fixed, dense(), tp, stages) == (5,)


def test_cache_dtypes():
    assert cache_dtypes(asked()) == ("auto", "fp8")
    assert cache_dtypes(asked({"kv_cache_dtype": "fp8_e5m2"})) == ("fp8_e5m2",)


def test_every_layout_of_a_pool_is_a_candidate():
    """For a front: stages that use every card, or those that the user names."""
    gpus, options = parse_gpus("l4:4@20GiB"), asked(FIXED)

    def found(asked_for: SearchOptions) -> list[tuple[int, int, int]]:
        return [
            (one.args.tensor_parallel_size, one.args.pipeline_parallel_size, one.args.data_parallel_size)
            for one in all_candidates(explored(dense(), gpus, asked_for))
        ]

    assert found(options) == [(1, 1, 4), (1, 2, 2), (1, 4, 1), (2, 1, 2), (2, 2, 1), (4, 1, 1)]
    assert found(asked({**FIXED, "pipeline_parallel_size": 2})) == [(1, 2, 1), (2, 2, 1)]
    cards = [one.gpus for one in all_candidates(explored(dense(), gpus, options))]
    assert cards == [4] * 6


def test_candidates_are_counted_by_verdict():
    """Each of utilizations x lengths once; an example of each refusal with the flags of a candidate that met it."""
    model, gpus, options = dense(), parse_gpus("l4:1@4GiB"), asked(FIXED)
    explorer = explored(model, gpus, options)
    candidates = explorer.candidates("auto", 1, 1, 1)
    assert candidates is not None
    grid, tally = candidates.grid, Tally()
    tally_grid(grid, candidates.flags, tally)
    tally_grid(grid, candidates.flags, tally)
    assert tally.evaluated == 2 * grid.verdicts.size == 2 * len(UTILIZATIONS) * len(grid.lengths)
    assert grid.verdicts.size == candidates_of_a_pair(grid.deployment, options)
    assert len(grid.lengths) <= LENGTH_STEPS
    assert tally.feasible == 2 * int((grid.verdicts == 0).sum()) > 0
    assert len(tally.counts) >= 2
    for reason, (example, flags) in tally.examples.items():
        code = VERDICTS.index(reason)
        assert tally.counts[reason] == 2 * int((grid.verdicts == code).sum())
        named = dict(flags)
        place = (
            0, grid.utilizations.tolist().index(named["gpu_memory_utilization"]),
            grid.lengths.tolist().index(named["max_model_len"]),
        )  # fmt: skip
        assert int(grid.verdicts[place]) == code
        assert (named["max_num_seqs"], named["max_num_batched_tokens"]) == (16, 2048)
        assert example.bottleneck == reason
        if reason == "device_memory":
            assert example.need_bytes == int(grid.needed_device_bytes[0, place[1]]) > example.have_bytes == 4 * GIB
        else:
            assert example.need_bytes is example.have_bytes is None


def test_verdicts_are_those_of_the_estimate():
    """Below the margin at which estimates and grids may differ, every candidate starts, or is refused for its cause."""
    model, gpus = dense(), parse_gpus("l4:1@4GiB")
    options = asked({**FIXED, "enforce_eager": True}, load={"concurrency": 3}, confidence="expected", safety_margin=0.0)
    candidates = explored(model, gpus, options).candidates("auto", 1, 1, 1)
    assert candidates is not None
    grid = candidates.grid
    reasons = {"startup_memory": "startup_memory", "kv_cache": "kv_cache", "device_memory": "device_memory"}
    for column in range(0, len(grid.utilizations), 3):
        for index in range(0, len(grid.lengths), 4):
            args = candidates.args.model_copy(
                update={
                    "gpu_memory_utilization": float(grid.utilizations[column]),
                    "max_model_len": int(grid.lengths[index]),
                }
            )
            found = assess(model, gpus, args, VERSION, confidence="expected").estimate
            verdict = VERDICTS[int(grid.verdicts[0, column, index])]
            if verdict is None:
                assert found.starts
                assert found.kv_cache is not None
                assert found.kv_cache.num_gpu_blocks == pytest.approx(int(grid.blocks[0, column]), abs=12)
            elif verdict != "kv_cache":
                assert found.rejection is None or found.rejection.bottleneck == reasons[verdict]


def test_requests_at_once_of_an_objective():
    assert wanted_concurrency(asked()) == 8
    assert wanted_concurrency(asked({"max_model_len": 4096})) == 1
    assert wanted_concurrency(asked(objective="context")) == 1
    assert wanted_concurrency(asked(load={"concurrency": 5})) == 5


def test_lengths_that_are_tried():
    """From the least that will do to the model's own; one where the user or the objective names it."""

    def lengths(options: SearchOptions, model: ModelSpec) -> list[int]:
        candidates = explored(model, parse_gpus("l4:1"), options).candidates("auto", 1, 1, 1)
        assert candidates is not None
        return [int(length) for length in candidates.grid.lengths]

    model = dense()
    found = lengths(asked(FIXED), model)
    assert (found[0], found[-1]) == (512, 32768)
    assert all(length % 256 == 0 for length in found)
    assert lengths(asked(FIXED, load={"min_model_len": 5000}), model)[0] >= 5000
    assert lengths(asked({**FIXED, "max_model_len": 700}), model) == [700]
    assert lengths(asked({**FIXED, "max_model_len": -1}), model) == found
    assert lengths(asked(FIXED, objective="concurrency"), model) == [8192]
    assert lengths(asked(FIXED, objective="concurrency", load={"min_model_len": 9000}), model) == [9000]
    assert lengths(asked(FIXED, objective="concurrency"), dense(longest=4096)) == [4096]
    assert lengths(asked(FIXED), dense(longest=300)) == [300]


def test_a_length_left_to_vllm_is_written_out():
    plan = search(dense(), parse_gpus("l4:1@8GiB"), asked({**FIXED, "max_model_len": -1}), VERSION).plans[0]
    assert plan.args.max_model_len == 32768
    kept = search(dense(), parse_gpus("l4:1@8GiB"), asked({**FIXED, "max_model_len": 5000}), VERSION).plans[0]
    assert kept.args.max_model_len == 5000


def test_a_cache_fixed_by_hand_keeps_the_utilization_out():
    """One utilization is judged, which decides nothing, and none is written."""
    options = asked({**FIXED, "kv_cache_memory_bytes": 1 << 29, "gpu_memory_utilization": 0.5})
    result = search(dense(), parse_gpus("l4:1@8GiB"), options, VERSION)
    assert result.evaluated == LENGTH_STEPS - 1
    (plan,) = result.plans
    assert plan.args.gpu_memory_utilization == 0.5
    assert plan.estimate.per_gpu is not None
    assert plan.estimate.per_gpu.kv_cache_allocated_bytes <= 1 << 29


def test_longer_contexts_come_first():
    """Of two layouts the one with the longer context, whatever both hold; then the one that holds more."""
    gpus = parse_gpus("l4:4@12GiB")
    plans = search(
        dense(layers=24, longest=1 << 20), gpus, asked(FIXED, objective="context", max_plans=9), VERSION
    ).plans
    lengths = [plan.args.max_model_len for plan in plans]
    assert len(set(lengths)) > 1
    assert lengths == sorted(lengths, reverse=True)
    assert [plan.concurrency for plan in plans] != sorted((plan.concurrency for plan in plans), reverse=True)
    same = asked({**FIXED, "max_model_len": 4096}, max_plans=9, vary=("data-parallel",))
    held = [plan.concurrency for plan in search(dense(), gpus, same, VERSION).plans]
    assert held == sorted(held, reverse=True)
    assert len(set(held)) > 1


def test_a_default_load_prefers_vllms_own_sizes():
    """With nothing to gain a plan keeps the defaults, and the number of sequences that the load asks for."""
    roomy = search(dense(longest=2048), parse_gpus("l4:1"), asked({"kv_cache_dtype": "auto"}), VERSION).plans[0]
    assert roomy.estimate.engine is not None
    default = assess(dense(longest=2048), parse_gpus("l4:1"), EngineArgs(), VERSION).config
    assert default is not None
    assert roomy.args.max_num_seqs == min(256, default.max_num_seqs)
    assert roomy.args.max_num_batched_tokens == default.max_num_batched_tokens
    large = search(dense(longest=2048), parse_gpus("h200:1@24GiB"), asked({"kv_cache_dtype": "auto"}), VERSION).plans[0]
    assert large.args.max_num_seqs == 256, "of 1024 by default, which only more requests would use"
    for wanted, seqs in ((1, 1), (3, 4), (65, 96), (2000, 1024)):
        options = asked({"kv_cache_dtype": "auto", "max_model_len": 512}, load={"concurrency": wanted})
        plan = search(dense(longest=2048), parse_gpus("l4:1"), options, VERSION).plans[0]
        assert plan.args.max_num_seqs == seqs, wanted


def test_length_decides_before_requests():
    """Between layouts: a longer context stands before any number of requests of a shorter one."""
    options = asked({**FIXED, "max_model_len": 4096})
    plan = search(dense(), parse_gpus("l4:1@8GiB"), options, VERSION).plans[0]

    def score(length: int, requests: int) -> float:
        estimate = plan.estimate
        assert estimate.engine is not None
        engine = estimate.engine.model_copy(update={"max_model_len": length})
        assessment = replace(plan.assessment, estimate=estimate.model_copy(update={"engine": engine}))
        return _score_of(structs.replace(plan, assessment=assessment, concurrency=requests), options)

    assert score(4096, 1) > score(4080, 5000)
    assert score(4096, 2) > score(4096, 1)
    assert score(8192, 1) > score(4096, 10**9)


def test_more_requests_run_only_as_sequences_let_them():
    """For the concurrency objective: what replicas hold, or their sequences where those are fewer."""
    options = asked({**FIXED, "max_model_len": 4096}, objective="concurrency")
    plan = search(dense(), parse_gpus("l4:2@8GiB"), options, VERSION).plans[0]
    assert plan.args.data_parallel_size == 2
    assert plan.concurrency > 32
    assert _score_of(plan, options) == 32
    assert _score_of(structs.replace(plan, concurrency=31), options) == 31


def test_a_device_may_be_filled_to_its_last_byte():
    given = {**FIXED, "max_model_len": 2048, "kv_cache_memory_bytes": 1 << 30, "gpu_memory_utilization": 0.5}
    options = asked(given, safety_margin=0.0)
    gpus = parse_gpus("l4:1@8GiB")
    roomy = explored(dense(), gpus, options).candidates("auto", 1, 1, 1)
    assert roomy is not None
    needed = int(roomy.grid.needed_device_bytes[0, 0])
    for spare, expected in ((0, None), (-1, "device_memory")):
        tight = gpus.model_copy(update={"gpu": gpus.gpu.model_copy(update={"total_memory_bytes": needed + spare})})
        candidates = explored(dense(), tight, options).candidates("auto", 1, 1, 1)
        assert candidates is not None
        assert VERDICTS[int(candidates.grid.verdicts[0, 0, 0])] == expected


def test_a_layout_that_a_rate_outruns_is_counted_by_its_sizes():
    lengths = RequestMix(prompt=TokenLengths(p50=900, p95=900), output=TokenLengths(p50=100, p95=100))
    for given, sizes in ((FIXED, 1), ({"max_num_batched_tokens": 2048, "kv_cache_dtype": "auto"}, len(SEQUENCES))):
        options = asked(given, load={"request_rate": 1e6, "mix": lengths})
        (refused,) = search(dense(), parse_gpus("l4:1"), options, VERSION).rejected
        assert (refused.reason, refused.count) == ("parallelism", sizes)


def test_the_load_of_replicas_is_shared():
    """Seven requests on two engines: one of them holds four."""
    options = asked({"max_num_batched_tokens": 2048, "kv_cache_dtype": "auto"}, load={"concurrency": 7})
    explorer = explored(dense(longest=1 << 20), parse_gpus("l4:2@8GiB"), options)
    candidates = explorer.candidates("auto", 1, 1, 2)
    assert candidates is not None
    enough = candidates.enough_seqs(options)
    assert [int(size) for size in candidates.grid.seqs[enough]] == [size for size in SEQUENCES if size >= 4]
    assert dict(candidates.flags)["data_parallel_size"] == 2
    alone = explorer.candidates("auto", 1, 1, 1)
    assert alone is not None
    assert "data_parallel_size" not in dict(alone.flags)
    assert (alone.grid.longest <= candidates.grid.longest).all()
    assert (alone.grid.longest < candidates.grid.longest).any()
    assert bool(candidates.enough_seqs(asked()).all())
    huge = candidates.enough_seqs(asked(load={"concurrency": 10**6}))
    assert [int(size) for size in candidates.grid.seqs[huge]] == [1024]


def test_too_heavy_layouts_are_counted_without_their_costs():
    model, options = dense(layers=60, heads=16), asked({"kv_cache_dtype": "auto"})
    result = search(model, parse_gpus("l4:1@6GiB"), options, VERSION)
    (refused,) = result.rejected
    assert refused.reason == "weights"
    assert refused.example.have_bytes == 6 * GIB
    whole = assess(model, parse_gpus("l4:1"), EngineArgs(max_model_len=512), VERSION).estimate.per_gpu
    assert whole is not None
    assert refused.example.need_bytes == whole.weights_memory_bytes
    assert refused.count == len(SEQUENCES) * len(BATCHED_TOKENS) * len(UTILIZATIONS) * (LENGTH_STEPS - 1)


def test_what_a_model_never_takes_is_refused_once():
    """Requests longer than the model, or than --max-model-len, with the flag only where it would help."""
    model = dense(longest=4096)
    none = too_long(model, asked(load={"min_model_len": 4096}))
    assert none is None
    over = too_long(model, asked(load={"min_model_len": 4097}))
    assert over is not None
    assert over.fix == ("smaller or fewer images and videos", "shorter requests")
    assert "context length 4096" in over.message
    fixed = too_long(model, asked({"max_model_len": 1000}, load={"min_model_len": 1001}))
    assert fixed is not None
    assert fixed.fix[0] == "--max-model-len 1001"
    assert "context length 1000" in fixed.message
    both = too_long(model, asked({"max_model_len": 1000}, load={"min_model_len": 5000}))
    assert both is not None
    assert both.fix[0] == "--max-model-len 5000"
    assert too_long(model, asked({"max_model_len": -1}, load={"min_model_len": 4096})) is None
    result = search(model, parse_gpus("l4:1"), asked(load={"min_model_len": 5000}), VERSION)
    assert (result.plans, result.evaluated, result.feasible) == ((), 1, 0)


def test_stated_media_of_concurrent_requests():
    assert media_of(asked()) is None
    none = media_of(asked(load={"images": 0}))
    assert none is not None
    assert (none.images, none.videos) == (0, 0)
    some = media_of(asked(load={"videos": 2, "video_seconds": 4.0, "concurrency": 3}))
    assert some is not None
    assert (some.requests, some.images, some.videos, some.video_seconds) == (3, 0, 2, 4.0)
    assert none.requests > 10**5


@pytest.mark.parametrize(("memory", "concurrency", "margin"), [("4GiB", 3, 0.1), ("3GiB", 1, 0.0), ("5GiB", 40, 0.3)])
def test_a_grid_by_hand(memory, concurrency, margin):
    """Budgets, blocks of 16 tokens, the longest length of so many requests, and refusals in vLLM's order: memory free
    at startup, weights, then the device with its margin, then the cache."""
    options = asked({**FIXED, "max_num_seqs": 64}, load={"concurrency": concurrency}, safety_margin=margin)
    explorer = explored(dense(longest=131072), parse_gpus(f"l4:1@{memory}"), options)
    candidates = explorer.candidates("auto", 1, 1, 1)
    assert candidates is not None
    grid, (costs,) = candidates.grid, explorer.costs.values()
    (stage,), (pool,) = costs.stages, grid.deployment.pool.stages
    total, block = parse_gpus(f"l4:1@{memory}").gpu.total_memory_bytes, pool.bytes_per_block
    assert block == 16 * 4 * 2 * 4 * 128 * 2
    seen = set()
    for column, utilization in enumerate(grid.utilizations.tolist()):
        requested = ceil(total * utilization)
        available = requested - int(stage.non_kv[0])
        blocks = max(available // block, 0)
        assert int(grid.blocks[0, column]) == blocks
        assert int(grid.requests[0, column]) == max(blocks - 1, 0) // (131072 // 16)
        longest = min(16 * ((blocks - 1) // concurrency), 131072) if blocks else 0
        held = int(stage.beside_cache[0]) + int(stage.encoder[0]) + blocks * block
        needed = ceil(max(held, int(stage.profile_peak[0])) * (1 + margin))
        assert int(grid.needed_device_bytes[0, column]) == needed
        late, over = total - int(stage.context[0]) < requested, needed > total and longest > 0
        assert int(grid.longest[0, column]) == (0 if late or needed > total else longest)
        for index, length in enumerate(grid.lengths.tolist()):
            verdict = (
                "startup_memory" if late else "device_memory" if over else "kv_cache" if length > longest else None
            )
            assert VERDICTS[int(grid.verdicts[0, column, index])] == verdict
            seen.add(verdict)
    assert len(seen) > 1


@pytest.mark.parametrize("requests", [2, 30])
def test_a_mix_is_held_by_blocks_beside_the_first(requests):
    """What the requests hold decides and not their number of full lengths; a plan says what it needs and holds."""
    lengths = RequestMix(prompt=TokenLengths(p50=900, p95=900), output=TokenLengths(p50=100, p95=100))
    options = asked({**FIXED, "max_num_seqs": 64}, load={"concurrency": requests, "mix": lengths}, safety_margin=0.0)
    explorer = explored(dense(layers=40), parse_gpus("l4:1@4GiB"), options)
    candidates = explorer.candidates("auto", 1, 1, 1)
    assert candidates is not None
    assert candidates.demand is not None
    grid, (costs,) = candidates.grid, explorer.costs.values()
    needed = int(candidates.demand.blocks.needed(requests, costs.tokens)[0])
    for column in range(len(grid.utilizations)):
        held, late = int(grid.blocks[0, column]) - 1 >= needed, VERDICTS[int(grid.verdicts[0, column, 0])]
        assert (late in (None, "startup_memory", "device_memory")) is held or late == "startup_memory"
        assert int(grid.requests[0, column]) == int(
            candidates.demand.blocks.held(grid.blocks[0, column : column + 1], costs.tokens)[0]
        )
    blocks = grid.blocks.copy()
    blocks[0, :3] = needed, needed + 1, needed + 2
    with_blocks = pytest.MonkeyPatch()
    with_blocks.setattr("planner.search.grid.num_blocks", lambda pool, available: blocks)
    again = evaluate(grid.deployment, costs, options, requests, candidates.demand.blocks)
    with_blocks.undo()
    assert [VERDICTS[int(code)] == "kv_cache" for code in again.verdicts[0, :3, 0]] == [True, False, False]
    plans = search(dense(layers=40), parse_gpus("l4:1@6GiB"), options, VERSION).plans
    assert plans[0].demand is not None
    assert plans[0].demand.held >= plans[0].demand.concurrency == requests


def test_nothing_is_worked_out_for_a_device_that_no_budget_reaches():
    """Weights that the card holds and no budget does: no replay of the startup, and no bytes of the device."""
    explorer = explored(dense(layers=24), parse_gpus("l4:1@1GiB"), asked(FIXED))
    candidates = explorer.candidates("auto", 1, 1, 1)
    assert candidates is not None
    assert not candidates.grid.needed_device_bytes.any()
    assert not any(stage.is_complete for costs in explorer.costs.values() for stage in costs.stages)
    assert not (candidates.grid.verdicts == 0).any()
