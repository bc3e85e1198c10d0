"""params.json as vLLM reads it: which folders are in Mistral's format, and the config made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError, UnsupportedError
from planner.model.build import build_model
from planner.sources.mistral_format import chosen_by, config_of
from planner.sources.model_folder import load_folder

PARAMS: dict[str, Any] = {
    "dim": 512, "n_layers": 4, "head_dim": 64, "hidden_dim": 1024, "n_heads": 8, "n_kv_heads": 2, "norm_eps": 1e-5,
    "vocab_size": 32000, "rope_theta": 1e9, "max_position_embeddings": 8192, "dtype": "bfloat16",
}  # fmt: skip
VISION = {
    "hidden_size": 256, "num_channels": 3, "image_size": 512, "patch_size": 16, "rope_theta": 10000.0,
    "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "image_token_id": 10,
}  # fmt: skip
SOUND = {
    "whisper_model_args": {
        "encoder_args": {
            "audio_encoding_args": {"num_mel_bins": 128}, "dim": 256, "n_layers": 4, "head_dim": 64,
            "hidden_dim": 512, "n_heads": 4, "vocab_size": 51866,
        },
        "downsample_args": {"downsample_factor": 4},
    }
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1, "expert_hidden_dim": 256}


def folder(path: Path, params: dict[str, Any] | None, config: dict[str, Any] | None, *, consolidated: bool) -> Path:
    if params is not None:
        (path / "params.json").write_text(json.dumps(params))
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    if consolidated:
        (path / "consolidated.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return path


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("params.json", "consolidated.safetensors", "config.json"), True),
        (("params.json", "consolidated-00001-of-00002.safetensors"), True),
        (("params.json", "model.safetensors", "config.json"), False),
        (("consolidated.safetensors", "config.json"), False),
    ],
)
def test_consolidated_weights_choose_the_format(names: tuple[str, ...], chosen: bool) -> None:
    assert chosen_by(names) is chosen


def test_a_folder_with_consolidated_weights_is_read_from_params_json(tmp_path: Path) -> None:
    beside = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "extra": 1}
    files = load_folder(folder(tmp_path, PARAMS | {"vision_encoder": VISION}, beside, consolidated=True))
    assert files.config["architectures"] == ["PixtralForConditionalGeneration"]
    assert files.config["extra"] == 1
    assert files.source is not None
    assert files.source.endswith("params.json")
    assert build_model(files).architecture == "PixtralForConditionalGeneration"


def test_a_folder_without_them_is_read_from_config_json(tmp_path: Path) -> None:
    beside = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    assert load_folder(folder(tmp_path, PARAMS, beside, consolidated=False)).config == beside


def test_params_json_alone_is_enough_to_plan(tmp_path: Path) -> None:
    model = build_model(load_folder(folder(tmp_path, PARAMS, None, consolidated=False)))
    assert model.architecture == "MistralForCausalLM"
    assert (model.text.num_hidden_layers, model.text.hidden_size) == (4, 512)
    assert (model.text.num_kv_heads, model.text.intermediate_size) == (2, 1024)
    assert model.derived_max_model_len == 8192
    assert not model.tie_word_embeddings


def test_a_folder_with_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json in this folder"):
        load_folder(folder(tmp_path, None, None, consolidated=True))


@pytest.mark.parametrize(
    ("beside", "length"),
    [({}, 128_000), ({"max_position_embeddings": 4096}, 4096), ({"text_config": {"max_position_embeddings": 77}}, 77)],
)
def test_the_length_comes_from_config_json_where_params_json_has_none(beside: dict[str, Any], length: int) -> None:
    short = {key: value for key, value in PARAMS.items() if key != "max_position_embeddings"}
    made = config_of(short, beside)
    assert (made["max_position_embeddings"], made["max_seq_len"]) == (length, length)


def test_a_pattern_of_windows_becomes_layer_types() -> None:
    made = config_of(PARAMS | {"sliding_window": [512, None]}, {})
    assert made["layer_types"] == ["sliding_attention", "full_attention"] * 2
    assert made["sliding_window"] == 512
    assert config_of(PARAMS | {"sliding_window": 256}, {})["layer_types"] == ["sliding_attention"] * 4


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"qformat_weight": "fp8_e4m3"}, {"quant_method": "fp8", "activation_scheme": "static"}),
        (
            {"qformat_weight": "fp8_e4m3", "qscheme_act": "NO_SCALES"},
            {"quant_method": "fp8", "activation_scheme": "dynamic"},
        ),
        (
            {"quant_method": "compressed_tensors", "ignore": []},
            {"quant_method": "compressed-tensors", "ignore": []},
        ),
    ],
)
def test_quantization_becomes_a_quantization_config(given: dict[str, Any], made: dict[str, Any]) -> None:
    assert config_of(PARAMS | {"quantization": given}, {})["quantization_config"] == made
    wrapped = config_of(PARAMS | {"quantization": given, "vision_encoder": VISION}, {})
    assert wrapped["quantization_config"] == made


def test_another_quantization_is_unknown_to_vllm() -> None:
    with pytest.raises(UnsupportedError, match="unknown quantization"):
        config_of(PARAMS | {"quantization": {"qformat_weight": "int3"}}, {})


def test_yarn_becomes_rope_parameters() -> None:
    yarn = {"factor": 4, "original_max_position_embeddings": 2048, "beta": 32, "alpha": 1, "apply_scale": False}
    made = config_of(PARAMS | {"yarn": yarn}, {})
    assert "rope_theta" not in made
    assert made["rope_parameters"] == {
        "rope_type": "yarn", "mscale_all_dim": 1, "rope_theta": 1e9, "factor": 4, "beta_fast": 32, "beta_slow": 1,
        "original_max_position_embeddings": 2048, "apply_yarn_scaling": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("extra", "architecture", "kind"),
    [
        ({}, "MistralForCausalLM", "transformer"),
        ({"moe": {"num_experts": 8}}, "MixtralForCausalLM", "transformer"),
        ({"moe": EXPERTS}, "MistralLarge3ForCausalLM", "deepseek_v3"),
        ({"qk_nope_head_dim": 64}, "MistralLarge3ForCausalLM", "deepseek_v3"),
        ({"model_type": "mamba"}, "Mamba2ForCausalLM", "mamba"),
        ({"vision_encoder": VISION}, "PixtralForConditionalGeneration", "pixtral"),
        ({"multimodal": SOUND}, "VoxtralForConditionalGeneration", "voxtral"),
    ],
)
def test_the_sections_choose_the_class(extra: dict[str, Any], architecture: str, kind: str) -> None:
    made = config_of(PARAMS | extra, {})
    assert (made["architectures"], made["model_type"]) == ([architecture], kind)


def test_a_causal_encoder_of_sound_is_the_realtime_class() -> None:
    sound = json.loads(json.dumps(SOUND))
    sound["whisper_model_args"]["encoder_args"]["causal"] = True
    made = config_of(PARAMS | {"multimodal": sound}, {})
    assert made["architectures"] == ["VoxtralRealtimeGeneration"]
    assert made["audio_config"]["block_pool_size"] == 4


def test_one_expert_stands_for_latent_attention_without_experts() -> None:
    made = config_of(PARAMS | {"qk_nope_head_dim": 64}, {})
    assert (made["n_routed_experts"], made["first_k_dense_replace"], made["n_shared_experts"]) == (1, 4, 1)


def test_a_section_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(InputError, match="yarn must be an object"):
        config_of(PARAMS | {"yarn": [1]}, {})
