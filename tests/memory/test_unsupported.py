"""What would change memory in ways not known here is refused, not ignored."""

import pytest

from planner.api import Request, estimate
from planner.engine.args import EngineArgs
from planner.errors import UnsupportedError


def test_adapters_of_a_release_that_was_not_read_are_refused() -> None:
    args = EngineArgs(max_model_len=8192, enable_lora=True, max_loras=4)
    with pytest.raises(UnsupportedError, match=r"modelled for vLLM 0\.26\.0") as refused:
        estimate(Request(model="Qwen/Qwen3-8B", gpus="h200:1", vllm_version="0.33.0", args=args))
    assert refused.value.part == "enable_lora"
