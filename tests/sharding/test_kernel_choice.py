"""Which kernel multiplies integer weights by 16-bit activations, and what each keeps of a layer.

The rules are the `can_implement` and `process_weights_after_loading` of vLLM 0.26.0
model_executor/kernels/linear/mixed_precision/{machete,allspark,marlin,exllama,triton_w4a16,humming}.py, tried in the
order of kernels/linear/__init__.py:396.
"""

from typing import Any

import pytest
from quantized_cases import card

from planner.sharding.quantization.base import Stored
from planner.sharding.quantization.humming import block_after_load
from planner.sharding.quantization.wna16 import Problem, TensorNames, after_load, choose_kernel, weight_type
from planner.values import Rejected

NAMES = TensorNames(weight="qweight", scale="scales", zero_point="qzeros", g_idx="g_idx")
BYTES8 = {"weight_type": "uint8b128", "bits": 8}
HALF = {"dtype": "float16"}
ZEROS = {"weight_type": "uint4", "zero_points": True}
BYTE_ZEROS = {"weight_type": "uint8", "bits": 8, "zero_points": True}
THREE_BITS = {"weight_type": "other", "bits": 3}
ORDERED = {"has_g_idx": True}


def problem(**changes: Any) -> Problem:
    k = changes.get("k", 4096)
    usual = {
        "k": k, "full_k": k, "n": 4096, "weight_type": "uint4b8", "bits": 4, "dtype": "bfloat16", "group_size": 128,
        "zero_points": False, "has_g_idx": False,
    }  # fmt: skip
    return Problem(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "capability", "kernel"),
    [
        # Machete: 9.0 alone, its groups, tiles of 64 inputs and 128 outputs, an order only of whole inputs
        ({}, 90, "machete"),
        ({}, 89, "marlin"),
        ({}, 100, "marlin"),
        ({"group_size": 64}, 90, "machete"),
        ({"group_size": -1}, 90, "machete"),
        ({"group_size": 32}, 90, "marlin"),
        ({"group_size": 64, "dtype": "float32"}, 90, "marlin"),
        ({"group_size": 128, "dtype": "float32"}, 90, "machete"),
        (BYTES8, 90, "machete"),
        (ZEROS, 90, "machete"),
        (BYTE_ZEROS, 90, "machete"),
        (ORDERED, 90, "machete"),
        ({**ORDERED, "k": 2048, "full_k": 4096}, 90, "marlin"),
        ({"k": 2048, "full_k": 4096}, 90, "machete"),
        ({"k": 4128, "group_size": -1}, 90, "marlin"),
        ({"n": 4160}, 90, "marlin"),
        # AllSpark: 8.0 to 8.9, one group, 8 bits, sizes in sixteens
        ({**BYTES8, "group_size": -1}, 80, "allspark"),
        ({**BYTES8, "group_size": -1}, 89, "allspark"),
        ({**BYTES8, "group_size": -1}, 75, "marlin"),
        ({**BYTES8, "group_size": -1}, 90, "machete"),
        ({**BYTES8, "group_size": -1}, 100, "marlin"),
        ({**BYTES8, "group_size": -1, "n": 4104}, 80, "marlin"),
        ({**BYTES8, "group_size": -1, "k": 4104}, 80, "marlin"),
        ({**BYTES8, "group_size": -1, **ORDERED}, 80, "marlin"),
        ({**BYTES8, "group_size": 128}, 80, "marlin"),
        ({"group_size": -1}, 80, "marlin"),
        # Marlin: groups of 32, 64, 128 or one; no group over the border of a split
        ({"group_size": 32}, 75, "marlin"),
        (ZEROS, 75, "marlin"),
        ({"k": 2112, "full_k": 4224, **HALF}, 80, "exllama"),
        ({"k": 64, "full_k": 128}, 80, "marlin"),
        ({"k": 32, "full_k": 64}, 80, "marlin"),
        ({"k": 4128, "full_k": 8256, "group_size": -1}, 80, "marlin"),
        (ORDERED, 80, "marlin"),
        ({**ORDERED, "n": 4128, **HALF}, 80, "exllama"),
        ({**ORDERED, "n": 4160}, 80, "marlin"),
        ({**ORDERED, "k": 4160, "group_size": 32, **HALF}, 80, "exllama"),
        # Exllama: 16-bit halves from 6.0, positive groups, whole packs of outputs
        (HALF, 60, "exllama"),
        (HALF, 70, "exllama"),
        ({"group_size": 256, **HALF}, 80, "exllama"),
        ({**BYTES8, "group_size": 256, "n": 4100, **HALF}, 80, "exllama"),
        ({"group_size": -1, **HALF}, 70, "triton"),
        ({"group_size": 1, **HALF}, 80, "exllama"),
        ({**ZEROS, "group_size": 256, **HALF}, 80, "triton"),
        ({"group_size": 96, "k": 4096, "full_k": 4128, **HALF}, 80, "exllama"),
        # Triton: 4 bits, 16-bit activations, outputs in eights, no order
        ({}, 70, "triton"),
        ({"group_size": 256}, 80, "triton"),
        ({**ZEROS, "group_size": 256}, 80, "triton"),
        ({"group_size": 4096}, 80, "triton"),
        ({"group_size": 32}, 70, "triton"),
        ({"group_size": 64}, 70, "triton"),
        # Humming: any width from 7.5
        ({"group_size": 512}, 80, "humming"),
        ({"group_size": 256, "n": 4100}, 80, "humming"),
        ({"group_size": 256, "n": 4100, **HALF}, 80, "humming"),
        ({"group_size": 256, "dtype": "float32"}, 80, "humming"),
        ({**BYTES8, "group_size": 256}, 80, "humming"),
        (BYTE_ZEROS, 80, "humming"),
        (THREE_BITS, 75, "humming"),
        ({**THREE_BITS, "group_size": -1}, 90, "humming"),
    ],
)  # fmt: skip
def test_the_first_kernel_that_can_run_the_layer(changes: dict[str, Any], capability: int, kernel: str) -> None:
    assert choose_kernel(problem(**changes), card(capability)) == kernel


