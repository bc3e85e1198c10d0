"""Verdicts by bounds against the engines that `select` replays."""

from __future__ import annotations

import pytest

from planner import api
from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.hardware.spec import GpuPool
from planner.memory.allocator import weights_memory_bytes
from planner.memory.assess import deploy
from planner.memory.graphs import cuda_graph_actual_bytes
from planner.memory.runtime import thin
from planner.search.costs import size_costs, whole_graph_bytes
from planner.search.select import select
from planner.search.select_bounds import Engine, Weighed, times_of
from planner.search.select_fits import Fit, fits
from planner.search.select_judge import TENSOR_PARALLEL, EngineFit, judge_of
from planner.search.select_thin import ThinEngine
from planner.search.space import SearchOptions, Workload
from planner.sharding.shard import shard
from planner.sources.hardware_catalog import load_hardware_catalog

CARDS = (
    "t4", "rtx 2080 ti", "v100-16g", "p40", "a10", "a100-40g", "a100-80g", "l20", "rtx 5090", "h100", "h20", "b200",
    "mi300x",
)  # fmt: skip
MODELS = (
    "Qwen/Qwen2.5-1.5B-Instruct",
    "google/gemma-2-9b-it",
    "Qwen/Qwen3-14B-AWQ",
    "Qwen/Qwen3-30B-A3B-FP8",
    "openai/gpt-oss-20b",
    "meta-llama/Meta-Llama-3-70B",
    "Qwen/Qwen2.5-VL-72B-Instruct-AWQ",
    "nvidia/Nemotron-H-56B-Base-8K",
    "google/gemma-4-E2B-it",
    "deepseek-ai/DeepSeek-V3.2",
)


def _options(concurrency: int = 4, **given: object) -> SearchOptions:
    args = EngineArgs(max_model_len=4096).model_copy(update=given)
    return SearchOptions(args=args, given=tuple(given), workload=Workload(concurrency=concurrency))


