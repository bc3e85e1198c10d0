"""Adapters and drafts are explained tensor by tensor."""

import json
from pathlib import Path
from typing import Any

from planner.api import Request, estimate
from planner.engine.args import EngineArgs
from planner.report.explain import explain
from planner.report.explained import Figure

MODELS = Path(__file__).resolve().parent.parent / "data" / "measured_models"


def figures(model: str, **flags: Any) -> dict[str, Figure]:
    args = EngineArgs(max_model_len=2048, max_num_seqs=64, max_num_batched_tokens=2048, **flags)
    return {
        figure.name: figure
        for figure in explain(estimate(Request(model=str(MODELS / model), gpus="h200:1", args=args)))
    }


def test_slots_have_a_figure_whose_lines_add_up() -> None:
    found = figures("q25-7b-l4", enable_lora=True, max_loras=2, max_lora_rank=8)
    slots = found["adapter_slots_bytes"]
    assert slots.value == sum(part.bytes for part in slots.parts)
    down = next(part for part in slots.parts if part.name.endswith("down_proj.lora_a"))
    assert down.bytes == 4 * 2 * 8 * 18944 * 2
    assert "max_loras 2, max_lora_rank 8" in slots.arithmetic
    weights = found["weights_memory_bytes"]
    assert weights.value == sum(part.bytes for part in weights.parts)
    assert "adapter_slots_bytes" not in figures("q25-7b-l4")


def test_a_draft_is_a_part_of_the_profile_run(tmp_path: Path) -> None:
    head = json.loads((MODELS / "q3-8b-l8" / "config.json").read_text())
    head |= {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(head | {"draft_vocab_size": 32000}))
    text = json.dumps({"method": "eagle3", "model": str(tmp_path), "num_speculative_tokens": 2})
    found = figures("q3-8b-l8", speculative_config=text, enforce_eager=True)
    assert "draft model" in {part.name for part in found["profile_run_parts"].parts}
    lines = {part.name: part.bytes for part in found["parameter_bytes"].parts}
    assert lines["draft.lm_head.weight"] == 2 * 32000 * 4096
    assert lines["draft.model.fc.weight"] == 2 * 3 * 4096 * 4096
