"""Multi-token prediction: weights, caches and groups as vLLM's own classes build them, and by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.api import Request, estimate
from planner.engine.args import EngineArgs
from planner.errors import UnsupportedError
from planner.memory.assess import Assessment

DATA = json.loads((Path(__file__).parents[1] / "data" / "predictors.json").read_text())
ROWS: list[dict[str, Any]] = DATA["rows"]
TOKENS, SEQS = 8192, 256


def plan(where: Path, config: dict[str, Any], text: dict[str, Any] | None, **flags: Any) -> Assessment:
    where.mkdir(parents=True, exist_ok=True)
    (where / "config.json").write_text(json.dumps(config))
    sizes = {
        "max_model_len": 8192, "max_num_batched_tokens": TOKENS, "max_num_seqs": SEQS,
        "limit_mm_per_prompt": '{"image": 0, "video": 0}' if "vision_config" in config else None,
        "speculative_config": None if text is None else json.dumps(text),
    }  # fmt: skip
    args = EngineArgs(**{key: value for key, value in (sizes | flags).items() if value is not None})
    return estimate(Request(model=str(where), gpus="h200:8", args=args))


def drafting(count: int = 1, **more: Any) -> dict[str, Any]:
    return {"method": "mtp", "num_speculative_tokens": count, **more}


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row['config']}-{row['tensor_parallel_size']}-{row['num_speculative_tokens']}"
)
def test_weights_and_cache_are_those_of_vllm_classes(tmp_path: Path, row: dict[str, Any]) -> None:
    found = plan(
        tmp_path, DATA["configs"][row["config"]], drafting(row["num_speculative_tokens"]),
        tensor_parallel_size=row["tensor_parallel_size"], kv_cache_memory_bytes=60 << 30,
    )  # fmt: skip
    cache = found.estimate.kv_cache
    assert found.config is not None
    assert found.estimate.per_gpu is not None
    assert cache is not None
    assert found.config.model_runner == row["runner"]
    assert found.estimate.per_gpu.parameter_bytes == row["target_parameter_bytes"] + row["predictor_parameter_bytes"]
    assert cache.bytes_per_block == row["bytes_per_block"]
    assert cache.num_gpu_blocks == row["num_gpu_blocks"]
    assert [group.num_layers for group in cache.groups] == row["layers_of_groups"]


@pytest.mark.parametrize("tp", [1, 2])
def test_glm_predictor_by_hand(tmp_path: Path, tp: int) -> None:
    """A decoder layer with experts, three norms and a projection of embeddings and states, whole on each rank."""
    config = DATA["configs"]["glm47"]
    hidden, heads, keys = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    size, inner, count = config["head_dim"], config["moe_intermediate_size"], config["n_routed_experts"]
    divided = hidden * (heads + 2 * keys) * size + heads * size * hidden
    divided += 3 * hidden * inner * (count + config["n_shared_experts"])
    bias = (heads + 2 * keys) * size // tp if config.get("attention_bias") else 0
    whole = bias + 2 * hidden * hidden + 5 * hidden + (2 * size if config.get("use_qk_norm") else 0)
    router = 4 * (hidden * count + count)
    found = plan(tmp_path / "with", config, drafting(), tensor_parallel_size=tp)
    without = plan(tmp_path / "without", config, None, tensor_parallel_size=tp)
    assert found.estimate.per_gpu is not None
    assert without.estimate.per_gpu is not None
    more = found.estimate.per_gpu.parameter_bytes - without.estimate.per_gpu.parameter_bytes
    assert more == 2 * (divided // tp + whole) + router


@pytest.mark.parametrize(("name", "copied"), [("glm5", False), ("dsv32", True)])
def test_absorbed_copies_and_chosen_keys_of_the_predictor_stay(tmp_path: Path, name: str, copied: bool) -> None:
    """Beside its parameters: W_UK_T and W_UV, views of an unquantized kv_b_proj and copies of an FP8 one, and the
    buffer of chosen keys that its attention keeps."""
    config = DATA["configs"][name]
    copies = 2 * config["num_attention_heads"] * config["kv_lora_rank"] if copied else 0
    copies *= config["qk_nope_head_dim"] + config["v_head_dim"]
    found, without = plan(tmp_path / "with", config, drafting()), plan(tmp_path / "without", config, None)
    assert found.estimate.per_gpu is not None
    assert without.estimate.per_gpu is not None
    weights = found.estimate.per_gpu.weights_memory_bytes - without.estimate.per_gpu.weights_memory_bytes
    parameters = found.estimate.per_gpu.parameter_bytes - without.estimate.per_gpu.parameter_bytes
    expected = copies + 4 * TOKENS * config["index_topk"]
    assert expected <= weights - parameters <= expected + (2 << 20)


def test_proposer_keeps_states_embeddings_and_three_positions(tmp_path: Path) -> None:
    config = DATA["configs"]["q35"]
    hidden = config["text_config"]["hidden_size"]
    found, without = plan(tmp_path / "with", config, drafting()), plan(tmp_path / "without", config, None)
    assert found.estimate.per_gpu is not None
    assert without.estimate.per_gpu is not None
    more = found.estimate.per_gpu.runner_state_bytes - without.estimate.per_gpu.runner_state_bytes
    buffers = (4 + 24 + 4 + 8 + 2 * 2 * hidden) * TOKENS + 4 * SEQS
    minimum_probabilities = 4 * SEQS
    assert buffers - minimum_probabilities <= more <= buffers + (2 << 20)


def test_predictor_runs_beside_the_states_of_the_target(tmp_path: Path) -> None:
    """V2, eager, MiMo: in the MLP lie the target's states, the embeddings and both norms, the layer's
    input and attention output, gate and up, the activation, and the MLP's output."""
    config = DATA["configs"]["mimo"]
    found = plan(tmp_path, config, drafting(), enforce_eager=True, max_num_seqs=16)
    assert found.estimate.per_gpu is not None
    states = 1 + 3 + 1 + 1 + 1
    expected = 2 * TOKENS * (states * config["hidden_size"] + 3 * config["intermediate_size"])
    assert expected <= found.estimate.per_gpu.peak_activation_bytes <= expected + (48 << 20)
    assert found.estimate.per_gpu.peak_activation_bytes_interval is not None


