"""Hybrid and state-space models against vLLM's own classes, published parameter counts and closed forms."""

from __future__ import annotations

from math import prod

import pytest
from hybrid_golden import config_of, engine, expected, golden_rows, identity, model_of, recompute, share

from planner.errors import InputError, UnsupportedError
from planner.model.build import build_model
from planner.model.spec import ModelFiles
from planner.sharding.rank import RankShare, Tensor
from planner.sharding.shard import shard
from planner.values import Rejected


@pytest.mark.parametrize("row", golden_rows(), ids=identity)
def test_weights_and_cache_are_those_of_vllm(row: dict[str, str]) -> None:
    assert recompute(row) == expected(row)


def parameters(result: RankShare) -> int:
    return sum(prod(tensor.shape) for tensor in result.created if tensor.role == "parameter")


@pytest.mark.parametrize(
    ("config", "published", "more"),
    [
        ("made/lfm2", 1_170_340_608, 0),
        ("made/jamba", 51_570_323_328, 0),
        ("made/kimi-linear", 49_122_681_728, 0),
        ("made/granite-4-tiny", 6_939_037_248, 0),
        ("made/falcon-mamba", 7_272_665_088, 0),
        # The routers' correction biases, which the published counts leave out.
        ("made/lfm2-moe", 8_339_929_856, 22 * 32),
        ("nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31_577_937_344, 23 * 128),
    ],
)
def test_one_rank_holds_the_published_checkpoint(config: str, published: int, more: int) -> None:
    assert parameters(share(model_of(config))) == published + more


@pytest.mark.parametrize(
    ("config", "published"), [("Qwen__Qwen3.5-27B", 27_781_427_952), ("Qwen__Qwen3.5-35B-A3B", 35_951_822_704)]
)
def test_qwen3_5_lacks_only_the_checkpoints_draft_layer(config: str, published: int) -> None:
    """The layer for multi-token prediction: gated attention, a feed-forward part, a projection and seven norms."""
    text = config_of(config)["text_config"]
    hidden, head = text["hidden_size"], text["head_dim"]
    query, key = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    attention = hidden * (2 * query + 2 * key) + query * hidden
    if "num_experts" in text:
        inner = text["num_experts"] * text["moe_intermediate_size"] + text["shared_expert_intermediate_size"]
        feed_forward = 3 * hidden * inner + hidden * (text["num_experts"] + 1)
    else:
        feed_forward = 3 * hidden * text["intermediate_size"]
    draft = attention + feed_forward + 2 * hidden * hidden + 5 * hidden + 2 * head
    assert parameters(share(model_of(config))) == published - draft


def tensor(result: RankShare, ending: str) -> Tensor:
    return next(item for item in result.created if f"{item.module}.{item.name}".rstrip(".").endswith(ending))


def test_delta_net_divides_heads_but_not_its_norm() -> None:
    result = share(model_of("Qwen__Qwen3.5-27B"), tp=4)
    assert tensor(result, "linear_attn.in_proj_qkvz.weight").shape == ((2 * 2048 + 2 * 6144) // 4, 5120)
    assert tensor(result, "linear_attn.conv1d.weight").shape == ((2 * 2048 + 6144) // 4, 4)
    assert (tensor(result, "A_log").shape, tensor(result, "A_log").dtype) == ((12,), "float32")
    assert (tensor(result, "dt_bias").shape, tensor(result, "dt_bias").dtype) == ((12,), "bfloat16")
    assert tensor(result, "linear_attn.norm.weight").shape == (128,)
    assert tensor(result, "self_attn.qkv_proj.weight").shape == ((2 * 6144 + 2 * 1024) // 4, 5120)


def test_narrow_projection_stays_whole_under_marlin_methods() -> None:
    """in_proj_ba has 2 x 48 rows, too few for Marlin once they are divided; AWQ packs eight rows in a column."""
    awq = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "modules_to_not_convert": ["visual"],
    }
    packed = share(model_of("Qwen__Qwen3.5-27B", quantization_config=awq), tp=2)
    assert tensor(packed, "in_proj_ba.qweight").shape == (5120, 96 // 8)
    assert tensor(packed, "in_proj_qkvz.qweight").shape == (5120, (2 * 2048 + 2 * 6144) // 2 // 8)
    assert tensor(share(model_of("Qwen__Qwen3.5-27B"), tp=2), "in_proj_ba.weight").shape == (48, 5120)


def test_single_group_is_repeated_on_each_rank() -> None:
    """Granite 4: one group of B and C, 128 wide each, beside 3,072 channels and 48 heads."""
    whole, half = share(model_of("made/granite-4-tiny")), share(model_of("made/granite-4-tiny"), tp=2)
    assert tensor(whole, "in_proj.weight").shape == (2 * 3072 + 2 * 128 + 48, 1536)
    assert tensor(half, "in_proj.weight").shape == (3072 + 2 * 128 + 24, 1536)
    assert tensor(half, "conv1d.weight").shape == (1536 + 2 * 128, 4)


def test_groups_are_divided_with_the_heads() -> None:
    """Nemotron-H 56B: eight groups of 256 states."""
    result = share(model_of("nvidia__Nemotron-H-56B-Base-8K"), tp=8)
    assert tensor(result, "in_proj.weight").shape == (2 * 2048 + 2 * 256 + 32, 8192)
    assert tensor(result, "mixer.norm.weight").shape == (2048,)


def test_falcon_multipliers_follow_the_projection() -> None:
    result = share(model_of("made/falcon-h1"), tp=4)
    assert tensor(result, "mup_vector").shape == (1, tensor(result, "in_proj.weight").shape[0])


@pytest.mark.parametrize(("capability", "dtype"), [("9.0", "bfloat16"), ("10.0", "bfloat16"), ("8.9", "float32")])
def test_router_is_float32_without_its_kernel(capability: str, dtype: str) -> None:
    result = share(model_of("nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"), capability=capability)
    assert tensor(result, "mixer.gate.weight").dtype == dtype


def test_experts_work_in_the_latent_width() -> None:
    """Nemotron 3 Ultra: 512 experts in 2,048 of 8,192, without a gate projection."""
    result = share(model_of("nvidia__NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16"), tp=8)
    assert tensor(result, "experts.w13_weight").shape == (512, 640, 2048)
    assert tensor(result, "fc1_latent_proj.weight").shape == (2048, 8192)
    assert tensor(result, "shared_experts.up_proj.weight").shape == (1280, 8192)


def test_nemotron_reads_layers_in_either_spelling() -> None:
    letters = model_of("nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    names = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
    config = config_of("nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    kinds = [names[letter] for letter in config["hybrid_override_pattern"]]
    worded = model_of(
        "nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", layers_block_type=kinds, hybrid_override_pattern=None
    )
    assert worded.modules == letters.modules
    with pytest.raises(InputError, match="'X' is no kind of layer"):
        model_of("nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", hybrid_override_pattern="MX")


def test_unequal_nemotron_layers_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="layers of different sizes"):
        model_of("nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", block_configs=[{"block_type": "moe"}])


def test_text_only_qwen3_5_fails_in_the_vision_tower() -> None:
    model = model_of("made/qwen3.5-text")
    with pytest.raises(Rejected, match="'Qwen3_5TextConfig' object has no attribute 'vision_config'"):
        shard(model, engine(model))


@pytest.mark.parametrize(
    ("config", "tp", "pp", "sentence"),
    [
        ("made/falcon-h1-groups", 4, 1, "If tensor parallel world size does not divide num_groups"),
        ("made/zamba2-7b", 4, 1, "If tensor parallel world size does not divide num_groups"),
        ("made/falcon-h1-groups", 1, 2, "'PPMissingLayer' object has no attribute 'weight'"),
    ],
)
def test_splits_that_vllm_refuses(config: str, tp: int, pp: int, sentence: str) -> None:
    model = model_of(config)
    with pytest.raises(Rejected, match=sentence):
        shard(model, engine(model, tp=tp, pp=pp))


@pytest.mark.parametrize("config", ["made/mamba2", "made/zamba2-1b"])
def test_classes_without_pipelines(config: str) -> None:
    model = model_of(config)
    with pytest.raises(Rejected, match="Pipeline parallelism is not supported for this model"):
        engine(model, pp=2)


def test_lfm2_needs_its_widths_from_the_file() -> None:
    config = config_of("made/lfm2")
    del config["conv_dim"]
    with pytest.raises(Rejected, match="'Lfm2Config' object has no attribute 'conv_dim'"):
        build_model(ModelFiles(name="lfm2", config=config))
