"""EAGLE and EAGLE-3 heads: parameters, cache layers, buffers and the profile run, from sizes worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.api import Request, estimate
from planner.engine.args import EngineArgs
from planner.errors import InputError, UnsupportedError
from planner.memory.assess import Assessment

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_SIZE, VOCAB, LAYERS = 1024, 2048, 8, 4, 128, 32000, 8
TOKENS, SEQS, DRAFTED = 2048, 64, 3
TARGET: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": VOCAB,
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HEAD_SIZE, "hidden_act": "silu", "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 10000.0,
}  # fmt: skip
QUERY, KEYS = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
MLP = 3 * HIDDEN * INNER


def folder(where: Path, **changes: Any) -> str:
    where.mkdir()
    (where / "config.json").write_text(json.dumps({**TARGET, **changes}))
    return str(where)


def plan(tmp_path: Path, method: str | None, head: dict[str, Any] | None = None, **flags: Any) -> Assessment:
    target = folder(tmp_path / "target", **flags.pop("target", {}))
    text = flags.pop("text", None)
    if method is not None and text is None:
        model = folder(tmp_path / "head", **{"num_hidden_layers": 1, **(head or {})})
        text = json.dumps({"method": method, "model": model, "num_speculative_tokens": DRAFTED})
    sizes = {
        "max_model_len": 2048, "max_num_seqs": SEQS, "max_num_batched_tokens": TOKENS, "enforce_eager": True,
        "gpu_memory_utilization": 0.5, "speculative_config": text,
    }  # fmt: skip
    return estimate(Request(model=target, gpus="h200:2", args=EngineArgs(**(sizes | flags))))


def parameters(found: Assessment) -> int:
    assert found.estimate.per_gpu is not None
    return found.estimate.per_gpu.parameter_bytes


def test_eagle_has_a_projection_and_layers_and_borrows_the_rest(tmp_path: Path) -> None:
    """No norm before the first layer's attention, no last norm, no embedding, no head."""
    head = 2 * HIDDEN * HIDDEN + HIDDEN * (QUERY + 2 * KEYS) + QUERY * HIDDEN + MLP + HIDDEN
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    with_head, without = plan(tmp_path / "with", "eagle"), plan(tmp_path / "without", None)
    assert parameters(with_head) - parameters(without) == 2 * head


@pytest.mark.parametrize(("words", "own"), [(8000, True), (VOCAB, False)])
def test_eagle3_reads_three_states_and_has_a_head_for_other_words(tmp_path: Path, words: int, own: bool) -> None:
    layer = 2 * HIDDEN * (QUERY + 2 * KEYS) + QUERY * HIDDEN + MLP + 3 * HIDDEN
    head = 3 * HIDDEN * HIDDEN + layer + HIDDEN + (words * HIDDEN if own else 0)
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    with_head = plan(tmp_path / "with", "eagle3", {"draft_vocab_size": words})
    without = plan(tmp_path / "without", None)
    assert parameters(with_head) - parameters(without) == 2 * head + 8 * words


def test_tensor_parallelism_divides_the_head_but_not_its_projection(tmp_path: Path) -> None:
    layer = 2 * HIDDEN * (QUERY + 2 * KEYS) // 2 + QUERY * HIDDEN // 2 + MLP // 2 + 3 * HIDDEN
    head = 3 * HIDDEN * HIDDEN + layer + HIDDEN + 8000 * HIDDEN // 2
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    with_head = plan(tmp_path / "with", "eagle3", {"draft_vocab_size": 8000}, tensor_parallel_size=2)
    without = plan(tmp_path / "without", None, tensor_parallel_size=2)
    assert parameters(with_head) - parameters(without) == 2 * head + 8 * 8000


def test_the_head_caches_as_one_more_layer(tmp_path: Path) -> None:
    cache = plan(tmp_path, "eagle").estimate.kv_cache
    assert cache is not None
    assert cache.bytes_per_block == (LAYERS + 1) * 2 * 16 * KEYS * 2
    assert [group.num_layers for group in cache.groups] == [LAYERS + 1]


