"""FP8, NVFP4, MXFP4 and MXFP8 layers as each card's kernels keep them, worked out by hand."""

from typing import Any

import pytest
from layers import Shapes, created, experts, linear, loaded
from quantized_cases import card

from planner.sharding.quantization import fp8, fp8_moe, mxfp4, mxfp8, online
from planner.sharding.quantization import fp8_kernels as kernels
from planner.sharding.quantization.base import Storage, Stored
from planner.sharding.quantization.nvfp4 import MODELOPT, Nvfp4
from planner.values import Rejected

FORCED = {"VLLM_TEST_FORCE_FP8_MARLIN": "1"}
NO_DEEP_GEMM = {"VLLM_USE_DEEP_GEMM": "0"}


def kept(strategy: fp8_moe.Strategy, capability: int, *, static: bool = False, **changes: Any) -> Shapes:
    """Experts' tensors after loading: 4 experts, 256 wide inputs, 88 wide intermediates unless changed."""
    env = changes.pop("env", {})
    shard = experts(**{"intermediate_size": 88, "full_intermediate_size": 88, **changes})
    shards = 2 if shard.gated else 1
    made = fp8_moe.created_experts(shard, strategy, static=static, shards=shards, suffix="scale", block=(64, 32))
    stored = fp8_moe.loaded_experts(
        shard, made, strategy, card(capability, env=env), static=static, suffix="scale", block=(64, 32)
    )
    return {tensor.name: (tensor.shape, tensor.dtype) for tensor in stored}


class TestFp8Experts:
    """vLLM 0.26.0 fused_moe/oracle/fp8.py, quantization/utils/{marlin_utils_fp8,flashinfer_utils}.py."""

    def test_one_scale_an_expert_and_one_input_scale_a_layer(self) -> None:
        assert kept("tensor", 89, static=True) == {
            "w13_weight": ((4, 176, 256), "float8_e4m3fn"),
            "w2_weight": ((4, 256, 88), "float8_e4m3fn"),
            "w13_scale": ((4,), "float32"),
            "w2_scale": ((4,), "float32"),
            "w13_input_scale": ((), "float32"),
            "w2_input_scale": ((), "float32"),
        }

    @pytest.mark.parametrize(("gated", "inner", "rows"), [(True, 96, 192), (False, 128, 128)])
    def test_flashinfer_pads_static_experts_from_hopper_on(self, gated: bool, inner: int, rows: int) -> None:
        """flashinfer_utils.py:280 align_moe_weights_for_fi: to 16, or 128 without a gate."""
        tensors = kept("tensor", 90, static=True, gated=gated)
        assert tensors["w13_weight"] == ((4, rows, 256), "float8_e4m3fn")
        assert tensors["w2_weight"] == ((4, 256, inner), "float8_e4m3fn")
        assert tensors["g1_alphas"] == tensors["g2_alphas"] == ((4,), "float32")
        assert tensors["a1_gscale"] == tensors["a2_gscale"] == ((), "float32")
        assert kept("tensor", 90, gated=gated)["w2_weight"] == ((4, 256, 88), "float8_e4m3fn")
        assert "g1_alphas" not in kept("block", 90, static=True, gated=gated)

    @pytest.mark.parametrize(("capability", "env"), [(80, {}), (88, {}), (90, FORCED)])
    def test_marlin_tiles_with_a_scale_for_each_row(self, capability: int, env: dict[str, str]) -> None:
        """marlin_utils_fp8.py prepare_fp8_moe_layer_for_marlin: 88 becomes 128; sixteen inputs to a tile."""
        tensors = kept("channel", capability, env=env)
        assert tensors["w13_weight"] == ((4, 16, 1024), "int32")
        assert tensors["w2_weight"] == ((4, 8, 1024), "int32")
        assert tensors["w13_scale"] == ((4, 1, 256), "bfloat16")
        assert tensors["w2_scale"] == ((4, 1, 256), "bfloat16")
        assert tensors["workspace"] == ((400,), "int32")

    def test_marlin_blocks_are_groups_of_inputs(self) -> None:
        tensors = kept("block", 80, hidden_size=512, intermediate_size=96)
        assert tensors["w13_scale"] == ((4, 16, 256), "bfloat16")
        assert tensors["w2_scale"] == ((4, 4, 512), "bfloat16")
        assert kept("block", 80, hidden_size=512, intermediate_size=96, gated=False)["w13_weight"] == (
            (4, 32, 512),
            "int32",
        )

    def test_blocks_channels_and_biases_stay_on_hopper(self) -> None:
        tensors = kept("block", 90, bias=True)
        assert tensors["w13_scale"] == ((4, 4, 8), "float32")
        assert tensors["w2_scale"] == ((4, 4, 3), "float32")
        assert (tensors["w13_bias"], tensors["w2_bias"]) == (((4, 176), "bfloat16"), ((4, 256), "bfloat16"))
        tensors = kept("channel", 90)
        assert (tensors["w13_scale"], tensors["w2_scale"]) == (((4, 176, 1), "float32"), ((4, 256, 1), "float32"))

    def test_a_checkpoints_blocks_have_two_sides(self) -> None:
        """fp8.py: begun blocks count; a static scheme has an input scale for each fused part instead."""
        scheme = fp8.Fp8Checkpoint(card(90), False, (64, 256))
        assert created(scheme.linear(linear(520, 320)))["weight_scale_inv"] == ((5, 3), "float32")
        static = fp8.Fp8Checkpoint(card(90), True, None).linear(linear(512, 64, 32))
        assert created(static)["input_scale"] == created(static)["weight_scale"] == ((2,), "float32")
        assert created(fp8.Fp8Checkpoint(card(90), True, None).moe(experts()))["w2_input_scale"] == ((4,), "float32")

    def test_deep_gemm_packs_exponents_on_the_smaller_blackwell(self) -> None:
        """Four exponents of 128 inputs to an int32, rows in fours."""
        tensors = kept("block", 120, hidden_size=640, intermediate_size=90)
        assert tensors["w13_scale"] == ((4, 180, 2), "int32")
        assert tensors["w2_scale"] == ((4, 640, 1), "int32")
        assert kept("block", 120, env=NO_DEEP_GEMM)["w13_scale"] == ((4, 4, 8), "float32")
        assert kept("block", 100)["w13_scale"] == ((4, 4, 8), "float32")


