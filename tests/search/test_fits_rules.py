"""Rules by which engines are bounded without a replay, and for which cards of a catalog bounds decide."""

from __future__ import annotations

import random
from math import ceil

import pytest

from planner import api
from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.errors import InputError
from planner.memory.assess import Deployment, deploy
from planner.memory.kv_capacity import blocks_for_request
from planner.search.select import select
from planner.search.select_bounds import (
    ALIKE,
    NOTHING,
    OTHER,
    OTHER_DENSE,
    RETAINED,
    Aside,
    Card,
    Engine,
    Guard,
    Weighed,
    kind_of,
    times_of,
)
from planner.search.select_fits import fits
from planner.search.select_judge import judge_of
from planner.search.select_thin import replay_of, with_one_dtype
from planner.search.space import SearchOptions, Workload
from planner.sources.hardware_catalog import load_hardware_catalog
from planner.units import GIB, MIB

DENSE, GEMMA = "Qwen/Qwen2.5-7B-Instruct", "google/gemma-2-9b-it"
CARDS = (
    "t4", "rtx 2080 ti", "v100-16g", "p40", "a10", "a100-40g", "l20", "rtx 5090", "h100", "h20", "b200", "mi300x",
)  # fmt: skip


def deployed(model: str, gpus: str = "l20:1", **flags: object) -> Deployment:
    request = api.Request(model=model, gpus=gpus, offline=True)
    spec, pool = api.load_spec(request), api.load_gpus(request)
    args = EngineArgs(max_model_len=4096, **flags)  # type: ignore[arg-type]
    return deploy(spec, pool, resolve(spec, pool.gpu, args, api.DEFAULT_VERSION))


def engine_of(model: str, *, has_margin: bool = False) -> Engine:
    found = deployed(model)
    return Engine.of(found.config, found.pool, 300 * MIB, has_margin=has_margin)


def slowly(engine: Engine, aside: Aside, weights: int, card: Card, slack: int) -> int:
    """The requests of the largest budget under which vLLM starts and the device keeps its margin."""
    kept = weights + weights // 200 * engine.has_margin
    need = int(blocks_for_request(engine.pool, 4096, engine.config.max_num_batched_tokens))
    for budget in sorted(card.budgets, reverse=True):
        cache = budget - kept - aside.budget
        blocks = cache // engine.pool.bytes_per_block
        starts = engine.context + max(budget, weights) <= card.total_bytes
        height = engine.context + kept + aside.profile + slack
        if aside.device is not None:
            used = engine.context + kept + aside.budget + blocks * engine.pool.bytes_per_block
            height = max(height, used + aside.device + slack)
        fits = ceil(height * (1 + card.safety_margin)) <= card.total_bytes
        if starts and fits and cache >= need * engine.pool.fullest.bytes_per_needed_block:
            return max(0, blocks - 1) // need
    return 0


@pytest.mark.parametrize("has_margin", [False, True])
@pytest.mark.parametrize("model", [DENSE, GEMMA])
def test_an_engine_holds_what_its_largest_budget_holds(model, has_margin):
    """Against a slower form, over cards that are too small, tight and roomy, with and without the device's terms."""
    engine, chance = engine_of(model, has_margin=has_margin), random.Random(7)
    seen = set()
    for _ in range(400):
        total = chance.randint(8, 40) * GIB
        budgets = sorted((ceil(total * percent / 100) for percent in range(70, 99, 4)), reverse=True)
        card = Card(total, chance.choice([0.0, 0.05, 0.1]), budgets)
        weights = chance.randint(4 * GIB, 20 * GIB)
        device = chance.choice([None, 0, 200 * MIB, -100 * MIB, 2 * GIB])
        aside = Aside(chance.randint(0, 3 * GIB), chance.randint(0, 6 * GIB), device)
        slack = chance.choice([0, 0, 90 * MIB, -90 * MIB])
        found = engine.requests(aside, weights, card, slack=slack)
        assert found == slowly(engine, aside, weights, card, slack)
        seen.add(min(found, 3))
    assert len(seen) >= 3


