"""Mixtures of experts against vLLM's own classes, published parameter counts, and the rules of expert parallelism."""

from __future__ import annotations

import pytest
from text_golden import config_of, expected, golden_rows, identity, model_of, parameters, recompute, share, small_share

from planner.sharding.rank import RankShare, Tensor

MOE = (
    "small/hyv3",
    "MiniMaxAI__MiniMax-M2",
    "Qwen__Qwen3-30B-A3B",
    "XiaomiMiMo__MiMo-V2-Flash",
    "microsoft__Phi-mini-MoE-instruct",
    "mistralai__Mixtral-8x7B-v0.1",
    "openai__gpt-oss-20b",
    "poolside__Laguna-S-2.1-FP8",
    "small/afmoe",
    "small/bailing",
    "small/bailingv2",
    "small/dbrx",
    "small/ernie45moe",
    "small/exaonemoe",
    "small/flexolmo",
    "small/granitemoe",
    "small/granitemoeshared",
    "small/hunyuanmoe",
    "small/minimaxm3",
    "small/olmoe",
    "small/qwen2moe",
    "small/qwen3moe",
    "small/step3",
)


@pytest.mark.parametrize("row", golden_rows(*MOE), ids=identity)
def test_bytes_are_those_of_vllm(row: dict[str, str]) -> None:
    assert recompute(row) == expected(row)


@pytest.mark.parametrize(
    ("config", "published"),
    [
        ("mistralai__Mixtral-8x7B-v0.1", 46_702_792_704),
        ("Qwen__Qwen3-30B-A3B", 30_532_122_624),
        ("microsoft__Phi-mini-MoE-instruct", 7_647_632_704),
    ],
)
def test_one_rank_holds_the_published_checkpoint(config: str, published: int) -> None:
    assert parameters(share(model_of(config_of(config)))) == published


def test_minimax_m2_lacks_only_the_scales_of_its_fp8_checkpoint() -> None:
    """The published count has a scale for each 128 x 128 block of every fp8 weight."""
    config = config_of("MiniMaxAI__MiniMax-M2")
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    query, key = config["num_attention_heads"] * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
    weights = 2 * hidden * query + 2 * hidden * key + config["num_local_experts"] * 3 * hidden * inner
    assert parameters(share(model_of(config))) + layers * weights // 128**2 == 228_703_644_928


def _tensor(result: RankShare, ending: str) -> Tensor:
    return next(tensor for tensor in result.created if f"{tensor.module}.{tensor.name}".rstrip(".").endswith(ending))


def test_experts_are_split_by_width_and_under_expert_parallelism_by_number() -> None:
    by_width = small_share("granitemoe", tp=4)
    by_number = small_share("granitemoe", tp=4, flags="--enable-expert-parallel")
    assert _tensor(by_width, "experts.w13_weight").shape == (10, 512, 512)
    assert _tensor(by_number, "experts.w13_weight").shape == (3, 2048, 512)
    assert _tensor(by_number, "expert_map").shape == (10,)


def test_data_parallel_ranks_join_the_expert_group() -> None:
    both = small_share("granitemoe", tp=2, flags="--enable-expert-parallel", data_parallel_size=2)
    assert _tensor(both, "experts.w13_weight").shape[0] == 3
    assert _tensor(both, "qkv_proj.weight").shape == _tensor(small_share("granitemoe", tp=2), "qkv_proj.weight").shape


def test_qwen_layers_without_experts_are_dense() -> None:
    model = model_of(config_of("small/qwen2moe"))
    layers = {module.name.split(".")[2] for module in model.modules if module.name.endswith("mlp.experts")}
    assert layers == {"1", "3"}
    gates = {module.name for module in model.modules if module.name.endswith("shared_expert_gate")}
    assert gates == {"model.layers.1.mlp.shared_expert_gate", "model.layers.3.mlp.shared_expert_gate"}


def test_gates_and_corrections_keep_their_own_dtype() -> None:
    result = share(model_of(config_of("MiniMaxAI__MiniMax-M2")), tp=8)
    assert _tensor(result, "mlp.gate.weight").dtype == "float32"
    assert _tensor(result, "e_score_correction_bias").dtype == "float32"
    assert _tensor(result, "q_norm.weight").shape == (6, 128)


def test_gpt_oss_slides_on_even_layers_with_a_float32_rotary_table() -> None:
    model = model_of(
        {key: value for key, value in config_of("openai__gpt-oss-20b").items() if key != "quantization_config"}
    )
    result = share(model)
    assert [layer.window for layer in result.kv_layers[:3]] == [128, None, 128]
    assert _tensor(result, "cos_sin_cache").dtype == "float32"


def test_values_may_be_narrower_than_keys() -> None:
    result = share(model_of(config_of("small/qwen3moe")))
    assert {(layer.head_size, layer.head_size_v) for layer in result.kv_layers} == {(128, 128)}
    config = {
        key: value for key, value in config_of("XiaomiMiMo__MiMo-V2-Flash").items() if key != "quantization_config"
    }
    assert {(layer.head_size, layer.head_size_v) for layer in share(model_of(config)).kv_layers} == {(192, 128)}


def test_an_indexer_rides_in_the_attention_projection() -> None:
    result = small_share("minimaxm3", tp=8)
    plain, indexed = (_tensor(result, f"layers.{layer}.self_attn.qkv_proj.weight").shape[0] for layer in (0, 4))
    assert indexed - plain == 2 * 128
    caches = [layer for layer in result.kv_layers if layer.kind == "mla_attention"]
    assert [(layer.head_size, layer.dtype) for layer in caches] == [(128, "bfloat16")] * 3
