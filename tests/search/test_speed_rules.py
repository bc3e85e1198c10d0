"""Rules of the roofline by hand: links, launches, experts, windows, latent attention, states, missing figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner import api
from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.memory.assess import Deployment, deploy
from planner.model.modules import FusedMoE, QKVLinear
from planner.search import kernel_shares as shares
from planner.search.roofline import (
    EngineLoad,
    cache_read_bytes,
    decode_tokens_per_s,
    engine_load,
    flops_of,
    prefill_tokens_per_s,
    prompt_seconds,
    step_seconds,
)
from planner.search.speed import Range, estimated_speed, speed_of

DENSE, EXPERTS = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-30B-A3B"


GIGATRANSFERS = ((3, 8), (4, 16), (5, 32))
"""A second and lane, of each generation of PCIe."""


def deployed(model: str, gpus: str = "h200:1", **flags: object) -> Deployment:
    """The launch, whether or not its memory is enough."""
    request = api.Request(model=model, gpus=gpus, offline=True)
    spec, pool = api.load_spec(request), api.load_gpus(request)
    args = EngineArgs(**{"max_model_len": 8192, **flags})  # type: ignore[arg-type]
    return deploy(spec, pool, resolve(spec, pool.gpu, args, api.DEFAULT_VERSION))


def load(**more: object) -> EngineLoad:
    """A made-up engine whose parts are round numbers."""
    known = {
        "dense_bytes": 10**10, "expert_bytes": 0, "touched": 1.0, "cache_bytes": 10**6, "decode_flops": 2 * 10**10,
        "prefill_flops": 18 * 10**9, "ranks": 1, "stages": 1, "attention": ((4000, 0),) * 10, "multiplications": 40,
        "routed_flops": 0, "routed_layers": 0, "reduced_bytes": 0, "reductions": 0, "eight_bit": False, "packed": False,
        "chunk_tokens": 2048, "eager": False,
    }  # fmt: skip
    return EngineLoad(**{**known, **more})  # type: ignore[arg-type]


GPU = deployed(DENSE).gpus.gpu


@pytest.mark.parametrize(("ranks", "table"), [(2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (16, 8)])
@pytest.mark.parametrize("speed", [-1, 0, 1])
def test_all_reduces_take_a_start_and_their_bytes_over_the_link(ranks, table, speed):
    """A ring moves 2 (n - 1) / n of the bytes; both links are measured between 2, 4 and 8 cards."""
    reduced = load(ranks=ranks, reductions=20, reduced_bytes=8192)
    alone = replace(reduced, reductions=0)
    moved = 64 * 8192 * 2 * (ranks - 1) / ranks
    slow = GPU.model_copy(update={"nvlink_bytes_per_s": None, "pcie_gen": 4})
    assert 0.02 < shares.PCIE[table].at(speed) < 0.35
    assert 0.1 < shares.NVLINK.at(speed) < 0.5
    for gpu, start, link in (
        (GPU, shares.NVLINK_SECONDS[table], GPU.nvlink_bytes_per_s * shares.NVLINK.at(speed)),
        (slow, shares.PCIE_SECONDS[table], 32e9 * shares.PCIE[table].at(speed)),
    ):
        more = step_seconds(reduced, gpu, "bfloat16", 64, speed) - step_seconds(alone, gpu, "bfloat16", 64, speed)
        assert 4e-6 < start.at(speed, seconds=True) < 30e-6, "microseconds, as measured"
        assert more == pytest.approx(20 * (start.at(speed, seconds=True) + moved / link))


@pytest.mark.parametrize(
    ("generation", "capability", "bytes_per_s"),
    [
        (3, (8, 0), 16e9), (4, (8, 0), 32e9), (5, (8, 0), 64e9), (2, (9, 0), 16e9), (6, (9, 0), 64e9),
        (None, (7, 5), 16e9), (None, (8, 0), 32e9), (None, (9, 0), 32e9), (None, (10, 0), 64e9), (None, (12, 0), 64e9),
    ],
)  # fmt: skip
def test_pcie_of_a_generation(generation, capability, bytes_per_s):
    """16 lanes of 3.0, 4.0 or 5.0; where the catalog says none, by the age of the card."""
    update = {"nvlink_bytes_per_s": None, "pcie_gen": generation, "compute_capability": capability}
    gpu = GPU.model_copy(update=update)
    reduced = load(ranks=2, reductions=1, reduced_bytes=10**6)
    more = step_seconds(reduced, gpu, "bfloat16", 1) - step_seconds(replace(reduced, reductions=0), gpu, "bfloat16", 1)
    assert bytes_per_s in shares.PCIE_BYTES_PER_S.values()
    moved = 10**6 / (bytes_per_s * shares.PCIE[2].value)
    assert more == pytest.approx(shares.PCIE_SECONDS[2].value + moved)


def test_measured_constants_are_in_order():
    """More cards never make an all-reduce start sooner, nor PCIe better shared; later generations are faster."""
    for table in (shares.NVLINK_SECONDS, shares.PCIE_SECONDS):
        for end in (-1, 0, 1):
            assert [table[size].at(end) for size in (2, 4, 8)] == sorted(table[size].at(end) for size in (2, 4, 8))
        assert all(share.high < 1e-4 for share in table.values())
    assert [shares.PCIE[size].value for size in (8, 4, 2)] == sorted(share.value for share in shares.PCIE.values())
    for name, share in vars(shares).items():
        if isinstance(share, shares.Share):
            assert share.low <= share.value <= share.high
            assert share.high <= (0.1 if name.endswith("SECONDS") else 1.0), name
    for share in shares.PCIE.values():
        assert 0 < share.low < share.value < share.high <= 1
    assert {
        generation: 16 * transfers * 10**9 // 8 for generation, transfers in GIGATRANSFERS
    } == shares.PCIE_BYTES_PER_S


@pytest.mark.parametrize("stages", [1, 2])
def test_without_graphs_the_host_launches_kernel_after_kernel(stages):
    """A step is as long as its launches where those take longer: matrix multiplications, experts, and a layer's rest
    with its attention."""
    eager = load(eager=True, routed_layers=7, stages=stages, dense_bytes=1, cache_bytes=1, decode_flops=1)
    kernels = stages * (40 + 7) + 5 * 10
    by_hand = kernels * shares.EAGER_KERNEL_SECONDS.value + shares.STEP_SECONDS.value + shares.SEQUENCE_SECONDS.value
    assert step_seconds(eager, GPU, "bfloat16", 1) == pytest.approx(by_hand)
    heavy = replace(eager, dense_bytes=10**12)
    assert step_seconds(heavy, GPU, "bfloat16", 1) == step_seconds(replace(heavy, eager=False), GPU, "bfloat16", 1)


def test_a_step_of_experts_by_hand():
    """Few sequences: bytes of the experts met, and what a layer of experts takes at least. Many: their operations."""
    bandwidth, flops = GPU.memory_bandwidth_bytes_per_s, GPU.dense_flops["bfloat16"]
    one = load(expert_bytes=4 * 10**10, touched=1 / 16, routed_flops=10**10, routed_layers=10, ranks=2, stages=2)
    free = replace(one, expert_bytes=0, routed_flops=0, routed_layers=0, decode_flops=10**10)
    for sequences in (1, 4, 4096):
        met = 1 - (1 - 1 / 16) ** sequences
        by_hand = max(
            4 * 10**10 * met / (bandwidth * shares.EXPERT_BANDWIDTH.value),
            sequences * 10**10 / 2 / (flops * 2 * shares.EXPERT_FLOPS.value),
            10 * shares.EXPERT_SECONDS.value,
        )
        more = step_seconds(one, GPU, "bfloat16", sequences) - step_seconds(free, GPU, "bfloat16", sequences)
        assert more == pytest.approx(2 * by_hand)
    small = replace(one, expert_bytes=1, routed_flops=0, decode_flops=10**10)
    more = step_seconds(small, GPU, "bfloat16", 1) - step_seconds(free, GPU, "bfloat16", 1)
    assert more == pytest.approx(2 * 10 * shares.EXPERT_SECONDS.value)


def test_a_full_batch_of_prompts_by_hand():
    """Stages work side by side; each waits for its own all-reduces and the host."""
    one = load(stages=2, ranks=2, reductions=10, reduced_bytes=8192, routed_flops=3 * 10**9, chunk_tokens=4096)
    flops = GPU.dense_flops["bfloat16"]
    rows = 4096 * 15 * 10**9 / (flops * 2 * shares.FLOPS_16.value)
    rows += 4096 * 3 * 10**9 / (flops * 2 * shares.EXPERT_FLOPS.value)
    link = 4096 * 8192 / (GPU.nvlink_bytes_per_s * shares.NVLINK.value)
    seconds = rows / 2 + 10 * (shares.NVLINK_SECONDS[2].value + link)
    seconds += shares.STEP_SECONDS.value + shares.SEQUENCE_SECONDS.value
    assert prefill_tokens_per_s(one, GPU, "bfloat16") == pytest.approx(4096 / seconds)
    assert prefill_tokens_per_s(replace(one, prefill_flops=0), GPU, "bfloat16") is None


def test_a_prompt_attends_within_its_window():
    """Every pair below the diagonal, or window many keys for each token of a longer prompt."""
    per_s = GPU.dense_flops["bfloat16"] * shares.ATTENTION_FLOPS.value
    flat = prompt_seconds(load(attention=()), GPU, "bfloat16", 3000)
    for window, pairs in ((0, 3000**2 / 2), (3000, 3000**2 / 2), (2999, 3000 * 2999), (128, 3000 * 128)):
        found = prompt_seconds(load(attention=((4000, window),) * 2), GPU, "bfloat16", 3000)
        assert found - flat == pytest.approx(2 * 4000 * pairs / per_s)
    staged = load(attention=(), stages=3, ranks=2, reductions=4, reduced_bytes=2000)
    alone = replace(staged, reductions=0)
    more = prompt_seconds(staged, GPU, "bfloat16", 50) - prompt_seconds(alone, GPU, "bfloat16", 50)
    link = 50 * 2000 / (GPU.nvlink_bytes_per_s * shares.NVLINK.value)
    assert more == pytest.approx(3 * 4 * (shares.NVLINK_SECONDS[2].value + link))


def test_eight_bit_weights_multiply_as_fast_as_the_card_can():
    """At the 8-bit rate of a card that has one, else unpacked at the 16-bit one."""
    many, flops = load(eight_bit=True, dense_bytes=1, cache_bytes=1, attention=(), multiplications=0), GPU.dense_flops
    host = shares.STEP_SECONDS.value + 4096 * shares.SEQUENCE_SECONDS.value
    cache = 4096 / (GPU.memory_bandwidth_bytes_per_s * shares.ATTENTION_BANDWIDTH.value)
    eight = 4096 * 2e10 / (flops["float8_e4m3fn"] * shares.FLOPS_8.value)
    assert step_seconds(many, GPU, "bfloat16", 4096) == pytest.approx(eight + host + cache)
    plain = GPU.model_copy(update={"dense_flops": {"bfloat16": flops["bfloat16"]}})
    half = 4096 * 2e10 / (flops["bfloat16"] * shares.FLOPS_16.value)
    assert step_seconds(many, plain, "bfloat16", 4096) == pytest.approx(half + host + cache)
    assert step_seconds(many, plain, "float32", 4096) == step_seconds(many, plain, "bfloat16", 4096)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_each_stage_runs_its_own_layers(stages):
    """Ten layers: what attention takes at least and a layer's small kernels, of the fullest stage as often as there are
    stages."""
    staged = load(stages=stages, dense_bytes=0, decode_flops=0, cache_bytes=0, multiplications=12)
    layers = -(-10 // stages)
    by_hand = stages * (layers * shares.ATTENTION_SECONDS.value + (12 + 4 * layers) * shares.KERNEL_SECONDS.value)
    by_hand += shares.STEP_SECONDS.value + shares.SEQUENCE_SECONDS.value
    assert step_seconds(staged, GPU, "bfloat16", 1) == pytest.approx(by_hand)


@pytest.mark.parametrize("kind", ["eight_bit", "packed"])
def test_small_weights_are_read_at_the_rate_of_their_kernels(kind):
    few = load(cache_bytes=0, attention=(), multiplications=0)
    more = step_seconds(few, GPU, "bfloat16", 1) - step_seconds(replace(few, dense_bytes=0), GPU, "bfloat16", 1)
    flops = 2e10 / (GPU.dense_flops["bfloat16"] * shares.FLOPS_16.value)
    bandwidth = GPU.memory_bandwidth_bytes_per_s
    assert more == pytest.approx(1e10 / (bandwidth * shares.BANDWIDTH_16.value) - flops)
    read = step_seconds(replace(few, **{kind: True}), GPU, "bfloat16", 1) - step_seconds(few, GPU, "bfloat16", 1)
    assert read == pytest.approx(1e10 / bandwidth * (1 / shares.BANDWIDTH_8.value - 1 / shares.BANDWIDTH_16.value))


def test_latent_attention_unpacks_its_keys_for_prompts():
    """DeepSeek-V2-Lite: 16 heads of 128 + 64 for keys and 128 for values; 27 layers, no window."""
    found = engine_load(deployed("deepseek-ai/DeepSeek-V2-Lite-Chat"))
    assert found.attention == ((2 * 16 * (128 + 64 + 128), 0),) * 27


def test_operations_of_a_token_by_hand():
    """Qwen3-30B-A3B: 48 layers of 32 heads, 4 of them with keys, of 128; 8 of 128 experts of 768, three matrices."""
    deployment = deployed(EXPERTS, pipeline_parallel_size=2, gpus="h200:2")
    found, hidden = engine_load(deployment), 2048
    attention = hidden * 128 * (32 + 2 * 4) + 32 * 128 * hidden
    routed = 3 * 8 * hidden * 768
    assert found.prefill_flops == 48 * 2 * (attention + hidden * 128 + routed)
    assert found.routed_flops == 48 * 2 * routed
    assert found.decode_flops == found.prefill_flops + 2 * hidden * 151936
    assert (found.routed_layers, found.stages, found.ranks, found.reduced_bytes) == (24, 2, 1, 0)
    assert found.multiplications == 48 * 3 // 2
    assert (found.eight_bit, found.packed, found.chunk_tokens) == (
        False,
        False,
        deployment.config.max_num_batched_tokens,
    )
    modules = [module for module in deployment.model.modules if isinstance(module, (FusedMoE, QKVLinear))]
    assert len(modules) == 96


def test_experts_without_a_gate_multiply_two_matrices():
    """Nemotron 3 Nano: 23 layers of 6 of 128 experts of 1856, squared ReLU."""
    model = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
    found = engine_load(deployed(model, "h200:2", tensor_parallel_size=2))
    experts = [module for module in deployed(model).model.modules if isinstance(module, FusedMoE)]
    assert {(module.top_k, module.intermediate_size, module.gated) for module in experts} == {(6, 1856, False)}
    assert found.routed_flops == 23 * 2 * 6 * 2 * 2688 * 1856


def test_the_fullest_stage_counts():
    """Of two stages of experts, whichever comes first."""
    deployment = deployed(EXPERTS, "h200:2", pipeline_parallel_size=2)
    found = engine_load(deployment)
    turned = engine_load(replace(deployment, shares=deployment.shares[::-1]))
    assert (found.dense_bytes, found.expert_bytes) == (turned.dense_bytes, turned.expert_bytes)


def test_gated_attention_multiplies_a_gate_of_its_queries():
    """Qwen3-Next: half of what q_proj gives is a gate; 12 of 48 layers attend, with 16 heads of 256 and 2 of keys."""
    spec = deployed("Qwen/Qwen3-Next-80B-A3B-Instruct", "h200:4", tensor_parallel_size=4).model
    gated = [module for module in spec.modules if isinstance(module, QKVLinear) and module.output_gate]
    assert len(gated) == 12
    with_gate = engine_load(deployed("Qwen/Qwen3-Next-80B-A3B-Instruct", "h200:4", tensor_parallel_size=4))
    assert with_gate.reductions == 2 * 48
    assert with_gate.reduced_bytes == 2 * 2048


@pytest.mark.parametrize(
    ("model", "eight_bit", "packed"),
    [(DENSE, False, False), ("Qwen/Qwen3-32B-FP8", True, False), ("Qwen/Qwen3-32B-AWQ", False, True)],
)
def test_the_commonest_storage_counts(model, eight_bit, packed):
    found = engine_load(deployed(model))
    assert (found.eight_bit, found.packed) == (eight_bit, packed)


def test_a_state_is_read_once_whatever_the_length():
    """Nemotron-H: six groups of states beside one of attention, which alone grows."""
    pool = deployed("nvidia/Nemotron-H-56B-Base-8K", "h200:8", tensor_parallel_size=8).pool
    attending = next(group for group in pool.fullest.groups if group.grows)
    states = sum(group.page_size_bytes * group.num_layers for group in pool.fullest.groups if not group.grows)
    for tokens in (1, 4128, 10000):
        grown = -(-tokens * attending.page_size_bytes * attending.num_layers // attending.block_size)
        assert cache_read_bytes(pool, tokens) == pytest.approx(states + grown, abs=1)


def test_missing_figures_leave_what_they_decide_unknown():
    blank = GPU.model_copy(update={"dense_flops": {}})
    assert flops_of(blank, "bfloat16") is None
    assert prompt_seconds(load(), blank, "bfloat16", 10) is None
    assert prefill_tokens_per_s(load(), blank, "bfloat16") is None
    by_bytes = decode_tokens_per_s(load(), blank, "bfloat16", 1)
    assert by_bytes == decode_tokens_per_s(load(decode_flops=0), GPU, "bfloat16", 1)
    assert step_seconds(load(), GPU, "bfloat16", 0) is None
    assert estimated_speed(load(), blank, "bfloat16", 1, 10, 10) is None
    assert estimated_speed(load(prefill_flops=0), GPU, "bfloat16", 1, 10, 10) is None
    half = GPU.model_copy(update={"dense_flops": {"float16": 5, "bfloat16": 7}})
    assert [flops_of(half, dtype) for dtype in ("float16", "bfloat16", "float32")] == [5, 7, 7]


@pytest.mark.parametrize("end", [-1, 0, 1])
def test_a_closed_loop_by_hand(end):
    """Nine requests of 5000 and 100 tokens: each token waits for its share of eight prompts, each prompt for half a
    step, for prompts before it, for itself, and for the three steps that read it."""
    one = load()
    found = estimated_speed(one, GPU, "bfloat16", 9, 5000, 100)
    step, alone = (step_seconds(one, GPU, "bfloat16", count, end) for count in (9, 1))
    reading = prompt_seconds(one, GPU, "bfloat16", 5000, end)
    queued = {1: 0.0, 0: (3 - 1) / 2 * reading, -1: 8 / 2 * reading}[end]
    first = shares.REQUEST_SECONDS.at(end, seconds=True) + queued + reading + 3 * alone + step / 2
    between = step + 8 * reading / 100

    def of(span: Range, *, rate: bool = False) -> float:
        return (span.high, span.value, span.low)[1 + (-end if rate else end)]

    assert of(found.ttft_s) == pytest.approx(first)
    assert of(found.itl_s) == pytest.approx(between)
    assert of(found.output_tokens_per_s, rate=True) == pytest.approx(900 / (first + 99 * between))
    assert of(found.prefill_tokens_per_s, rate=True) == prefill_tokens_per_s(one, GPU, "bfloat16", end)


def test_one_request_waits_for_nobody():
    one = load()
    found = estimated_speed(one, GPU, "bfloat16", 1, 100, 1)
    reading, alone = prompt_seconds(one, GPU, "bfloat16", 100), step_seconds(one, GPU, "bfloat16", 1)
    assert found.ttft_s.value == pytest.approx(shares.REQUEST_SECONDS.value + reading + alone)
    assert found.itl_s.value == pytest.approx(alone)
    assert found.output_tokens_per_s.value == pytest.approx(1 / found.ttft_s.value)
    pair = step_seconds(one, GPU, "bfloat16", 2)
    for output in (0, 1):
        both = estimated_speed(one, GPU, "bfloat16", 2, 100, output)
        assert both.itl_s.value == pytest.approx(pair + reading), "the other one's prompt, for one token"


def test_engines_take_whole_requests():
    """Five requests on two engines: one of them has three, and is the one that is told."""
    pair, single = deployed(DENSE, "h200:2", data_parallel_size=2), deployed(DENSE)
    two, three = speed_of(pair, 5, 512, 128), speed_of(single, 3, 512, 128)
    assert two.itl_s == three.itl_s
    assert two.concurrency == 5
    assert two.output_tokens_per_s.value == pytest.approx(three.output_tokens_per_s.value * 5 / 3)
    assert speed_of(pair, 1, 512, 128).itl_s == speed_of(single, 1, 512, 128).itl_s
    longer = deployed(DENSE).pool
    average = replace(engine_load(single), cache_bytes=cache_read_bytes(longer, 512 + 64))
    assert estimated_speed(average, GPU, "bfloat16", 3, 512, 128).itl_s == three.itl_s
