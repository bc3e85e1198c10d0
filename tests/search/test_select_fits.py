"""Verdicts by bounds against the engines that `select` replays."""

from __future__ import annotations

import pytest

from planner import api
from planner.engine.args import EngineArgs
from planner.search.select import select
from planner.search.select_fits import Fit, fits
from planner.search.select_judge import TENSOR_PARALLEL, EngineFit, judge_of
from planner.search.space import SearchOptions, Workload
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


def test_several_models_in_processes_and_one_that_is_refused() -> None:
    names = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "tiiuae/Falcon-Perception")
    request = api.Request(model=names[0], gpus="", offline=True)
    one, two = (api.fits(request, _options(), models=names[1:], only=("t4", "h200"), jobs=jobs) for jobs in (1, 2))
    assert one == two
    assert list(one) == list(names)
    assert isinstance(one[names[2]], str)
    assert all(fit.fits for fit in one[names[0]] if not isinstance(fit, str))
