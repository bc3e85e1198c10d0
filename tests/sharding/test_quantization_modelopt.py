"""Which scheme each layer of a ModelOpt checkpoint gets."""

from typing import Any

import pytest
from layers import AT, DOWN, EXPERTS, HEAD, MLP, OUT, QKV, created, experts, linear, loaded, of

from planner.errors import InputError, UnsupportedError
from planner.model.modules import Attention, Linear, LMHead, PackedNames
from planner.sharding.quantization import modelopt
from planner.sharding.quantization.base import UNQUANTIZED
from planner.values import Rejected


class TestModelOpt:
    """vLLM 0.26.0 layers/quantization/modelopt.py."""

    def mixed(self, layers: dict[str, str], **changes: Any) -> Any:
        section = {
            "quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {name: {"quant_algo": algorithm} for name, algorithm in layers.items()}, **changes,
        }  # fmt: skip
        return of(modelopt, section)

    def test_each_layer_has_the_algorithm_of_its_name(self) -> None:
        selector = self.mixed({DOWN.name: "FP8", OUT.name: "nvfp4", HEAD.name: "MXFP8"})
        assert selector.scheme(DOWN).name == "modelopt fp8"
        assert (selector.scheme(OUT).name, selector.scheme(OUT).use_a16) == ("nvfp4", False)
        assert selector.scheme(HEAD).name == "mxfp8"
        assert selector.scheme(MLP) is UNQUANTIZED
        assert self.mixed({OUT.name: "W4A16_NVFP4"}).scheme(OUT).use_a16

    def test_fused_parts_agree_or_are_refused(self) -> None:
        gate, up = f"{AT}.mlp.gate_proj", f"{AT}.mlp.up_proj"
        assert self.mixed({gate: "FP8", up: "FP8"}).scheme(MLP).name == "modelopt fp8"
        with pytest.raises(Rejected, match="Mixed quant_algo within fused layer"):
            self.mixed({gate: "FP8", up: "NVFP4"}).scheme(MLP)

    def test_parts_are_known_of_layers_that_the_model_does_not_fuse(self) -> None:
        section = {
            "quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {f"{AT}.self_attn.q_proj": {"quant_algo": "FP8"}},
        }  # fmt: skip
        assert of(modelopt, section, names=PackedNames(fused={"other": ("a",)})).scheme(QKV).name == "modelopt fp8"

    def test_experts_have_the_algorithm_of_anything_beneath_them_or_beside_them(self) -> None:
        assert self.mixed({f"{EXPERTS.name}.0.down_proj": "FP8"}).scheme(EXPERTS).name == "modelopt fp8"
        assert self.mixed({f"{AT}.mlp.shared_expert.down_proj": "FP8"}).scheme(EXPERTS).name == "modelopt fp8"
        assert self.mixed({f"{AT}.self_attn.o_proj": "FP8"}).scheme(EXPERTS) is UNQUANTIZED
        assert self.mixed({f"{AT}.mlp.down_proj": "FP8"}).scheme(OUT) is UNQUANTIZED

    def test_the_language_part_goes_by_two_names(self) -> None:
        inner = Linear(name=f"language_model.{DOWN.name}", input_size=512, output_sizes=(256,))
        outer = Linear(
            name=f"model.language_model.{DOWN.name.removeprefix('model.')}", input_size=512, output_sizes=(256,)
        )
        for named, asked in ((inner, outer), (outer, inner)):
            assert self.mixed({named.name: "FP8"}).scheme(asked).name == "modelopt fp8"
        head = LMHead(name="language_model.lm_head", num_embeddings=1000, hidden_size=256)
        assert self.mixed({"lm_head": "FP8"}).scheme(head).name == "modelopt fp8"

    def test_groups_are_the_sections_or_those_of_the_first_layer_that_has_them(self) -> None:
        assert self.mixed({OUT.name: "NVFP4"}).scheme(OUT).group_size == 16
        assert self.mixed({OUT.name: "NVFP4"}, group_size=32).scheme(OUT).group_size == 32
        layers = {
            DOWN.name: {"quant_algo": "FP8", "group_size": 8},
            OUT.name: {"quant_algo": "NVFP4", "group_size": 64},
        }
        assert self.mixed({}, quantized_layers=layers).scheme(OUT).group_size == 64
        with pytest.raises(InputError, match="group_size must be a whole number"):
            self.mixed({OUT.name: "NVFP4"}, group_size="x")

    def test_no_layers_are_refused_and_excluded_ones_stay(self) -> None:
        with pytest.raises(Rejected, match="non-empty 'quantized_layers'"):
            self.mixed({})
        assert self.mixed({DOWN.name: "FP8"}, ignore=[DOWN.name]).scheme(DOWN) is UNQUANTIZED

    def test_a_star_after_a_name_covers_what_is_beneath_it(self) -> None:
        selector = of(modelopt, {"quant_method": "modelopt", "quantization": {
            "quant_algo": "FP8", "exclude_modules": ["model.layers.0*", "x*", "lm_head.*"]}})  # fmt: skip
        assert selector.scheme(DOWN) is UNQUANTIZED
        for name in ("wrapped.model.layers.0.proj", "box.proj"):  # parts of a name count, the star does not
            assert selector.scheme(Linear(name=name, input_size=512, output_sizes=(256,))) is UNQUANTIZED
        later = Linear(name=DOWN.name.replace("0", "10"), input_size=512, output_sizes=(256,))
        assert selector.scheme(later).name == "modelopt fp8"
        assert selector.scheme(HEAD).name == "modelopt fp8"
        vision = Linear(name="vision_tower.blocks.0.fc1", input_size=256, output_sizes=(256,))
        assert selector.scheme(vision) is UNQUANTIZED

    def test_the_algorithm_names_the_scheme(self) -> None:
        def scheme(**section: Any) -> Any:
            return of(modelopt, {"quant_method": "modelopt", **section}).scheme(DOWN)

        assert scheme(quant_algo="fp8_pb_wo").algorithm == "FP8_PB_WO"
        assert scheme(quant_algo="NVFP4").group_size == 16
        assert scheme(quant_algo="NVFP4", group_size=32).group_size == 32
        assert not scheme(quant_algo="NVFP4").use_a16
        assert scheme(quant_algo="W4A16_NVFP4").use_a16
        assert of(modelopt, {"quant_method": "mxfp8", "ignored_layers": [OUT.name]}).scheme(OUT) is UNQUANTIZED
        with pytest.raises(Rejected, match="Missing 'quant_algo'"):
            scheme()
        with pytest.raises(UnsupportedError, match="W8A8_SQ"):
            scheme(quant_algo="W8A8_SQ")

    def test_stars_within_a_name_are_wildcards(self) -> None:
        selector = of(modelopt, {"quant_method": "modelopt", "quantization": {
            "quant_algo": "FP8", "exclude_modules": ["a*b", "z.*"]}})  # fmt: skip
        for name, excluded in (("aXb", True), ("waXb", False), ("z.y", True), ("wz.y", False), ("a*b.c", True)):
            scheme = selector.scheme(Linear(name=name, input_size=512, output_sizes=(256,)))
            assert (scheme is UNQUANTIZED) is excluded

    def test_cache_scales_are_loaded_where_the_checkpoint_has_fp8_ones(self) -> None:
        """modelopt.py: four scalars in the model's dtype, dropped after loading; none for MLA under mixed precision."""
        plain = Attention(name="a", kind="full_attention", num_heads=4, num_kv_heads=2, head_size=64)
        latent = Attention(name="a", kind="mla_attention", num_heads=4, num_kv_heads=1, head_size=576)
        float8 = {"type": "float", "num_bits": 8}
        for scheme, count in ((float8, 4), ({**float8, "type": "int"}, 0), ({**float8, "num_bits": 4}, 0), ({}, 0)):
            selector = self.mixed({DOWN.name: "FP8"}, kv_cache_scheme=scheme)
            assert len(selector.kv_scales(plain, 2).created) == count
            assert selector.kv_scales(latent, 1).created == ()
        assert self.mixed({DOWN.name: "FP8"}, kv_cache_scheme=float8).kv_scales(plain, 2).after_load == ()
        for module in (plain, latent):
            scales = of(modelopt, {"quant_method": "modelopt", "quant_algo": "FP8"}).kv_scales(module, 1)
            assert len(scales.created) == 4

    def test_experts_have_static_scales(self) -> None:
        stored = of(modelopt, {"quant_method": "modelopt", "quant_algo": "FP8"}, 89).scheme(EXPERTS).moe(experts())
        assert created(stored)["w13_input_scale"] == ((4,), "float32")
        assert loaded(stored)["w13_input_scale"] == ((), "float32")
        assert created(stored)["w13_weight_scale"] == ((4, 2), "float32")

    def test_blocks_are_whole(self) -> None:
        """modelopt.py ModelOptFp8PbWoLinearMethod: 128 x 128, the scale with two empty dimensions as created."""
        scheme = of(modelopt, {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}).scheme(DOWN)
        stored = scheme.linear(linear(512, 256))
        assert created(stored)["weight_scale"] == ((2, 1, 4, 1), "float32")
        assert loaded(stored)["weight_scale"] == ((2, 4), "float32")
        for inputs, outputs, side in ((512, 192, "out"), (576, 256, "in")):
            with pytest.raises(Rejected, match=f"requires {side}_features divisible by 128, got"):
                scheme.linear(linear(inputs, outputs))
