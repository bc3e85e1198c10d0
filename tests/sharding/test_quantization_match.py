"""Which layers the lists of a checkpoint speak of."""

import pytest

from planner.errors import InputError
from planner.model.modules import PackedNames
from planner.sharding.quantization.match import (
    Exclusions,
    find_target,
    is_layer_listed,
    is_layer_skipped,
    map_name,
    should_ignore_layer,
)
from planner.values import Rejected

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_QKV = "model.layers.3.self_attn.qkv_proj"


def test_prefixes_are_replaced_once_in_order() -> None:
    names = PackedNames(prefixes=(("model.visual.", "visual."), ("lm_head.", "language_model.lm_head."),
                                  ("model.", "language_model.model.")))  # fmt: skip
    assert map_name("model.visual.blocks.0.attn.qkv", names) == "visual.blocks.0.attn.qkv"
    assert map_name("model.layers.0.mlp", names) == "language_model.model.layers.0.mlp"
    assert map_name("lm_head", names) == "lm_head"


def test_fused_layer_is_skipped_when_all_its_parts_are() -> None:
    parts = {f"model.layers.3.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")}
    assert is_layer_skipped(_QKV, parts, _FUSED)
    assert is_layer_skipped(_QKV, {_QKV}, _FUSED)
    assert not is_layer_skipped(_QKV, {"model.layers.2.self_attn.qkv_proj"}, _FUSED)


def test_partly_skipped_fused_layer_is_refused() -> None:
    with pytest.raises(Rejected, match="some but not all shards"):
        is_layer_skipped(_QKV, {"model.layers.3.self_attn.q_proj"}, _FUSED)


def test_substrings_skip_only_where_asked() -> None:
    assert is_layer_skipped("visual.blocks.0.attn.qkv", {"visual"}, {}, substrings=True)
    assert not is_layer_skipped("visual.blocks.0.attn.qkv", {"visual"}, {})


def test_experts_are_skipped_by_any_longer_entry() -> None:
    entries = {"model.layers.0.mlp.experts.7.down_proj"}
    assert is_layer_skipped("model.layers.0.mlp.experts", entries, {})
    assert not is_layer_skipped("model.layers.1.mlp.experts", entries, {})


def test_gptq_lists_by_part_of_the_name() -> None:
    listed = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    assert is_layer_listed(_QKV, listed, _FUSED)
    assert not is_layer_listed("model.layers.3.mlp.gate_up_proj", listed, _FUSED)


def test_compressed_tensors_ignores_names_and_patterns() -> None:
    assert should_ignore_layer("lm_head", ("lm_head",), _FUSED)
    assert should_ignore_layer(_QKV, (r"re:.*\.self_attn\.[qkv]_proj$",), _FUSED)
    assert not should_ignore_layer("model.lm_head", ("lm_head",), _FUSED)
    with pytest.raises(Rejected, match="requires all to use the same scheme"):
        should_ignore_layer(_QKV, ("re:.*q_proj",), _FUSED)


def test_targets_are_names_then_classes_then_fused_parts() -> None:
    assert find_target(_QKV, "QKVParallelLinear", ("Linear", _QKV), _FUSED) == _QKV
    assert find_target(_QKV, "QKVParallelLinear", ("Linear",), _FUSED) == "Linear"
    assert find_target("lm_head", "ParallelLMHead", ("Linear",), _FUSED) is None
    assert find_target(_QKV, "QKVParallelLinear", ("re:.*[qkv]_proj",), _FUSED) == "re:.*[qkv]_proj"
    assert find_target(_QKV, "QKVParallelLinear", ("re:.*layers.3.self_attn.q_proj",), _FUSED) is None
    apart = (r"re:.*\.v_proj", r"re:.*\.[qk]_proj")
    assert find_target(_QKV, "QKVParallelLinear", apart, _FUSED) == r"re:.*\.[qk]_proj"
    assert find_target("model.layers.0.mlp.experts", "RoutedExperts", ("RE:x", "experts"), _FUSED) == "experts"
    assert find_target(_QKV, "QKVParallelLinear", ("re:QKV.*Linear",), _FUSED) == "re:QKV.*Linear"


def test_modelopt_excludes_by_wildcard_and_part() -> None:
    assert Exclusions(("model.layers.*.mlp.gate",), tuple(_FUSED.items())).cover("model.layers.0.mlp.gate")
    assert Exclusions(("lm_head",), tuple(_FUSED.items())).cover("language_model.lm_head")
    assert not Exclusions(("model.layers.*.mlp.gate",), tuple(_FUSED.items())).cover("model.layers.0.mlp.gate_up_proj")


def test_broken_pattern_is_bad_input() -> None:
    with pytest.raises(InputError, match="not a regular expression"):
        should_ignore_layer("lm_head", ("re:(",), {})