class TestFp8Linear:
    """vLLM 0.26.0 kernels/linear/scaled_mm, quantization/utils/{marlin_utils_fp8,fp8_utils}.py."""

    def shapes(self, loaded: kernels.Loaded) -> tuple[Shapes, int | None]:
        return {stored.name: (stored.shape, stored.dtype) for stored in loaded[0]}, loaded[1]

    def test_cutlass_pads_to_sixteen_and_turns_the_weight(self) -> None:
        shard = linear(250, 33, 40)
        tensors, bias = self.shapes(kernels.tensor_after_load(shard, card(89), static=True))
        assert tensors == {
            "weight": ((256, 80), "float8_e4m3fn"), "weight_scale": ((), "float32"), "input_scale": ((), "float32"),
        }  # fmt: skip
        assert bias is None
        assert "input_scale" not in self.shapes(kernels.tensor_after_load(shard, card(89), static=False))[0]
        assert self.shapes(kernels.channel_after_load(shard, card(89)))[0] == {
            "weight": ((256, 80), "float8_e4m3fn"), "weight_scale": ((80, 1), "float32"),
        }  # fmt: skip
        static = self.shapes(kernels.channel_after_load(shard, card(100), static=True))[0]
        assert static["weight"] == ((256, 80), "float8_e4m3fn")
        assert static["input_scale"] == ((), "float32")

    def test_flashinfer_takes_static_layers_from_blackwell_as_they_are(self) -> None:
        for capability, static, shape in ((100, True, (250, 73)), (99, True, (256, 80)), (100, False, (256, 80))):
            tensors, _ = self.shapes(kernels.tensor_after_load(linear(250, 33, 40), card(capability), static=static))
            assert tensors["weight"][0] == shape

    @pytest.mark.parametrize(("capability", "env"), [(75, {}), (88, {}), (90, FORCED), (100, {**FORCED, "A": ""})])
    def test_marlin_below_ada_or_where_forced(self, capability: int, env: dict[str, str]) -> None:
        asked = card(capability, env=env)
        for done in (
            kernels.tensor_after_load(linear(256, 100), asked, static=True),
            kernels.channel_after_load(linear(256, 100), asked),
        ):
            assert self.shapes(done) == (
                {
                    "weight": ((16, 512), "int32"),
                    "weight_scale": ((1, 128), "bfloat16"),
                    "workspace": ((100,), "int32"),
                },
                128,
            )
        blocks = kernels.block_after_load(
            linear(256, 128), asked, (128, 64), Stored("weight_scale_inv", (1, 4), "float32")
        )
        assert self.shapes(blocks)[0]["weight_scale_inv"] == ((4, 128), "bfloat16")
        assert blocks[1] is None

    @pytest.mark.parametrize("off", ["0", ""])
    def test_marlin_is_not_forced_by_nothing(self, off: str) -> None:
        assert not kernels.uses_marlin(card(90, env={"VLLM_TEST_FORCE_FP8_MARLIN": off}))
        assert not kernels.uses_marlin(card(89))

    @pytest.mark.parametrize(
        ("changes", "sizes", "block", "packed"),
        [
            ({"capability": 100}, (1024, 192), (128, 128), True),
            ({"capability": 103}, (1024, 192), (128, 128), True),
            ({"capability": 120}, (1024, 192), (128, 128), True),
            ({"capability": 110}, (1024, 192), (128, 128), False),
            ({"capability": 90}, (1024, 192), (128, 128), False),
            ({"capability": 100}, (1024, 192), (128, 64), False),
            ({"capability": 100}, (1024, 200), (128, 128), False),
            ({"capability": 100}, (1088, 192), (128, 128), False),
            ({"capability": 100, "dtype": "float16"}, (1024, 192), (128, 128), False),
            ({"capability": 100, "env": NO_DEEP_GEMM}, (1024, 192), (128, 128), False),
            ({"capability": 100, "model_type": "qwen3_5"}, (1024, 192), (128, 128), False),
        ],
    )
    def test_deep_gemm_packs_scales_of_whole_tiles_on_blackwell(
        self, changes: dict[str, Any], sizes: tuple[int, int], block: tuple[int, int], packed: bool
    ) -> None:
        """utils/deep_gemm.py: bfloat16, outputs in 64 and inputs in 128; some models are left out by their type."""
        before = Stored("weight_scale_inv", (2, 8), "float32")
        extra = (Stored("more", (), "float32"),)
        done = kernels.block_after_load(linear(*sizes), card(**changes), block, before, extra=extra)
        scale, more = done[0][1:]
        assert more == extra[0]
        expected = ((192, 2), "int32") if packed else ((2, 8), "float32")
        assert (scale.shape, scale.dtype) == expected
        assert done[0][0].shape == (sizes[1], sizes[0])


