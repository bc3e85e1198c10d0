"""Length distributions, the cache that requests in flight hold, and what a rate means for concurrency."""

from __future__ import annotations

import numpy as np
import pytest

from planner.engine.args import EngineArgs
from planner.errors import UnsupportedError
from planner.memory.assess import Deployment, assess
from planner.memory.kv_capacity import blocks_for_request
from planner.model.build import build_model
from planner.model.spec import ModelFiles
from planner.search.demand import Demands, LayoutDemand
from planner.search.occupancy import moments, occupancy, shared_prefix
from planner.search.population import in_flight, longest, means, population, share_above
from planner.search.search import search
from planner.search.sensitivity import sensitivity
from planner.search.space import SearchOptions, Workload
from planner.search.workload import RequestMix, TokenLengths
from planner.sources.gpu_pool import parse_gpus

VERSION = "0.26.0"


def fixed(tokens: int) -> TokenLengths:
    return TokenLengths(p50=tokens, p95=tokens)


def mix(prompt: TokenLengths | None = None, output: TokenLengths | None = None, **more: object) -> RequestMix:
    return RequestMix(prompt=prompt or fixed(1000), output=output or fixed(200), **more)


def deployment(window: int | None = None, gpus: str = "l4:1", **flags: object) -> Deployment:
    config = {
        "architectures": ["Gemma2ForCausalLM" if window else "LlamaForCausalLM"],
        "model_type": "gemma2" if window else "llama", "hidden_size": 512, "intermediate_size": 2048,
        "num_attention_heads": 8, "num_hidden_layers": 4, "num_key_value_heads": 4, "vocab_size": 32000, "head_dim": 64,
        "max_position_embeddings": 65536, "torch_dtype": "bfloat16", "hidden_act": "silu",
        **({"sliding_window": window, "query_pre_attn_scalar": 64, "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": ["sliding_attention", "full_attention"] * 2} if window else {}),
    }  # fmt: skip
    args = EngineArgs(max_model_len=32768, **flags)
    found = assess(build_model(ModelFiles(name="tiny", config=config)), parse_gpus(gpus), args, VERSION)
    assert found.deployment is not None
    return found.deployment


def test_a_fitted_distribution_has_its_median_and_95th_percentile():
    prompts, outputs = population(mix(TokenLengths(p50=800, p95=6000)))
    assert np.median(prompts) == pytest.approx(800, rel=0.02)
    assert np.percentile(prompts, 95) == pytest.approx(6000, rel=0.03)
    assert (outputs == 200).mean() > 0.99


def test_what_is_measured_counts_alone():
    measured = mix(sample=((10, 5), (3000, 700), (20, 0)))
    assert longest(measured) == 3700
    assert means(measured) == (1010.0, pytest.approx((5 + 700 + 1) / 3))


def test_long_answers_are_met_more_often():
    """Nine answers of 10 tokens to one of 910: at a random moment the long one is there 91 % of the time."""
    pairs = ((100, 10),) * 9 + ((5000, 910),)
    contexts = in_flight(mix(sample=pairs), 100_000)
    assert (contexts > 5000).mean() == pytest.approx(0.91, abs=0.01)
    decoded = contexts[contexts > 5000] - 5000
    assert decoded.mean() == pytest.approx(455, rel=0.02)
    assert contexts.max() <= longest(mix(sample=pairs))


def test_fixed_lengths_without_answers_hold_exactly_their_blocks():
    one = deployment()
    exact = mix(fixed(1599), fixed(1))
    held = occupancy(one.pool, one.config, exact, moments(exact))
    ahead = one.pool.max_concurrent_batches
    each = int(blocks_for_request(one.pool, 1600 + ahead, 2048))
    for requests in (1, 7, 500, 3000):
        assert int(held.needed(requests, np.array([2048]))[0]) == requests * each
        assert int(held.held(np.array([requests * each + 1]), np.array([2048]))[0]) == requests


def test_the_percentile_lies_between_the_mean_and_the_longest():
    one, lengths = deployment(), mix(TokenLengths(p50=800, p95=6000), TokenLengths(p50=200, p95=900))
    held = occupancy(one.pool, one.config, lengths, moments(lengths))
    most = int(blocks_for_request(one.pool, longest(lengths), 2048))
    batched = np.array([2048])
    for requests in (2, 16, 200):
        needed = int(held.needed(requests, batched)[0])
        assert held.mean * requests < needed < most * requests
    shares = [int(held.needed(requests, batched)[0]) / (held.mean * requests) for requests in (4, 64, 1000)]
    assert shares == sorted(shares, reverse=True), "the more requests, the nearer to their mean"
    beyond = int(held.needed(1025, batched)[0])
    assert beyond == pytest.approx(int(held.needed(1024, batched)[0]), rel=0.01)


def test_held_is_the_inverse_of_needed():
    one, lengths = deployment(window=1024), mix(TokenLengths(p50=800, p95=6000))
    held, batched = occupancy(one.pool, one.config, lengths, moments(lengths)), np.array([8192])
    for requests in (1, 3, 50, 1000, 5000):
        blocks = held.needed(requests, batched) + 1
        assert abs(int(held.held(blocks, batched)[0]) - requests) <= requests // 1000
        assert int(held.held(blocks - 1, batched)[0]) <= requests


