"""Which scheme each layer of a compressed-tensors checkpoint gets."""

from typing import Any

import pytest
from layers import DOWN, EXPERTS, NAMES, TOWER, WORDS, created, experts, linear, loaded, of

from planner.errors import InputError, UnsupportedError
from planner.model.modules import Attention, PackedNames
from planner.sharding.quantization import compressed_tensors
from planner.sharding.quantization.base import UNQUANTIZED
from planner.sharding.quantization.context import Section
from planner.values import Rejected


def group(
    weights: dict[str, Any], inputs: Any = None, targets: tuple[str, ...] = ("Linear",), **more: Any
) -> dict[str, Any]:
    one = {"targets": list(targets), "weights": weights, "input_activations": inputs, **more}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": one}}


INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}


class TestCompressedTensors:
    """vLLM 0.26.0 layers/quantization/compressed_tensors/compressed_tensors.py."""

    def selector(self, section: dict[str, Any], capability: int = 90, **changes: Any) -> Any:
        return of(compressed_tensors, {"format": "pack-quantized", **section, **changes}, capability, names=NAMES)

    def test_paths_go_by_the_models_prefixes_and_classes_and_patterns_do_not(self) -> None:
        ignored = ["model.visual.blocks.0.attn.qkv", "re:model.visual.*", "lm_head"]
        selector = self.selector(group(INT4, targets=("Linear", "re:model.layers")), ignore=ignored)
        assert selector.ignored == ("visual.blocks.0.attn.qkv", "re:model.visual.*", "lm_head")
        assert list(selector.targets) == ["Linear", "re:model.layers"]
        assert selector.scheme(TOWER) is UNQUANTIZED
        assert selector.scheme(DOWN).name == "compressed-tensors wNa16"

    def test_a_prefix_for_all_paths_leaves_classes_and_patterns_alone(self) -> None:
        """The Transformers backend maps "" to "model."."""
        section = {
            **group(INT4, targets=("Linear", "re:.*x")),
            "ignore": ["lm_head", "re:.*y", "layers.0.mlp.down_proj"],
        }
        selector = of(
            compressed_tensors, {"format": "pack-quantized", **section}, names=PackedNames(prefixes=(("", "model."),))
        )
        assert selector.ignored == ("lm_head", "re:.*y", DOWN.name)
        assert list(selector.targets) == ["Linear", "re:.*x"]

    def test_sparsity_and_transforms_count_only_where_they_have_targets(self) -> None:
        for empty in ({}, {"targets": []}, {"format": "dense"}):
            assert self.selector(group(INT4), sparsity_config=empty).scheme(DOWN).name == "compressed-tensors wNa16"
        with pytest.raises(UnsupportedError, match="sparsity"):
            self.selector(group(INT4), sparsity_config={"targets": ["Linear"]})
        assert self.selector(group(INT4), transform_config={"config_groups": {}}).scheme(DOWN) is not UNQUANTIZED
        with pytest.raises(UnsupportedError, match="transforms"):
            self.selector(group(INT4), transform_config={"config_groups": {"u": {}}})

    def test_groups_for_attention_alone_and_without_weights_are_passed_over(self) -> None:
        assert not self.selector(group(INT4, targets=("LlamaAttention",))).targets
        assert not self.selector(group(None)).targets

    def test_strategy_is_inferred_from_the_group(self) -> None:
        def strategy(**changes: Any) -> str:
            return self.selector(group({**INT4, "strategy": None, **changes})).targets["Linear"].weights.strategy

        assert (strategy(), strategy(group_size=-1), strategy(group_size=None)) == ("group", "channel", "tensor")
        assert (strategy(group_size=0), strategy(group_size=1)) == ("channel", "group")
        with pytest.raises(InputError, match="group_size must be a whole number from -1"):
            strategy(group_size=-2)

    @pytest.mark.parametrize(("order", "kept"), [(True, True), ("group", True), ("DYNAMIC", True), ("weight", False),
                                                 ("static", False), (None, False), (False, False)])  # fmt: skip
    def test_only_an_order_of_the_inputs_is_kept(self, order: Any, kept: bool) -> None:
        assert self.selector(group({**INT4, "actorder": order})).targets["Linear"].weights.act_order is kept

    def test_block_structures_are_pairs_or_words(self) -> None:
        def block(value: Any) -> Any:
            asked = {**FP8, "strategy": "block", "block_structure": value}
            return self.selector(group(asked)).targets["Linear"].weights.block

        assert block([128, 64]) == block("128x64") == (128, 64)
        assert block(None) is None
        for wrong in ("128", "128xa", "1x2x3", [128, 0], [128], [128, -1], [128.0, 128]):
            with pytest.raises(InputError, match="block_structure must be two whole numbers"):
                block(wrong)
        assert block([1, 1]) == (1, 1)

    def test_exponents_of_a_byte_make_mxfp8(self) -> None:
        exponents = {**FP8, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
        assert self.selector(group(exponents)).scheme(DOWN).name == "mxfp8"
        assert self.selector(group(exponents)).scheme(EXPERTS).name == "mxfp8"
        for other in ({"scale_dtype": None}, {"group_size": 64}, {"symmetric": False}):
            with pytest.raises(UnsupportedError):
                self.selector(group({**exponents, **other}), format="float-quantized").scheme(DOWN)

    def test_activations_choose_fp8_or_int8(self) -> None:
        inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
        float8 = self.selector(group(FP8, inputs), format="float-quantized").scheme(DOWN)
        assert (float8.name, float8.static, float8.weight_only) == ("compressed-tensors fp8", False, False)
        static = self.selector(group(FP8, {**inputs, "dynamic": False}), format="float-quantized").scheme(DOWN)
        assert static.static
        alone = self.selector(group(FP8), format="float-quantized").scheme(DOWN)
        assert (alone.static, alone.weight_only) == (False, True)
        int8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
        tokens = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": False}
        whole = self.selector(group(int8, tokens), format="int-quantized").scheme(DOWN)
        assert (whole.name, whole.static, whole.symmetric) == ("compressed-tensors int8", False, False)
        fixed = {**tokens, "strategy": "tensor", "dynamic": False}
        assert self.selector(group(int8, fixed), format="int-quantized").scheme(DOWN).static
        for wrong in ({**tokens, "dynamic": False}, {**fixed, "dynamic": True}, {**tokens, "num_bits": 4}):
            with pytest.raises(UnsupportedError, match="strategy channel, format int-quantized"):
                self.selector(group(int8, wrong), format="int-quantized").scheme(DOWN)
        for changed in ({"symmetric": False}, {"dynamic": True}, {"strategy": "group", "group_size": 32}):
            with pytest.raises(UnsupportedError):
                self.selector(group({**int8, **changed}, tokens), format="int-quantized").scheme(DOWN)
        with pytest.raises(UnsupportedError, match="format naive"):
            self.selector(group(int8, tokens), format="naive").scheme(DOWN)
        with pytest.raises(UnsupportedError):
            self.selector(group(int8, tokens, output_activations=int8), format="int-quantized").scheme(DOWN)

    @pytest.mark.parametrize(("section", "minimum"), [
        (group(INT4), 75),
        (group({**FP8, "num_bits": 4, "strategy": "group", "group_size": 32}), 80),
    ])  # fmt: skip
    def test_cards_too_old_are_refused(self, section: dict[str, Any], minimum: int) -> None:
        assert self.selector(section, minimum).scheme(DOWN) is not UNQUANTIZED
        with pytest.raises(Rejected, match=f"Min capability: {minimum}. Current capability: {minimum - 1}"):
            self.selector(section, minimum - 1).scheme(DOWN)

    def test_nvfp4_inputs_are_nvfp4_or_none(self) -> None:
        nvfp4 = {**FP8, "num_bits": 4, "strategy": "tensor_group", "group_size": 16}
        assert self.selector(group(nvfp4)).scheme(DOWN).use_a16
        assert not self.selector(group(nvfp4, nvfp4)).scheme(DOWN).use_a16
        assert self.selector(group(nvfp4)).scheme(EXPERTS).use_a16
        for module in (DOWN, EXPERTS):
            with pytest.raises(Rejected, match="input quantization must also be NVFP4"):
                self.selector(group(nvfp4, FP8)).scheme(module)

    def test_experts_choose_integers_fp8_or_int8(self) -> None:
        assert self.selector(group(INT4)).scheme(EXPERTS).name == "compressed-tensors wNa16"
        assert self.selector(group(FP8, FP8)).scheme(EXPERTS).name == "compressed-tensors fp8"
        int8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
        tokens = {**int8, "strategy": "token", "dynamic": True}
        assert self.selector(group(int8, tokens)).scheme(EXPERTS).name == "compressed-tensors int8"
        for weights, inputs in (
            (FP8, None),
            (int8, {**tokens, "num_bits": 4}),
            (int8, {**tokens, "strategy": "tensor"}),
            ({**int8, "strategy": "tensor"}, tokens),
        ):
            with pytest.raises(UnsupportedError, match="experts"):
                self.selector(group(weights, inputs)).scheme(EXPERTS)
        for bits, refusal in ((9, "only format: pack-quantized"), (3, "only supports int4 and int8")):
            with pytest.raises(Rejected, match=refusal):
                self.selector(group({**INT4, "num_bits": bits})).scheme(EXPERTS)
        with pytest.raises(Rejected, match="only format: pack-quantized"):
            self.selector(group(INT4), format="naive").scheme(EXPERTS)

    def test_projections_of_experts_agree(self) -> None:
        with pytest.raises(Rejected, match="All MoE projections need to have same quantization scheme"):
            self.selector(group(INT4, targets=("re:.*up_proj",))).scheme(EXPERTS)
        ignored = [f"re:.*{part}" for part in ("gate_proj", "up_proj", "down_proj")]
        assert self.selector(group(INT4), ignore=ignored).scheme(EXPERTS) is UNQUANTIZED

    def test_an_order_of_experts_that_marlin_cannot_follow_is_refused(self) -> None:
        """compressed_tensors_moe.py:104: ordered experts are not padded, and no other kernel takes them."""
        ordered = self.selector(group({**INT4, "actorder": "group"})).scheme(EXPERTS)
        assert loaded(ordered.moe(experts()))["w2_weight_g_idx"] == ((4, 128), "int32")
        with pytest.raises(Rejected, match="WNA16MoE is not supported with actorder=group/dynamic"):
            ordered.moe(experts(intermediate_size=96, full_intermediate_size=96))
        plain = self.selector(group(INT4)).scheme(EXPERTS)
        assert loaded(plain.moe(experts(intermediate_size=96)))["w2_weight_g_idx"] == ((4, 0), "int32")

    @pytest.mark.parametrize(
        ("capability", "weights", "shard", "kept"),
        [
            (100, {}, {}, True),
            (103, {}, {}, True),
            (90, {}, {}, False),
            (120, {}, {}, False),
            (100, {"num_bits": 8}, {}, False),
            (100, {"group_size": 64}, {}, False),
            (100, {"symmetric": False}, {}, False),
            (100, {}, {"gated": False}, False),
            (100, {}, {"activation": "relu2"}, False),
        ],
    )
    def test_trtllm_keeps_groups_of_32_on_blackwell(
        self, capability: int, weights: dict[str, Any], shard: dict[str, Any], kept: bool
    ) -> None:
        """fused_moe/experts/trtllm_mxint4_moe.py: 10.x, symmetric 4 bits in groups of 32, gated SiLU."""
        stored = self.selector(group({**INT4, **weights}), capability).scheme(EXPERTS).moe(experts(**shard))
        assert (stored.after_load == stored.created) is kept

    def test_experts_of_all_shapes(self) -> None:
        """compressed_tensors_moe_wna16_marlin.py: tiles of sixteen inputs, a scale a group, a shape for each expert."""
        asymmetric = {**INT4, "symmetric": False}
        stored = self.selector(group(asymmetric)).scheme(EXPERTS).moe(experts(intermediate_size=96, gated=False))
        assert created(stored) == {
            "w13_weight_packed": ((4, 32, 96), "int32"),
            "w2_weight_packed": ((4, 12, 256), "int32"),
            "w13_weight_scale": ((4, 8, 96), "bfloat16"),
            "w2_weight_scale": ((4, 3, 256), "bfloat16"),
            "w13_weight_zero_point": ((4, 8, 12), "int32"),
            "w2_weight_zero_point": ((4, 3, 32), "int32"),
            "w2_weight_shape": ((4, 2), "bfloat16"),
            "w13_weight_shape": ((4, 2), "bfloat16"),
            "w13_weight_g_idx": ((4, 256), "int32"),
            "w2_weight_g_idx": ((4, 96), "int32"),
            "w13_g_idx_sort_indices": ((4, 256), "int32"),
            "w2_g_idx_sort_indices": ((4, 96), "int32"),
        }
        tensors = loaded(stored)
        assert tensors["w13_weight_packed"] == ((4, 16, 256), "int32")
        assert tensors["w2_weight_packed"] == ((4, 8, 512), "int32")
        assert tensors["w13_weight_scale"] == ((4, 8, 128), "bfloat16")
        assert tensors["w2_weight_scale"] == ((4, 4, 256), "bfloat16")
        assert tensors["w13_weight_zero_point"] == ((4, 8, 16), "int32")
        assert tensors["w2_weight_zero_point"] == ((4, 4, 32), "int32")
        assert tensors["workspace"] == ((400,), "int32")

    def test_ordered_experts_have_the_scales_of_the_whole_model(self) -> None:
        ordered = self.selector(group({**INT4, "actorder": "group"})).scheme(EXPERTS)
        stored = ordered.moe(experts(full_intermediate_size=512))
        assert created(stored)["w2_weight_scale"] == loaded(stored)["w2_weight_scale"] == ((4, 16, 256), "bfloat16")
        plain = self.selector(group(INT4)).scheme(EXPERTS).moe(experts(full_intermediate_size=512))
        assert created(plain)["w2_weight_scale"] == ((4, 4, 256), "bfloat16")

    def test_groups_of_experts_divide_their_sizes(self) -> None:
        scheme = self.selector(group({**INT4, "group_size": 64})).scheme(EXPERTS)
        for changes, words in (
            ({"hidden_size": 384 - 32}, r"WNA16 MoE requires hidden_size \(352\)"),
            ({"intermediate_size": 96}, r"WNA16 MoE with static group scales .* \(96\)"),
        ):
            with pytest.raises(Rejected, match=words):
                scheme.moe(experts(**changes))
        rows = {**INT4, "strategy": "channel", "group_size": None}
        assert created(self.selector(group(rows)).scheme(EXPERTS).moe(experts()))["w2_weight_scale"][0] == (4, 1, 256)

    def test_humming_multiplies_fp8_weights_alone_and_below_ada(self) -> None:
        """compressed_tensors_w8a16_fp8.py; humming pads 300 outputs to 512 and 480 inputs to 512."""
        inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
        for capability, activations in ((90, None), (80, inputs)):
            selector = self.selector(group(FP8, activations), capability, format="float-quantized")
            assert loaded(selector.scheme(DOWN).linear(linear(480, 300))) == {
                "weight": ((32, 2048), "int32"),
                "weight_scale": ((1, 512), "bfloat16"),
                "locks": ((1024,), "int32"),
            }
            blocks = {**FP8, "strategy": "block", "block_structure": [32, 64]}
            by_blocks = self.selector(group(blocks, activations), capability, format="float-quantized")
            stored = by_blocks.scheme(DOWN).linear(linear(480, 300))
            assert created(stored)["weight_scale"] == ((10, 8), "float32")
            assert loaded(stored)["weight_scale"] == ((8, 16), "float32")

    def test_blocks_of_fused_layers_may_not_end_within_one(self) -> None:
        """compressed_tensors_w8a8_fp8.py checks all parts but the last, Fp8Config none (layers/linear.py:502)."""
        inputs = {"num_bits": 8, "type": "float", "strategy": "group", "dynamic": True, "group_size": 128}
        blocks = {**FP8, "strategy": "block", "block_structure": [128, 128]}
        scheme = self.selector(group(blocks, inputs), format="float-quantized").scheme(DOWN)
        assert created(scheme.linear(linear(256, 128, 64)))["weight_scale"] == ((2, 2), "float32")
        with pytest.raises(Rejected, match="output_partition_size = 64"):
            scheme.linear(linear(256, 64, 128))

    def test_cache_scales_are_one_or_one_a_head(self) -> None:
        plain = Attention(name="a", kind="full_attention", num_heads=4, num_kv_heads=2, head_size=64)
        latent = Attention(name="a", kind="mla_attention", num_heads=4, num_kv_heads=1, head_size=576)
        scheme = {"type": "float", "num_bits": 8, "strategy": "attn_head", "symmetric": True}
        for strategy, count in (("attn_head", 2), ("tensor", 1)):
            selector = self.selector(group(INT4), kv_cache_scheme={**scheme, "strategy": strategy})
            scales = selector.kv_scales(plain, 2)
            assert created(scales)["k_scale"] == ((count,), "float32")
            assert created(scales)["v_zero_point"] == ((count,), "bfloat16")
            assert loaded(scales) == dict.fromkeys(("_k_scale", "_v_scale", "_q_scale"), ((count,), "float32"))
            assert selector.kv_scales(latent, 1).created == ()
        with pytest.raises(Rejected, match="received num_bits=4"):
            self.selector(group(INT4), kv_cache_scheme={**scheme, "num_bits": 4}).kv_scales(plain, 2)

    def test_embeddings_are_packed_by_groups_or_rows(self) -> None:
        """compressed_tensors_embedding.py: eight values of four bits to an int32, one scale a group."""
        both = ("Linear", "VocabParallelEmbedding")
        grouped = self.selector(group(INT4, targets=both)).scheme(WORDS).linear(linear(256, 1024))
        assert created(grouped) == {
            "weight_packed": ((1024, 32), "int32"),
            "weight_scale": ((1024, 8), "bfloat16"),
            "weight_shape": ((2,), "int64"),
        }
        rows = {**INT4, "num_bits": 8, "strategy": "channel", "group_size": None}
        by_rows = self.selector(group(rows, targets=both)).scheme(WORDS).linear(linear(256, 1024))
        assert created(by_rows)["weight_packed"] == ((1024, 64), "int32")
        assert created(by_rows)["weight_scale"] == ((1024, 1), "bfloat16")
        assert created(self.selector(group({**INT4, "strategy": "channel"}, targets=both)).scheme(WORDS).linear(
            linear(256, 1024)))["weight_scale"] == ((1024, 1), "bfloat16")  # fmt: skip
        assert self.selector(group(INT4)).scheme(WORDS) is UNQUANTIZED
        for wrong in ({"strategy": "tensor"}, {"type": "float"}, {"dynamic": True}):
            with pytest.raises(Rejected, match="only support weight-only INT"):
                self.selector(group({**INT4, **wrong}, targets=both)).scheme(WORDS)

    def test_cache_scales_need_fp8(self) -> None:
        scheme = {"type": "float", "num_bits": 8, "strategy": "tensor", "symmetric": True}
        for wrong, refusal in (
            ({"type": "int"}, "num_bits=8, type=float"),
            ({"num_bits": 4}, "received num_bits=4"),
            ({"strategy": "token"}, "Invalid strategy"),
            ({"symmetric": False}, "symmetric"),
        ):
            with pytest.raises(Rejected, match=refusal):
                compressed_tensors._check_kv_scheme(Section({**scheme, **wrong}))
        compressed_tensors._check_kv_scheme(Section(scheme))
