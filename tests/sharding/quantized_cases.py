"""Reads tests/golden/quantized_storage.json and lays its models out on one rank."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.hardware.spec import GpuSpec
from planner.model.build import build_model
from planner.model.modules import PackedNames
from planner.model.spec import ModelFiles, ModelSpec
from planner.sharding.quantization.context import Context
from planner.units import GIB

_GOLDEN = Path(__file__).parent.parent / "golden" / "quantized_storage.json"
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_CARDS = {"7.5": ("Tesla T4", 40), "8.0": ("NVIDIA A100", 108), "8.9": ("NVIDIA L20", 92), "9.0": ("NVIDIA H100", 132),
          "10.0": ("NVIDIA B200", 148), "12.0": ("NVIDIA GeForce RTX 5090", 170)}  # fmt: skip


@cache
def golden() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(_GOLDEN.read_text())
    return data


def model_of(base: str, section: dict[str, Any] | None, *, headers: bool = False) -> ModelSpec:
    """One of the golden file's two-layer models with a quantization section. `headers`: as GPTQ packs them."""
    config = dict(golden()["models"][base])
    if section is not None:
        config["quantization_config"] = section
    packed = tuple(_packed_modules(config)) if headers else None
    rest = ("model.embed_tokens", "model.norm", "lm_head") if headers else None
    return build_model(ModelFiles(name=base, config=config, quantized_modules=packed, unquantized_modules=rest))


def engine_of(
    model: ModelSpec, capability: str, *, tp: int = 1, requested: str | None = None, max_model_len: int = 4096
) -> EngineConfig:
    name, sms = _CARDS[capability]
    major, minor = capability.split(".")
    gpu = GpuSpec(
        name="card", device_name=name, compute_capability=(int(major), int(minor)), sm_count=sms,
        total_memory_bytes=140 * GIB, memory_evidence="user",
    )  # fmt: skip
    args = EngineArgs(
        tensor_parallel_size=tp, max_model_len=max_model_len, quantization=requested,
        dtype="half" if capability == "7.5" else "auto",
    )  # fmt: skip
    return resolve(model, gpu, args, "0.26.0")


def card(capability: int, **changes: Any) -> Context:
    """What kernel choices see of a card with 100 multiprocessors."""
    usual = {
        "capability": capability, "sm_count": 100, "dtype": "bfloat16", "tensor_parallel_size": 1, "enable_lora": False,
        "names": PackedNames(), "model_type": "llama", "env": {},
    }  # fmt: skip
    return Context(**{**usual, **changes})


def _packed_modules(config: dict[str, Any]) -> list[str]:
    found = []
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found += [f"{at}.self_attn.{name}" for name in _ATTENTION]
        mlp = f"{at}.mlp.experts.0" if "num_experts" in config else f"{at}.mlp"
        found += [f"{mlp}.{name}" for name in _MLP]
    return found
