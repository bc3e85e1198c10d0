"""Multimodal classes with rules of their own: refusals, and sizes worked out by hand."""

from __future__ import annotations

from math import pi, prod
from typing import Any

import pytest

from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.errors import InputError, UnsupportedError
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard
from planner.values import Rejected
from tests.served import CONFIGS, H200


def model_of(name: str, **keys: Any) -> ModelSpec:
    return build_model(ModelFiles(name=name, config=CONFIGS[name] | keys))


def share(model: ModelSpec, **flags: Any) -> RankShare:
    args = EngineArgs(max_model_len=2048, trust_remote_code=True, **flags)
    return shard(model, resolve(model, H200, args, "0.26.0"))


def within(rank: RankShare, prefix: str) -> int:
    """Numbers in the parameters below a prefix."""
    found = [one for one in rank.created if one.role == "parameter" and one.module.startswith(prefix)]
    return sum(prod(one.shape) for one in found)


@pytest.mark.parametrize("key", ["audio_model_id", "text_model_id"])
def test_parts_of_ultravox_in_other_repositories_are_not_read(key: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{key} names another repository"):
        model_of("ultravox", **{key: "openai/whisper-large-v3"})


def test_voxtral_is_served_from_params_json_alone() -> None:
    audio = {"model_type": "voxtral_encoder", "hidden_size": 256}
    with pytest.raises(UnsupportedError, match=r"vLLM serves Voxtral from params\.json"):
        model_of("voxtral", audio_config=audio)


def test_voxtral_takes_no_pipeline_parallelism() -> None:
    with pytest.raises(Rejected) as refused:
        share(model_of("voxtral"), pipeline_parallel_size=2)
    assert refused.value.rejection.message.startswith("Pipeline parallelism is not supported for this model.")


def test_voxtral_s_positions_are_float32_and_its_tower_goes_with_its_limit() -> None:
    model = model_of("voxtral")
    positions = next(one for one in share(model).created if one.module.endswith("embed_positions.weight"))
    assert (positions.shape, positions.dtype) == ((1500, 256), "float32")
    without = share(model, limit_mm_per_prompt='{"audio": 0}')
    assert within(without, "whisper_encoder") == within(without, "audio_language_adapter") == 0


def test_voxtral_realtime_is_built_without_full_graphs_only() -> None:
    model = model_of("voxtralrt")
    with pytest.raises(Rejected) as refused:
        share(model)
    sentence = "Voxtral realtime doesn't support full cudagraphs yet. Please use PIECEWISE."
    assert refused.value.rejection.message == sentence
    caches = {(layer.num_kv_heads, layer.window) for layer in share(model, enforce_eager=True).kv_layers}
    assert caches == {(4, 4096), (8 * 4, 750 // 4 + 2)}


def test_nemotron_s_encoders_go_together() -> None:
    model = model_of("nemotronomni")
    some = share(model, limit_mm_per_prompt='{"image": 0, "video": 0}', skip_mm_profiling=True)
    none = share(model, limit_mm_per_prompt='{"image": 0, "video": 0, "audio": 0}')
    assert within(some, "vision_model") > 0
    assert within(none, "vision_model") == within(none, "sound_encoder") == within(none, "mlp1") == 0


def test_radio_has_a_token_for_each_teacher_and_registers() -> None:
    token = next(
        one for one in share(model_of("nemotronvl"), skip_mm_profiling=True).created if "cls_token" in one.module
    )
    assert token.shape == (10, 384)  # three teachers, filled up to the multiple of ten


def test_a_radio_model_of_another_size_is_not_known() -> None:
    vision = CONFIGS["nemotronvl"]["vision_config"]
    vision = vision | {"args": vision["args"] | {"model": "vit_giant"}}
    with pytest.raises(UnsupportedError, match="RADIO model 'vit_giant' is not known"):
        model_of("nemotronvl", vision_config=vision)


def test_what_reads_media_in_unified_gemma_4_stays_whatever_the_limits() -> None:
    rank = share(model_of("gemma4unified"), limit_mm_per_prompt='{"image": 0, "video": 0, "audio": 0}')
    width, pixels = 384, 3 * 48**2
    assert within(rank, "vision_embedder") == 2 * pixels + width * (pixels + 1) + 4 * width + 1120 * 2 * width


def test_molmo_2_builds_its_tower_up_to_the_deepest_feature_layer() -> None:
    rank = share(model_of("molmo2"))
    blocks = {one.module.split(".")[4] for one in rank.created if ".resblocks." in one.module}
    assert len(blocks) == 7  # nine layers, the deepest feature layer the third from the end
    embedding = next(one for one in rank.created if one.module == "model.embed_tokens")
    assert embedding.shape == (32128, 512)


@pytest.mark.parametrize("layers", [[], [9], [-10], ["1"]])
def test_feature_layers_of_molmo_2_outside_the_tower_are_refused(layers: list[Any]) -> None:
    with pytest.raises(InputError, match="vit_layers"):
        model_of("molmo2", adapter_config=CONFIGS["molmo2"]["adapter_config"] | {"vit_layers": layers})


def test_quantized_checkpoints_of_molmo_2_are_not_known() -> None:
    with pytest.raises(UnsupportedError, match="Molmo 2"):
        model_of("molmo2", quantization_config={"quant_method": "fp8"})


def test_fourier_positions_keep_the_frequencies_that_turn_once_within_the_length() -> None:
    text = CONFIGS["internspro"]["text_config"]
    text = text | {"rope_scaling": text["rope_scaling"] | {"num_inv_freq": None}}
    rank = share(model_of("internspro", text_config=text))
    matrix = next(one for one in rank.created if one.module.endswith("cos_coef"))
    kept = sum(5_000_000 ** (-index / 64) > 2 * pi / 4096 for index in range(0, 64, 2))
    assert matrix.shape == (4, kept, kept)
    assert kept == 14


@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, {"rope_type": "default", "fope_init_factor": 0.5}])
def test_intern_s1_pro_needs_fourier_positions(scaling: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"FOPE|fope_sep_head"):
        model_of("internspro", text_config=CONFIGS["internspro"]["text_config"] | {"rope_scaling": scaling})


def test_the_tower_of_qianfan_ocr_stays_as_it_is_under_fp8() -> None:
    def kinds(name: str) -> set[str]:
        rank = share(model_of(name, quantization_config={"quant_method": "fp8", "activation_scheme": "static"}))
        stored = [one for one in rank.created if one.module.startswith("vision_model.encoder") and one.name == "weight"]
        return {one.dtype for one in stored}

    assert kinds("qianfan_ocr") == {"bfloat16"}
    assert "float8_e4m3fn" in kinds("h2ovl")


def test_nvlm_s_tower_has_seven_heads_more_so_that_they_divide() -> None:
    rank = share(model_of("nvlm_d"), tensor_parallel_size=8)
    qkv = next(one for one in rank.created if one.module == "vision_model.encoder.layers.0.attn.qkv")
    assert qkv.shape == (3 * 4 * 16, 400)


@pytest.mark.parametrize(("name", "factor"), [("r4b", 1), ("bee", 4)])
def test_projectors_with_a_norm_before_them(name: str, factor: int) -> None:
    width, output = 288, 512
    inner = factor * output
    expected = 2 * width + inner * (width + 1) + output * (inner + 1)
    assert within(share(model_of(name)), "multi_modal_projector") == expected


def test_the_q_former_of_granite_speech_by_hand() -> None:
    width, inner, layers = 256, 512, 2
    attention = 4 * width * (width + 1) + 2 * width
    layer = 2 * attention + inner * (width + 1) + width * (inner + 1) + 2 * width
    expected = 3 * width + 2 * width + layers * layer + 512 * (width + 1)
    assert within(share(model_of("granitespeech")), "projector") == expected
