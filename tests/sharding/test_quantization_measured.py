"""Parameters and buffers that vLLM 0.26.0 held after loading on one H200 (measured boots) against ours."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from quantized_cases import engine_of

from planner.model.build import build_model
from planner.model.spec import ModelFiles
from planner.sharding.shard import shard

_CONFIGS = Path(__file__).parent.parent / "data" / "configs"


@dataclass(frozen=True)
class Boot:
    """size_bytes: torch's count over parameters and buffers; tensors that a backend keeps elsewhere are not in it."""

    folder: str
    size_bytes: int
    requested: str | None = None
    changed: tuple[tuple[str, Any], ...] = ()
    max_model_len: int = 8192


BOOTS = [
    Boot("Qwen__Qwen3-32B-FP8", 34336730112),
    Boot("meta-llama__Llama-3.1-8B-Instruct", 9114756096, requested="fp8", max_model_len=16384),
    Boot("openai__gpt-oss-20b", 3655745024),
    # The measured folder is the unpadded one: 29568 wide, on one rank a multiple of the group of 128.
    Boot("Qwen2.5-VL-72B-Instruct-AWQ-padded", 43828455168, changed=(("intermediate_size", 29568),)),
]


@pytest.mark.parametrize("boot", BOOTS, ids=lambda boot: boot.folder)
def test_parameters_and_buffers_after_loading_are_the_measured_ones(boot: Boot) -> None:
    config = json.loads((_CONFIGS / boot.folder / "config.json").read_text()) | dict(boot.changed)
    model = build_model(ModelFiles(name=boot.folder, config=config))
    engine = engine_of(model, "9.0", requested=boot.requested, max_model_len=boot.max_model_len)
    held = [tensor for tensor in shard(model, engine, 0).loaded if tensor.role != "workspace"]
    assert sum(tensor.size_bytes for tensor in held) == boot.size_bytes
