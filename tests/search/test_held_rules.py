"""What requests hold, and what a workload asks of sizes: each rule on a pool where it decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner import api
from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.memory.assess import Deployment, deploy
from planner.memory.kv_capacity import blocks_for_request
from planner.search.demand import Demands, LayoutDemand, demand_notes, with_request_room
from planner.search.occupancy import MOMENTS, SIMULATED, Occupancy, moments, occupancy, shared_prefix, tokens_in_flight
from planner.search.population import POPULATION, in_flight, longest, means, population, share_above
from planner.search.space import SearchOptions, Workload, ladder
from planner.search.workload import PlanDemand, RequestMix, TokenLengths
from planner.values import Rejection


def deployed(model: str, gpus: str = "h200:8", **flags: object) -> Deployment:
    request = api.Request(model=model, gpus=gpus, offline=True)
    spec, pool = api.load_spec(request), api.load_gpus(request)
    return deploy(spec, pool, resolve(spec, pool.gpu, EngineArgs(**flags), api.DEFAULT_VERSION))  # type: ignore[arg-type]


def fixed(prompt: int, output: int = 1, **more: object) -> RequestMix:
    return RequestMix(prompt=TokenLengths(p50=prompt, p95=prompt), output=TokenLengths(p50=output, p95=output), **more)  # type: ignore[arg-type]


def tailed(**more: object) -> RequestMix:
    return RequestMix(prompt=TokenLengths(p50=900, p95=3000), output=TokenLengths(p50=200, p95=500), **more)  # type: ignore[arg-type]


def held_by(deployment: Deployment, mix: RequestMix) -> Occupancy:
    return occupancy(deployment.pool, deployment.config, mix, moments(mix))


DENSE = deployed("Qwen/Qwen2.5-7B-Instruct", "l20:1", max_model_len=32768)


def test_states_take_the_same_blocks_whatever_the_length():
    """Nemotron-H: a block of each of six groups of states, and blocks of 4128 tokens of one that grows; vLLM keeps no
    prefix beside states."""
    hybrid = deployed("nvidia/Nemotron-H-56B-Base-8K", tensor_parallel_size=8)
    ahead = hybrid.pool.max_concurrent_batches
    for prompt in (100, 4128 - 1 - ahead, 4128 - ahead, 8000):
        held = held_by(hybrid, fixed(prompt))
        each = 6 + -(-(prompt + 1 + ahead) // 4128)
        assert [int(held.needed(requests, np.array([2048]))[0]) for requests in (1, 7, 2000)] == [
            each, 7 * each, 2000 * each,
        ]  # fmt: skip
        assert (held.mean, held.deviation) == (each, 0)
    assert shared_prefix(hybrid.pool, hybrid.config, fixed(8000, shared_prefix_tokens=8000)) == 0
    assert held_by(hybrid, fixed(8000, shared_prefix_tokens=8000)).shared == 0


def test_an_encoders_tokens_are_reserved_by_the_batch():
    """Whisper: cross attention's blocks follow --max-num-batched-tokens, which holds the encoder's output."""
    spoken = deployed("openai/whisper-large-v3", "l20:1")
    held, ahead = held_by(spoken, fixed(40)), spoken.pool.max_concurrent_batches
    assert held.encoder_block_sizes == (16,)
    own = -(-(41 + ahead) // 16)
    for batched in (1500, 1501, 8192):
        each = own + -(-batched // 16)
        assert int(held.needed(5, np.array([batched]))[0]) == 5 * each
        assert int(held.held(np.array([5 * each + 1]), np.array([batched]))[0]) == 5
        assert int(held.held(np.array([5 * each]), np.array([batched]))[0]) == 4
    both = held.held(np.full(2, 2000), np.array([1500, 8192]))
    assert both.tolist() == [1999 // (own + 94), 1999 // (own + 512)]


def test_drafted_tokens_are_held_too():
    plain = held_by(DENSE, fixed(1000))
    drafted = DENSE.config.model_copy(update={"num_speculative_tokens": 40})
    more = occupancy(DENSE.pool, drafted, fixed(1000), moments(fixed(1000)))
    ahead = DENSE.pool.max_concurrent_batches
    assert int(plain.mean) == -(-(1001 + ahead) // 16)
    assert int(more.mean) == -(-(1001 + 41 * ahead) // 16)


def test_windows_hold_their_tokens_and_what_runs_ahead():
    """gpt-oss: half of the groups keep 128 tokens; prompts that are read fill blocks beyond them, once for all."""
    windowed = deployed("openai/gpt-oss-20b", "h200:1", max_model_len=32768)
    groups, ahead = windowed.pool.fullest.groups, windowed.pool.max_concurrent_batches
    near = [group for group in groups if group.window is not None]
    assert near
    held = held_by(windowed, fixed(20000))
    own = sum(
        -(-(20001 + ahead if group.window is None else group.window_tokens + ahead) // group.block_size)
        + group.extra_blocks
        for group in groups
    )
    beyond = sum(-(-ahead * 2048 // group.block_size) for group in near)
    assert [int(held.needed(count, np.array([2048]))[0]) for count in (1, 3)] == [own + beyond, 3 * own + beyond]


def test_a_prefix_is_shared_in_whole_groups_alone():
    """Of windowed groups each request holds its own window, wherever the prefix ends."""
    windowed = deployed("openai/gpt-oss-20b", "h200:1", max_model_len=32768)
    groups = windowed.pool.fullest.groups
    whole = [group for group in groups if group.window is None]
    assert 0 < len(whole) < len(groups)
    assert len({group.block_size for group in groups}) == 1
    block = groups[0].block_size
    alone, shared = (
        held_by(windowed, fixed(20000)),
        held_by(windowed, fixed(20000, shared_prefix_tokens=100 * block + 1)),
    )
    assert (alone.shared, shared.shared) == (0, 100 * len(whole))
    assert alone.mean - shared.mean == 100 * len(whole)


def test_beyond_the_simulated_counts_the_normal_law_takes_over():
    mix = tailed()
    held, rounded = held_by(DENSE, mix), 16
    batched = np.array([2048])
    for requests in (SIMULATED + 1, 5000, 40000):
        by_hand = requests * held.mean + 2.3263478740408408 * held.deviation * requests**0.5
        needed = int(held.needed(requests, batched)[0])
        assert needed == int(np.ceil(by_hand))
        assert int(held.held(np.array([needed + 1]), batched)[0]) == requests
        assert int(held.held(np.array([needed]), batched)[0]) == requests - 1
    contexts = moments(mix)
    tokens = np.ceil(contexts / rounded) * rounded
    many = 3000 * tokens.mean() + 2.3263478740408408 * tokens.std() * 3000**0.5
    assert tokens_in_flight(mix, contexts, 3000, rounded) == int(many)
    few = tokens.reshape(MOMENTS, SIMULATED)[:, :7].sum(axis=1)
    assert tokens_in_flight(mix, contexts, 7, rounded) == sorted(few)[-(MOMENTS // 100) - 1]
    last = tokens_in_flight(mix, contexts, SIMULATED, rounded)
    assert last == pytest.approx(tokens_in_flight(mix, contexts, SIMULATED + 1, rounded), rel=0.01)


def test_a_higher_percentile_needs_more():
    needed = [
        int(held_by(DENSE, tailed(percentile=percent)).needed(count, np.array([2048]))[0])
        for count in (4, 3000)
        for percent in (50.0, 90.0, 99.0, 99.9)
    ]
    assert needed[:4] == sorted(set(needed[:4]))
    assert needed[4:] == sorted(set(needed[4:]))


def test_the_first_block_is_given_to_no_request():
    held = held_by(DENSE, fixed(10))
    assert held.mean == 1
    assert held.held(np.array([0, 1, 2, 3, 5001]), np.array([2048] * 5)).tolist() == [0, 0, 1, 2, 5000]


def test_only_whole_blocks_of_a_prefix_are_shared():
    for tokens, blocks in ((15, 0), (16, 1), (1000, 62)):
        mix = fixed(1000, shared_prefix_tokens=tokens)
        assert shared_prefix(DENSE.pool, DENSE.config, mix) == 16 * blocks
        held, alone = held_by(DENSE, mix), held_by(DENSE, fixed(1000 + (tokens >= 1000)))
        assert held.shared == blocks
        assert held.mean + held.shared == alone.mean


def test_prompts_hold_their_prefix_their_media_and_a_token():
    prompts, outputs = population(fixed(10, 5, shared_prefix_tokens=30, media_tokens=7))
    assert (prompts.tolist(), outputs.tolist()) == ([30 + 1 + 7], [5])
    assert longest(fixed(100, 50, media_tokens=7)) == 157
    assert longest(fixed(100, 50, limit=120)) == 120
    prompts, outputs = population(fixed(100, 50, limit=120))
    assert (prompts.tolist(), outputs.tolist()) == ([100], [20])
    prompts, outputs = population(fixed(100, 50, limit=90))
    assert (prompts.tolist(), outputs.tolist()) == ([89], [1])
    assert means(fixed(100, 50)) == (100.0, 50.0)
    assert share_above(fixed(100, 50), 149) == 1.0
    assert share_above(fixed(100, 50), 150) == 0.0


def test_drawn_lengths_are_lognormal_and_cut_at_one_in_a_thousand():
    prompts, outputs = population(tailed())
    assert len(prompts) == len(outputs) == POPULATION
    assert prompts.min() >= 1
    assert outputs.min() >= 1
    assert np.percentile(outputs, 95) == pytest.approx(500, rel=0.03)
    logs = np.log(outputs[outputs < np.percentile(outputs, 99)])
    assert np.median(logs) == pytest.approx(np.log(200), abs=0.01)
    assert share_above(tailed(), longest(tailed())) == pytest.approx(0.001, abs=0.0002)
    assert int((prompts + outputs).max()) == longest(tailed())


def test_a_moment_meets_requests_anywhere_in_their_answers():
    contexts = in_flight(fixed(100, 1000), 50_000)
    assert (int(contexts.min()), int(contexts.max())) == (101, 1100)
    assert contexts.mean() == pytest.approx(100 + 500.5, rel=0.01)
    assert np.percentile(contexts, 25) == pytest.approx(350, rel=0.02)


HELD = held_by(DENSE, fixed(1000))
PAIRS = [(seqs, tokens) for seqs in (4, 16, 64) for tokens in (2048, 4096)]


def sized(requests: int, least: int, *given: str, pairs: list[tuple[int, int]] = PAIRS) -> list[tuple[int, int]] | None:
    found, kept = LayoutDemand(requests, None, HELD, least).sized(SearchOptions(given=given), pairs)
    return None if isinstance(found, Rejection) else kept


def test_sizes_that_serve_a_workload():
    """Enough sequences for all requests, and batches in which prompts keep pace; larger ones where none is offered,
    but what the user fixed stays."""
    both = (2048, 4096)
    assert sized(16, 1000) == [(seqs, tokens) for seqs in (16, 64) for tokens in both]
    assert sized(17, 2048) == [(64, tokens) for tokens in both]
    assert sized(64, 2049) == [(64, 4096)]
    assert sized(65, 4096) == [(65, 4096)]
    assert sized(65, 4097) == [(65, 5120)]
    assert sized(65, 5120) == [(65, 5120)]
    assert sized(5000, 1000) == [(5000, 5120)]
    assert sized(5120, 1000) == [(5120, 5120)]
    assert sized(16, 4097, "max_num_batched_tokens") == [(seqs, tokens) for seqs in (16, 64) for tokens in both]
    assert sized(3000, 10, "max_num_batched_tokens") == [(3000, 4096)]
    assert sized(64, 10, "max_num_seqs", pairs=[(64, 2048)]) == [(64, 2048)]
    assert sized(65, 10, "max_num_seqs", pairs=[(64, 2048)]) is None


def demand(mix: RequestMix, replicas: int = 1, default: int = 8, **load: object) -> LayoutDemand | Rejection:
    workload = Workload(mix=mix, **load)  # type: ignore[arg-type]
    return Demands(mix, SearchOptions(workload=workload)).of(DENSE, replicas, default)


def test_replicas_share_the_requests_and_prompts_set_the_pace():
    """Of 1000 tokens of prompt to 200 of answer each step decodes one and reads five for each request; a prefix that
    is kept is not read again."""
    found = demand(fixed(1000, 200), replicas=3, concurrency=10)
    assert isinstance(found, LayoutDemand)
    assert (found.requests, found.interval, found.least_tokens) == (4, None, 4 * 6)
    assert demand(fixed(1000, 200), default=8).requests == 8
    kept = demand(fixed(1000, 200, shared_prefix_tokens=600), concurrency=10)
    assert kept.least_tokens == 10 * (1 + 408 / 200) // 1 + 1
    whole = demand(fixed(1600, 200, shared_prefix_tokens=1600), concurrency=10)
    assert whole.least_tokens == 11


def test_littles_law_at_the_slow_and_the_fast_end():
    """As many requests as arrive while one is served, whether engines are a third slower or faster than expected."""
    from planner.search.roofline import cache_read_bytes, decode_tokens_per_s, engine_load, prefill_tokens_per_s

    mix, rate = fixed(1000, 200), 1.5
    found = demand(mix, replicas=2, request_rate=2 * rate)
    assert isinstance(found, LayoutDemand)
    context = round(float(moments(mix).mean()))
    load, gpu = engine_load(DENSE), DENSE.gpus.gpu
    load = replace(load, cache_bytes=cache_read_bytes(DENSE.pool, context))
    prefill = prefill_tokens_per_s(load, gpu, DENSE.config.dtype)

    def served(speed: float, requests: int) -> float:
        step = requests / (decode_tokens_per_s(load, gpu, DENSE.config.dtype, requests) * speed)
        reading = 1000 / (prefill * speed)
        return rate * (reading + 200 * step / (1 - rate * reading))

    assert found.interval == (found.interval[0], found.requests)
    for speed, requests in ((4 / 3, found.interval[0]), (2 / 3, found.requests)):
        assert served(speed, requests) <= requests
        assert served(speed, requests - 1) > requests - 1
    assert found.interval[0] < found.requests


def test_a_rate_that_only_a_fast_engine_keeps_up_with_is_refused():
    from planner.search.roofline import engine_load, prefill_tokens_per_s

    prefill = prefill_tokens_per_s(engine_load(DENSE), DENSE.gpus.gpu, DENSE.config.dtype)
    assert prefill is not None
    assert isinstance(demand(fixed(1000, 1), request_rate=0.6 * prefill / 1000), LayoutDemand)
    assert isinstance(demand(fixed(1000, 1), request_rate=0.7 * prefill / 1000), Rejection)


def test_a_slow_rate_needs_one_request():
    found = demand(fixed(1000, 200), request_rate=0.001)
    assert isinstance(found, LayoutDemand)
    assert (found.requests, found.interval) == (1, (1, 1))


def test_a_rate_that_prompts_alone_fill_is_refused():
    refused = demand(fixed(30000, 10), replicas=2, request_rate=20.0)
    assert isinstance(refused, Rejection)
    assert refused.bottleneck == "parallelism"
    assert "2 engine(s)" in refused.message
    assert "20 requests a second" in refused.message


def options(mix: RequestMix, **more: object) -> SearchOptions:
    length = more.get("max_model_len")
    return SearchOptions(
        workload=Workload(mix=mix, min_model_len=more.get("least", 1)),
        args=EngineArgs(max_model_len=length),
        given=() if length is None else ("max_model_len",),
    )  # type: ignore[arg-type]


def test_lengths_hold_the_longest_request():
    """A fitted distribution is cut to what the model or the user takes; fixed lengths are not."""
    model = DENSE.model
    for asked, limit, least in (
        (options(fixed(1000, 50)), None, 1050),
        (options(fixed(1000, 50), max_model_len=900), None, 1050),
        (options(fixed(1000, 50), least=4000), None, 4000),
        (options(tailed(), max_model_len=2000), 2000, 2000),
        (options(tailed(), max_model_len=1), None, longest(tailed())),
        (options(tailed(), max_model_len=-1), model.derived_max_model_len, longest(tailed())),
        (options(tailed()), model.derived_max_model_len, longest(tailed())),
    ):
        found = with_request_room(model, asked).workload
        assert (found.mix.limit, found.min_model_len) == (limit, least)
    plain = SearchOptions()
    assert with_request_room(model, plain) is plain


def test_what_a_demand_is_told_as():
    needs = PlanDemand(
        concurrency=12, concurrency_interval=(9, 12), percentile=99.0, longest_request_tokens=8000,
        needed_kv_tokens=20000, mean_kv_tokens=15000, shared_prefix_tokens=160, needed_blocks=99, max_num_seqs=6,
        max_num_batched_tokens=70,
    )  # fmt: skip
    lines = demand_notes(tailed(), needs)
    assert len(lines) == 4
    assert "12 at once hold 20,000 tokens of cache at 99 %" in lines[0]
    assert "--max-num-seqs 6" in lines[1]
    assert "longer and cut" in lines[1]
    assert "133% to 67% of the expected speed: 9 to 12 requests at once; the plan holds 12" in lines[2]
    assert lines[3].startswith("160 tokens of the shared prefix")
    plain = needs.model_copy(update={"concurrency_interval": None, "shared_prefix_tokens": 0})
    assert len(demand_notes(fixed(1000, 50), plain)) == 2
    assert "cut" not in demand_notes(fixed(1000, 50), plain)[1]


def test_a_summary_counts_all_replicas():
    """Two engines of a plan: what one needs in blocks and sizes, what both hold in tokens and requests."""
    mix = fixed(1000, 200)
    asked = Demands(mix, SearchOptions(workload=Workload(concurrency=10, mix=mix)))
    found = asked.of(DENSE, 2, 1)
    assert isinstance(found, LayoutDemand)
    each = int(found.blocks.needed(5, np.array([DENSE.config.max_num_batched_tokens]))[0])
    told = asked.summary(DENSE, found, 2, each + 1, 64)
    assert (told.concurrency, told.concurrency_interval, told.max_num_seqs, told.needed_blocks) == (
        10,
        None,
        5,
        each + 1,
    )
    assert told.held == 10
    assert asked.summary(DENSE, found, 2, each, 64).held == 8
    assert asked.summary(DENSE, found, 2, 100_000, 6).held == 12
    assert told.mean_kv_tokens == round(10 * float(moments(mix).mean()))
    assert told.needed_kv_tokens == 2 * tokens_in_flight(mix, moments(mix), 5, 16)
    rated = replace(found, interval=(3, 5))
    assert asked.summary(DENSE, rated, 2, each + 1, 64).concurrency_interval == (6, 10)
    most = int(blocks_for_request(DENSE.pool, 1200 + DENSE.pool.max_concurrent_batches, 2048))
    assert each <= 5 * most


def test_a_ladder_of_lengths_climbs_in_equal_ratios():
    assert ladder(512, 8192, 5, 256) == (512, 1024, 2048, 4096, 8192)
    assert ladder(600, 9600, 5, 256) == (1024, 2304, 4608, 9600)
    assert ladder(500, 500, 5, 256) == ladder(900, 500, 5, 256) == (500,)
    assert ladder(100, 102, 2, 1) == (100, 102)
