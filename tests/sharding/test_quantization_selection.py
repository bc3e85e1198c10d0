"""Which scheme each layer gets, by lists, patterns and settings of its own: AutoRound, GPTQ, AWQ, bitsandbytes."""

from typing import Any

import pytest
from layers import (
    AT,
    DOWN,
    EXPERTS,
    FUSED,
    HEAD,
    MLP,
    MODEL,
    OUT,
    QKV,
    TOWER,
    WORDS,
    created,
    experts,
    linear,
    loaded,
    of,
)
from msgspec.structs import replace
from quantized_cases import card

from planner.errors import InputError, UnsupportedError
from planner.model.modules import Linear, PackedNames
from planner.model.spec import QuantizationSpec
from planner.sharding.quantization import awq, bitsandbytes, deepseek_v4, gptq, inc, moe_wna16
from planner.sharding.quantization.base import UNQUANTIZED
from planner.sharding.quantization.context import Section
from planner.values import Rejected


class TestAutoRound:
    """vLLM 0.26.0 layers/quantization/inc/config_parser.py:70 _resolve_raw, inc.py."""

    SECTION = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}

    def bits(self, module: Any, **changes: Any) -> tuple[int, int, bool] | None:
        """Bits, group and symmetry of a layer, None for one that stays as it is."""
        scheme = of(inc, {**self.SECTION, **changes}).scheme(module)
        return None if scheme is UNQUANTIZED else (scheme.bits, scheme.group_size, scheme.sym)

    def test_everything_but_the_head_has_the_usual_bits(self) -> None:
        assert self.bits(QKV) == self.bits(DOWN) == self.bits(EXPERTS) == (4, 128, True)
        assert self.bits(HEAD) is None

    def test_a_name_has_its_own_bits_and_what_it_leaves_out_is_usual(self) -> None:
        extra = {DOWN.name: {"bits": 8}, "lm_head": {"bits": 8, "group_size": 32}}
        assert self.bits(DOWN, extra_config=extra) == (8, 128, True)
        assert self.bits(HEAD, extra_config=extra) == (8, 32, True)
        assert self.bits(OUT, extra_config=extra) == (4, 128, True)

    def test_sixteen_bits_are_not_quantized(self) -> None:
        assert self.bits(DOWN, extra_config={DOWN.name: {"bits": 16, "group_size": 128, "sym": True}}) is None
        assert self.bits(DOWN, extra_config={DOWN.name: {"group_size": 32}}) is None  # inc.py:155 takes 16 for no bits
        assert self.bits(EXPERTS, extra_config={EXPERTS.name: {"bits": 16}}) is None
        assert self.bits(EXPERTS, extra_config={EXPERTS.name: {"bits": 32}}) is None
        assert self.bits(DOWN, extra_config={r".*down_proj$": {"bits": 16}}) is None

    def test_a_name_without_the_first_part_is_found_when_it_is_not_quantized(self) -> None:
        inner = Linear(name=DOWN.name.removeprefix("model."), input_size=512, output_sizes=(256,), parallelism="row")
        assert self.bits(inner, extra_config={DOWN.name: {"bits": 16}}) is None

    def test_patterns_are_searched_and_words_are_not_patterns(self) -> None:
        assert self.bits(DOWN, extra_config={r"mlp\.down_proj$": {"bits": 8}}) == (8, 128, True)
        assert self.bits(DOWN, extra_config={"down_proj": {"bits": 8}}) == (4, 128, True)
        assert self.bits(DOWN, extra_config={"(": {"bits": 3}, r"down_proj$": {"bits": 8}}) == (8, 128, True)

    def test_parts_of_a_fused_layer_must_agree(self) -> None:
        parts = {f"{AT}.self_attn.{part}": {"bits": 8} for part in FUSED["qkv_proj"]}
        assert self.bits(QKV, extra_config=parts) == (8, 128, True)
        with pytest.raises(Rejected, match="requires consistent quant config"):
            self.bits(QKV, extra_config={f"{AT}.self_attn.q_proj": {"bits": 8}})
        assert self.bits(QKV, extra_config={r"\.[qkv]_proj$": {"bits": 8}}) == (8, 128, True)

    def test_a_name_that_holds_a_fused_one_twice_or_by_chance_is_itself(self) -> None:
        twice = Linear(name="model.qkv_proj.qkv_proj", input_size=256, output_sizes=(256,))
        extra = {"model.q_proj.q_proj": {"bits": 8}, twice.name + "$": {"bits": 8}}
        assert self.bits(twice, extra_config=extra) == (8, 128, True)
        assert self.bits(QKV, extra_config={DOWN.name: {"bits": 8}}) == (4, 128, True)

    def test_only_named_blocks_are_quantized_the_head_among_them_if_named(self) -> None:
        assert self.bits(DOWN, block_name_to_quantize="model.layers.1,model.layers.2") is None
        assert self.bits(DOWN, block_name_to_quantize="model.layers.1,model.layers.0") == (4, 128, True)
        assert self.bits(DOWN, to_quant_block_names=["model.layers.0"]) == (4, 128, True)
        assert self.bits(HEAD, block_name_to_quantize="lm_head") == (4, 128, True)
        outside = {r".*down_proj$": {"group_size": 32}, r".*o_proj$": {"bits": 8}}
        assert self.bits(DOWN, block_name_to_quantize="other", extra_config=outside) is None
        assert self.bits(OUT, block_name_to_quantize="other", extra_config=outside) == (8, -1, True)

    @pytest.mark.parametrize("bits", [2, 3, 8])
    def test_what_marlin_does_not_multiply_is_refused(self, bits: int) -> None:
        if bits == 8:
            assert self.bits(DOWN, bits=8) == (8, 128, True)
        else:
            with pytest.raises(Rejected, match="Only 4-bit and 8-bit symmetric"):
                self.bits(DOWN, bits=bits)
        with pytest.raises(Rejected, match="Only 4-bit and 8-bit symmetric"):
            self.bits(DOWN, bits=bits, sym=False)
        with pytest.raises(Rejected, match="Only 4-bit and 8-bit symmetric"):
            self.bits(DOWN, bits=bits, group_size=256)

    @pytest.mark.parametrize("bits", [1, 5, 9, 16])
    def test_other_widths_are_refused(self, bits: int) -> None:
        with pytest.raises(Rejected, match=f"Unsupported weight_bits: {bits}"):
            self.bits(DOWN, bits=bits)

    def test_formats_and_backends(self) -> None:
        with pytest.raises(Rejected, match="Unsupported data_type: fp"):
            self.bits(DOWN, data_type="fp")
        with pytest.raises(Rejected, match="packing_format: auto_round:other"):
            self.bits(DOWN, packing_format="auto_round:other")
        assert self.bits(DOWN, backend="gptq:marlin") == self.bits(DOWN, vllm_backend="marlin") == (4, 128, True)
        with pytest.raises(Rejected, match="Only 4-bit and 8-bit symmetric"):
            self.bits(DOWN, backend="gptq:exllamav2")
        packed = {"packing_format": "auto_round:auto_awq"}
        scheme = of(inc, {**self.SECTION, **packed}).scheme(DOWN)
        assert (scheme.name, scheme.group_size, scheme.zero_point) == ("auto_awq", 128, False)
        assert of(inc, {**self.SECTION, **packed}).scheme(EXPERTS).name == "auto_awq"
        assert of(inc, {**self.SECTION, **packed, "backend": "gptq"}).scheme(EXPERTS).name == "auto_gptq"
        with pytest.raises(Rejected, match="Unsupported num_bits = 8"):
            of(inc, {**self.SECTION, **packed, "bits": 8}).scheme(DOWN)

    def test_experts_that_marlin_would_pad_go_elsewhere(self) -> None:
        """inc.py checks experts without allow_tile_padding, AutoGPTQ with it (utils/marlin_utils.py)."""
        shard = experts(intermediate_size=96)
        section = {**self.SECTION, "group_size": 32}
        assert "w13_qweight" in created(of(inc, section).scheme(EXPERTS).moe(shard))
        assert created(of(inc, section).scheme(EXPERTS).moe(shard))["w13_qweight"] == ((4, 192, 128), "uint8")
        assert created(of(inc, section).scheme(EXPERTS).moe(shard))["w13_g_idx"] == ((0,), "int32")
        packed = {**section, "packing_format": "auto_round:auto_awq", "sym": False}
        assert created(of(inc, packed).scheme(EXPERTS).moe(shard))["w13_qweight"] == ((4, 192, 128), "uint8")
        awq_section = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
        assert created(of(awq, awq_section).scheme(EXPERTS).moe(shard))["w13_qweight"] == ((4, 256, 24), "int32")
        gptq_section = {**section, "quant_method": "gptq", "desc_act": False}
        assert created(of(gptq, gptq_section).scheme(EXPERTS).moe(shard))["w13_qweight"] == ((4, 32, 192), "int32")


