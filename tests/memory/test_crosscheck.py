"""The checkpoint's own size as a second witness."""

from __future__ import annotations

import pytest

from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.memory.crosscheck import checkpoint_warning
from planner.model.build import build_model
from planner.model.spec import ModelFiles
from planner.sources.gpu_pool import parse_gpus

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096,
    "num_attention_heads": 8, "num_hidden_layers": 2, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
EXACT = 2 * (2 * 32000 * 1024 + 2 * (4 * 1024 * 1024 + 3 * 1024 * 4096 + 2 * 1024) + 1024)


@pytest.mark.parametrize(
    ("size", "words"),
    [(EXACT, None), (EXACT + EXACT // 60, None), (EXACT // 2, "+100.0 %"), (EXACT * 2, "-50.0 %"), (None, None)],
)
@pytest.mark.parametrize("tp", [1, 4])
def test_a_difference_above_two_percent_is_told(size, words, tp):
    model = build_model(ModelFiles(name="m", config=CONFIG, checkpoint_bytes=size))
    config = resolve(model, parse_gpus("l4:4").gpu, EngineArgs(tensor_parallel_size=tp), "0.26.0")
    warning = checkpoint_warning(model, config)
    assert (warning is None) == (words is None)
    if words is not None:
        assert warning is not None
        assert words in warning
