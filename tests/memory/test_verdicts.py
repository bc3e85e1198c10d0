"""Where the card ends a plan, by terms made up for it; and the books of whole plans."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from planner import api
from planner.engine.args import EngineArgs
from planner.memory.assess import Assessment, assess, available_kv_cache_bytes, requested_memory_bytes
from planner.memory.intervals import CERTAIN, Spread, Spreads
from planner.memory.kv_pool import KVGroup, StagePool
from planner.memory.result import PerGpu
from planner.memory.runtime import RuntimeTerms, kv_tensor_bytes, thin
from planner.memory.verdicts import device_rejection, slack_warning, stage_warning, startup_rejection, used_bytes
from planner.sources.gpu_pool import parse_gpus
from planner.units import GIB
from tests.memory.pass_cases import model_of, set_up

TOTAL = 100 * GIB
SPREAD = Spread(GIB, 2 * GIB)


def terms(**changes: Any) -> RuntimeTerms:
    values: dict[str, Any] = dict.fromkeys(RuntimeTerms.__struct_fields__, 0) | {"spreads": CERTAIN}
    return RuntimeTerms(**(values | changes))


def books(**changes: Any) -> PerGpu:
    names = [name for name in PerGpu.__struct_fields__ if not name.endswith("_interval")]
    return PerGpu(**(dict.fromkeys(names, 0) | {"total_memory_bytes": TOTAL} | changes))


def refused(term: RuntimeTerms, requested: int = 90 * GIB, confidence: Any = "expected") -> str | None:
    found = startup_rejection((terms(), term), TOTAL, 0.9, requested, confidence)
    return None if found is None else found.bottleneck


def spreads(**changes: Spread) -> Spreads:
    return replace(CERTAIN, **changes)


def test_what_is_free_at_startup_must_cover_the_request() -> None:
    assert refused(terms(cuda_context_bytes=10 * GIB)) is None
    assert refused(terms(cuda_context_bytes=10 * GIB + 1)) == "startup_memory"
    unsure = terms(cuda_context_bytes=8 * GIB, spreads=spreads(context=SPREAD))
    assert refused(unsure, confidence="safe") is None
    assert refused(unsure, requested=90 * GIB + 1, confidence="safe") == "startup_memory"
    assert refused(unsure, requested=90 * GIB + 1) is None
    found = startup_rejection((terms(cuda_context_bytes=25 * GIB),), TOTAL, 0.9, 90 * GIB, "safe")
    assert found is not None
    assert (found.need_bytes, found.have_bytes, found.fix) == (90 * GIB, 75 * GIB, ("--gpu-memory-utilization 0.75",))
    assert "(75.00/100.00 GiB) on startup is less than desired GPU memory utilization (0.9, 90.00 GiB)" in found.message


def test_weights_must_fit_into_what_is_free() -> None:
    term = terms(cuda_context_bytes=5 * GIB, weights_memory_bytes=95 * GIB)
    assert refused(term) is None
    assert refused(replace(term, weights_memory_bytes=95 * GIB + 1)) == "weights"


def test_the_profile_run_must_fit_on_the_card() -> None:
    parts = {
        "cuda_context_bytes": GIB, "non_torch_bytes": 2 * GIB, "weights_memory_bytes": 40 * GIB,
        "runner_state_bytes": 7 * GIB, "peak_activation_bytes": 50 * GIB,
    }  # fmt: skip
    assert terms(**parts).profile_peak_bytes == TOTAL
    assert refused(terms(**parts)) is None
    assert refused(terms(**parts | {"peak_activation_bytes": 50 * GIB + 1})) == "device_memory"
    unsure = terms(**parts, spreads=spreads(peak=SPREAD))
    assert refused(unsure) is None
    assert refused(unsure, confidence="safe") == "device_memory"


def test_sums_of_both_ledgers() -> None:
    """Powers of two name the terms."""
    term = terms(
        weights_memory_bytes=1, peak_activation_bytes=2, non_torch_bytes=4, cuda_graph_estimate_bytes=8,
        also_counted_bytes=16, runner_state_bytes=32, cuda_graph_actual_bytes=64, cuda_context_bytes=128,
        encoder_runtime_peak_bytes=256,
    )  # fmt: skip
    assert term.non_kv_bytes == 1 + 2 + 4 + 8 + 16
    assert term.device_bytes_beside_cache == 1 + 4 + 32 + 64 + 128
    assert term.profile_peak_bytes == 1 + 2 + 4 + 32 + 128
    config = set_up("memory/boots.json q25-7b-l4")[2]
    assert available_kv_cache_bytes(100, term, config) == 100 - 31
    assert available_kv_cache_bytes(100, term, config.model_copy(update={"kv_cache_memory_bytes": 7})) == 7
    assert requested_memory_bytes(1001, 0.9) == 901


def test_use_by_the_unfavourable_end() -> None:
    """PyTorch gives its cached blocks back before it runs out of memory."""
    plain = books(used_after_startup_bytes=50, allocator_retained_bytes=5)
    assert used_bytes(plain, "safe") == used_bytes(plain, "expected") == 50
    unsure = books(
        used_after_startup_bytes=50, used_after_startup_bytes_interval=(40, 70), allocator_retained_bytes=5
    )  # fmt: skip
    assert (used_bytes(unsure, "safe"), used_bytes(unsure, "expected")) == (65, 50)
    narrow = books(
        used_after_startup_bytes=50, used_after_startup_bytes_interval=(40, 52), allocator_retained_bytes=5
    )  # fmt: skip
    assert used_bytes(narrow, "safe") == 50


def test_a_card_below_the_budget_names_a_lower_one() -> None:
    found = device_rejection(books(requested_memory_bytes=90 * GIB), 105 * GIB)
    assert (found.need_bytes, found.have_bytes) == (105 * GIB, TOTAL)
    assert found.fix[0] == "--gpu-memory-utilization 0.85"
    assert "105.00 GiB of 100.00 GiB" in found.message


def test_room_for_a_batch_of_media_may_be_exact() -> None:
    model, share, config = set_up("Qwen__Qwen2.5-VL-7B-Instruct")
    exact = books(used_after_startup_bytes=TOTAL - 5, vision_encoder_runtime_peak_bytes=5)
    over = books(used_after_startup_bytes=TOTAL - 4, vision_encoder_runtime_peak_bytes=5)
    assert slack_warning(model, share, config, exact, None) == ()
    assert slack_warning(model, share, config, over, None)


def test_a_fuller_stage_is_named() -> None:
    stages = [books(used_after_startup_bytes=10 * GIB), books(used_after_startup_bytes=12 * GIB)]
    assert stage_warning(stages, 0, 0) == stage_warning(stages, 1, 0) == ()
    (warning,) = stage_warning(stages, 0, 1)
    assert "stage 0" in warning
    assert "stage 1 use 2.00 GiB more" in warning


def test_tensors_of_a_pool() -> None:
    """As many as the largest group has layers, each with one page of each block."""
    group = KVGroup(kind="full_attention", num_layers=3, num_kv_heads=1, head_size=1, block_size=16, page_size_bytes=10)
    groups = (group, replace(group, num_layers=2))
    assert kv_tensor_bytes(StagePool(groups, 30, 30), 7) == [70, 70, 70]
    assert kv_tensor_bytes(StagePool((), 0, 0), 7) == []


@pytest.mark.parametrize(
    "source", ["memory/boots.json q25-7b-l4", "memory/boots.json nemotron3-nano-l8", "Qwen__Qwen3-8B"]
)
def test_a_thin_model_has_two_layers_of_each_kind(source: str) -> None:
    model, share, _ = set_up(source)
    small, part = thin(model, share)
    kinds: dict[tuple[object, ...], list[int]] = {}
    for layer in share.layers:
        made = tuple((one.name, one.shape, one.dtype) for one in share.created if one.layer == layer)
        kinds.setdefault(made, []).append(layer)
    kept = sorted(layer for layers in kinds.values() for layer in layers[:2])
    assert list(part.layers) == kept
    assert {one.layer for one in part.created} - {None} == set(kept)
    assert {one.layer for one in part.loaded} - {None} == set(kept)
    assert {module.placement for module in small.modules if isinstance(module.placement, int)} == set(kept)
    assert thin(model, share) is thin(model, replace(share, kv_layers=()))
    whole = [one for one in share.created if one.layer is None]
    assert [one for one in part.created if one.layer is None] == whole


def plan(source: str, gpus: str = "h200:1", confidence: Any = "expected", **flags: Any) -> Assessment:
    args = EngineArgs(**{"trust_remote_code": True, "max_num_seqs": 64, **flags})
    return assess(model_of(source), parse_gpus(gpus), args, "0.26.0", confidence=confidence)


@pytest.mark.parametrize(
    ("source", "gpus", "flags", "bottleneck"),
    [
        ("Qwen__Qwen3-8B", "h200:1", {}, None),
        ("Qwen__Qwen3-8B", "l4:1", {"max_model_len": 8192}, None),
        ("Qwen__Qwen3-8B", "l4:1", {"gpu_memory_utilization": 0.99, "max_model_len": 8192}, "startup_memory"),
        ("Qwen__Qwen3-8B", "t4:1", {"dtype": "float16", "max_model_len": 8192}, "weights"),
        ("Qwen__Qwen3-8B", "l4:1", {"max_model_len": 40960}, "kv_cache"),
        ("Qwen__Qwen3-8B", "h200:1", {"tensor_parallel_size": 2}, "parallelism"),
    ],
)
def test_verdicts_in_the_order_of_the_engine(
    source: str, gpus: str, flags: dict[str, Any], bottleneck: str | None
) -> None:
    found = plan(source, gpus, **flags).estimate
    assert (None if found.rejection is None else found.rejection.bottleneck) == bottleneck
    assert found.starts is (bottleneck is None)
    assert found.verdict == ("starts" if bottleneck is None else "rejected")


def test_books_of_a_plan_add_up() -> None:
    found = plan("Qwen__Qwen3-8B", gpu_memory_utilization=0.8)
    gpu, cache = found.estimate.per_gpu, found.estimate.kv_cache
    assert gpu is not None
    assert cache is not None
    assert gpu.requested_memory_bytes == requested_memory_bytes(gpu.total_memory_bytes, 0.8)
    assert gpu.kv_cache_allocated_bytes == cache.num_gpu_blocks * cache.bytes_per_block
    assert 0 <= gpu.available_kv_cache_bytes - gpu.kv_cache_allocated_bytes < cache.bytes_per_block
    assert gpu.used_after_startup_bytes == (
        gpu.weights_memory_bytes + gpu.runner_state_bytes + gpu.kv_cache_allocated_bytes + gpu.non_torch_bytes
        + gpu.cuda_graph_actual_bytes + gpu.cuda_context_bytes + gpu.allocator_retained_bytes
    )  # fmt: skip
    low, high = gpu.available_kv_cache_bytes_interval or (0, 0)
    term = found.terms[0]
    assert high - gpu.available_kv_cache_bytes == term.spreads.engine.down
    assert gpu.available_kv_cache_bytes - low == term.spreads.engine.up
    given = plan("Qwen__Qwen3-8B", kv_cache_memory_bytes=10 * GIB).estimate.per_gpu
    assert given is not None
    assert given.available_kv_cache_bytes == 10 * GIB
    assert given.available_kv_cache_bytes_interval is None


def test_a_plan_without_room_has_no_cache() -> None:
    cache = plan("Qwen__Qwen3-8B", "t4:1", dtype="float16", max_model_len=8192).estimate.kv_cache
    assert cache is not None
    assert (cache.num_gpu_blocks, cache.capacity_tokens, cache.max_concurrency, cache.usable_tokens) == (0, 0, 0.0, 0)
    assert cache.bytes_per_token == 36 * 2 * 8 * 128 * 2


def test_the_longest_length_is_found() -> None:
    found = plan("Qwen__Qwen3-8B", "l4:1", max_model_len=-1)
    assert found.config is not None
    assert found.estimate.kv_cache is not None
    assert found.config.max_model_len == min(40960, found.estimate.kv_cache.num_gpu_blocks * 16)
    assert plan("Qwen__Qwen3-8B", max_model_len=-1).config.max_model_len == 40960  # type: ignore[union-attr]


def test_stages_are_booked_each_for_itself() -> None:
    """The last stage samples: it holds more, and the first, which has the embeddings, or it bounds the cache."""
    found = plan("Qwen__Qwen3-8B", "h200:2", pipeline_parallel_size=2, enforce_eager=True)
    gpu = found.estimate.per_gpu
    assert gpu is not None
    available = [available_kv_cache_bytes(gpu.requested_memory_bytes, term, found.config) for term in found.terms]  # type: ignore[arg-type]
    assert gpu.available_kv_cache_bytes == min(available)
    told = [warning for warning in found.estimate.warnings if "the ledger is that of pipeline stage" in warning]
    uses = [term.device_bytes_beside_cache for term in found.terms]
    fullest = available.index(min(available))
    assert bool(told) == (uses[fullest] < max(uses))


def test_media_beyond_the_card_are_warned_of() -> None:
    """A plan that starts, and leaves less than a full batch of media needs; one with a little more room."""
    vision = "Qwen__Qwen2.5-VL-7B-Instruct"
    sizes: dict[str, Any] = {"max_model_len": 32768, "max_num_batched_tokens": 32768}
    tight = plan(vision, "l20:1", gpu_memory_utilization=0.985, **sizes).estimate
    room = plan(vision, "l20:1", gpu_memory_utilization=0.97, **sizes).estimate
    assert tight.starts
    assert room.starts
    assert any("full media batch needs" in warning for warning in tight.warnings)
    assert any("makes that" in warning for warning in tight.warnings)
    assert not any("full media batch needs" in warning for warning in room.warnings)


def test_an_override_of_blocks_stands_in_for_measured_memory() -> None:
    """vLLM plans by the override even where its budget leaves less than nothing (v1/core/kv_cache_utils.py:2101)."""
    request = api.Request(model="Qwen/Qwen2.5-7B-Instruct", gpus="l4:1", offline=True)
    flags = EngineArgs(max_model_len=2048, gpu_memory_utilization=0.6)
    without = api.estimate(request.model_copy(update={"args": flags})).estimate
    given = flags.model_copy(update={"num_gpu_blocks_override": 512})
    found = api.estimate(request.model_copy(update={"args": given})).estimate
    assert without.per_gpu is not None
    assert without.per_gpu.available_kv_cache_bytes < 0
    assert (without.verdict, found.verdict) == ("rejected", "starts")
    assert found.kv_cache is not None
    assert found.kv_cache.num_gpu_blocks == 512
