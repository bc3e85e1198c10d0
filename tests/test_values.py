"""The base of the program's values: what it refuses, and that an answer's JSON fits the types it is declared with."""

from __future__ import annotations

import json

import pytest

from planner import api
from planner.engine.args import EngineArgs
from planner.hardware.spec import GpuSpec
from planner.memory.result import Estimate
from planner.monitor.sample import CardUse

CARD = {
    "name": "x",
    "device_name": "X",
    "compute_capability": [8, 9],
    "total_memory_bytes": 1,
    "memory_evidence": "user",
}


def test_a_value_is_frozen_and_made_from_the_keywords_it_has():
    args = EngineArgs(max_model_len=8192)
    with pytest.raises(AttributeError):
        args.max_model_len = 1
    with pytest.raises(TypeError):
        EngineArgs(8192)
    with pytest.raises(TypeError, match="max_modellen"):
        EngineArgs(max_modellen=8192)
    with pytest.raises(TypeError, match="max_modellen"):
        args.model_copy(update={"max_modellen": 8192})
    assert args.model_copy(update={"block_size": 32}) == EngineArgs(max_model_len=8192, block_size=32)
    assert hash(EngineArgs(max_model_len=8192)) == hash(args)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"max_model_len": "8192"}, "max_model_len"),
        ({"max_model_len": 8192.5}, "max_model_len"),
        ({"enforce_eager": 1}, "enforce_eager"),
        ({"env": [["NAME"]]}, "env"),
        ({"dtype": None}, "dtype"),
        ({"misspelt": 1}, "misspelt"),
    ],
)
def test_fields_from_outside_are_held_against_their_types(fields, problem):
    with pytest.raises(ValueError, match=problem):
        EngineArgs.checked(**fields)


def test_checked_fields_take_the_types_they_are_declared_with():
    assert repr(EngineArgs.checked(gpu_memory_utilization=1).gpu_memory_utilization) == "1.0"
    assert EngineArgs.checked(env=[["A", "1"]]).env == (("A", "1"),)
    assert GpuSpec.checked(**CARD).compute_capability == (8, 9)


def test_what_other_programs_say_is_checked_where_it_is_made():
    with pytest.raises(ValueError, match="used_bytes"):
        CardUse(index=0, used_bytes=1.5)


@pytest.mark.parametrize(
    ("model", "gpus", "tp"),
    [
        ("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "l20:8", 8),
        ("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "l4:1", 1),
        ("deepseek-ai/DeepSeek-V3", "h200:8", 8),
        ("google/gemma-3-27b-it", "h100:1", 1),
        ("openai/gpt-oss-20b", "h100:1", 1),
        ("Qwen/Qwen2.5-7B-Instruct", "l20:8", 8),
    ],
)
def test_an_estimate_is_of_the_types_it_declares(model, gpus, tp):
    """Values are not checked when they are made, so its JSON read back strictly must be the same estimate."""
    request = api.Request(model=model, gpus=gpus, offline=True, args=EngineArgs(tensor_parallel_size=tp))
    estimate = api.estimate(request).estimate
    document = json.loads(estimate.to_json())
    assert document == estimate.model_dump(mode="json")
    assert Estimate.checked(**document) == estimate
    assert json.dumps(document, indent=1, ensure_ascii=False) == estimate.to_json()