class TestNvfp4:
    """vLLM 0.26.0 kernels/linear/nvfp4, quantization/utils/marlin_utils_fp4.py, flashinfer_fp4_moe.py."""

    def scheme(self, capability: int, *, use_a16: bool = False, group_size: int = 16) -> Nvfp4:
        return Nvfp4(card(capability), MODELOPT, use_a16=use_a16, group_size=group_size)

    def test_linear_layers_on_blackwell_swizzle_their_scales(self) -> None:
        stored = self.scheme(100).linear(linear(336, 40, 33))
        assert created(stored)["weight"] == ((73, 168), "uint8")
        assert created(stored)["weight_scale"] == ((73, 21), "float8_e4m3fn")
        assert loaded(stored)["weight"] == ((96, 176), "uint8")
        assert loaded(stored)["weight_scale"] == ((128, 24), "float8_e4m3fn")
        assert loaded(stored)["alpha"] == ((), "float32")
        assert "workspace" not in loaded(stored)
        with pytest.raises(Rejected, match="not multiple of 16"):
            self.scheme(100).linear(linear(344, 64))

    @pytest.mark.parametrize(("capability", "use_a16"), [(90, False), (99, False), (100, True)])
    def test_marlin_below_blackwell_and_for_16_bit_inputs(self, capability: int, use_a16: bool) -> None:
        stored = self.scheme(capability, use_a16=use_a16).linear(linear(336, 73))
        assert loaded(stored)["weight"] == ((24, 256), "int32")
        assert loaded(stored)["weight_scale"] == ((24, 128), "float8_e4m3fn")
        assert ("alpha" in loaded(stored)) is not use_a16
        assert stored.loaded_bias_size == 128
        assert self.scheme(capability, use_a16=use_a16).linear(linear(256, 128)).loaded_bias_size is None

    @pytest.mark.parametrize(
        ("hidden", "inner", "gated", "w13", "w2"),
        [
            (256, 72, True, (4, 16, 512), (4, 8, 512)),
            (256, 72, False, (4, 16, 256), (4, 8, 512)),
            (320, 72, True, (4, 20, 512), (4, 8, 640)),
            (256, 192, True, (4, 16, 768), (4, 12, 512)),
            (320, 192, True, (4, 20, 1024), (4, 16, 640)),
        ],
    )
    def test_marlin_experts_are_padded_by_their_hidden_size(
        self, hidden: int, inner: int, gated: bool, w13: tuple[int, ...], w2: tuple[int, ...]
    ) -> None:
        tensors = loaded(self.scheme(90).moe(experts(hidden_size=hidden, intermediate_size=inner, gated=gated)))
        assert (tensors["w13_weight"][0], tensors["w2_weight"][0]) == (w13, w2)
        assert tensors["w13_weight_scale"][0] == (4, hidden // 16, w13[2] // 2)
        assert tensors["w2_weight_scale"][0] == (4, w2[1], hidden)
        assert tensors["workspace"] == ((400,), "int32")
        with pytest.raises(Rejected, match="hidden_size = 288 unsupported by Marlin tiles"):
            self.scheme(90).moe(experts(hidden_size=288))

    def test_trtllm_pads_both_sizes_and_cutlass_only_its_scales(self) -> None:
        shard = experts(hidden_size=320, intermediate_size=80)
        tensors = loaded(self.scheme(100).moe(shard))
        assert tensors["w13_weight"] == ((4, 256, 256), "uint8")
        assert tensors["w2_weight"] == ((4, 512, 64), "uint8")
        assert tensors["w13_weight_scale"] == ((4, 256, 32), "float8_e4m3fn")
        assert tensors["w2_weight_scale"] == ((4, 512, 8), "float8_e4m3fn")
        for gated, inner in ((True, 192), (False, 256)):
            padded = loaded(self.scheme(100).moe(experts(intermediate_size=160, gated=gated)))
            assert padded["w2_weight"] == ((4, 256, inner // 2), "uint8")
        bare = loaded(self.scheme(100).moe(experts(hidden_size=320, intermediate_size=80, gated=False)))
        assert bare["w13_weight"] == ((4, 128, 256), "uint8")
        tensors = loaded(self.scheme(120).moe(shard))
        assert tensors["w13_weight"] == ((4, 160, 160), "uint8")
        assert tensors["w13_weight_scale"] == ((4, 256, 20), "float8_e4m3fn")
        assert tensors["w2_weight_scale"] == ((4, 384, 8), "float8_e4m3fn")
        assert tensors["w13_input_scale"] == tensors["w2_weight_scale_2"] == ((4,), "float32")

    def test_input_scales_of_all_experts_are_on_each_rank_for_native_kernels(self) -> None:
        """modelopt.py: num_experts, not the rank's, where the backend takes one scale for all."""
        shard = experts(num_local_experts=2)
        assert created(self.scheme(100).moe(shard))["w13_input_scale"] == ((4, 2), "float32")
        assert created(self.scheme(90).moe(shard))["w13_input_scale"] == ((2, 2), "float32")
        assert created(self.scheme(90).moe(shard))["w2_weight_scale_2"] == ((2,), "float32")


class TestMxfp4:
    """vLLM 0.26.0 fused_moe/oracle/mxfp4.py, quantization/utils/mxfp4_utils.py:36."""

    @pytest.mark.parametrize(
        ("backend", "hidden", "inner"),
        [("triton", 320, 128), ("trtllm", 512, 256), ("deep_gemm", 384, 128), ("marlin", 512, 128)],
    )
    def test_sizes_are_rounded_as_created(self, backend: mxfp4.Backend, hidden: int, inner: int) -> None:
        stored = mxfp4.Mxfp4Experts(backend, card(100)).moe(experts(hidden_size=320, intermediate_size=80, bias=True))
        assert created(stored) == {
            "w13_weight": ((4, 2 * inner, hidden // 2), "uint8"),
            "w13_weight_scale": ((4, 2 * inner, hidden // 32), "uint8"),
            "w2_weight": ((4, hidden, inner // 2), "uint8"),
            "w2_weight_scale": ((4, hidden, inner // 32), "uint8"),
            "w13_bias": ((4, 2 * inner), "bfloat16"),
            "w2_bias": ((4, hidden), "bfloat16"),
        }

    def stored(self, backend: mxfp4.Backend, capability: int, **changes: Any) -> Storage:
        return mxfp4.Mxfp4Experts(backend, card(capability)).moe(
            experts(hidden_size=320, intermediate_size=80, bias=True, **changes)
        )

    def test_triton_swizzles_by_card(self) -> None:
        hopper, blackwell = loaded(self.stored("triton", 90)), loaded(self.stored("triton", 100))
        assert hopper["w13_weight"] == ((4, 160, 256), "uint8")
        assert hopper["w13_weight_scale"] == ((4, 256, 12), "uint8")
        assert hopper["w2_weight"] == ((4, 64, 320), "uint8")
        assert hopper["w2_weight_scale"] == ((4, 512, 4), "uint8")
        assert blackwell["w13_weight"] == ((4, 256, 256), "uint8")
        assert blackwell["w13_weight_scale"] == ((4, 256, 16), "uint8")
        assert blackwell["w2_weight"] == ((4, 128, 320), "uint8")
        assert blackwell["w2_weight_scale"] == ((4, 384, 8), "uint8")
        assert hopper["w13_bias"] == ((4, 256), "float32")

    def test_marlin_and_trtllm(self) -> None:
        marlin, trtllm = loaded(self.stored("marlin", 80)), loaded(self.stored("trtllm", 100))
        assert marlin["w13_weight"] == ((4, 32, 512), "int32")
        assert marlin["w2_weight"] == ((4, 8, 1024), "int32")
        assert marlin["w13_weight_scale"] == ((4, 16, 256), "float8_e8m0fnu")
        assert marlin["w2_weight_scale"] == ((4, 4, 512), "float8_e8m0fnu")
        assert marlin["w2_bias"] == ((4, 512), "bfloat16")
        assert trtllm["w2_bias"] == ((4, 512), "float32")
        assert trtllm["gemm1_alpha"] == ((4,), "float32")
        assert "gemm1_alpha" not in loaded(self.stored("deep_gemm", 120))

    @pytest.mark.parametrize(("capability", "lora", "backend"), [
        (100, False, "trtllm"), (103, False, "trtllm"), (90, False, "triton"), (80, False, "marlin"),
        (120, False, "marlin"), (100, True, "marlin"), (90, True, "marlin")])  # fmt: skip
    def test_gpt_oss_backends(self, capability: int, lora: bool, backend: str) -> None:
        assert mxfp4.gpt_oss_backend(card(capability, enable_lora=lora)) == backend

    @pytest.mark.parametrize(
        ("capability", "backend"), [(100, "trtllm"), (90, "marlin"), (120, "deep_gemm"), (121, "deep_gemm")]
    )
    def test_deepseek_backends(self, capability: int, backend: str) -> None:
        assert mxfp4.deepseek_backend(card(capability)) == backend

    def test_linear_layers(self) -> None:
        shard = linear(352, 100)
        stored = mxfp4.Mxfp4Linear(card(100)).linear(shard)
        assert created(stored) == {"weight_packed": ((100, 176), "uint8"), "weight_scale": ((100, 11), "uint8")}
        assert loaded(stored) == {"weight": ((100, 176), "uint8"), "weight_scale": ((128, 12), "uint8")}
        stored = mxfp4.Mxfp4Linear(card(99)).linear(shard)
        assert loaded(stored)["weight"] == ((24, 256), "int32")
        assert loaded(stored)["weight_scale"] == ((12, 128), "float8_e8m0fnu")
        assert stored.loaded_bias_size == 128
        assert mxfp4.Mxfp4Linear(card(90)).linear(linear(384, 128)).loaded_bias_size is None


class TestMxfp8:
    """vLLM 0.26.0 kernels/linear/mxfp8, fused_moe/oracle/mxfp8.py."""

    def test_linear_layers(self) -> None:
        stored = mxfp8.Mxfp8(card(100)).linear(linear(352, 100))
        assert created(stored) == {"weight": ((100, 352), "float8_e4m3fn"), "weight_scale": ((100, 11), "uint8")}
        assert loaded(stored) == {"weight": ((100, 352), "float8_e4m3fn"), "weight_scale": ((128 * 12,), "uint8")}
        stored = mxfp8.Mxfp8(card(99)).linear(linear(352, 100))
        assert loaded(stored)["weight"] == ((24, 512), "int32")
        assert loaded(stored)["weight_scale"] == ((12, 128), "float8_e8m0fnu")
        assert stored.loaded_bias_size == 128
        assert mxfp8.Mxfp8(card(90)).linear(linear(384, 128)).loaded_bias_size is None

    def test_experts(self) -> None:
        shard = experts(hidden_size=320, intermediate_size=96)
        assert loaded(mxfp8.Mxfp8(card(103)).moe(shard)) == created(mxfp8.Mxfp8(card(103)).moe(shard)) == {
            "w13_weight": ((4, 192, 320), "float8_e4m3fn"),
            "w2_weight": ((4, 320, 96), "float8_e4m3fn"),
            "w13_weight_scale": ((4, 192, 10), "uint8"),
            "w2_weight_scale": ((4, 320, 3), "uint8"),
        }  # fmt: skip
        for capability in (90, 120):
            tensors = loaded(mxfp8.Mxfp8(card(capability)).moe(shard))
            assert tensors["w13_weight"] == ((4, 20, 1024), "int32")
            assert tensors["w2_weight"] == ((4, 8, 1280), "int32")
            assert tensors["w13_weight_scale"] == ((4, 10, 256), "float8_e8m0fnu")
            assert tensors["w2_weight_scale"] == ((4, 4, 320), "float8_e8m0fnu")
            assert tensors["workspace"] == ((400,), "int32")
        bare = experts(hidden_size=320, intermediate_size=96, gated=False)
        assert loaded(mxfp8.Mxfp8(card(90)).moe(bare))["w13_weight"] == ((4, 20, 512), "int32")

    @pytest.mark.parametrize("scheme", [mxfp8.Mxfp8(card(90)), online.OnlineMxfp8(card(90))])
    def test_sizes_are_whole_groups(self, scheme: Any) -> None:
        with pytest.raises(Rejected, match="divisible by"):
            scheme.linear(linear(336, 64))
        for changes in ({"hidden_size": 336}, {"intermediate_size": 112}):
            with pytest.raises(Rejected, match="divisible by 32"):
                scheme.moe(experts(**changes))
        assert scheme.linear(linear(352, 64)).created


class TestWhileLoading:
    """vLLM 0.26.0 layers/quantization/online: what is created never occupies the card."""

    def test_channels_need_a_kernel_for_tokens(self) -> None:
        scheme = online.OnlineFp8(card(80), "channel")
        with pytest.raises(Rejected, match="FP8 PTPC online quant requires"):
            scheme.linear(linear(256, 64))
        with pytest.raises(Rejected, match="not supported with the MARLIN backend"):
            scheme.moe(experts())
        taken = online.OnlineFp8(card(89), "channel")
        assert loaded(taken.linear(linear(256, 64)))["weight_scale"] == ((64, 1), "float32")
        assert loaded(taken.moe(experts()))["w13_weight_scale"] == ((4, 256, 1), "float32")
        assert online.OnlineFp8(card(80), "tensor").moe(experts()).created

    def test_tensors_have_one_scale_and_no_input_scale(self) -> None:
        """A 16-bit checkpoint has no input scales to load."""
        scheme = online.OnlineFp8(card(90), "tensor")
        assert loaded(scheme.moe(experts())) == {
            "w13_weight": ((4, 256, 256), "float8_e4m3fn"),
            "w2_weight": ((4, 256, 128), "float8_e4m3fn"),
            "w13_weight_scale": ((4,), "float32"),
            "w2_weight_scale": ((4,), "float32"),
        }
        assert loaded(scheme.linear(linear(64, 32)))["weight_scale"] == ((), "float32")

    def test_blocks_round_up(self) -> None:
        scheme = online.OnlineFp8(card(90), "block")
        assert loaded(scheme.linear(linear(200, 140)))["weight_scale_inv"] == ((2, 2), "float32")
        stored = scheme.moe(experts(hidden_size=200, intermediate_size=80))
        assert created(stored)["w13_weight"] == ((4, 256, 256), "bfloat16")
        assert loaded(stored)["w2_weight_scale_inv"] == ((4, 2, 1), "float32")
        marlin = online.OnlineFp8(card(80), "block")
        assert loaded(marlin.linear(linear(256, 128)))["weight_scale_inv"] == ((2, 128), "bfloat16")
        assert loaded(marlin.moe(experts()))["w2_weight_scale_inv"] == ((4, 1, 256), "bfloat16")
        packed = online.OnlineFp8(card(100), "block").linear(linear(1024, 192))
        assert loaded(packed)["weight_scale_inv"] == ((192, 2), "int32")

    def test_int8_experts_keep_a_scale_a_row(self) -> None:
        scheme = online.OnlineInt8Experts(card(90))
        assert loaded(scheme.moe(experts(bias=True))) == {
            "w13_weight": ((4, 256, 256), "int8"),
            "w2_weight": ((4, 256, 128), "int8"),
            "w13_bias": ((4, 256), "bfloat16"),
            "w2_bias": ((4, 256), "bfloat16"),
            "w13_scale": ((4, 256), "float32"),
            "w2_scale": ((4, 256), "float32"),
        }
        assert loaded(scheme.linear(linear(64, 32))) == {"weight": ((32, 64), "bfloat16")}

    def test_nvfp4_experts_need_blackwell(self) -> None:
        stored = online.OnlineNvfp4Experts(card(100)).moe(experts())
        assert created(stored) == {"w13_weight": ((4, 256, 256), "bfloat16"), "w2_weight": ((4, 256, 128), "bfloat16")}
        assert loaded(stored)["w13_weight"] == ((4, 256, 128), "uint8")
        assert loaded(stored)["w13_input_scale"] == ((4,), "float32")
        for capability in (90, 120):
            with pytest.raises(Rejected, match=r"requires a Blackwell \(SM100\) GPU"):
                online.OnlineNvfp4Experts(card(capability)).moe(experts())
        assert loaded(online.OnlineNvfp4Experts(card(90)).linear(linear(64, 32))) == {"weight": ((32, 64), "bfloat16")}