def test_windows_bound_what_long_requests_hold():
    full, windowed = deployment(), deployment(window=1024)
    long = mix(fixed(30000), fixed(100))
    batched = np.array([2048])
    held = occupancy(windowed.pool, windowed.config, long, moments(long))
    whole = int(blocks_for_request(windowed.pool, 30100, 2048))
    assert int(held.needed(100, batched)[0]) < 100 * whole
    assert held.window_block_sizes
    assert not occupancy(full.pool, full.config, long, moments(long)).window_block_sizes


def test_a_shared_prefix_is_held_once():
    one = deployment()
    alone, shared = mix(fixed(4000)), mix(fixed(4000), shared_prefix_tokens=3000)
    batched, requests = np.array([2048]), 50
    saved = [
        int(occupancy(one.pool, one.config, each, moments(each)).needed(requests, batched)[0])
        for each in (alone, shared)
    ]
    prefix = 3000 // one.pool.block_size
    assert saved[0] - saved[1] == (requests - 1) * prefix
    assert shared_prefix(one.pool, one.config, shared) == prefix * one.pool.block_size
    off = one.config.model_copy(update={"enable_prefix_caching": False})
    assert shared_prefix(one.pool, off, shared) == 0


def test_a_distribution_is_cut_to_the_model():
    lengths = mix(TokenLengths(p50=8000, p95=100_000))
    cut = lengths.model_copy(update={"limit": 32768})
    assert longest(lengths) > 65536
    assert longest(cut) == 32768
    prompts, outputs = population(cut)
    assert int((prompts + outputs).max()) == 32768
    assert 0.1 < share_above(cut, 32768) < 0.3


def demand(rate: float, replicas: int = 1, gpus: str = "l4:1") -> LayoutDemand | str:
    options = SearchOptions(workload=Workload(request_rate=rate, mix=mix()))
    found = Demands(mix(), options).of(deployment(gpus=gpus), replicas, 1)
    return found if isinstance(found, LayoutDemand) else found.message


def test_littles_law():
    slow, fast = demand(1.0), demand(40.0)
    assert isinstance(slow, LayoutDemand)
    assert isinstance(fast, LayoutDemand)
    assert slow.interval is not None
    assert slow.interval[0] <= slow.interval[1] == slow.requests < fast.requests
    halves = demand(40.0, replicas=2)
    assert isinstance(halves, LayoutDemand)
    assert halves.requests < fast.requests
    assert "fall behind" in str(demand(1e6))


def test_a_rate_needs_a_card_whose_speed_is_known():
    one = deployment()
    blind = one.gpus.gpu.model_copy(update={"memory_bandwidth_bytes_per_s": None})
    from dataclasses import replace

    unknown = replace(one, gpus=one.gpus.model_copy(update={"gpu": blind}))
    with pytest.raises(UnsupportedError, match="give --concurrency instead"):
        Demands(mix(), SearchOptions(workload=Workload(request_rate=1.0, mix=mix()))).of(unknown, 1, 1)


def test_a_plan_holds_its_workload():
    lengths = mix(TokenLengths(p50=800, p95=6000), TokenLengths(p50=200, p95=900))
    one = deployment()
    options = SearchOptions(workload=Workload(concurrency=40, mix=lengths))
    plans = search(one.model, parse_gpus("l4:2@6GiB"), options, VERSION).plans
    assert plans
    for plan in plans:
        needs = plan.demand
        assert needs is not None
        assert needs.concurrency >= 40
        assert needs.held >= needs.concurrency
        assert needs.mean_kv_tokens < needs.needed_kv_tokens
        assert plan.args.max_model_len is not None
        assert plan.args.max_model_len >= needs.longest_request_tokens
        assert (plan.args.max_num_seqs or 0) * plan.args.data_parallel_size >= 40
        cache = plan.estimate.kv_cache
        assert cache is not None
        assert cache.num_gpu_blocks >= needs.needed_blocks


def test_too_few_sequences_are_refused():
    args = EngineArgs(max_num_seqs=8)
    options = SearchOptions(args=args, given=("max_num_seqs",), workload=Workload(concurrency=40, mix=mix()))
    result = search(deployment().model, parse_gpus("l4:1"), options, VERSION)
    assert result.plans == ()
    assert result.rejected[0].reason == "flag"
    assert "--max-num-seqs 40" in result.rejected[0].example.fix


def test_requests_longer_than_the_model_are_refused():
    long = mix(sample=((100_000, 5),))
    result = search(deployment().model, parse_gpus("l4:1"), SearchOptions(workload=Workload(mix=long)), VERSION)
    assert result.plans == ()
    assert result.rejected[0].reason == "max_model_len"


def test_a_flag_is_worth_requests_of_the_workload():
    """Half the length frees nothing for requests that are short anyway."""
    one, gpus = deployment(), parse_gpus("l4:1@6GiB")
    options = SearchOptions(workload=Workload(concurrency=40, mix=mix()))
    plan = search(one.model, gpus, options, VERSION).plans[0]
    changes = {change.flag: change for change in sensitivity(one.model, gpus, plan, options, VERSION)}
    length = plan.args.max_model_len
    assert length is not None
    assert changes[f"--max-model-len {length // 2}"].requests == 0
    assert (changes["--kv-cache-dtype fp8"].requests or 0) > 40
