"""Startups replayed on the caching allocator, step by step as they were when boots agreed (tests/golden/passes)."""

from __future__ import annotations

from typing import Any

import pytest

from planner.memory import device
from planner.memory.activation import profile_program
from planner.memory.device import Boot
from planner.units import MIB
from tests.memory.pass_cases import check_text, set_up

BOOT = "memory/boots.json "
EAGER: dict[str, Any] = {"enforce_eager": True}
V1: dict[str, Any] = {"env": (("VLLM_USE_V2_MODEL_RUNNER", "0"),)}
TWO: dict[str, Any] = {"gpus": "h200:2", "tensor_parallel_size": 2}
STAGES: dict[str, Any] = {"gpus": "h200:4", "pipeline_parallel_size": 3}
EAGLE = {"speculative_config": '{"method": "eagle", "model": "head", "num_speculative_tokens": 3}'}
STARTUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5": (BOOT + "q25-7b-l4", EAGER),
    "qwen2.5 compiled, steps too large for graphs": (BOOT + "q25-7b-l4", {"max_num_seqs": 600}),
    "qwen2.5 compiled": (BOOT + "q25-7b-l4", {}),
    "qwen2.5 V1": (BOOT + "q25-7b-l4", EAGER | V1),
    "qwen2.5 on an L4": (BOOT + "q25-7b-l4", EAGER | {"gpus": "l4:1"}),
    "qwen2.5 of 0.33": (BOOT + "q25-7b-l4", EAGER | {"version": "0.33.0"}),
    "qwen2.5 adapters": (BOOT + "q25-7b-l4", EAGER | {"enable_lora": True, "max_loras": 2}),
    "qwen2.5 first of three stages": (BOOT + "q25-7b-l4", EAGER | STAGES),
    "qwen2.5 middle of three stages": (BOOT + "q25-7b-l4", EAGER | STAGES | {"stage": 1}),
    "qwen2.5 last of three stages": (BOOT + "q25-7b-l4", EAGER | STAGES | {"stage": 2}),
    "qwen2.5 vl": (BOOT + "q25vl-7b-l4", EAGER),
    "deepseek v2 lite, few requests": (BOOT + "dsv2-lite-l4", EAGER | {"max_num_seqs": 64}),
    "deepseek v2 lite, more requests": (BOOT + "dsv2-lite-l4", EAGER | {"max_num_seqs": 128}),
    "deepseek v2 lite, many requests": (BOOT + "dsv2-lite-l4", EAGER | {"max_num_seqs": 257}),
    "deepseek v2 lite V1, few requests": (BOOT + "dsv2-lite-l4", EAGER | V1 | {"max_num_seqs": 256}),
    "deepseek v2 lite V1, many requests": (BOOT + "dsv2-lite-l4", EAGER | V1 | {"max_num_seqs": 257}),
    "deepseek v2 lite, two ranks": (BOOT + "dsv2-lite-l4", EAGER | TWO),
    "gemma 3 compiled": (BOOT + "gemma3-27b-l6", {}),
    "qwen3 next": (BOOT + "q3next-l4", EAGER),
    "eagle": ("llama", EAGER | EAGLE),
}


@pytest.mark.parametrize("name", STARTUPS)
def test_a_startup(name: str, request: pytest.FixtureRequest) -> None:
    source, flags = STARTUPS[name]
    boot = Boot(*set_up(source, **flags))
    lines = [
        f"weights: {boot.weights_memory_bytes:,}", f"runner's state: {boot.runner_state_bytes:,}",
        f"peak: {boot.peak_activation_bytes:,}", f"allocated after the profile: {boot.allocated_after_profile_bytes:,}",
        f"reserved after the profile: {boot.reserved_after_profile_bytes:,}",
    ]  # fmt: skip
    for blocks in (40, 4000):
        served = Boot(*set_up(source, **flags))
        reserved = served.finish([blocks * MIB] * 2, (16, 16), blocks)
        lines.append(f"reserved with {blocks} blocks: {reserved:,}, allocated {served.allocator.allocated_bytes:,}")
    check_text(f"startup of {name}", lines, request)