def test_the_edges_of_an_engines_card():
    """To the byte: the context beside the budget, the margin, a request's cache, and the block that none is given."""
    engine = engine_of(DENSE)
    need, block = engine.request_bytes, engine.block_bytes
    assert (engine.request_blocks, block) == (256, 16 * 57344)
    assert need == engine.request_blocks * block

    def held(total: int, budget: int, weights: int = GIB, aside: Aside = NOTHING, margin: float = 0.0) -> int:
        return engine.requests(aside, weights, Card(total, margin, [budget]))

    whole = GIB + need
    assert [held(whole + 300 * MIB + more, whole) for more in (-1, 0)] == [0, 0]
    assert [held(2 * whole, whole + more) for more in (block - 1, block, need + block - 1, need + block)] == [
        0,
        1,
        1,
        2,
    ]
    assert [held(300 * MIB + whole + block + more, whole + block) for more in (-1, 0)] == [0, 1]
    assert held(2 * whole, whole + block - 1) == held(2 * whole, whole - 1) == 0
    assert [held(10 * GIB, 9 * GIB, aside=Aside(size, 0)) > 0 for size in (8 * GIB - need - block, 8 * GIB)] == [1, 0]
    profile = 9 * GIB - 300 * MIB - GIB
    assert [held(9 * GIB, 8 * GIB, aside=Aside(0, profile + more)) > 0 for more in (0, 1)] == [True, False]
    assert [held(9 * GIB, 5 * GIB, 9 * GIB - 300 * MIB + more) for more in (0, 1)] == [0, 0]
    beside = 10 * GIB - 300 * MIB - 9 * GIB
    assert [held(10 * GIB, 9 * GIB, aside=Aside(0, 0, beside + more)) > 0 for more in (0, block)] == [True, False]
    assert held(11 * GIB, 9 * GIB, margin=0.1, aside=Aside(0, 9 * GIB - 300 * MIB)) > 0
    assert held(11 * GIB, 9 * GIB, margin=0.1, aside=Aside(0, 9 * GIB - 300 * MIB + 2)) == 0


def test_room_about_a_figure():
    """A share of it, whatever its sign, rounded up, and bytes. Engines alike are trusted most."""
    assert Guard(share=0.5, bytes=10).room(101) == 61
    assert Guard(share=0.5, bytes=10).room(-101) == 61
    assert Guard(share=0.0, bytes=7).room(0) == 7
    for size in (0, 100 * MIB, GIB, 8 * GIB):
        assert ALIKE.room(size) < OTHER_DENSE.room(size) < OTHER.room(size)
    assert ALIKE.room(0) == GIB // 4
    assert (ALIKE.share, OTHER_DENSE.share, OTHER.share, RETAINED.share) == (0.15, 0.5, 1.0, 2.0)
    assert (OTHER_DENSE.bytes, OTHER.bytes, RETAINED.bytes) == (2 * GIB, 3 * GIB, 128 * MIB)
    assert (NOTHING.budget, NOTHING.profile, NOTHING.device) == (0, 0, None)


def test_engines_alike_are_of_one_generation_and_batch():
    base = deployed(DENSE).config
    same = [{"compute_capability": (8, 0)}, {"compute_capability": (7, 5)}, {"sm_count": 3}, {"dtype": "float16"}]
    other = [
        {"compute_capability": (9, 0)}, {"compute_capability": (10, 0)}, {"dtype": "float32"},
        {"tensor_parallel_size": 2}, {"max_num_seqs": 7}, {"max_num_batched_tokens": 77}, {"gpu_memory_bytes": 5},
    ]  # fmt: skip
    assert {kind_of(base.model_copy(update=update)) for update in same} == {kind_of(base)}
    kinds = {kind_of(base.model_copy(update=update)) for update in other}
    assert len(kinds | {kind_of(base)}) == len(other) + 1
    after = [kind_of(base.model_copy(update={"compute_capability": (major, 0)})) for major in (10, 12)]
    assert after[0] == after[1]