def test_buffers_of_the_speculator_are_runner_state(tmp_path: Path) -> None:
    """Its own input buffers and hidden states; grammar rows for every draft token."""
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    found, plain = plan(tmp_path / "with", "eagle"), plan(tmp_path / "without", None)
    tokens = (4 + 8 + 1 + 2 * HIDDEN) * TOKENS
    seqs = (4 * 3 + 4 + 4 + 8 + 8 * DRAFTED + 8) * SEQS
    target = 8 * DRAFTED * SEQS + DRAFTED * SEQS * (4 + 4 * (VOCAB // 32))
    assert found.estimate.per_gpu is not None
    assert plain.estimate.per_gpu is not None
    more = found.estimate.per_gpu.runner_state_bytes - plain.estimate.per_gpu.runner_state_bytes
    assert tokens + seqs + target <= more <= tokens + seqs + target + (1 << 20)


def test_eagle3_keeps_three_states_of_the_target_to_the_end(tmp_path: Path) -> None:
    """The peak lies in the head's MLP: beside the target's output and three kept states, the projected states, the
    embeddings with their norm, the attention's output, gate and up, and the activation."""
    (tmp_path / "wide").mkdir()
    wide = 8 * INNER
    found = plan(tmp_path / "wide", "eagle3", {"draft_vocab_size": 8000, "intermediate_size": wide})
    assert found.estimate.per_gpu is not None
    states = 1 + 3 + 1 + 1 + 1 + 1
    expected = 2 * TOKENS * (states * HIDDEN + 3 * wide)
    index = 16 * SEQS + 4 + 8 * SEQS
    kept = 32 << 20
    assert expected <= found.estimate.per_gpu.peak_activation_bytes <= expected + index + kept + (1 << 20)


def test_decode_graphs_take_whole_draft_steps(tmp_path: Path) -> None:
    found = plan(tmp_path, "eagle", enforce_eager=False)
    assert found.config is not None
    assert found.config.model_runner == "v2"
    assert max(found.config.cudagraph_capture_sizes) == 2 * SEQS * (DRAFTED + 1)
    assert found.estimate.per_gpu is not None
    assert found.estimate.per_gpu.peak_activation_bytes_interval is not None


@pytest.mark.parametrize(
    ("method", "head", "flags", "part"),
    [
        ("eagle3", {"architectures": ["Eagle3Qwen3ForCausalLM"]}, {}, "Eagle3Qwen3ForCausalLM"),
        ("eagle", {"quantization_config": {"quant_method": "fp8"}}, {}, "quantization_config"),
        ("eagle", {}, {"pipeline_parallel_size": 2}, "pipeline"),
        ("eagle3", {}, {"target": {"num_hidden_layers": 4}}, "do not fill the 3 inputs"),
        ("draft_model", {"quantization_config": {"quant_method": "fp8"}}, {}, "drafting by a model like"),
        ("medusa", {}, {}, "medusa"),
        ("dflash", {}, {}, "dflash"),
        ("eagle", {"layer_types": ["sliding_attention"]}, {}, "windows"),
    ],
)
def test_other_drafts_are_unsupported_by_name(
    tmp_path: Path, method: str, head: dict[str, Any], flags: dict[str, Any], part: str
) -> None:
    with pytest.raises(UnsupportedError, match=part):
        plan(tmp_path, method, head, **flags)


def test_v1_goes_through_the_layers_only(tmp_path: Path) -> None:
    """The same weights and cache; V1's proposer keeps hidden states and embeddings for every token of a batch."""
    for name in ("v1", "v2", "plain"):
        (tmp_path / name).mkdir()
    v1 = {"env": (("VLLM_USE_V2_MODEL_RUNNER", "0"),)}
    one, two = plan(tmp_path / "v1", "eagle3", **v1), plan(tmp_path / "v2", "eagle3")
    plain = plan(tmp_path / "plain", None, **v1)
    assert parameters(one) == parameters(two)
    assert one.estimate.per_gpu is not None
    assert plain.estimate.per_gpu is not None
    more = one.estimate.per_gpu.runner_state_bytes - plain.estimate.per_gpu.runner_state_bytes
    buffers = (4 + 8 + 4 + 8 + 2 * 2 * HIDDEN) * TOKENS + 4 * SEQS
    assert buffers <= more <= buffers + (2 << 20)


def test_a_model_of_its_own_has_everything_twice(tmp_path: Path) -> None:
    """Two of the target's eight layers: its embedding, head, norms and layers once more."""
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    layer = HIDDEN * (QUERY + 2 * KEYS) + QUERY * HIDDEN + MLP + 2 * HIDDEN
    found = plan(tmp_path / "with", "draft_model", {"num_hidden_layers": 2})
    without = plan(tmp_path / "without", None)
    assert parameters(found) - parameters(without) == 2 * (2 * layer + 2 * VOCAB * HIDDEN + HIDDEN)
    assert found.config is not None
    assert found.config.model_runner == "v1"
    assert found.estimate.kv_cache is not None
    assert found.estimate.kv_cache.groups[0].num_layers == LAYERS + 2


@pytest.mark.parametrize(
    ("method", "head", "sentence"),
    [
        ("draft_model", {"vocab_size": 16000}, "Target and draft model should have the same vocabulary size."),
        ("eagle", {}, "draft_tensor_parallel_size=3"),
    ],
)
def test_refusals_are_vllm_own(tmp_path: Path, method: str, head: dict[str, Any], sentence: str) -> None:
    model = folder(tmp_path / "head", **{"num_hidden_layers": 1, **head})
    text = {"method": method, "model": model, "num_speculative_tokens": 2}
    if method == "eagle":
        text["draft_tensor_parallel_size"] = 3
    rejection = plan(tmp_path, method, text=json.dumps(text)).estimate.rejection
    assert rejection is not None
    assert sentence in rejection.message


def test_a_head_made_for_another_width_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reads hidden states of 512 elements"):
        plan(tmp_path, "eagle", {"hidden_size": 512})


def test_a_head_without_a_length_is_refused_with_vllm_sentence(tmp_path: Path) -> None:
    model = folder(tmp_path / "eagle3-head", num_hidden_layers=1)
    found = plan(tmp_path, "eagle3", text=json.dumps({"model": model}))
    assert found.estimate.rejection is not None
    assert found.estimate.rejection.message == (
        "A speculative model was provided, but `num_speculative_tokens` was not provided"
    )