@pytest.mark.parametrize(
    ("flags", "aside"),
    [
        ({"max_num_seqs": 256}, False),
        ({"max_num_seqs": 257}, True),  # 514 tokens of prompts; the largest graph takes 512
        ({"max_num_seqs": 257, "enforce_eager": True}, False),
    ],
)
def test_steps_beyond_the_largest_graph_find_no_cached_block(
    flags: dict[str, Any], aside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[bool] = []
    monkeypatch.setattr(Boot, "_set_aside_pinned", lambda boot: called.append(True))
    model, share, config = set_up(BOOT + "q25-7b-l4", **flags)
    assert max(config.cudagraph_capture_sizes, default=512) == 512
    Boot(model, share, config).finish([], (16,), 5000)
    assert bool(called) is aside


def test_graphs_of_their_own_pool_are_added() -> None:
    source, flags = STARTUPS["qwen2.5 compiled"]
    plain = Boot(*set_up(source, **flags)).finish([MIB], (16,), 100)
    assert Boot(*set_up(source, **flags)).finish([MIB], (16,), 100, graph_bytes=12345) == plain + 12345


def test_cards_of_unknown_size_have_132_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    """V1's top-k kernel keeps a row for each program, of which there are as many as multiprocessors at most."""
    model, share, config = set_up(BOOT + "q25-7b-l4", **EAGER, **V1, max_num_seqs=600)
    unknown = config.model_copy(update={"sm_count": None})
    program = profile_program(model, share, unknown)
    (kept,) = {event.tensor for event in program.flat() if event.tensor.name == "Triton top-k and top-p buffer"}
    assert kept.constant_bytes == 132 * 4 * model.text.vocab_size
    seen: list[int] = []
    monkeypatch.setattr(device, "dummy_sample_v1", lambda p, head, sms, rows, rule, **more: seen.append(sms))
    Boot(model, share, unknown).finish([], (16,), 1000)
    assert seen == [132]


def test_a_cache_of_one_block_still_warms_up() -> None:
    """vLLM leaves block 0 alone and takes one request at least (v1/worker/gpu/warmup.py)."""
    found = {blocks: Boot(*set_up(BOOT + "q25-7b-l4", **EAGER)).finish([], (16,), blocks) for blocks in (0, 1, 2, 3)}
    assert found[0] == found[1] == found[2] != found[3]
    one = Boot(*set_up(BOOT + "q25-7b-l4", **EAGER))
    one.finish([], (16,), 1)
    assert "FlashInfer top-k state" in one._kept
    sizes: dict[str, Any] = {"max_num_batched_tokens": 1, "max_num_seqs": 1, "max_model_len": 1}
    none = Boot(*set_up(BOOT + "q25-7b-l4", **EAGER, **sizes))
    none.finish([], (16,), 3)
    assert "FlashInfer top-k state" not in none._kept


@pytest.mark.parametrize(
    ("source", "flags", "default"),
    [
        (BOOT + "dsv2-lite-l4", EAGER, True),
        (BOOT + "dsv2-lite-l4", {}, False),
        (BOOT + "dsv2-lite-l4", EAGER | TWO, False),
        (BOOT + "dsv2-lite-l4", EAGER | {"gpus": "h200:2", "pipeline_parallel_size": 2}, False),
        (BOOT + "dsv2-lite-l4", EAGER | {"gpus": "h200:2", "data_parallel_size": 2}, False),
        (BOOT + "q25-7b-l4", EAGER | {"gpus": "h200:2", "data_parallel_size": 2}, True),
    ],
)
def test_which_engines_leave_the_default_stream_late(source: str, flags: dict[str, Any], default: bool) -> None:
    """Capturing, or a first reduction, would have set a stream; replicas of a dense model are engines of their own."""
    assert Boot(*set_up(source, **flags))._starts_on_default_stream is default


@pytest.mark.parametrize(
    ("backend", "tokens", "decodes"),
    [
        ("FLASH_ATTN_MLA", 512, True), ("FLASH_ATTN_MLA", 513, False), ("FLASHMLA", 128, True),
        ("FLASHMLA", 129, False), ("FLASH_ATTN", 1, True), ("FLASH_ATTN", 2, False),
    ],
)  # fmt: skip
def test_requests_of_so_many_tokens_are_decodes(backend: str, tokens: int, decodes: bool) -> None:
    model, share, config = set_up(BOOT + "q25-7b-l4", **EAGER)
    boot = Boot(model, share, config.model_copy(update={"attention_backend": backend}))
    assert boot._decodes(tokens) is decodes


def test_batches_up_to_256_tokens_run_shared_experts_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD's default, with two tokens a request in a prefill step."""
    steps: list[Any] = []
    original = device._request_part

    def seen(model: Any, share: Any, config: Any, step: Any, prompts: int) -> Any:
        steps.append((step.overlaps, step.leaves, step.splits, step.decodes, prompts))
        return original(model, share, config, step, prompts)

    monkeypatch.setattr(device, "_request_part", seen)
    for seqs in (128, 129, 256, 257):
        Boot(*set_up(BOOT + "dsv2-lite-l4", **EAGER, max_num_seqs=seqs)).finish([], (16,), 5000)
    assert [step[:2] for step in steps] == [
        (True, True), (True, False), (False, False), (True, False), (False, False), (True, False),
        (False, False), (False, False),
    ]  # fmt: skip
    assert [step[4] for step in steps] == [256, 0, 258, 0, 512, 0, 514, 0]
    steps.clear()
    Boot(*set_up(BOOT + "dsv2-lite-l4", max_num_seqs=64)).finish([], (16,), 5000)
    assert [step[2:4] for step in steps] == [(True, True), (False, True)]
