"""Latent attention against vLLM's own classes, published parameter counts, and its caches."""

from __future__ import annotations

import pytest
from text_golden import config_of, config_under, expected, golden_rows, identity, model_of, parameters, recompute, share

from planner.sharding.shard import kv_layers
from planner.values import Rejected

MLA = (
    "deepseek-ai__DeepSeek-V3",
    "deepseek-ai__DeepSeek-V3.2",
    "deepseek-ai__DeepSeek-V4-Flash",
    "small/deepseekv1",
    "small/longcat",
    "small/minicpm3",
    "zai-org__GLM-4.7-Flash",
    "zai-org__GLM-5",
)


@pytest.mark.parametrize("row", golden_rows(*MLA), ids=identity)
def test_bytes_are_those_of_vllm(row: dict[str, str]) -> None:
    assert recompute(row) == expected(row)


def test_one_rank_holds_the_published_checkpoint() -> None:
    assert parameters(share(model_of(config_of("DeepSeek-V2-Lite")))) == 15_706_484_224


def test_absorbed_copies_are_kept_beside_the_projection() -> None:
    """31,526,214,656 bytes after loading at one rank, 15,798,492,160 at each of two (vLLM's code run on CPU)."""
    model = model_of(config_of("DeepSeek-V2-Lite"))
    for tp, after in ((1, 31_526_214_656), (2, 15_798_492_160)):
        result = share(model, tp=tp)
        copies = sum(tensor.size_bytes for tensor in result.loaded if tensor.name in ("W_UK_T", "W_UV"))
        assert result.parameter_bytes + copies == after


def test_the_latent_cache_is_whole_on_each_rank() -> None:
    layers = share(model_of(config_of("DeepSeek-V2-Lite")), tp=8).kv_layers
    assert {(layer.kind, layer.num_kv_heads, layer.head_size) for layer in layers} == {("mla_attention", 1, 576)}


def test_sparse_attention_adds_an_indexer_cache_and_a_token_buffer() -> None:
    result = share(model_of(config_of("zai-org__GLM-5")), tp=8)
    indexers = [layer for layer in result.kv_layers if layer.layer_name.endswith("indexer.k_cache")]
    assert len(indexers) == 78
    assert {(layer.head_size, layer.dtype) for layer in indexers} == {(132, "uint8")}
    workspace = [tensor for tensor in result.created if tensor.role == "workspace"]
    assert [tensor.shape for tensor in workspace] == [(8192, 2048)]


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, 78),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, 21),
        ({"index_topk_pattern": "FS" * 39}, 39),
    ],
)
def test_layers_that_share_a_choice_build_no_indexer(changes: dict[str, object], layers: int) -> None:
    result = share(model_of(config_of("zai-org__GLM-5") | changes), tp=8)
    assert sum(layer.layer_name.endswith("indexer.k_cache") for layer in result.kv_layers) == layers


@pytest.mark.parametrize("name", ["zai-org__GLM-5", "deepseek-ai__DeepSeek-V4-Flash"])
def test_caches_without_the_weights_are_those_of_the_whole_share(name: str) -> None:
    """An indexer and a compressor cache too: a search that forgot them planned V3.2's cache a tenth too small."""
    model = model_of(config_of(name))
    config = config_under(model, tp=8, flags="--kv-cache-dtype fp8")
    assert kv_layers(model, config) == share(model, tp=8, flags="--kv-cache-dtype fp8").kv_layers


def test_shared_experts_are_whole_where_expert_tensor_and_data_parallelism_combine() -> None:
    model = model_of(config_of("DeepSeek-V2-Lite"))

    def width(**changes: int) -> int:
        result = share(model, tp=2, flags="--enable-expert-parallel", **changes)
        return next(
            tensor.shape[0] for tensor in result.created if tensor.module.endswith("shared_experts.gate_up_proj")
        )

    assert width() == 2816
    assert width(data_parallel_size=2) == 5632


def test_deepseek_v4_has_packed_caches_by_layer() -> None:
    model = model_of(config_of("deepseek-ai__DeepSeek-V4-Flash"))
    layers = share(model, tp=4, flags="--kv-cache-dtype fp8").kv_layers
    third = {
        layer.layer_name.removeprefix("model.layers.2.attn"): layer for layer in layers if ".2.attn" in layer.layer_name
    }
    assert set(third) == {
        "",
        ".swa_cache",
        ".compressor.state_cache",
        ".indexer.k_cache",
        ".indexer.compressor.state_cache",
    }
    assert third[""].compress_ratio == 4
    assert (third[".swa_cache"].window, third[".swa_cache"].block_size) == (128, 64)
    assert (third[".compressor.state_cache"].head_size, third[".compressor.state_cache"].dtype) == (2048, "float32")


def test_deepseek_v4_needs_an_fp8_cache() -> None:
    with pytest.raises(Rejected, match="DeepseekV4 fp8_ds_mla layout only supports fp8 kv-cache, got auto"):
        share(model_of(config_of("deepseek-ai__DeepSeek-V4-Flash")), tp=8)