def _same_as_replayed(name: str, cards: tuple[str, ...], options: SearchOptions) -> list[Fit]:
    """Compares every verdict and layout with engines replayed one by one; gives the verdicts."""
    catalog = load_hardware_catalog()
    gpus = [catalog.find(card) for card in cards]
    model = api.load_spec(api.Request(model=name, gpus="", offline=True))
    found = fits(model, gpus, options, api.DEFAULT_VERSION)
    judge = judge_of(model, gpus, options, api.DEFAULT_VERSION)
    by_name = {gpu.name: gpu for gpu in gpus}
    wanted = options.workload.concurrency or 1
    for fit in found:
        holding = 0
        for tp in TENSOR_PARALLEL if by_name[fit.gpu].vendor == "nvidia" else ():
            engine = judge.engine(by_name[fit.gpu], tp, 1) if tp <= fit.count else None
            if isinstance(engine, EngineFit) and engine.requests * (fit.count // tp) >= wanted:
                holding = tp
                break
        assert (fit.tensor_parallel_size, fit.replicas) == (holding, fit.count // holding if holding else 0), fit
    return list(found)


def test_fits_are_the_choices_of_select_without_a_rejection() -> None:
    gpus = [load_hardware_catalog().find(card) for card in CARDS]
    model = api.load_spec(api.Request(model="Qwen/Qwen3-14B-AWQ", gpus="", offline=True))
    found = fits(model, gpus, _options(concurrency=64), api.DEFAULT_VERSION)
    chosen = select(model, gpus, _options(concurrency=64), api.DEFAULT_VERSION)
    assert [(fit.gpu, fit.count, fit.fits) for fit in found] == [
        (choice.gpu.name, choice.count, choice.engine is not None and choice.rejection is None) for choice in chosen
    ]


@pytest.mark.parametrize("name", MODELS)
def test_bounds_never_contradict_a_replay(name: str) -> None:
    _same_as_replayed(name, CARDS, _options())


@pytest.mark.parametrize(
    "options",
    [
        _options(concurrency=300),
        _options(gpu_memory_utilization=0.8),
        _options(kv_cache_dtype="fp8"),
        _options(kv_cache_memory_bytes=4 << 30),
        _options(enforce_eager=True, max_num_seqs=128),
        _options().model_copy(update={"confidence": "expected"}),
    ],
)
def test_other_workloads_and_flags(options: SearchOptions) -> None:
    found = _same_as_replayed("Qwen/Qwen2.5-7B-Instruct", ("t4", "a10", "l20", "h200"), options)
    assert {fit.fits for fit in found} == {True, False}


def test_most_verdicts_need_no_replay() -> None:
    model = api.load_spec(api.Request(model="Qwen/Qwen2.5-7B-Instruct", gpus="", offline=True))
    found = fits(model, load_hardware_catalog().all(), _options(), api.DEFAULT_VERSION)
    assert sum(fit.evidence == "bounds" for fit in found) > 0.6 * len(found)


@pytest.mark.parametrize(
    ("name", "card", "tp"),
    [
        ("nvidia/Qwen3-235B-A22B-NVFP4", "a10", 16),
        ("openai/gpt-oss-20b", "h200", 1),
        ("deepseek-ai/DeepSeek-V3.2", "b200", 8),
        ("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "t4", 8),
        ("google/gemma-2-9b-it", "l20", 2),
    ],
)
def test_weights_lie_within_the_bounds_of_the_thin_model(name: str, card: str, tp: int) -> None:
    """Experts that post-processing lays into the larger blocks of those it replaces (NVFP4 on 16 ranks) among them."""
    model, gpu = api.load_spec(api.Request(model=name, gpus="", offline=True)), load_hardware_catalog().find(card)
    judge = judge_of(model, [gpu], _options(), api.DEFAULT_VERSION)
    config = judge.with_most_sms(judge.config(gpu, tp, 1))
    whole = shard(model, config)
    weighed = Weighed(thin(model, whole)[0], times_of(whole))
    least, most = weighed.bounds(weighed.split(config))
    exact = weights_memory_bytes(whole)
    assert least <= exact <= most
    assert most - least < 0.2 * exact


@pytest.mark.parametrize("name", ["Qwen/Qwen3-30B-A3B-FP8", "google/gemma-2-9b-it", "Qwen/Qwen2.5-VL-7B-Instruct"])
def test_a_thin_engine_has_the_terms_of_the_whole_one(name: str) -> None:
    model, gpu = api.load_spec(api.Request(model=name, gpus="", offline=True)), load_hardware_catalog().find("h200")
    judge = judge_of(model, [gpu], _options(), api.DEFAULT_VERSION)
    config = judge.shared(judge.config(gpu, 1, 1), gpu)
    found = deploy(model, GpuPool(spelling="h200", gpu=gpu, count=1, nodes=1), judge.with_most_sms(config))
    pair = (config.max_num_seqs, config.max_num_batched_tokens)
    (costs,) = size_costs(found, judge.args, [pair], None).stages
    small = thin(model, found.shares[0])[0]
    engine = Engine.of(config, found.pool, int(costs.context[0]), has_margin=False)
    known = ThinEngine(judge, engine, small, shard(small, judge.with_most_sms(config)))
    weights = int(costs.weights[0])
    assert known.aside.budget == int(costs.non_kv[0]) - weights
    assert known.aside.profile == int(costs.profile_peak[0]) - weights - engine.context
    least, most = known.least_device, known.most_device
    known.add_device()
    held = int(costs.beside_cache[0] + costs.encoder[0])
    assert known.aside.device == held - engine.context - int(costs.non_kv[0])
    assert least <= (known.aside.device or 0) <= most


def test_graphs_of_the_thin_model_count_for_the_whole_one() -> None:
    """Of a model with experts too, whose layers' nodes are larger."""
    for name in ("Qwen/Qwen3-30B-A3B-FP8", "openai/gpt-oss-20b", "google/gemma-2-9b-it"):
        request = api.Request(model=name, gpus="h200:1", offline=True)
        model, gpus = api.load_spec(request), api.load_gpus(request)
        config = resolve(model, gpus.gpu, EngineArgs(max_model_len=8192), request.version)
        (share,) = deploy(model, gpus, config).shares
        whole = cuda_graph_actual_bytes(model, share, config)
        assert whole_graph_bytes(thin(model, share), len(share.layers), config) == whole


def test_several_models_in_processes_and_one_that_is_refused() -> None:
    names = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "tiiuae/Falcon-Perception")
    request = api.Request(model=names[0], gpus="", offline=True)
    one, two = (
        api.matrix(request, _options(), models=names[1:], only=("t4", "h200"), jobs=jobs).found for jobs in (1, 2)
    )
    assert one == two
    assert list(one) == list(names)
    assert isinstance(one[names[2]], str)
    assert all(fit.fits for fit in one[names[0]] if not isinstance(fit, str))
