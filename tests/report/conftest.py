"""Plans that several tests of reports look at, assessed once."""

from __future__ import annotations

import pytest

from planner import api
from planner.engine.args import EngineArgs
from planner.memory.assess import Assessment


def assessed(model: str, gpus: str, **flags: object) -> Assessment:
    return api.estimate(api.Request(model=model, gpus=gpus, offline=True, args=EngineArgs(**flags)))


@pytest.fixture(scope="session")
def text_plan() -> Assessment:
    return assessed("Qwen/Qwen2.5-0.5B-Instruct", "l20:1", max_model_len=8192)


@pytest.fixture(scope="session")
def staged_plan() -> Assessment:
    return assessed(
        "Qwen/Qwen2.5-7B-Instruct", "a10:2x2", tensor_parallel_size=2, pipeline_parallel_size=2, max_model_len=4096
    )


@pytest.fixture(scope="session")
def vision_plan() -> Assessment:
    return assessed("Qwen/Qwen2.5-VL-3B-Instruct", "a10:1", max_model_len=8192)
