"""Small models and cards by hand: the engine's rules need only a few of a model's facts."""

from collections.abc import Callable
from typing import Any

import pytest

from planner.hardware.spec import GpuSpec
from planner.model.modules import Attention, MLAProjection, PackedNames
from planner.model.spec import ModelSpec, QuantizationSpec, TextDims
from planner.units import GIB

_CARDS: dict[str, tuple[str, tuple[int, int], float]] = {
    "t4": ("Tesla T4", (7, 5), 14.56),
    "v100": ("Tesla V100-SXM2-32GB", (7, 0), 31.73),
    "a100": ("NVIDIA A100-SXM4-80GB", (8, 0), 79.25),
    "a10": ("NVIDIA A10", (8, 6), 22.06),
    "l20": ("NVIDIA L20", (8, 9), 44.52),
    "h200": ("NVIDIA H200", (9, 0), 139.8),
    "b200": ("NVIDIA B200", (10, 0), 178.35),
    "5090": ("NVIDIA GeForce RTX 5090", (12, 0), 31.36),
}


@pytest.fixture
def card() -> Callable[[str], GpuSpec]:
    def make(name: str) -> GpuSpec:
        device_name, capability, memory_gib = _CARDS[name]
        return GpuSpec(
            name=name,
            device_name=device_name,
            compute_capability=capability,
            total_memory_bytes=int(memory_gib * GIB),
            memory_evidence="user",
        )

    return make


@pytest.fixture
def dense() -> Callable[..., ModelSpec]:
    """Qwen2.5-7B's sizes: 28 heads, 4 of them for keys, of 128; other facts by keyword."""

    def make(**changes: Any) -> ModelSpec:
        heads, kv_heads, size = changes.pop("heads", 28), changes.pop("kv_heads", 4), changes.pop("head_size", 128)
        attention: dict[str, Any] = changes.pop("attention", {})
        layer = {"kind": "full_attention", "num_heads": heads, "num_kv_heads": kv_heads, "head_size": size, **attention}
        values: dict[str, Any] = {
            "name": "model",
            "architecture": "Qwen2ForCausalLM",
            "model_type": "qwen2",
            "text": TextDims(
                hidden_size=heads * size, num_hidden_layers=28, vocab_size=152064, num_attention_heads=heads,
                num_kv_heads=kv_heads, head_size=size, intermediate_size=18944, max_position_embeddings=32768,
            ),
            "checkpoint_dtype": "bfloat16",
            "modules": (Attention(name="model.layers.0.self_attn.attn", placement=0, **layer),),
            "names": PackedNames(),
            "quantization": None,
            "tie_word_embeddings": False,
            "derived_max_model_len": 32768,
        }  # fmt: skip
        return ModelSpec(**(values | changes))

    return make


@pytest.fixture
def latent(dense: Callable[..., ModelSpec]) -> Callable[..., ModelSpec]:
    """DeepSeek's latent attention: 16 heads, a cache of 512 + 64."""

    def make(**changes: Any) -> ModelSpec:
        modules = (
            MLAProjection(name="p", num_heads=16, kv_lora_rank=512, qk_nope_head_dim=128, v_head_dim=128),
            Attention(name="a", placement=0, kind="mla_attention", num_heads=16, num_kv_heads=1, head_size=576),
        )
        known: dict[str, Any] = {"architecture": "DeepseekV2ForCausalLM", "use_mla": True, "heads": 16, "is_moe": True}
        return dense(**(known | {"modules": modules} | changes))

    return make


@pytest.fixture
def quantized() -> Callable[..., QuantizationSpec]:
    def make(method: str, quant_method: str, **raw: Any) -> QuantizationSpec:
        return QuantizationSpec(method=method, raw={"quant_method": quant_method, **raw})

    return make
