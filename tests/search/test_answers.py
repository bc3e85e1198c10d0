"""Whole answers of small searches, figure by figure: `pytest --rewrite` writes them anew, read the difference then.

Each is small enough to be read; what the figures must satisfy is tested in the other files here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.engine.args import EngineArgs
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.search.near_misses import near_misses
from planner.search.pareto import Point, front
from planner.search.plan import Plan
from planner.search.recommend import recommendations
from planner.search.search import search
from planner.search.sensitivity import sensitivity
from planner.search.space import SearchOptions
from planner.search.workload import RequestMix, TokenLengths
from planner.sources.gpu_pool import parse_gpus
from planner.sources.load import load_model
from tests.search.small_models import asked, dense, experts

VERSION = "0.26.0"
CONFIGS = Path(__file__).parents[1] / "data" / "configs"


def windowed() -> ModelSpec:
    config = {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 1024, "intermediate_size": 4096,
        "num_attention_heads": 8, "num_hidden_layers": 6, "num_key_value_heads": 4, "vocab_size": 32000,
        "head_dim": 128, "max_position_embeddings": 32768, "torch_dtype": "bfloat16", "sliding_window": 1024,
        "query_pre_attn_scalar": 128, "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention", "full_attention"] * 3,
    }  # fmt: skip
    return build_model(ModelFiles(name="windowed", config=config))


def sees() -> ModelSpec:
    return build_model(load_model(str(CONFIGS / "Qwen__Qwen2.5-VL-7B-Instruct")))


def mix(**more: Any) -> RequestMix:
    return RequestMix(prompt=TokenLengths(p50=700, p95=2100), output=TokenLengths(p50=150, p95=300), **more)


SIZES = {"max_num_seqs": 64, "max_num_batched_tokens": 4096}
ONE_SIZE = {**SIZES, "kv_cache_dtype": "auto"}
QUESTIONS: dict[str, tuple[Any, str, SearchOptions]] = {
    "defaults": (dense, "l4:2@6GiB", asked(safety_margin=0.05)),
    "longest": (dense, "l4:2@5GiB", asked(load={"concurrency": 33}, objective="context", confidence="expected")),
    "most": (dense, "l4:4@6GiB", asked(objective="concurrency", safety_margin=0.2)),
    "one size": (dense, "l4:1@4GiB", asked({**ONE_SIZE, "enforce_eager": True}, load={"min_model_len": 4096})),
    "one length": (dense, "l4:2@6GiB", asked({**ONE_SIZE, "max_model_len": 6000}, load={"concurrency": 50})),
    "at a size": (dense, "l4:1@4GiB", asked({**ONE_SIZE, "max_model_len": -1}, objective="concurrency")),
    "fixed": (dense, "l4:3@8GiB", asked({"max_model_len": 4096, "gpu_memory_utilization": 0.7})),
    "cache by hand": (dense, "l4:1@8GiB", asked({"kv_cache_memory_bytes": 700 << 20, "gpu_memory_utilization": 0.6})),
    "odd heads": (lambda: dense(heads=6, kv_heads=2), "l4:4@6GiB", asked(load={"min_model_len": 9000})),
    "stages": (lambda: dense(130, 16), "l4:3x2@16GiB", asked({"tensor_parallel_size": 1, **ONE_SIZE})),
    "deep": (lambda: dense(130, 16), "l4:1x3@16GiB", asked({"enforce_eager": True, **SIZES}, objective="context")),
    "no graphs": (dense, "l4:1@4GiB", asked({**SIZES, "kv_cache_dtype": "fp8"}, vary=("eager", "block-size"))),
    "split experts": (experts, "l4:2@8GiB", asked(SIZES, vary=("expert-parallel", "data-parallel"), max_plans=9)),
    "windows": (windowed, "l4:2@6GiB", asked(load={"concurrency": 12, "mix": mix()})),
    "a rate": (dense, "l4:2@6GiB", asked(load={"request_rate": 30.0, "mix": mix(shared_prefix_tokens=400)})),
    "measured": (dense, "l4:1@4GiB", asked(load={"mix": mix(sample=((900, 30), (20, 400), (5000, 1)))})),
    "an image": (sees, "l20:1", asked(SIZES, vary=("pixels",))),
    "a video": (sees, "l20:2", asked(load={"videos": 1, "images": 2, "video_seconds": 6.0, "concurrency": 3})),
}  # fmt: skip


def flags(args: EngineArgs) -> str:
    default = EngineArgs()
    names = [name for name in args.__struct_fields__ if getattr(args, name) != getattr(default, name)]
    return " ".join(f"{name}={getattr(args, name)}" for name in names)


def told(plan: Plan) -> dict[str, Any]:
    found = {"flags": flags(plan.args), "concurrency": plan.concurrency, "headroom_bytes": plan.headroom_bytes}
    return found if plan.demand is None else found | {"demand": json.dumps(plan.demand.model_dump(mode="json"))}


def shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6g}"


@pytest.mark.parametrize("name", QUESTIONS)
def test_plans_and_what_each_flag_is_worth(name, golden):
    model, pool, options = QUESTIONS[name]
    spec, gpus = model(), parse_gpus(pool)
    found = search(spec, gpus, options, VERSION)
    worth = sensitivity(spec, gpus, found.plans[0], options, VERSION) if found.plans else ()
    answer = {
        "plans": [told(plan) for plan in found.plans],
        "counts": f"{found.feasible} of {found.evaluated}",
        "rejected": [
            f"{item.count} {item.reason}: {item.example.message} {item.example.need_bytes} {item.example.have_bytes} "
            f"{item.flags}"
            for item in found.rejected
        ],
        "notes": found.notes,
        "worth": [
            f"{item.flag}: {item.refused}" if item.refused is not None
            else f"{item.flag}: cache {item.kv_cache_bytes} device {item.headroom_bytes} tokens {item.tokens} "
            f"requests {item.requests} speed {shown(item.tokens_per_s)} $ {shown(item.usd_per_hour)}"
            + ("" if item.within_margin else ", margin broken")
            for item in worth
        ],
    }  # fmt: skip
    golden(f"search/{name.replace(' ', '_')}.json", answer)


FRONTS = {
    "a card": (dense, "l4:1@4GiB", asked(SIZES)),
    "layouts": (dense, "l4:2@6GiB", asked({"enforce_eager": True, "max_num_seqs": 64, "kv_cache_dtype": "auto"})),
    "two lengths": (dense, "l4:1@4GiB", asked({**ONE_SIZE, "enforce_eager": True}, load={"min_model_len": 16384})),
    "stages": (lambda: dense(12), "l4:2@8GiB", asked({**ONE_SIZE, "pipeline_parallel_size": 2, "max_model_len": 8192})),
    "experts": (experts, "l4:2@8GiB", asked({**ONE_SIZE, "max_model_len": 8192}, vary=("data-parallel",))),
    "lengths": (windowed, "l4:1@4GiB", asked(SIZES, load={"concurrency": 12, "mix": mix()})),
}


@pytest.mark.parametrize("name", FRONTS)
def test_fronts_and_recommendations(name, golden):
    model, pool, options = FRONTS[name]
    points = front(model(), parse_gpus(pool), options, VERSION)

    def line(point: Point | None) -> str:
        if point is None:
            return "none"
        return (
            f"{flags(point.plan.args)} holds {point.plan.concurrency}: {point.accuracy} {point.context} "
            f"{point.requests} {shown(point.tokens_per_s)} {shown(point.usd_per_hour)} "
            f"{shown(point.usd_per_million_tokens)} {point.plan.headroom_bytes}"
        )

    best = {
        item.objective: [item.figure, line(item.best), line(item.next_best), shown(item.loses)]
        for item in recommendations(points)
    }
    golden(f"search/front_{name.replace(' ', '_')}.json", {"front": [line(point) for point in points], "best": best})


MISSES = {
    "load": (dense, "l4:1@4GiB", asked({**SIZES, "max_model_len": 16384}, load={"concurrency": 40})),
    "budget": (dense, "l4:1@4GiB", asked({**SIZES, "gpu_memory_utilization": 0.12, "kv_cache_dtype": "auto"})),
    "layout": (dense, "l4:2@4GiB", asked({**SIZES, "tensor_parallel_size": 2, "enforce_eager": True})),
    "cards": (lambda: dense(130, 16), "l4:1@16GiB", asked({**SIZES, "kv_cache_dtype": "fp8"})),
    "images": (sees, "l20:1@21GiB", asked({**SIZES, "max_model_len": 4096}, load={"concurrency": 1})),
}


@pytest.mark.parametrize("name", MISSES)
def test_nearest_misses(name, golden):
    model, pool, options = MISSES[name]
    spec, gpus = model(), parse_gpus(pool)
    assert not search(spec, gpus, options, VERSION).plans
    smaller = [("int4", "with fewer layers", dense(layers=2))] if name != "images" else []
    answer = [
        f"{miss.harm}: {miss.change}; {miss.model} {miss.gpus}: {flags(miss.plan.args)} holds {miss.plan.concurrency}"
        for miss in near_misses(spec, gpus, options, VERSION, lambda: smaller)
    ]
    golden(f"search/misses_{name}.json", answer)