@pytest.mark.parametrize(
    ("changes", "capability"),
    [
        ({"k": 2112, "full_k": 4224}, 80),  # half a group, and Exllama takes float16 only
        ({"k": 2080, "full_k": 4160, **HALF}, 80),  # groups do not divide the whole layer either
        ({**ORDERED, "n": 4128}, 80),
        ({**ORDERED, "k": 4160, "group_size": 32}, 80),
        ({**ORDERED, "k": 2112, "full_k": 4224, "group_size": 32, **HALF}, 80),
        ({**ORDERED, "group_size": 256}, 80),
        ({"group_size": 256, "k": 4224}, 80),
        (THREE_BITS, 74),
        ({**THREE_BITS, **ORDERED}, 90),
        ({**BYTES8, "group_size": 256}, 70),
    ],
)
def test_layers_that_no_kernel_runs_are_refused(changes: dict[str, Any], capability: int) -> None:
    with pytest.raises(Rejected, match="Failed to find a kernel"):
        choose_kernel(problem(**changes), card(capability))


@pytest.mark.parametrize(
    ("bits", "zero_points", "kind"),
    [(4, False, "uint4b8"), (8, False, "uint8b128"), (3, False, "other"), (4, True, "uint4"), (8, True, "uint8"),
     (3, True, "other")],
)  # fmt: skip
def test_weight_types_are_named_by_bits_and_zero_points(bits: int, zero_points: bool, kind: str) -> None:
    assert weight_type(bits, zero_points=zero_points) == kind


