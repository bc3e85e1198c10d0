"""What adapters add to the ledgers, by hand, and to the search."""

from typing import Any

import pytest

from planner.api import Request, estimate, fit
from planner.engine.args import EngineArgs
from planner.memory.activation import profile_program
from planner.memory.assess import Assessment
from planner.memory.graphs import captured_graphs
from planner.search.space import SearchOptions
from planner.units import MIB

TOKENS, SEQS = 4096, 64
SLOTS, RANK = 4, 16
MODEL = "Qwen/Qwen2.5-7B-Instruct"


def plan(**flags: Any) -> Assessment:
    sizes = {"max_model_len": 4096, "max_num_seqs": SEQS, "max_num_batched_tokens": TOKENS, "enforce_eager": True}
    return estimate(Request(model=MODEL, gpus="h200:1", args=EngineArgs(**(sizes | flags))))


@pytest.fixture(scope="module")
def plain() -> Assessment:
    return plan()


@pytest.fixture(scope="module")
def adapted() -> Assessment:
    return plan(enable_lora=True, max_loras=SLOTS, max_lora_rank=RANK)


def test_slots_and_indices_are_weights_memory(plain: Assessment, adapted: Assessment) -> None:
    hidden, inner, kv, layers = 3584, 18944, 512, 28
    inputs = 4 * hidden + 2 * hidden + inner
    outputs = (hidden + 2 * kv) + hidden + 2 * inner + hidden
    slots = 2 * SLOTS * RANK * layers * (inputs + outputs)
    indices = (8 + 8 + 8 + 16 + 4 * 4) * TOKENS + 3 * 8 * SEQS + 2 * 4 * (2 * (SLOTS + 1) + SLOTS + 2)
    assert plain.estimate.per_gpu is not None
    assert adapted.estimate.per_gpu is not None
    added = adapted.estimate.per_gpu.weights_memory_bytes - plain.estimate.per_gpu.weights_memory_bytes
    tensors = layers * 14 + 17
    assert slots + indices <= added <= slots + indices + tensors * 512 + MIB
    assert adapted.estimate.per_gpu.parameter_bytes == plain.estimate.per_gpu.parameter_bytes


def test_each_pass_has_float32_scratch_of_the_widest_layer(plain: Assessment, adapted: Assessment) -> None:
    """At the height of the pass one layer has its own, 4 bytes x rank; the kernels keep the addresses of each layer's
    slots in ten small tensors, seven of QKV, whose slices differ in size, three of gate and up."""
    assert plain.estimate.per_gpu is not None
    assert adapted.estimate.per_gpu is not None
    more = adapted.estimate.per_gpu.peak_activation_bytes - plain.estimate.per_gpu.peak_activation_bytes
    assert more == 4 * RANK * TOKENS + 28 * 10 * 512


@pytest.mark.parametrize(("flags", "cases"), [({}, 2), ({"specialize_active_lora": True}, 5)])
def test_every_graph_is_captured_with_and_without_adapters(flags: dict[str, Any], cases: int) -> None:
    """With --specialize-active-lora for 0, 1, 2, 4 and 4 + 1 adapters."""
    one, several = plan(enforce_eager=False), plan(enforce_eager=False, enable_lora=True, max_loras=SLOTS, **flags)
    assert one.config is not None
    assert several.config is not None
    assert [cases * len(sizes) for sizes in captured_graphs(one.config)] == [
        len(sizes) for sizes in captured_graphs(several.config)
    ]
    assert one.estimate.per_gpu is not None
    assert several.estimate.per_gpu is not None
    assert several.estimate.per_gpu.cuda_graph_actual_bytes > one.estimate.per_gpu.cuda_graph_actual_bytes


def test_a_search_counts_the_slots() -> None:
    args = EngineArgs(max_model_len=4096, enable_lora=True, max_loras=SLOTS, max_lora_rank=64, enforce_eager=True)
    result = fit(Request(model=MODEL, gpus="h200:1", args=args), SearchOptions(args=args))
    best = result.plans[0]
    assert best.args.enable_lora
    assert best.assessment.deployment is not None
    assert sum(t.size_bytes for t in best.assessment.deployment.shares[0].adapters) > 600_000_000


def test_fully_sharded_experts_keep_their_input_in_adapter_ranks_where_they_run() -> None:
    """V2's profile run uses adapters, V1's does not: two slices, 6 experts a token, 16-bit ranks."""
    sizes = {"max_model_len": 4096, "max_num_seqs": SEQS, "max_num_batched_tokens": TOKENS, "enforce_eager": True}
    flags = {"tensor_parallel_size": 2, "enable_lora": True, "max_loras": SLOTS, "max_lora_rank": RANK}

    def scratch(runner: str, *, whole: bool) -> int:
        args = EngineArgs(
            **sizes, **flags, fully_sharded_loras=whole, env=(("VLLM_USE_V2_MODEL_RUNNER", runner),)
        )  # fmt: skip
        found = estimate(Request(model="deepseek-ai/DeepSeek-V2-Lite", gpus="h200:2", args=args))
        assert found.deployment is not None
        assert found.config is not None
        program = profile_program(found.deployment.model, found.deployment.shares[0], found.config)
        name = "experts' input in adapter ranks"
        return max(event.tensor.bytes_per_token for event in program.flat() if event.tensor.name == name)

    assert scratch("1", whole=True) == 2 * 6 * RANK * 2
    assert scratch("1", whole=False) == scratch("0", whole=True) == 0
