"""How weights are loaded: the order in which tensors are made and replaced, on the caching allocator."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from planner.memory import allocator as room
from planner.memory.allocator import (
    DEEP_GEMM_WORKSPACE_BYTES,
    LOAD_MAX_SPLIT_BYTES,
    ROTARY_TABLE,
    CachingAllocator,
    LoadTraits,
    load_weights,
    loaded,
    weights_memory_bytes,
)
from planner.memory.layers import load_traits
from planner.sharding.rank import RankShare, Tensor
from planner.units import KIB, MIB
from tests.memory.pass_cases import check_text, set_up

BOOT = "memory/boots.json "
EAGER: dict[str, Any] = {"enforce_eager": True}
EIGHT: dict[str, Any] = {"gpus": "h200:8", "tensor_parallel_size": 8}
LOADS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5": (BOOT + "q25-7b-l4", {}),
    "qwen2.5 adapters": (BOOT + "q25-7b-l4", {"enable_lora": True, "max_loras": 2}),
    "llama fp8 online": (BOOT + "llama31-8b-l4", {"quantization": "fp8"}),
    "llama fp8 cache": (BOOT + "llama31-8b-l4", {"kv_cache_dtype": "fp8"}),
    "qwen3 fp8": (BOOT + "q3-32b-fp8-l4", {}),
    "qwen3 moe fp8": (BOOT + "q3-30b-a3b-fp8-l4", {}),
    "gpt-oss": (BOOT + "gptoss-20b-l4", {}),
    "deepseek v2 lite": (BOOT + "dsv2-lite-l4", EAGER),
    "deepseek v2 lite compiled": (BOOT + "dsv2-lite-l4", {}),
    "deepseek v3": ("deepseek-ai__DeepSeek-V3", EAGER | EIGHT),
    "qwen2.5 vl awq": ("Qwen2.5-VL-72B-Instruct-AWQ-padded", {"gpus": "t4:8", "tensor_parallel_size": 8}),
    "qwen3 vl": (BOOT + "q3vl-8b-l4", {}),
    "gemma 3": (BOOT + "gemma3-27b-l6", {}),
    "nemotron nano": (BOOT + "nemotron3-nano-l8", {}),
}


@pytest.mark.parametrize("name", LOADS)
def test_weights_memory_of_a_load(name: str, request: pytest.FixtureRequest) -> None:
    """To the byte as it was when boots agreed; both ways of counting it, by steps and on an allocator."""
    source, flags = LOADS[name]
    model, share, config = set_up(source, **flags)
    traits = load_traits(model, share, config)
    allocator = CachingAllocator(LOAD_MAX_SPLIT_BYTES)
    kept = load_weights(allocator, share, traits)
    assert allocator.allocated_bytes == weights_memory_bytes(share, traits)
    lines = [
        str(traits), f"allocated: {allocator.allocated_bytes:,}", f"reserved: {allocator.reserved_bytes:,}",
        f"highest: {allocator.peak_allocated_bytes:,}", *(f"{name}: {block[0]:,}" for name, block in kept.items()),
    ]  # fmt: skip
    check_text(f"load of {name}", lines, request)


def share_of(created: tuple[Tensor, ...], after: tuple[Tensor, ...] | None = None, **more: Any) -> RankShare:
    return RankShare(
        tp_rank=0, pp_rank=0, tensor_parallel_size=1, pipeline_parallel_size=1, layers=range(1), created=created,
        loaded=created if after is None else after, kv_layers=(), **more,
    )  # fmt: skip


def tensor(name: str, rows: int, module: str = "linear", dtype: Any = "bfloat16", **more: Any) -> Tensor:
    values: dict[str, Any] = {"component": "language_model", "layer": 0, "role": "weight"}
    return Tensor(module=module, name=name, shape=(rows, 512), dtype=dtype, **(values | more))


def table(rows: int, **more: Any) -> Tensor:
    values = {"module": "rotary_emb.cos_sin_cache", "role": "buffer", "name": "cos_sin_cache"}
    return tensor(**(values | {"rows": rows} | more))


def peak_of(share: RankShare, **traits: Any) -> tuple[int, int]:
    allocator = CachingAllocator(LOAD_MAX_SPLIT_BYTES)
    load_weights(allocator, share, LoadTraits(**traits))
    assert weights_memory_bytes(share, LoadTraits(**traits)) == allocator.allocated_bytes
    return allocator.allocated_bytes, allocator.peak_allocated_bytes


def test_a_rotary_table_is_made_in_float32() -> None:
    """4096 positions of 512 numbers: angles, cosines and sines in float32, the table in float32 and in 16 bits; a
    factor multiplies cosines and sines one after the other. vLLM rotary_embedding/base.py:55."""
    half, whole, narrow = 4 * MIB, 8 * MIB, 4 * MIB
    positions = 16 * KIB
    share = share_of((table(4096),))
    assert peak_of(share) == (narrow, max(positions + 3 * half + whole, whole + narrow))
    assert peak_of(share, scaled_rotary=True) == (narrow, positions + 3 * half + whole)
    assert peak_of(share, float32_rotary=True) == (whole, positions + 3 * half + whole)
    wide = share_of((table(4096, dtype="float32"),))
    assert peak_of(wide) == (whole, positions + 3 * half + whole)
    tower = share_of((table(4096, component="vision_tower"),))
    assert peak_of(tower, float32_rotary=True) == (narrow, positions + 3 * half + whole)


def test_the_language_models_table_is_named() -> None:
    tower, own = table(64, component="vision_tower"), table(4096)
    kept = load_weights(CachingAllocator(), share_of((tower, own)))
    assert {name: block[0] for name, block in kept.items()} == {ROTARY_TABLE: 4 * MIB}
    assert load_weights(CachingAllocator(), share_of((tensor("weight", 64),))) == {}


def test_what_replaces_a_tensor_is_made_before_the_old_one_goes() -> None:
    old, new, stays = tensor("weight", 16 * KIB), tensor("weight", 12 * KIB), tensor("bias", 12 * KIB)
    share = share_of((old, stays), (new, stays))
    assert peak_of(share) == ((12 + 12) * MIB, (16 + 12 + 12) * MIB)


def test_weights_quantized_online_exist_layer_by_layer() -> None:
    """16-bit weights are made only when their layer is quantized, and go before the next layer's come."""
    before = tuple(tensor("weight", 32 * KIB, module=f"layers.{layer}", layer=layer) for layer in range(3))
    after = tuple(replace(one, dtype="float8_e4m3fn") for one in before)
    assert peak_of(share_of(before, after)) == (3 * 16 * MIB, 2 * 16 * MIB + 32 * MIB + 16 * MIB)


