"""The estimate of speed: its arithmetic by hand, its order, and the published figures it is held against."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import api
from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.memory.assess import Deployment, deploy
from planner.search import kernel_shares as shares
from planner.search.roofline import (
    cache_read_bytes,
    decode_tokens_per_s,
    engine_load,
    prefill_tokens_per_s,
    prompt_seconds,
    step_seconds,
)
from planner.search.speed import Range, speed_of, usd_per_million_tokens
from planner.serve.parse import parse_command

DENSE, EXPERTS = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-30B-A3B"
TABLE = Path(__file__).parents[2] / "verification" / "published_speed.csv"


def deployed(model=DENSE, gpus="h200:1", **flags):
    args = EngineArgs(max_model_len=8192, **flags)
    return api.estimate(api.Request(model=model, gpus=gpus, offline=True, args=args)).deployment


def test_a_decode_step_by_hand():
    """Qwen2.5-7B: 28 layers of 4 matrix multiplications; the embedding is not read, the cache is 56 KiB a token."""
    deployment = deployed()
    load, gpu = engine_load(deployment), deployment.gpus.gpu
    hidden, vocabulary = 3584, 152064
    parameters = sum(tensor.size_bytes for tensor in deployment.shares[0].loaded if tensor.role == "parameter")
    assert load.dense_bytes == parameters - 2 * vocabulary * hidden
    assert load.decode_flops - load.prefill_flops == 2 * hidden * vocabulary
    assert load.cache_bytes == 4096 * 57344
    assert (load.multiplications, load.reductions, load.eager) == (4 * 28, 0, False)
    assert load.attention == ((4 * 28 * 128, 0),) * 28
    bandwidth = gpu.memory_bandwidth_bytes_per_s
    by_hand = (
        load.dense_bytes / (bandwidth * shares.BANDWIDTH_16.value)
        + max(load.cache_bytes / (bandwidth * shares.ATTENTION_BANDWIDTH.value), 28 * shares.ATTENTION_SECONDS.value)
        + (4 + 4) * 28 * shares.KERNEL_SECONDS.value
        + shares.STEP_SECONDS.value
        + shares.SEQUENCE_SECONDS.value
    )
    assert step_seconds(load, gpu, "bfloat16", 1) == pytest.approx(by_hand)


def test_a_prompt_by_hand():
    deployment = deployed()
    load, gpu = engine_load(deployment), deployment.gpus.gpu
    flops = gpu.dense_flops["bfloat16"]
    by_hand = 2048 * load.prefill_flops / (flops * shares.FLOPS_16.value)
    by_hand += 28 * 4 * 28 * 128 * 2048**2 / 2 / (flops * shares.ATTENTION_FLOPS.value)
    assert prompt_seconds(load, gpu, "bfloat16", 2048) == pytest.approx(by_hand)


def test_all_reduces_by_hand():
    """Two a layer, of the hidden size in 16 bits; over NVLink on H200, over PCIe on cards without."""
    deployment = deployed(gpus="h200:2", tensor_parallel_size=2)
    load, gpu = engine_load(deployment), deployment.gpus.gpu
    assert (load.reductions, load.reduced_bytes) == (2 * 28, 2 * 3584)
    alone = replace(load, reductions=0)
    more = step_seconds(load, gpu, "bfloat16", 64) - step_seconds(alone, gpu, "bfloat16", 64)
    moved = 64 * 2 * 3584 * 2 * (2 - 1) / 2
    link = gpu.nvlink_bytes_per_s * shares.NVLINK.value
    assert more == pytest.approx(56 * (shares.NVLINK_SECONDS[2].value + moved / link))
    slow = gpu.model_copy(update={"nvlink_bytes_per_s": None, "pcie_gen": 4})
    assert step_seconds(load, slow, "bfloat16", 64) > step_seconds(load, gpu, "bfloat16", 64)


def test_experts_are_read_as_tokens_are_routed_to_them():
    load = engine_load(deployed(EXPERTS))
    assert load.touched == pytest.approx(8 / 128)
    assert 0 < load.routed_flops < load.prefill_flops
    gpu = deployed(EXPERTS).gpus.gpu
    free = replace(load, cache_bytes=0, decode_flops=0, routed_flops=0)
    one, many = (step_seconds(free, gpu, "bfloat16", count) for count in (64, 4096))
    part = 1 - (1 - 8 / 128) ** 64
    read = load.expert_bytes * (1 - part) / (gpu.memory_bandwidth_bytes_per_s * shares.EXPERT_BANDWIDTH.value)
    assert many - one == pytest.approx(read + (4096 - 64) * shares.SEQUENCE_SECONDS.value, rel=1e-6)


def test_windows_are_read_up_to_their_length():
    """gpt-oss: every other layer keeps 128 tokens."""
    pool = deployed("openai/gpt-oss-20b").pool
    near, far = cache_read_bytes(pool, 1024), cache_read_bytes(pool, 2048)
    whole = cache_read_bytes(pool, 128)
    assert far - near == pytest.approx(whole / 2 * 8, rel=0.01)


def test_speed_is_unknown_without_the_cards_figures():
    deployment = deployed()
    load, gpu = engine_load(deployment), deployment.gpus.gpu
    blank = gpu.model_copy(update={"memory_bandwidth_bytes_per_s": None, "dense_flops": {}})
    assert decode_tokens_per_s(load, blank, "bfloat16", 1) is None
    assert prefill_tokens_per_s(load, blank, "bfloat16") is None
    pool = deployment.gpus.model_copy(update={"gpu": blank})
    assert speed_of(replace(deployment, gpus=pool), 1, 100, 100) is None


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(DENSE, "l20:1", {}), (EXPERTS, "h200:2", {"tensor_parallel_size": 2})]),
    st.integers(1, 256), st.integers(1, 6000), st.integers(1, 2000),
)  # fmt: skip
def test_intervals_hold_their_middle_and_more_load_is_slower(case, concurrency, prompt, output):
    model, gpus, flags = case
    deployment = _CACHE.setdefault(model, deployed(model, gpus, **flags))
    speed = speed_of(deployment, concurrency, prompt, output)
    for name in ("ttft_s", "itl_s", "output_tokens_per_s", "prefill_tokens_per_s"):
        span = getattr(speed, name)
        assert 0 < span.low <= span.value <= span.high
    more = speed_of(deployment, concurrency + 1, prompt, output)
    longer = speed_of(deployment, concurrency, prompt + 64, output)
    for other in (more, longer):
        assert other.ttft_s.value >= speed.ttft_s.value
        assert other.itl_s.value >= speed.itl_s.value


_CACHE: dict = {}


def test_engines_side_by_side_share_the_requests():
    one = speed_of(deployed(), 8, 512, 128)
    two = speed_of(deployed(gpus="h200:2", data_parallel_size=2), 16, 512, 128)
    assert two.output_tokens_per_s.value == pytest.approx(2 * one.output_tokens_per_s.value)
    assert two.itl_s == one.itl_s


def test_dollars_run_against_the_rate():
    dollars = usd_per_million_tokens(3.6, Range(500.0, 1000.0, 2000.0))
    assert (dollars.low, dollars.value, dollars.high) == (0.5, 1.0, 2.0)


def test_constants_are_ordered():
    found = [value for value in vars(shares).values() if isinstance(value, shares.Share)]
    assert len(found) > 10
    for share in found:
        assert share.low <= share.value <= share.high
        assert share.at(-1) == share.low == share.at(1, seconds=True)


def test_nine_in_ten_published_figures_lie_within():
    """What docs/speed.md says of the table."""
    rows = _rows(TABLE)
    assert len(rows) >= 150
    for metric in ("ttft_ms", "itl_ms", "output_tokens_per_s"):
        mine = [row for row in rows if row["metric"] == metric]
        assert sum(row["within"] == "yes" for row in mine) / len(mine) >= 0.89


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as source:
        return list(csv.DictReader(source))


PUBLISHED = _rows(TABLE.with_name("published_speed_figures.csv"))


@pytest.mark.parametrize("model", sorted({row["model"] for row in PUBLISHED}))
def test_the_table_is_what_the_estimate_says_now(model):
    """Both ends and the middle of every published run; made anew by scripts/build_speed.py."""
    shown = {(row["id"], row["metric"]): row for row in _rows(TABLE)}
    factors = {"ttft_ms": ("ttft_s", 1e3), "itl_ms": ("itl_s", 1e3), "output_tokens_per_s": ("output_tokens_per_s", 1)}
    for row in (row for row in PUBLISHED if row["model"] == model):
        line = f"vllm serve {model} --tensor-parallel-size {row['tensor_parallel_size']} {row['flags']}"
        parsed = parse_command(line)
        request = api.Request(model=model, gpus=row["gpus"], offline=True, args=parsed.args, given=parsed.given)
        deployment = _without_memory(request)
        lengths = int(row["concurrency"]), int(row["prompt_tokens"]), int(row["output_tokens"])
        speed = speed_of(deployment, *lengths)
        for metric, (field, factor) in factors.items():
            if row[metric]:
                span, known = getattr(speed, field).scaled(factor), shown[row["id"], metric]
                found = {"low": f"{span.low:.2f}", "expected": f"{span.value:.2f}", "high": f"{span.high:.2f}"}
                assert found == {name: known[name] for name in found}, (row["id"], metric)


def _without_memory(request: api.Request) -> Deployment:
    """The deployment of a launch whether or not its memory is enough."""
    model, gpus = api.load_spec(request), api.load_gpus(request)
    return deploy(model, gpus, resolve(model, gpus.gpu, request.args, api.DEFAULT_VERSION))
