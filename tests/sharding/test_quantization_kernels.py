"""Layers of awkward sizes on every generation of cards, tensor by tensor, against vLLM's own code."""

import json
from pathlib import Path
from typing import Any

import pytest
from quantized_cases import engine_of

from planner.model.build import build_model
from planner.model.spec import ModelFiles
from planner.sharding.rank import RankShare, Tensor
from planner.sharding.shard import shard
from planner.values import Rejected

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "quantized_kernels.json").read_text())
CASES: list[dict[str, Any]] = GOLDEN["cases"]


def label(case: dict[str, Any]) -> str:
    asked = f"-{case['requested']}" if case["requested"] else ""
    return f"{case['base']}-{case['name']}{asked}-sm{case['capability']}-tp{case['tensor_parallel_size']}"


def share(case: dict[str, Any]) -> RankShare:
    config = dict(GOLDEN["models"][case["base"]])
    if (section := GOLDEN["sections"][case["name"]]) is not None:
        config["quantization_config"] = section
    model = build_model(ModelFiles(name=case["base"], config=config))
    return shard(
        model, engine_of(model, case["capability"], tp=case["tensor_parallel_size"], requested=case["requested"])
    )


def by_name(tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The parameters of the first layer, the embedding and the head, without norms."""
    named = {f"{tensor.module}.{tensor.name}".rstrip("."): tensor for tensor in tensors if tensor.role == "parameter"}
    left_out = ("norm", "router", "sinks")
    return {
        name.replace("model.layers.0.", ""): tensor
        for name, tensor in named.items()
        if ("layers.0." in name or "lm_head" in name or "embed" in name) and not any(part in name for part in left_out)
    }


@pytest.mark.parametrize("case", [case for case in CASES if "created" in case], ids=label)
def test_tensors_are_those_of_vllm(case: dict[str, Any]) -> None:
    done = share(case)
    created = {
        name: f"{'x'.join(map(str, tensor.shape))} {tensor.dtype}" for name, tensor in by_name(done.created).items()
    }
    assert created == case["created"]
    if "after_load_bytes" in case:
        loaded = {name: tensor.size_bytes for name, tensor in by_name(done.loaded).items() if tensor.size_bytes}
        assert loaded == case["after_load_bytes"]


@pytest.mark.parametrize("case", [case for case in CASES if "error" in case], ids=label)
def test_refusals_are_those_of_vllm(case: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as refusal:
        share(case)
    assert refusal.value.rejection.message in case["error"]