@pytest.mark.parametrize(
    ("at", "names", "taken"),
    [
        ("", ("weight",), False),
        ("linear", ("weight",), False),
        ("linear", ("float8",), True),
        ("attention", ("_prob_scale",), True),
        ("attention", ("weight",), False),
    ],
)
def test_deep_gemm_takes_its_workspace_once(at: str, names: tuple[str, ...], taken: bool) -> None:
    made = tuple(
        tensor(name, 12 * KIB, module=f"{name}.{copy}", dtype="float8_e4m3fn" if name == "float8" else "bfloat16")
        for name in names
        for copy in range(2)
    )
    size = sum(one.size_bytes for one in made)
    assert peak_of(share_of(made), deep_gemm=at)[0] == size + (DEEP_GEMM_WORKSPACE_BYTES if taken else 0)


@pytest.mark.parametrize(("dtype", "copied"), [("bfloat16", False), ("float8_e4m3fn", True)])
def test_absorbed_projections_are_views_or_copies(dtype: str, copied: bool) -> None:
    """W_UK_T and W_UV of layer 1 are views of a 16-bit kv_b_proj, and of a copy of another one."""
    up = tensor("weight", 24 * KIB, module="layers.1.kv_b_proj", dtype=dtype, layer=1)
    scale = tensor("_k_scale", 1, module="layers.1.attn", layer=1)
    copies = tuple(tensor(name, 12 * KIB, module="layers.1.attn", layer=1) for name in ("W_UK_T", "W_UV"))
    before = peak_of(share_of((up, scale)))[0]
    after = peak_of(share_of((up, scale), (up, scale, *copies)))[0]
    assert after - before == (24 * MIB if copied else 0)


def test_adapters_come_after_the_weights_and_their_indices() -> None:
    slots = (tensor("lora_a", 12 * KIB), tensor("lora_b", 30 * KIB))
    share = share_of((tensor("weight", 12 * KIB),), adapters=slots)
    allocator = CachingAllocator()
    load_weights(allocator, share, index_bytes=(14 * MIB, 16 * MIB))
    assert allocator.allocated_bytes == (12 + 14 + 16 + 12 + 30) * MIB
    assert weights_memory_bytes(share) == (12 + 12 + 30) * MIB


def test_a_load_is_remembered_and_goes_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal only where the allocator began equally; those longest known are forgotten."""
    monkeypatch.setattr(room, "_loads", {})
    monkeypatch.setattr(room, "_KEPT_LOADS", 2)
    share = share_of((tensor("weight", 12 * KIB), table(4096)))
    first, names = loaded(CachingAllocator(), share, LoadTraits(), ())
    second, again = loaded(CachingAllocator(), share, LoadTraits(), ())
    assert first is not second
    assert (names, first.state(), len(room._loads)) == (again, second.state(), 1)
    assert first.max_split_bytes == LOAD_MAX_SPLIT_BYTES
    first.free(names.pop(ROTARY_TABLE))
    assert second.allocated_bytes == 16 * MIB
    begun = CachingAllocator()
    begun.allocate(100)
    other, _ = loaded(begun, share, LoadTraits(), ())
    assert other.allocated_bytes == 16 * MIB + 512
    indexed, _ = loaded(CachingAllocator(), share, LoadTraits(), (14 * MIB,))
    assert indexed.allocated_bytes == 30 * MIB
    assert len(room._loads) == 2
