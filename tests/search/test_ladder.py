"""The out-of-memory ladder: it ends in a launch that starts, and no step of it is idle."""

from functools import cache
from itertools import product

import pytest

from planner import api
from planner.engine.args import EngineArgs
from planner.search.ladder import Ladder, climb
from planner.search.rungs import flag_text, rungs
from planner.search.variants import Variants
from planner.sources.checkpoints import quantized_checkpoints

VL = "Qwen/Qwen2.5-VL-7B-Instruct"
CASES = [
    (VL, "a10:1", {}),
    (VL, "a10:1", {"max_model_len": 32768, "limit_mm_per_prompt": '{"image": 5, "video": 2}'}),
    (VL, "4090:1", {"max_num_seqs": 256, "gpu_memory_utilization": 0.98}),
    ("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "t4:8", {"tensor_parallel_size": 8, "gpu_memory_utilization": 0.75}),
    ("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "4090:8", {"tensor_parallel_size": 4, "max_model_len": 8192}),
    ("Qwen/Qwen2.5-72B-Instruct", "l20:8", {}),
    ("Qwen/Qwen2.5-72B-Instruct", "l20:4", {"tensor_parallel_size": 4, "max_model_len": 32768}),
    ("meta-llama/Llama-3.1-8B-Instruct", "l4:1", {"max_model_len": 32768}),
    ("Qwen/Qwen2.5-7B-Instruct", "l4:1", {"kv_cache_memory_bytes": 1 << 28}),
    ("Qwen/Qwen3-30B-A3B", "l40s:1", {"max_model_len": 40960}),
]


@cache
def climbed(model: str, gpus: str, items: tuple, concurrency: int = 1) -> Ladder:
    request = api.Request(model=model, gpus=gpus, offline=True)
    flags = dict(items)

    def load(name: str):
        return api.load_spec(request.model_copy(update={"model": name}))

    checkpoints = (f"{model}-AWQ",) if "AWQ" not in model and "72B" in model else ()
    return climb(
        load(model), api.load_gpus(request), EngineArgs(**flags), "0.26.0", given=flags, concurrency=concurrency,
        checkpoints=checkpoints, load=load,
    )  # fmt: skip


def holds(found) -> bool:
    gpu = found.estimate.per_gpu
    return (
        found.estimate.starts
        and gpu.used_after_startup_bytes + gpu.vision_encoder_runtime_peak_bytes <= gpu.total_memory_bytes
    )


@pytest.mark.parametrize(("model", "gpus", "flags"), CASES)
def test_the_last_rung_starts_and_keeps_the_rest_of_the_launch(model, gpus, flags):
    ladder = climbed(model, gpus, tuple(flags.items()))
    assert ladder.after is not None
    assert holds(ladder.after)
    changed = {name for step in ladder.steps for name, _ in step.change.fields}
    for name, value in flags.items():
        if name not in changed:
            assert getattr(ladder.args, name) == value
    assert not ladder.steps or ladder.steps[-1].lacking_bytes == 0
    assert all(step.freed_bytes > 0 for step in ladder.steps)


@pytest.mark.parametrize(("model", "gpus", "flags"), CASES)
def test_no_step_can_be_left_out(model, gpus, flags):
    ladder = climbed(model, gpus, tuple(flags.items()))
    request = api.Request(model=model, gpus=gpus, offline=True)
    for left_out in ladder.steps:
        args, name, pool = EngineArgs(**flags), model, api.load_gpus(request)
        for step in ladder.steps:
            if step is not left_out:
                args = step.change.apply(args)
                name = step.change.checkpoint or name
                pool = ladder.gpus if step.change.cards else pool
        spec = api.load_spec(request.model_copy(update={"model": name}))
        assert not holds(Variants(spec, pool, "0.26.0").assess(args)), flag_text(*left_out.change.fields[0])


@pytest.mark.parametrize(("model", "gpus", "flags"), CASES[:3])
def test_freed_bytes_add_up_to_what_was_lacking(model, gpus, flags):
    ladder = climbed(model, gpus, tuple(flags.items()))
    lacking = ladder.lacking_bytes
    for step in ladder.steps:
        if step.change.fields[0][0] == "gpu_memory_utilization":
            continue
        lacking = max(0, lacking - step.freed_bytes)
        assert step.lacking_bytes == lacking


def test_no_milder_mixture_would_do():
    """Every mixture of the rungs before the last one used, at any utilization: none starts (brute force)."""
    model, gpus, flags = "meta-llama/Llama-3.1-8B-Instruct", "l4:1", {"max_model_len": 49152}
    ladder = climbed(model, gpus, tuple(flags.items()))
    request = api.Request(model=model, gpus=gpus, offline=True)
    spec, pool = api.load_spec(request), api.load_gpus(request)
    variants = Variants(spec, pool, "0.26.0")
    args = EngineArgs(**flags)
    whole = rungs(spec, pool, args, variants.assess(args).config, frozenset(flags), ())
    used = {step.change.fields[0][0] for step in ladder.steps}
    place = {rung[0].fields[0][0]: place for place, rung in enumerate(whole)}
    last = max(place[name] for name in used if name in place)
    earlier = [(None, rung[-1], rung[len(rung) // 2]) for rung in whole[:last]]
    tried = 0
    for mixture in product(*earlier):
        mixed = args
        for change in mixture:
            mixed = change.apply(mixed) if change else mixed
        for utilization in (0.90, 0.92, 0.94, 0.96, 0.98):
            found = variants.assess(mixed.model_copy(update={"gpu_memory_utilization": utilization}))
            assert not (found.estimate.starts and holds(found)), [change and change.fields for change in mixture]
            tried += 1
    assert tried > 200


def test_a_launch_that_starts_has_no_rungs():
    ladder = climbed("Qwen/Qwen2.5-7B-Instruct", "l20:1", (("max_model_len", 8192),))
    assert ladder.steps == ()
    assert ladder.after is ladder.before


def test_only_the_utilization_where_the_card_has_the_memory():
    ladder = climbed("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "4090:8", tuple(CASES[4][2].items()))
    assert ladder.lacking_bytes == 0
    assert [step.change.fields[0][0] for step in ladder.steps] == ["gpu_memory_utilization"]


def test_a_length_nobody_asked_for_goes_before_accuracy():
    ladder = climbed(VL, "a10:1", ())
    assert "kv_cache_dtype" not in {name for step in ladder.steps for name, _ in step.change.fields}
    assert ladder.args.max_model_len % 256 == 0


def test_more_requests_need_more_steps():
    flags = (("max_model_len", 16384),)
    one = climbed("Qwen/Qwen2.5-7B-Instruct", "l4:1", flags)
    many = climbed("Qwen/Qwen2.5-7B-Instruct", "l4:1", flags, concurrency=12)
    assert not one.steps
    assert many.steps
    assert many.after.estimate.kv_cache.max_concurrency >= 12


def test_vllms_other_refusals_are_not_climbed():
    ladder = climbed("Qwen/Qwen2.5-7B-Instruct", "l20:8", (("tensor_parallel_size", 8),))
    assert (ladder.steps, ladder.after, ladder.lacking_bytes) == ((), None, None)


def test_rungs_only_offer_what_is_milder_than_the_launch():
    request = api.Request(model=VL, gpus="a10:2", offline=True)
    model, pool = api.load_spec(request), api.load_gpus(request)
    args = EngineArgs(max_num_seqs=16, max_num_batched_tokens=2048, max_model_len=4096, enforce_eager=True)
    config = Variants(model, pool, "0.26.0").assess(args).config
    offered = [change for rung in rungs(model, pool, args, config, frozenset(), ()) for change in rung]
    for change in offered:
        for name, value in change.fields:
            if name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
                assert value < getattr(args, name)
            assert name != "enforce_eager"


def test_checkpoints_are_told_by_their_names():
    ids = (
        "Qwen/Q-7B",
        "Qwen/Q-7B-AWQ",
        "x/Q-7B-FP8-dynamic",
        "x/Q-7B-quantized.w4a16",
        "Qwen/Q-72B-AWQ",
        "x/Q-7B-GPTQ-Int8",
    )
    assert quantized_checkpoints("Qwen/Q-7B", ids) == (
        "x/Q-7B-FP8-dynamic", "x/Q-7B-GPTQ-Int8", "Qwen/Q-7B-AWQ", "x/Q-7B-quantized.w4a16",
    )  # fmt: skip
    assert quantized_checkpoints("Qwen/Q-7B-AWQ", ids) == ()
    assert quantized_checkpoints("/models/Q-7B", ids)[0] == "x/Q-7B-FP8-dynamic"
