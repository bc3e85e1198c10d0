"""Every tensor of quantized layers against vLLM's own code: created, and after weight post-processing."""

from typing import Any

import pytest
from quantized_cases import engine_of, golden, model_of

from planner.sharding.rank import Tensor
from planner.sharding.shard import shard
from planner.values import Rejected

_CASES = golden()["cases"]


def _name(case: dict[str, Any]) -> str:
    return f"{case['name']}-sm{case['capability']}-tp{case['tensor_parallel_size']}"


def _share(case: dict[str, Any]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], int]:
    model = model_of(case["base"], golden()["sections"][case["name"]], headers=case["headers"])
    config = engine_of(model, case["capability"], tp=case["tensor_parallel_size"], requested=case["requested"])
    share = shard(model, config)
    return share.created, share.loaded, share.parameter_bytes


@pytest.mark.parametrize("case", [case for case in _CASES if "error" not in case], ids=_name)
def test_bytes_are_those_of_vllm(case: dict[str, Any]) -> None:
    _, loaded, parameter_bytes = _share(case)
    assert parameter_bytes == case["parameter_bytes"]
    if case["parameter_bytes_after_load"] is not None:
        after = sum(tensor.size_bytes for tensor in loaded if tensor.role == "parameter")
        assert after == case["parameter_bytes_after_load"]


@pytest.mark.parametrize("case", [case for case in _CASES if "layer_0" in case], ids=_name)
def test_tensors_of_a_layer_are_those_of_vllm(case: dict[str, Any]) -> None:
    created, _, _ = _share(case)
    prefix = "model.layers.0."
    mine = {
        (f"{tensor.module}.{tensor.name}" if tensor.name else tensor.module).removeprefix(prefix): [
            list(tensor.shape), tensor.dtype
        ]
        for tensor in created
        if tensor.module.startswith(prefix) and tensor.role == "parameter"
    }  # fmt: skip
    assert mine == case["layer_0"]


@pytest.mark.parametrize("case", [case for case in _CASES if "error" in case], ids=_name)
def test_refusals_are_those_of_vllm(case: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as refusal:
        _share(case)
    assert refusal.value.rejection.message in case["error"]
