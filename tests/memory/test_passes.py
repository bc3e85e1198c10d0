"""Profile runs tensor by tensor, as they were when boots on an H200 agreed to the byte (tests/golden/passes).

A boot shows the highest moment only; here a change of any tensor's size, order or lifetime is a line of a diff. Read it
against the vLLM source that the changed module names, then `./check tests --rewrite`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from planner.memory.activation import forward_of, profile_program
from planner.memory.adapters import adapter_indices
from planner.memory.program import Program
from planner.memory.runner_state import kv_tables, runner_buffers, sampler_buffers
from planner.memory.sampling import head_of, warm_up_sample_v2
from planner.memory.step import Step
from tests.memory.pass_cases import check_text, program_lines, set_up, tensor_lines

BOOT = "memory/boots.json "
SMALL, HYBRID, SERVED = "small_configs.json ", "hybrid_configs.json ", "served_configs.json "
EAGER = {"enforce_eager": True}
V1 = {"env": (("VLLM_USE_V2_MODEL_RUNNER", "0"),)}
TWO = {"gpus": "h200:2", "tensor_parallel_size": 2}
TEXT_ONLY = {"limit_mm_per_prompt": '{"image": 0, "video": 0}'}
LORA = {"enable_lora": True, "max_loras": 4, "max_lora_rank": 16}


def drafting(method: str, model: str | None, count: int) -> dict[str, str]:
    named = {} if model is None else {"model": model}
    return {"speculative_config": json.dumps({"method": method, **named, "num_speculative_tokens": count})}


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5 eager": (BOOT + "q25-7b-l4", EAGER),
    "qwen2.5 compiled, two ranks": (BOOT + "q25-7b-l4", TWO),
    "qwen2.5 V1": (BOOT + "q25-7b-l4", EAGER | V1),
    "qwen2.5 V1 with drafts by n-grams": (BOOT + "q25-7b-l4", EAGER | V1 | drafting("ngram", None, 2)),
    "qwen2.5 V1 with blocks by the user": (BOOT + "q25-7b-l4", EAGER | V1 | {"block_size": 32}),
    "qwen2.5 of 0.8.3": (BOOT + "q25-7b-l4", EAGER | {"version": "0.8.3"}),
    "qwen2.5 float32": (BOOT + "q25-7b-l4", EAGER | {"dtype": "float32"}),
    "qwen2.5 on an L4": (BOOT + "q25-7b-l4", EAGER | {"gpus": "l4:1"}),
    "qwen2.5 second stage": (BOOT + "q25-7b-l4", EAGER | {"gpus": "h200:2", "pipeline_parallel_size": 2, "stage": 1}),
    "qwen2.5 adapters": (BOOT + "q25-7b-l4", EAGER | LORA),
    "qwen2.5 adapters V1, two ranks": (BOOT + "q25-7b-l4", EAGER | LORA | V1 | TWO),
    "qwen2.5 adapters divided": (BOOT + "q25-7b-l4", EAGER | LORA | TWO | {"fully_sharded_loras": True}),
    "qwen2.5 adapters not divided": (BOOT + "q25-7b-l4", EAGER | LORA | {"fully_sharded_loras": True}),
    "qwen3 moe adapters": (BOOT + "q3-30b-a3b-l4", EAGER | LORA | TWO | {"fully_sharded_loras": True}),
    "llama fp8 cache": (BOOT + "llama31-8b-l4", EAGER | {"kv_cache_dtype": "fp8"}),
    "llama fp8 online compiled": (BOOT + "llama31-8b-l4", {"quantization": "fp8"}),
    "qwen3 fp8 in blocks": (BOOT + "q3-32b-fp8-l4", EAGER | TWO),
    "qwen3 moe": (BOOT + "q3-30b-a3b-l4", EAGER | TWO),
    "qwen3 moe by experts": (BOOT + "q3-30b-a3b-l4", EAGER | TWO | {"enable_expert_parallel": True}),
    "qwen3 moe fp8": (BOOT + "q3-30b-a3b-fp8-l4", EAGER),
    "mixtral compiled": (BOOT + "mixtral-l4", {}),
    "gpt-oss": (BOOT + "gptoss-20b-l4", EAGER),
    "deepseek v2 lite": (BOOT + "dsv2-lite-l4", EAGER),
    "deepseek v2 lite compiled, two ranks": (BOOT + "dsv2-lite-l4", TWO),
    "deepseek v3.2": ("deepseek-ai__DeepSeek-V3.2", EAGER | {"gpus": "h200:8", "tensor_parallel_size": 8}),
    "deepseek v4": (
        "deepseek-ai__DeepSeek-V4-Flash",
        EAGER | {"gpus": "h200:8", "tensor_parallel_size": 8, "kv_cache_dtype": "fp8"},
    ),
    "glm 4.7 flash": (BOOT + "glm47-flash-l4", EAGER),
    "qwen3 next": (BOOT + "q3next-l4", EAGER | TWO),
    "qwen3.5 text": (BOOT + "q35-27b-l4", EAGER | TEXT_ONLY),
    "qwen3.5": (BOOT + "q35-27b-l4", EAGER),
    "qwen2.5 vl": (BOOT + "q25vl-7b-l4", EAGER),
    "qwen3 vl": (BOOT + "q3vl-8b-l4", EAGER),
    "qwen3 vl compiled": (BOOT + "q3vl-8b-l4", {}),
    "olmo 3": (SMALL + "olmo3", EAGER),
    "exaone 4": (SMALL + "exaone4", EAGER),
    "cohere 2": (SMALL + "cohere2", EAGER | TWO),
    "stablelm": (SMALL + "stablelm", EAGER),
    "laguna": ("poolside__Laguna-S-2.1-FP8", EAGER),
    "qwen2 moe compiled": (SMALL + "qwen2moe", {}),
    "gemma, no head of its own": ("made__gemma1", EAGER),
    "gemma 3": (BOOT + "gemma3-27b-l6", EAGER | TWO),
    "gemma 4 with inputs of each layer": ("made__gemma4-e2b-text", EAGER),
    "gemma 3n": (SERVED + "gemma3n_text", EAGER | TWO),
    "minicpm3": ("openbmb__MiniCPM3-4B", EAGER | TWO),
    "step3": (SMALL + "step3", EAGER | TWO),
    "granite": (SMALL + "granite", EAGER),
    "mllama": ("meta-llama__Llama-3.2-11B-Vision-Instruct", EAGER | TWO),
    "nemotron-h": (BOOT + "nemotron3-nano-l8", EAGER),
    "falcon-h1": (HYBRID + "falcon-h1", EAGER),
    "falcon-mamba": (HYBRID + "falcon-mamba", EAGER),
    "jamba": (HYBRID + "jamba", EAGER | TWO),
    "kimi-linear": (HYBRID + "kimi-linear", EAGER),
    "lfm2": (HYBRID + "lfm2", EAGER),
    "zamba2": (HYBRID + "zamba2-7b", EAGER),
    "ring 2.5": (SERVED + "ring25", EAGER | TWO),
    "eagle": ("llama", EAGER | TWO | drafting("eagle", "head", 3)),
    "eagle3 of other words": ("llama", EAGER | TWO | drafting("eagle3", "head of other words", 3)),
    "eagle3 V1": ("llama", EAGER | V1 | drafting("eagle3", "head", 3) | {"kv_cache_dtype": "fp8"}),
    "eagle compiled": ("llama", drafting("eagle", "head", 1)),
    "a model that drafts": ("llama", EAGER | drafting("draft_model", "small llama", 2)),
    "multi-token prediction V1": ("predictors.json glm47", EAGER | TWO | drafting("mtp", None, 1)),
    "multi-token prediction": ("predictors.json mimo", EAGER | drafting("mtp", None, 1)),
}
STEPS = {
    "prompts": Step(attends=True),
    "decodes in splits": Step(attends=True, decodes=True, splits=True),
    "few tokens": Step(overlaps=True, leaves=True),
}
STEPPED = ("qwen2.5 compiled, two ranks", "deepseek v2 lite", "deepseek v2 lite compiled, two ranks")
KEPT = (
    "qwen2.5 V1 with blocks by the user",
    "qwen2.5 eager", "qwen2.5 V1", "qwen2.5 second stage", "qwen2.5 adapters", "qwen2.5 adapters V1, two ranks",
    "deepseek v2 lite", "qwen3.5", "qwen3 vl", "qwen2.5 V1 with drafts by n-grams", "eagle", "eagle3 V1",
    "a model that drafts", "multi-token prediction V1",
)  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_profile_run(name: str, request: pytest.FixtureRequest) -> None:
    source, flags = RUNS[name]
    lines = program_lines(profile_program(*set_up(source, **flags)))
    check_text(name, lines, request)


@pytest.mark.parametrize("name", STEPPED)
def test_steps_that_are_no_profile_run(name: str, request: pytest.FixtureRequest) -> None:
    """Attention with metadata, decodes in parts, and shared experts on a stream of their own: two layers of each."""
    source, flags = RUNS[name]
    model, share, config = set_up(source, **flags)
    lines: list[str] = []
    for kind, step in STEPS.items():
        program = Program()
        program.free(forward_of(model, share, config).write(program, step))
        lines += [f"== {kind}", *program_lines(program, last_layer=1)]
    check_text(f"steps of {name}", lines, request)


@pytest.mark.parametrize("name", ["qwen2.5 compiled, two ranks", "qwen2.5 adapters"])
def test_sampling_of_warm_up_requests(name: str, request: pytest.FixtureRequest) -> None:
    """A prefill of 1100 tokens has its prompt log-probabilities in two chunks."""
    program = Program()
    source, flags = RUNS[name]
    warm_up_sample_v2(program, head_of(*set_up(source, **flags)), prefill=True, rows=1100)
    check_text(f"warm-up of {name}", program_lines(program), request)


@pytest.mark.parametrize("name", KEPT)
def test_what_the_runner_keeps(name: str, request: pytest.FixtureRequest) -> None:
    """Buffers made before the weights, with the adapters, after the weights, and with a cache of two groups."""
    source, flags = RUNS[name]
    model, share, config = set_up(source, **flags)
    last = share.pp_rank + 1 == share.pipeline_parallel_size
    lines = [
        "with the runner", *tensor_lines(runner_buffers(model, config)),
        "with the adapters", *tensor_lines(adapter_indices(config)),
        "after the weights", *tensor_lines(sampler_buffers(model, config, last_stage=last)),
        "with the cache", *tensor_lines(kv_tables(model, config, (16, 272))),
    ]  # fmt: skip
    check_text(f"kept of {name}", lines, request)