class TestGptq:
    """vLLM 0.26.0 layers/quantization/auto_gptq.py, utils/gptq_utils.py."""

    SECTION = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}

    def selector(self, **changes: Any) -> Any:
        section = {**self.SECTION, **changes}
        return gptq.GptqSelector(card(80, names=PackedNames(fused=FUSED)), MODEL, Section(section))

    def test_without_a_list_the_language_model_is_packed_and_towers_are_not(self) -> None:
        selector = self.selector()
        assert selector.scheme(DOWN).name == "auto_gptq"
        assert selector.scheme(TOWER) is UNQUANTIZED
        assert selector.scheme(WORDS) is UNQUANTIZED

    def test_a_list_of_modules_is_what_is_packed(self) -> None:
        selector = self.selector(modules_in_block_to_quantize=[["mlp.down_proj"], ["attn.qkv"]])
        assert selector.scheme(DOWN).name == "auto_gptq"
        assert selector.scheme(TOWER).name == "auto_gptq"
        assert selector.scheme(OUT) is UNQUANTIZED
        with pytest.raises(InputError, match="must list names"):
            self.selector(modules_in_block_to_quantize=[[1]])

    def test_the_head_is_packed_where_the_section_says_so(self) -> None:
        assert self.selector().scheme(HEAD) is UNQUANTIZED
        assert self.selector(lm_head=True).scheme(HEAD).name == "auto_gptq"

    def test_rules_are_tried_in_order_and_skip_experts_too(self) -> None:
        rules = {"+:.*down_proj": {"bits": 8, "group_size": 64, "desc_act": True, "other": 1}, "-:.*experts": {}}
        selector = self.selector(dynamic=rules)
        changed = selector.scheme(DOWN)
        assert (changed.bits, changed.group_size, changed.desc_act, changed.sym) == (8, 64, True, True)
        assert selector.scheme(EXPERTS) is UNQUANTIZED
        assert self.selector().scheme(EXPERTS).name == "auto_gptq"
        assert selector.scheme(OUT).bits == 4
        assert self.selector(dynamic={"-:.*mlp": {}, **rules}).scheme(DOWN) is UNQUANTIZED
        with pytest.raises(InputError, match="dynamic must map patterns to objects"):
            self.selector(dynamic={"a": 1})

    def test_experts_keep_their_indices_whole_only_under_an_order(self) -> None:
        """auto_gptq.py AutoGPTQMoEMethod: w2's scales are those of all ranks where inputs are ordered."""
        shard = experts(full_intermediate_size=256)
        for ordered, size, rows in ((False, 0, 1), (True, 128, 2)):
            stored = self.selector(desc_act=ordered).scheme(EXPERTS).moe(shard)
            assert loaded(stored)["w2_g_idx"] == loaded(stored)["w2_g_idx_sort_indices"] == ((4, size), "int32")
            assert created(stored)["w2_g_idx"] == ((4, 128), "int32")
            assert created(stored)["w2_scales"] == loaded(stored)["w2_scales"] == ((4, rows, 256), "bfloat16")

    def test_an_order_within_one_group_is_none(self) -> None:
        assert self.selector(desc_act=True).scheme(DOWN).desc_act
        assert not self.selector(desc_act=True, group_size=-1).scheme(DOWN).desc_act

    @pytest.mark.parametrize(("bits", "sym"), [(3, True), (4, False), (8, False), (2, True)])
    def test_other_widths_and_asymmetric_weights_are_refused(self, bits: int, sym: bool) -> None:
        with pytest.raises(Rejected, match=f"bits={bits}, sym={sym}"):
            self.selector(bits=bits, sym=sym)


