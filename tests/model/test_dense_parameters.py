"""Dense text decoders against vLLM's own classes, published parameter counts, and closed forms."""

from __future__ import annotations

import pytest
from text_golden import config_of, expected, golden_rows, identity, model_of, parameters, recompute, share, small_share

from planner.errors import UnsupportedError
from planner.values import Rejected

DENSE = (
    "small/hcx",
    "small/olmo",
    "small/olmo2",
    "small/smollm3",
    "small/starcoder2",
    "THUDM__chatglm3-6b",
    "internlm__internlm2-7B-family",
    "microsoft__Phi-3-mini-128k-instruct",
    "mistralai__Mistral-7B-Instruct-v0.2",
    "nvidia__Llama-3_3-Nemotron-Super-49B-v1",
    "small/apertus",
    "small/arcee",
    "small/bloom",
    "small/cohere",
    "small/cohere2",
    "small/ernie45",
    "small/exaone",
    "small/exaone4",
    "small/falcon",
    "small/falcon40",
    "small/gemma",
    "small/glm",
    "small/glm4",
    "small/gpt2",
    "small/gptj",
    "small/gptneox",
    "small/granite",
    "small/hunyuan",
    "small/internlm2",
    "small/minicpm",
    "small/mistral01",
    "small/nemotron",
    "small/olmo3",
    "small/opt",
    "small/orion",
    "small/phi",
    "small/seedoss",
    "small/solar",
    "small/stablelm",
    "small/telechat2",
)


@pytest.mark.parametrize("row", golden_rows(*DENSE), ids=identity)
def test_bytes_are_those_of_vllm(row: dict[str, str]) -> None:
    assert recompute(row) == expected(row)


@pytest.mark.parametrize(
    ("config", "published"),
    [
        ("mistralai__Mistral-7B-Instruct-v0.2", 7_241_732_096),
        ("nvidia__Llama-3_3-Nemotron-Super-49B-v1", 49_867_145_216),
        ("internlm__internlm2-7B-family", 15_475_417_088 // 2),
    ],
)
def test_one_rank_holds_the_published_checkpoint(config: str, published: int) -> None:
    assert parameters(share(model_of(config_of(config)))) == published


def test_chatglm_holds_the_checkpoint_but_its_rotary_frequencies() -> None:
    """chatglm3-6b-32k's index counts 12,487,168,064 bytes: 64 of them are the 32 frequencies that vLLM computes."""
    assert share(model_of(config_of("THUDM__chatglm3-6b"))).parameter_bytes == 12_487_168_064 - 2 * 32


def test_gpt2_by_its_closed_form() -> None:
    hidden, layers, vocabulary, positions = 512, 4, 50_304, 1024
    layer = 12 * hidden**2 + 13 * hidden
    assert parameters(small_share("gpt2")) == (vocabulary + positions) * hidden + layers * layer + 2 * hidden


def test_a_head_built_on_each_stage_is_not_copied_when_tied() -> None:
    one, stage = small_share("gemma"), small_share("gemma", pp=2, rank=1)
    embeddings = [tensor for tensor in stage.created if tensor.shape[:1] == (32_128,)]
    assert len(embeddings) == 1
    assert stage.parameter_bytes < one.parameter_bytes


def test_layers_without_attention_have_no_cache() -> None:
    model = model_of(config_of("nvidia__Llama-3_3-Nemotron-Super-49B-v1"))
    blocks = config_of("nvidia__Llama-3_3-Nemotron-Super-49B-v1")["block_configs"]
    with_attention = sum(not block["attention"]["no_op"] for block in blocks)
    assert 0 < with_attention < len(blocks)
    assert len(share(model).kv_layers) == with_attention


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"sliding_window": None}, {None}),
        ({"sliding_window": 512}, {512}),
        ({"sliding_window": 0}, {None}),
        ({"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"] * 2}, {512, None}),
        ({"sliding_window": 512, "layer_types": ["full_attention"] * 4}, {512}),
    ],
)
def test_windows_follow_the_layer_types_and_else_the_model(changes: dict[str, object], kinds: set[int | None]) -> None:
    model = model_of(config_of("small/mistral01") | changes)
    assert {layer.window for layer in share(model).kv_layers} == kinds


def test_a_window_that_the_file_omits_is_the_default_of_its_model_type() -> None:
    config = {key: value for key, value in config_of("small/mistral01").items() if key != "sliding_window"}
    assert {layer.window for layer in share(model_of(config)).kv_layers} == {4096}


def test_qwen2_with_some_sliding_layers_is_refused() -> None:
    config = config_of("Qwen__Qwen2.5-7B-Instruct") | {"use_sliding_window": True, "max_window_layers": 20}
    with pytest.raises(Rejected, match="Sliding window for some but all layers is not supported"):
        model_of(config)


def test_glm4_with_a_vision_part_is_refused() -> None:
    with pytest.raises(Rejected, match="you instantiated the text-only version of this model"):
        model_of(config_of("THUDM__chatglm3-6b") | {"vision_config": {}})


def test_removed_architectures_are_refused_in_words() -> None:
    config = config_of("THUDM__chatglm3-6b") | {"architectures": ["BaichuanForCausalLM"]}
    with pytest.raises(Rejected, match=r"BaichuanForCausalLM was supported in vLLM until v0\.23\.0, and is not"):
        model_of(config)


def test_what_changes_memory_and_is_not_described_is_unsupported() -> None:
    config = config_of("small/minicpm") | {"num_experts": 8}
    with pytest.raises(UnsupportedError, match="num_experts"):
        model_of(config)