def test_cards_replay_alike_between_the_steps_of_kernels():
    """Without kernels of their own the generations before Hopper are one; FP8, quantized layers and towers step in at
    8.0 and 8.9. The backend counts on Hopper and for latent attention alone."""
    plain, towers = deployed(DENSE), deployed("Qwen/Qwen2.5-VL-7B-Instruct")
    latent = deployed("deepseek-ai/DeepSeek-V2-Lite-Chat")

    def classes(found: Deployment, **update: object) -> list[int]:
        seen: list[object] = []
        capabilities = ((7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1))
        places = []
        for capability in capabilities:
            config = found.config.model_copy(update={**update, "compute_capability": capability, "sm_count": None})
            key = replay_of(found.model, config)
            if key not in seen:
                seen.append(key)
            places.append(seen.index(key))
        return places

    assert classes(plain) == [0, 0, 0, 0, 0, 1, 2, 2, 3, 4, 4]
    assert classes(towers) == classes(plain, quantization="fp8") == [0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 6]
    assert classes(latent) == [0, 0, 0, 0, 0, 1, 2, 2, 3, 4, 4]
    for found, capability, counts in ((plain, (8, 0), False), (plain, (9, 0), True), (latent, (8, 0), True)):
        one, two = (
            found.config.model_copy(update={"compute_capability": capability, "attention_backend": name})
            for name in ("FLASH_ATTN", "TRITON_ATTN")
        )
        assert (replay_of(found.model, one) != replay_of(found.model, two)) is counts
    one, two = (plain.config.model_copy(update={"sm_count": count}) for count in (58, 92))
    assert plain.config.model_runner == "v2"
    assert replay_of(plain.model, one) == replay_of(plain.model, two)
    one, two = (config.model_copy(update={"model_runner": "v1"}) for config in (one, two))
    assert replay_of(plain.model, one) != replay_of(plain.model, two)


def test_both_16_bit_dtypes_have_the_same_sizes():
    config = deployed(DENSE).config
    assert with_one_dtype(config) is config
    half = config.model_copy(update={"dtype": "float16", "kv_torch_dtype": "float16"})
    assert with_one_dtype(half) == config.model_copy(update={"kv_torch_dtype": "bfloat16"})
    mixed = config.model_copy(update={"kv_torch_dtype": "float8_e4m3fn"})
    assert with_one_dtype(mixed) is mixed


@pytest.mark.parametrize("model", [DENSE, "openai/gpt-oss-20b", "deepseek-ai/DeepSeek-V2-Lite-Chat"])
def test_thin_layers_stand_for_all_of_their_kind(model):
    """Each kind of layer is kept twice: the first for itself, the second for all others, so that bytes add up."""
    (share,) = deployed(model, "h200:1").shares
    times = times_of(share)
    assert sum(times.values()) == len({tensor.layer for tensor in share.created if tensor.layer is not None})
    whole = sum(tensor.size_bytes for tensor in share.created)
    thin = sum(
        tensor.size_bytes * (1 if tensor.layer is None else times[tensor.layer])
        for tensor in share.created
        if tensor.layer is None or tensor.layer in times
    )
    assert thin == whole
    assert set(times.values()) <= {1, *(count for count in times.values() if count > 1)}
    assert min(times) == 0