class TestAwq:
    """vLLM 0.26.0 layers/quantization/auto_awq.py:285 get_quant_method."""

    SECTION = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}

    def selector(self, headers: Any = None, **changes: Any) -> Any:
        section = Section({**self.SECTION, **changes})
        return awq.AwqSelector(card(80, names=PackedNames(fused=FUSED)), headers or MODEL, section)

    def test_towers_are_packed_where_the_checkpoint_tells_what_is_not(self) -> None:
        assert self.selector().scheme(TOWER) is UNQUANTIZED
        assert self.selector().scheme(DOWN).name == "auto_awq"
        assert self.selector(modules_to_not_convert=["o_proj"]).scheme(TOWER).name == "auto_awq"
        told = replace(MODEL, unquantized_modules=("visual",))
        assert self.selector(told).scheme(TOWER) is UNQUANTIZED
        told = replace(MODEL, unquantized_modules=("lm_head",))
        assert self.selector(told).scheme(TOWER).name == "auto_awq"

    def test_names_are_skipped_by_any_part_of_them(self) -> None:
        selector = self.selector(modules_to_not_convert=["o_proj", "experts"])
        assert selector.scheme(OUT) is selector.scheme(EXPERTS) is UNQUANTIZED
        assert selector.scheme(DOWN) is not UNQUANTIZED
        assert self.selector().scheme(EXPERTS).name == "auto_awq"

    def test_a_packed_head_ends_in_vllm_own_error_where_marlin_would_take_it(self) -> None:
        """utils/marlin_utils.py:308 asks the head for its output_size, which a head has not."""
        assert self.selector().scheme(HEAD) is UNQUANTIZED
        assert self.selector(lm_head=True, modules_to_not_convert=["head"]).scheme(HEAD) is UNQUANTIZED
        assert self.selector(lm_head=True, zero_point=False).scheme(HEAD).name == "auto_awq"
        assert self.selector(lm_head=True, group_size=256).scheme(HEAD).name == "auto_awq"
        with pytest.raises(Rejected, match="'ParallelLMHead' object has no attribute 'output_size'"):
            self.selector(lm_head=True).scheme(HEAD)

    def test_only_four_bits(self) -> None:
        with pytest.raises(Rejected, match="Unsupported num_bits = 8"):
            self.selector(bits=8)
        assert self.selector(w_bit=4, q_group_size=64, bits=8).scheme(DOWN).group_size == 64

    def test_one_group_for_all_inputs(self) -> None:
        scheme = self.selector(group_size=-1).scheme(DOWN)
        split = linear(256, 128, full_input_size=512)
        assert created(scheme.linear(linear(512, 128)))["scales"] == ((1, 128), "bfloat16")
        assert created(scheme.linear(split))["qweight"] == ((256, 16), "int32")

    def test_experts_need_groups(self) -> None:
        with pytest.raises(Rejected, match=r"negative dimension -256: \[4, -256, 256\]"):
            self.selector(group_size=-1).scheme(EXPERTS).moe(experts())