def test_older_names_of_the_method_mean_mtp(tmp_path: Path) -> None:
    config = DATA["configs"]["dsv3"]
    old = plan(tmp_path / "old", config, {"method": "deepseek_mtp", "num_speculative_tokens": 1})
    new = plan(tmp_path / "new", config, drafting())
    assert old.estimate.per_gpu == new.estimate.per_gpu
    assert old.config is not None
    assert old.config.speculative_method == "mtp"


def test_naming_the_target_takes_as_many_tokens_as_predictors(tmp_path: Path) -> None:
    config = DATA["configs"]["mimo"]
    found = plan(tmp_path, config, {"method": "mtp", "model": str(tmp_path)})
    assert found.config is not None
    assert found.config.num_speculative_tokens == 1


@pytest.mark.parametrize(
    ("changes", "text", "sentence"),
    [
        ({}, {"method": "mtp"}, "num_speculative_tokens must be provided with speculative model unless"),
        ({"num_nextn_predict_layers": 2}, drafting(3), "num_speculative_tokens:3 must be divisible by n_predict=2"),
    ],
)
def test_refusals_are_vllm_own(tmp_path: Path, changes: dict[str, Any], text: dict[str, Any], sentence: str) -> None:
    rejection = plan(tmp_path, DATA["configs"]["glm47"] | changes, text).estimate.rejection
    assert rejection is not None
    assert sentence in rejection.message


@pytest.mark.parametrize(
    ("config", "changes", "flags", "part"),
    [
        ("mimo", {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, {}, "mtp with Qwen2ForCausalLM"),
        ("dsv3", {"model_type": "kimi_k2"}, {}, "kimi_k2"),
        ("glm47", {"num_nextn_predict_layers": 0}, {}, "no num_nextn_predict_layers"),
        ("glm47", {}, {"pipeline_parallel_size": 2}, "pipeline"),
        ("mimo", {}, {"kv_cache_dtype": "turboquant_k8v4"}, "turboquant"),
        ("mimo", {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}, {}, "quantized by"),
    ],
)
def test_what_is_not_laid_out_is_refused_by_name(
    tmp_path: Path, config: str, changes: dict[str, Any], flags: dict[str, Any], part: str
) -> None:
    with pytest.raises(UnsupportedError, match=part):
        plan(tmp_path, DATA["configs"][config] | changes, drafting(), **flags)


def test_another_model_to_predict_by_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(DATA["configs"]["dsv3"]))
    with pytest.raises(UnsupportedError, match="another model"):
        plan(tmp_path / "target", DATA["configs"]["mimo"], drafting(model=str(other)))
