"""Kernel choices, refusals and closed forms that need no golden file."""

from typing import Any

import pytest
from quantized_cases import engine_of, model_of

from planner.errors import InputError, UnsupportedError
from planner.model.spec import ModelSpec
from planner.sharding.quantization.marlin import padded_moe_intermediate, padded_nk
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard
from planner.values import Rejected

_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
_FP8_BLOCK = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def _share(model: ModelSpec, capability: str = "9.0", **changes: Any) -> RankShare:
    return shard(model, engine_of(model, capability, **changes))


def _loaded(share: RankShare, module: str) -> dict[str, tuple[tuple[int, ...], str]]:
    return {tensor.name: (tensor.shape, tensor.dtype) for tensor in share.loaded if tensor.module == module}


def test_hopper_keeps_awq_zero_points_as_scaled_16_bit_values() -> None:
    down = "model.layers.0.mlp.down_proj"
    hopper = _loaded(_share(model_of("dense", _AWQ), "9.0"), down)
    assert hopper["qzeros"] == ((12288 // 128, 4096), "bfloat16")
    ampere = _loaded(_share(model_of("dense", _AWQ), "8.0"), down)
    assert ampere["qzeros"] == ((12288 // 128, 4096 // 8), "int32")
    assert ampere["workspace"] == ((108,), "int32")


def test_gptq_drops_zero_points_and_indices_for_marlin() -> None:
    down = _loaded(_share(model_of("dense", _GPTQ, headers=True), "8.0"), "model.layers.0.mlp.down_proj")
    assert down["qzeros"][0] == (0,)
    assert down["g_idx"][0] == (0,)
    assert down["qweight"] == ((12288 // 16, 4096 * 2), "int32")


def test_w4a16_bytes_are_half_a_byte_a_weight_and_a_scale_a_group() -> None:
    section = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128}}},
    }
    share = _share(model_of("dense", section))
    weights = 2 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 12288)
    norms = 2 * (2 * 4096 + 2 * 128) + 4096
    vocabulary = 2 * 151936 * 4096
    scales = 2 * (3 * 4 + 3 * 2)
    shapes = 2 * 4 * 16
    assert share.parameter_bytes == weights // 2 + weights // 128 * 2 + 2 * (norms + vocabulary) + scales + shapes


def test_misaligned_awq_is_refused_with_vllm_sentence() -> None:
    with pytest.raises(Rejected, match="The input size is not aligned with the quantized weight shape"):
        _share(model_of("qwen2", {**_AWQ, "group_size": 512}), tp=4)


def test_experts_that_cut_a_block_are_refused() -> None:
    with pytest.raises(Rejected) as refusal:
        _share(model_of("moe", _FP8_BLOCK), tp=4)
    assert refusal.value.rejection.bottleneck == "quantization_alignment"
    assert refusal.value.rejection.message == (
        "The output_size of gate's and up's weight = 192 is not divisible by weight quantization block_n = 128."
    )


def test_fp8_marlin_below_ada_spreads_block_scales_over_rows() -> None:
    down = _loaded(_share(model_of("dense", _FP8_BLOCK), "8.0"), "model.layers.0.mlp.down_proj")
    assert down["weight"] == ((12288 // 16, 4096 * 4), "int32")
    assert down["weight_scale_inv"] == ((12288 // 128, 4096), "bfloat16")


def test_blackwell_packs_block_scales() -> None:
    down = _loaded(_share(model_of("dense", _FP8_BLOCK), "10.0"), "model.layers.0.mlp.down_proj")
    assert down["weight_scale_inv"] == ((4096, 12288 // 512), "int32")


def test_awq_without_list_or_headers_packs_the_language_model() -> None:
    layers = {tensor.module for tensor in _share(model_of("dense", _AWQ)).created if tensor.name == "qweight"}
    assert len(layers) == 2 * 4


def test_gptq_dynamic_rules_skip_and_override() -> None:
    rules = {"-:.*self_attn.*": {}, "+:.*down_proj": {"bits": 8}}
    share = _share(model_of("dense", {**_GPTQ, "dynamic": rules}, headers=True))
    names = {(tensor.module, tensor.name): tensor.shape for tensor in share.created}
    assert ("model.layers.0.self_attn.qkv_proj", "weight") in names
    assert names["model.layers.0.mlp.down_proj", "qweight"] == (12288 // 4, 4096)
    assert names["model.layers.0.mlp.gate_up_proj", "qweight"] == (4096 // 8, 2 * 12288)


def test_asymmetric_gptq_is_refused() -> None:
    with pytest.raises(Rejected, match="bits=4, sym=False"):
        _share(model_of("dense", {**_GPTQ, "sym": False}, headers=True))


def test_wrong_types_in_a_section_are_bad_input() -> None:
    with pytest.raises(InputError, match="group_size must be a whole number"):
        _share(model_of("dense", {**_AWQ, "group_size": "128"}))


def test_unknown_method_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="torchao"):
        _share(model_of("dense", {"quant_method": "torchao", "quant_type": {"default": {}}}))


def test_kernel_switches_are_unsupported() -> None:
    model = model_of("dense", _AWQ)
    config = engine_of(model, "9.0").model_copy(update={"env": (("VLLM_DISABLED_KERNELS", "MacheteLinearKernel"),)})
    with pytest.raises(UnsupportedError, match="VLLM_DISABLED_KERNELS"):
        shard(model, config)


@pytest.mark.parametrize(
    ("n", "k", "group", "expected"),
    [
        (4096, 4096, 128, (4096, 4096)),
        (96, 4096, -1, (128, 4096)),
        (4096, 96, -1, (4096, 128)),
        (64, 64, 32, (64, 128)),
        (64, 192, 96, (128, 192)),  # as many values either way, but the shorter sides
    ],
)
def test_marlin_pads_to_the_cheaper_tile(n: int, k: int, group: int, expected: tuple[int, int]) -> None:
    assert padded_nk(n, k, group) == expected


def test_marlin_pads_experts_to_whole_tiles_and_groups() -> None:
    assert padded_moe_intermediate(352) == 384
    assert padded_moe_intermediate(192, 128) == 256
