"""Whole ladders and rungs, step by step with their bytes: `pytest --rewrite` writes them anew, read the difference."""

from __future__ import annotations

import json
from typing import Any

import pytest

from planner import api
from planner.engine.args import EngineArgs
from planner.search.ladder import climb
from planner.search.rungs import flag_text, rungs
from planner.search.variants import Variants

VERSION = "0.26.0"
DENSE, VL = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"
LAUNCHES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "sees": (VL, "a10:1", {"max_model_len": 32768, "limit_mm_per_prompt": '{"image": 5, "video": 2}'}, 1),
    "budget": (VL, "4090:1", {"max_num_seqs": 256, "gpu_memory_utilization": 0.98}, 1),
    "cache by hand": (DENSE, "l4:1", {"kv_cache_memory_bytes": 1 << 28, "max_model_len": 16384}, 1),
    "requests": (DENSE, "l4:2", {"max_model_len": 24576}, 12),
    "other checkpoint": ("Qwen/Qwen2.5-72B-Instruct", "l20:1", {"max_model_len": 4096}, 1),
    "more cards": ("Qwen/Qwen2.5-72B-Instruct", "l20:2", {"tensor_parallel_size": 2}, 4),
    "nothing helps": ("Qwen/Qwen2.5-72B-Instruct", "t4:1", {"enforce_eager": True, "pipeline_parallel_size": 1}, 900),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_ladders(name, golden):
    model, gpus, flags, concurrency = LAUNCHES[name]
    request = api.Request(model=model, gpus=gpus, offline=True)

    def load(other: str):
        return api.load_spec(request.model_copy(update={"model": other}))

    ladder = climb(
        load(model), api.load_gpus(request), EngineArgs(**flags), VERSION, given=flags, concurrency=concurrency,
        checkpoints=(f"{model}-AWQ",) if name == "other checkpoint" else (), load=load,
    )  # fmt: skip
    after = ladder.after.estimate.per_gpu if ladder.after is not None else None
    answer = [f"lacks {ladder.lacking_bytes}"]
    answer += [
        " ".join(flag_text(*field) for field in step.change.fields)
        + f" ({step.change.costs}): {step.freed_bytes}, lacks {step.lacking_bytes}"
        for step in ladder.steps
    ]
    answer.append(f"{ladder.checkpoint} on {ladder.gpus.spelling}, {ladder.args.gpu_memory_utilization}")
    answer.append("none starts" if after is None else f"{after.used_after_startup_bytes} of {after.total_memory_bytes}")
    golden(f"search/ladder_{name.replace(' ', '_')}.json", answer)


OFFERS: dict[str, tuple[str, str, dict[str, Any], frozenset[str]]] = {
    "open": (VL, "a10:4", {"max_num_seqs": 256, "max_num_batched_tokens": 8192}, frozenset()),
    "asked": (
        VL, "a10:2", {"max_model_len": 8192, "limit_mm_per_prompt": '{"image": 3, "video": 1}', "max_num_seqs": 33},
        frozenset({"max_model_len", "limit_mm_per_prompt", "max_num_seqs", "max_num_batched_tokens"}),
    ),
    "small": (
        DENSE, "l4:1",
        {"kv_cache_dtype": "fp8", "num_gpu_blocks_override": 9000, "max_num_seqs": 5, "max_model_len": 4096,
         "max_num_batched_tokens": 1025, "max_cudagraph_capture_size": 16}, frozenset(),
    ),
    "pixels": (
        VL, "a10:1", {"mm_processor_kwargs": '{"max_pixels": 1003520, "min_pixels": 3136}', "pipeline_parallel_size": 1,
                      "limit_mm_per_prompt": '{"image": 1, "video": 0}', "enforce_eager": True}, frozenset(),
    ),
    "two stages": (DENSE, "l4:4x2", {"pipeline_parallel_size": 2, "max_model_len": 16640}, frozenset()),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFERS)
def test_rungs(name, golden):
    model, gpus, flags, given = OFFERS[name]
    request = api.Request(model=model, gpus=gpus, offline=True)
    spec, pool, args = api.load_spec(request), api.load_gpus(request), EngineArgs(**flags)
    config = Variants(spec, pool, VERSION).assess(args).config
    assert config is not None
    offered = rungs(spec, pool, args, config, given, ("other",))
    golden(
        f"search/rungs_{name.replace(' ', '_')}.json",
        [
            [
                f"{' '.join(flag_text(*field) for field in change.fields)}: {change.costs}"
                + "".join(f", {extra}" for extra in (change.checkpoint, change.cards) if extra is not None)
                for change in rung
            ]
            for rung in offered
        ],
    )


def test_each_offer_of_pixels_is_below_the_one_before():
    """A ladder halves its way through a rung: one that is not in order would be left too early."""
    request = api.Request(model=VL, gpus="a10:1", offline=True)
    spec, pool = api.load_spec(request), api.load_gpus(request)
    for most in (2_000_000, 1_003_520, 600_000, 250_881, 250_880):
        args = EngineArgs(mm_processor_kwargs=json.dumps({"max_pixels": most}), max_model_len=8192)
        config = Variants(spec, pool, VERSION).assess(args).config
        assert config is not None
        offered = [
            json.loads(str(value))["max_pixels"]
            for rung in rungs(spec, pool, args, config, frozenset(), ())
            for change in rung
            for name, value in change.fields
            if name == "mm_processor_kwargs"
        ]
        assert offered == sorted({pixels for pixels in offered if 250_880 <= pixels < most}, reverse=True)
        assert bool(offered) is (most > 250_880)


def test_flags_as_they_are_written():
    assert [
        flag_text("enforce_eager", True), flag_text("enforce_eager", False), flag_text("max_model_len", None),
        flag_text("max_model_len", 4096), flag_text("kv_cache_dtype", "fp8"), flag_text("limit_mm_per_prompt", "{}"),
    ] == [
        "--enforce-eager", "without --enforce-eager", "without --max-model-len",
        "--max-model-len 4096", "--kv-cache-dtype fp8", "--limit-mm-per-prompt '{}'",
    ]  # fmt: skip