class TestBitsAndBytes:
    """vLLM 0.26.0 layers/quantization/bitsandbytes.py, model_loader/bitsandbytes_loader.py."""

    def test_parts_and_leading_paths_are_skipped(self) -> None:
        section = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["o_proj", "model.layers.1", "visual"]}
        selector = of(bitsandbytes, section)
        assert selector.scheme(OUT) is selector.scheme(TOWER) is UNQUANTIZED
        assert selector.scheme(DOWN).name == selector.scheme(EXPERTS).name == "bitsandbytes"
        later = Linear(name=DOWN.name.replace("0", "1"), input_size=512, output_sizes=(256,))
        assert selector.scheme(later) is UNQUANTIZED
        tenth = Linear(name=DOWN.name.replace("0", "10"), input_size=512, output_sizes=(256,))
        assert selector.scheme(tenth) is not UNQUANTIZED
        assert selector.scheme(HEAD) is UNQUANTIZED

    def test_four_bits_are_two_values_a_byte_and_a_maximum_for_64(self) -> None:
        stored = of(bitsandbytes, {}).scheme(QKV).linear(linear(100, 64, 33))
        assert created(stored) == {"weight": ((4850, 1), "uint8")}
        assert loaded(stored) == {
            "weight": ((4850, 1), "uint8"),
            "quant_state.0.absmax": ((100,), "float32"),
            "quant_state.0.code": ((16,), "float32"),
            "quant_state.1.absmax": ((52,), "float32"),
            "quant_state.1.code": ((16,), "float32"),
        }
        with pytest.raises(Rejected, match="not aligned with the quantized weight shape"):
            of(bitsandbytes, {}).scheme(QKV).linear(linear(101, 33))

    def test_eight_bits_are_a_byte_and_a_scale_a_row(self) -> None:
        stored = of(bitsandbytes, {"load_in_8bit": True}).scheme(QKV).linear(linear(100, 64, 33))
        assert loaded(stored) == {
            "weight": ((97, 100), "int8"),
            "quant_state.0": ((64,), "float32"),
            "quant_state.1": ((33,), "float32"),
        }
        with pytest.raises(Rejected, match="no 8-bit experts"):
            of(bitsandbytes, {"load_in_8bit": True}).scheme(EXPERTS).moe(experts())

    def test_experts_have_one_state_a_stack(self) -> None:
        stored = of(bitsandbytes, {}).scheme(EXPERTS).moe(experts(hidden_size=256, intermediate_size=96))
        assert loaded(stored) == {
            "w13_weight": ((4, 24576, 1), "uint8"),
            "w2_weight": ((4, 12288, 1), "uint8"),
            "w13.quant_state.absmax": ((3072,), "float32"),
            "w13.quant_state.code": ((16,), "float32"),
            "w2.quant_state.absmax": ((1536,), "float32"),
            "w2.quant_state.code": ((16,), "float32"),
        }

    def test_checkpoints_are_not_split_and_states_are_bytes(self) -> None:
        section = QuantizationSpec(method="bitsandbytes", raw={})
        split = card(90, tensor_parallel_size=2)
        with pytest.raises(Rejected, match="Prequant BitsAndBytes models with tensor parallelism"):
            bitsandbytes.select(MODEL, section, split)
        assert bitsandbytes.select(MODEL, None, split).scheme(DOWN).name == "bitsandbytes"
        with pytest.raises(Rejected, match="Unsupported bnb_4bit_quant_storage: float16"):
            of(bitsandbytes, {"bnb_4bit_quant_storage": "float16"})


