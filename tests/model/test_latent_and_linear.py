"""Decoders of latent and linear attention outside the large families: refusals, and sizes worked out by hand."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest

from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.errors import UnsupportedError
from planner.memory.assess import assess
from planner.model.build import build_model
from planner.model.spec import ModelFiles
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard
from planner.sources.gpu_pool import parse_gpus
from planner.values import Rejected
from tests.served import CONFIGS, H200


def share(name: str, tp: int = 1, length: int = 2048, **keys: Any) -> RankShare:
    model = build_model(ModelFiles(name=name, config=CONFIGS[name] | keys))
    args = EngineArgs(tensor_parallel_size=tp, max_model_len=length, trust_remote_code=True)
    return shard(model, resolve(model, H200, args, "0.26.0"))


@pytest.mark.parametrize(
    ("groups", "tp", "sentence"),
    [
        (1, 2, "tp_size must be <= group_norm_size for local rms norm"),
        (6, 4, "group_norm_size must be divisible by tp_size"),
    ],
)
def test_ranks_of_ling_have_whole_groups_of_the_gated_norm(groups: int, tp: int, sentence: str) -> None:
    with pytest.raises(Rejected) as refused:
        share("ring25", tp, group_norm_size=groups)
    assert refused.value.rejection.message == sentence


def test_ling_has_latent_attention_at_the_end_of_each_group() -> None:
    kinds = [layer.kind for layer in share("ring25").kv_layers]
    assert [index for index, kind in enumerate(kinds) if kind == "mla_attention"] == [2, 5]


def test_the_rotary_table_of_plamo_ends_where_the_served_length_does() -> None:
    def table(length: int) -> int:
        return sum(tensor.shape[0] for tensor in share("plamo2", length=length).created if "cos_sin" in tensor.module)

    assert (table(1024), table(10240)) == (1024, 10240)


def test_plamo_3_pads_its_head_beside_the_padded_vocabulary() -> None:
    head = next(tensor for tensor in share("plamo3").created if tensor.module == "lm_head")
    assert head.shape == (100096, 1024)


def test_ax_k1_fills_in_what_vllm_s_own_configuration_class_does() -> None:
    bias = [tensor for tensor in share("axk1").created if tensor.module.endswith("e_score_correction_bias")]
    assert len(bias) == 3


def test_each_round_of_iquest_s_loop_has_a_cache_the_later_ones_a_window() -> None:
    layers = share("iqloop").kv_layers
    assert [layer.window for layer in layers[:2]] == [None, 64]
    assert len(layers) == 2 * CONFIGS["iqloop"]["num_hidden_layers"]


def test_attention_with_sinks_of_pangu_is_not_known() -> None:
    with pytest.raises(UnsupportedError, match="sinks"):
        share("pangu7b", param_sink_number=128)


def test_parameters_of_pangu_ultra_by_hand() -> None:
    """Embedding and head; dense and sparse layers, each with latent attention and four norms."""
    hidden, query, latent, rotary, heads = 1024, 256, 512, 64, 8
    attention = hidden * (query + latent + rotary) + query + latent + query * heads * 192 + latent * heads * 256
    attention += heads * 128 * hidden + 4 * hidden
    dense, sparse = 3 * hidden * 2048, 17 * 3 * hidden * 256 + 16 * hidden
    expected = 2 * 32000 * hidden + hidden + 4 * attention + dense + 3 * sparse
    found = sum(prod(tensor.shape) for tensor in share("panguultra").created if tensor.role == "parameter")
    assert found == expected


def test_starcoder_s_layers_are_whole_on_each_rank() -> None:
    one, two = share("bigcode"), share("bigcode", 2)
    whole = sum(tensor.size_bytes for tensor in one.created if ".h." in tensor.module)
    assert sum(tensor.size_bytes for tensor in two.created if ".h." in tensor.module) == whole
    mask = next(tensor for tensor in two.created if tensor.module == "model.bias")
    assert mask.size_bytes == 8192**2


def test_what_ranks_compute_of_whole_attention_is_not_known() -> None:
    model = build_model(ModelFiles(name="bigcode", config=CONFIGS["bigcode"]))
    with pytest.raises(UnsupportedError, match="whole on each rank"):
        assess(model, parse_gpus("h200:2"), EngineArgs(tensor_parallel_size=2, max_model_len=2048), "0.26.0")