def kept(kernel: Any, **changes: Any) -> tuple[dict[str, tuple[tuple[int, ...], str]], int | None]:
    """Shapes and dtypes after loading, by name, of a layer stored as compressed-tensors does, [outputs, groups]."""
    asked = problem(**changes)
    created = [
        Stored("qweight", (asked.n, asked.k * asked.bits // 32), "int32"),
        Stored("scales", (asked.n, asked.groups), asked.dtype),
    ]
    if asked.zero_points:
        created.append(Stored("qzeros", (asked.n * asked.bits // 32, asked.groups), "int32"))
    if asked.has_g_idx:
        created.append(Stored("g_idx", (asked.k,), "int32"))
    loaded, bias = after_load(asked, kernel, NAMES, tuple(created), card(80))
    return {stored.name: (stored.shape, stored.dtype) for stored in loaded}, bias


def test_exllama_always_has_zero_points_and_an_index() -> None:
    tensors, bias = kept("exllama", k=512, n=96, group_size=256, dtype="float16")
    assert tensors == {
        "qweight": ((64, 96), "int32"),
        "scales": ((2, 96), "float16"),
        "qzeros": ((2, 12), "int32"),
        "g_idx": ((0,), "int32"),
    }
    assert bias is None
    assert kept("exllama", k=512, n=96, has_g_idx=True, dtype="float16")[0]["g_idx"] == ((512,), "int32")


def test_allspark_keeps_a_byte_a_weight_with_outputs_in_blocks_of_32() -> None:
    tensors, _ = kept("allspark", k=512, n=80, group_size=-1, **BYTES8)
    assert tensors == {"qweight": ((512, 96), "uint8"), "scales": ((1, 96), "bfloat16")}


def test_machete_scales_its_zero_points_and_keeps_a_permutation() -> None:
    tensors, _ = kept("machete", k=512, n=256, **ZEROS)
    assert tensors == {
        "qweight": ((64, 256), "int32"),
        "scales": ((4, 256), "bfloat16"),
        "qzeros": ((4, 256), "bfloat16"),
    }
    tensors, _ = kept("machete", k=512, n=256, **ORDERED)
    assert tensors["act_perm"] == ((512,), "int32")
    assert "qzeros" not in tensors


def test_marlin_pads_tiles_and_groups_and_says_how_long_the_bias_is() -> None:
    tensors, bias = kept("marlin", k=544, n=144, group_size=32, **ZEROS)
    assert tensors == {
        "qweight": ((40, 384), "int32"),  # 640 x 192 is less than 576 x 256; tiles of sixteen inputs, 2 int32 an output
        "scales": ((20, 192), "bfloat16"),
        "qzeros": ((20, 24), "int32"),
        "g_idx": ((0,), "int32"),
        "g_idx_sort_indices": ((0,), "int32"),
        "workspace": ((100,), "int32"),
    }
    assert bias == 192
    tensors, bias = kept("marlin", k=576, n=128, group_size=-1)
    assert tensors["qweight"] == ((36, 256), "int32")
    assert tensors["scales"] == ((1, 128), "bfloat16")
    assert tensors["qzeros"] == ((0,), "int32")
    assert bias is None


def test_marlin_keeps_the_order_and_its_sorting() -> None:
    tensors, bias = kept("marlin", k=512, n=192, **ORDERED)
    assert tensors["qweight"] == ((32, 384), "int32")
    assert tensors["g_idx"] == tensors["g_idx_sort_indices"] == ((512,), "int32")
    assert bias is None


def test_humming_pads_both_sides_and_has_locks() -> None:
    """quantization/utils/humming_utils.py:438; humming-kernels 0.1.10 layer.py check_and_pad_tensors."""
    tensors, bias = kept("humming", k=480, n=300, group_size=32, **BYTE_ZEROS)
    assert tensors == {
        "weight": ((32, 2048), "int32"),  # 512 inputs in sixteens; 512 outputs, sixteen bytes each
        "weight_scale": ((16, 512), "bfloat16"),
        "zero_point": ((16, 128), "int32"),
        "locks": ((1024,), "int32"),
    }
    assert bias is None
    tensors, _ = kept("humming", k=512, n=256, group_size=-1, weight_type="other", bits=3, zero_points=True)
    assert tensors["weight"] == ((32, 384), "int32")
    assert tensors["weight_scale"] == ((1, 256), "bfloat16")
    assert tensors["zero_point"] == ((1, 32), "int32")  # narrow zero points take four bits
    tensors, _ = kept("humming", k=512, n=256, group_size=512, **ZEROS)
    assert tensors["zero_point"] == ((1, 32), "int32")
    assert kept("humming", k=48, n=256, group_size=-1)[0]["weight_scale"] == ((1, 256), "bfloat16")
    blocks = {stored.name: stored.shape for stored in block_after_load(300, 480, (32, 64))}
    assert blocks == {"weight": (32, 2048), "weight_scale": (8, 16), "locks": (1024,)}