def test_bounds_of_weights_are_those_of_blocks():
    """Small tensors 512 bytes, middle ones 1 MiB and large ones whole pages of 2 MiB at the most; and what lies beside
    them."""
    found = deployed(DENSE)
    (share,) = found.shares
    least, most = Weighed(found.model, {}).bounds(share)
    sizes = [tensor.size_bytes for tensor in share.loaded]
    assert least == sum(sizes)
    small = [size for size in sizes if size <= MIB]
    middle = [size for size in sizes if MIB < size < 20 * MIB]
    large = [size for size in sizes if size >= 20 * MIB]
    assert small
    assert middle
    assert large
    assert most == (
        sum(small) + 512 * len(small) + sum(middle) + MIB * len(middle)
        + sum(-(-size // (2 * MIB)) * 2 * MIB for size in large) + 128 * MIB
    )  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [DENSE, GEMMA, "Qwen/Qwen3-14B-AWQ", "Qwen/Qwen3-30B-A3B-FP8", "openai/gpt-oss-20b", "Qwen/Qwen2.5-VL-7B-Instruct"],
)
def test_what_bounds_decide(model, golden):
    """For one to eight of each card and many loads the tensor parallelism that holds them (0: none does), and whether
    the weights of the whole model were needed (r). That verdicts are those of a replay is tested elsewhere."""
    spec = api.load_spec(api.Request(model=model, gpus="", offline=True))
    gpus = [load_hardware_catalog().find(card) for card in CARDS]
    answer = {}
    for load in (1, 3, 8, 20, 50, 120, 300, 800):
        options = SearchOptions(args=EngineArgs(max_model_len=4096), workload=Workload(concurrency=load))
        found = fits(spec, gpus, options, api.DEFAULT_VERSION, max_count=8)
        assert all(fit.replicas == (fit.count // fit.tensor_parallel_size if fit.fits else 0) for fit in found)
        lines: dict[str, str] = {}
        for fit in found:
            sign = f"{fit.tensor_parallel_size}{'r' if fit.evidence == 'replay' else ''}"
            lines[fit.gpu] = f"{lines[fit.gpu]} {sign}" if fit.gpu in lines else sign
        answer[str(load)] = lines
    golden(f"search/fits_{model.partition('/')[2]}.json", answer)


@pytest.mark.parametrize(
    "flags",
    [
        {"kv_cache_memory_bytes": 4 << 30}, {"num_gpu_blocks_override": 900},
        {"enable_lora": True, "max_loras": 1, "max_lora_rank": 16},
    ],
)  # fmt: skip
def test_engines_that_bounds_do_not_speak_of_are_replayed(flags):
    """Cache sizes fixed by hand and adapters: every verdict is that of a replay."""
    spec = api.load_spec(api.Request(model=DENSE, gpus="", offline=True))
    gpu = load_hardware_catalog().find("l20")
    args = EngineArgs(**{"max_model_len": 4096, **flags})
    options = SearchOptions(args=args, given=tuple(flags), workload=Workload(concurrency=2))
    found = fits(spec, [gpu], options, api.DEFAULT_VERSION, max_count=1)
    judge = judge_of(spec, [gpu], options, api.DEFAULT_VERSION)
    engine = judge.engine(gpu, 1, 1)
    assert [fit.evidence for fit in found] == ["replay"]
    assert found[0].fits is (getattr(engine, "requests", 0) >= 2)


def test_a_card_is_tried_at_every_budget_or_at_the_users():
    """A load that only a high utilization holds fits, and does not where the user fixed a lower one."""
    spec = api.load_spec(api.Request(model=DENSE, gpus="", offline=True))
    gpu = load_hardware_catalog().find("l20").model_copy(update={"total_memory_bytes": 24 * GIB})
    held = {}
    for given in ((), ("gpu_memory_utilization",)):
        args = EngineArgs(max_model_len=4096, gpu_memory_utilization=0.72 if given else None)
        for load in range(1, 40):
            options = SearchOptions(args=args, given=given, workload=Workload(concurrency=load))
            if fits(spec, [gpu], options, api.DEFAULT_VERSION, max_count=1)[0].fits:
                held[given] = load
        options = SearchOptions(args=args, given=given, workload=Workload(concurrency=4))
        engine = judge_of(spec, [gpu], options, api.DEFAULT_VERSION).engine(gpu, 1, 1)
        assert engine.requests == pytest.approx(held[given], abs=1)
    assert held["gpu_memory_utilization",] < held[()]


def test_cards_are_compared_by_one_length():
    """A length that each card fits to its memory is no workload to compare them by."""
    spec = api.load_spec(api.Request(model=DENSE, gpus="", offline=True))
    gpu = load_hardware_catalog().find("l20")
    options = SearchOptions(args=EngineArgs(max_model_len=-1), given=("max_model_len",))
    for ask in (fits, select):
        with pytest.raises(InputError, match="requests of one length"):
            ask(spec, [gpu], options, api.DEFAULT_VERSION, max_count=1)