class TestTritonExperts:
    """--quantization moe_wna16. vLLM 0.26.0 layers/quantization/moe_wna16.py."""

    def test_names_are_skipped_by_parts_and_fused_layers_are_not_known(self) -> None:
        awq_section = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
        selector = self.selector({**awq_section, "modules_to_not_convert": ["experts", "o_proj", "gate_proj"]})
        assert selector.scheme(EXPERTS) is selector.scheme(OUT) is UNQUANTIZED
        assert selector.scheme(DOWN).name == selector.scheme(MLP).name == "auto_awq"
        assert self.selector(awq_section).scheme(EXPERTS).name == "moe_wna16"

    def test_gptq_checkpoints_are_unsupported(self) -> None:
        """Their linear layers are built in 16 bit, for which the files have no weights."""
        gptq_section = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
        with pytest.raises(UnsupportedError, match="GPTQ"):
            self.selector(gptq_section)

    def selector(self, section: dict[str, Any]) -> Any:
        spec = QuantizationSpec(method="moe_wna16", raw=section)
        return moe_wna16.select(MODEL, spec, card(90, names=PackedNames(fused=FUSED)))

    @pytest.mark.parametrize(("group_size", "hidden", "inner", "used"), [
        (128, 256, 128, 128), (128, 256, 192, 64), (128, 288, 96, 32), (64, 256, 96, 32),
        (32, 64, 32, 32)])  # fmt: skip
    def test_groups_are_halved_until_they_divide(self, group_size: int, hidden: int, inner: int, used: int) -> None:
        scheme = moe_wna16.MoeWna16(bits=4, group_size=group_size, zero_points=True, gptq=False)
        tensors = created(scheme.moe(experts(hidden_size=hidden, intermediate_size=inner)))
        assert tensors["w13_scales"] == ((4, 2 * inner, hidden // used), "bfloat16")
        assert tensors["w2_scales"] == ((4, hidden, inner // used), "bfloat16")
        assert tensors["w13_qzeros"] == ((4, inner, hidden // used), "uint8")
        assert tensors["w2_qzeros"] == ((4, hidden // 2, inner // used), "uint8")

    @pytest.mark.parametrize(("group_size", "inner"), [(128, 80), (-1, 128), (16, 128), (0, 128)])
    def test_groups_below_32_are_refused(self, group_size: int, inner: int) -> None:
        scheme = moe_wna16.MoeWna16(bits=4, group_size=group_size, zero_points=False, gptq=True)
        with pytest.raises(Rejected, match="assert group_size >= 32"):
            scheme.moe(experts(intermediate_size=inner))

    def test_gptq_keeps_empty_indices(self) -> None:
        """Zero points too, where the weights have none."""
        scheme = moe_wna16.MoeWna16(bits=8, group_size=128, zero_points=False, gptq=True)
        tensors = created(scheme.moe(experts()))
        assert tensors["w13_qweight"] == ((4, 256, 256), "uint8")
        for name in ("w13_g_idx", "w2_g_idx", "w13_qzeros", "w2_qzeros"):
            assert tensors[name] == ((0,), "int32")


class TestDeepSeekV4:
    """vLLM 0.26.0 models/deepseek_v4/quant_config.py."""

    SECTION = {"quant_method": "fp8", "weight_block_size": [128, 128]}

    def test_experts_are_fp4_unless_the_config_says_fp8(self) -> None:
        assert of(deepseek_v4, self.SECTION).scheme(EXPERTS).name == "mxfp4"
        assert of(deepseek_v4, {**self.SECTION, "expert_dtype": "fp8"}).scheme(EXPERTS).name == "fp8"
        assert of(deepseek_v4, {**self.SECTION, "moe_quant_algo": "nvfp4"}).scheme(EXPERTS).use_a16 is False
        with pytest.raises(Rejected, match="expert_dtype='int4'"):
            of(deepseek_v4, {**self.SECTION, "expert_dtype": "int4"})
        with pytest.raises(UnsupportedError, match="without weight_block_size"):
            of(deepseek_v4, {"quant_method": "fp8"})
        ignored = of(deepseek_v4, {**self.SECTION, "ignored_layers": [f"{EXPERTS.name}.0.w1", DOWN.name]})
        assert ignored.scheme(EXPERTS) is ignored.scheme(DOWN) is UNQUANTIZED

    @pytest.mark.parametrize(("capability", "inputs", "dtype", "shape"), [
        (90, 512, "float32", (3, 4)), (90, 448, "float8_e8m0fnu", (3, 4)), (89, 512, "float8_e8m0fnu", (3, 4)),
        (100, 512, "int32", (320, 1))])  # fmt: skip
    def test_exponents_are_widened_or_packed_for_deep_gemm(
        self, capability: int, inputs: int, dtype: str, shape: tuple[int, ...]
    ) -> None:
        """Blocks of 128 rounded up both ways; DeepGEMM takes whole tiles only."""
        stored = of(deepseek_v4, self.SECTION, capability).scheme(DOWN).linear(linear(inputs, 320))
        assert created(stored)["weight_scale_inv"] == ((3, 4), "float8_e8m0fnu")
        assert loaded(stored)["weight_scale_inv"] == (shape, dtype)

    def test_blocks_have_two_sides(self) -> None:
        section = {**self.SECTION, "weight_block_size": [64, 256]}
        stored = of(deepseek_v4, section, 89).scheme(DOWN).linear(linear(520, 320))
        assert created(stored)["weight_scale_inv"] == loaded(stored)["weight_scale_inv"] == ((5, 3), "float8_e8m0fnu")
