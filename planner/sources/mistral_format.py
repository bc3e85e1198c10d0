"""Mistral's own format: params.json beside consolidated weights, turned into the config that vLLM makes of it.

Source: vLLM 0.26.0 transformers_utils/configs/mistral.py, transformers_utils/config.py:342-392, repo_utils.py:172.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from planner.errors import InputError, UnsupportedError

PARAMS = "params.json"
_CONSOLIDATED = "consolidated*.safetensors"
_LENGTH = 128_000
_NAMES = {
    "dim": "hidden_size",
    "norm_eps": "rms_norm_eps",
    "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
}
_EXPERTS = {
    "route_every_n": "moe_layer_freq",
    "first_k_dense_replace": "first_k_dense_replace",
    "num_experts_per_tok": "num_experts_per_tok",
    "num_experts": "n_routed_experts",
    "expert_hidden_dim": "moe_intermediate_size",
    "routed_scale": "routed_scaling_factor",
    "num_shared_experts": "n_shared_experts",
    "num_expert_groups": "n_group",
    "num_expert_groups_per_tok": "topk_group",
}
_YARN = {
    "factor": "factor",
    "original_max_position_embeddings": "original_max_position_embeddings",
    "beta": "beta_fast",
    "alpha": "beta_slow",
    "apply_scale": "apply_yarn_scaling",
}


def chosen_by(files: Iterable[str]) -> bool:
    """Whether vLLM takes this format of a folder with these files on its own, a config.json beside it or not."""
    names = list(files)
    return PARAMS in names and any(fnmatchcase(name, _CONSOLIDATED) for name in names)


def config_of(params: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """The config that vLLM builds from params.json; `beside` is config.json, which fills in keys that are missing.

    Raises: InputError for sections of the wrong kind, UnsupportedError for a quantization that vLLM does not know.
    """
    config = _renamed(params, beside)
    _slide(config)
    _quantize(config)
    _choose(config)
    _stretch(config)
    media = _section(config, "multimodal")
    if media.get("vision_encoder_args") or config.get("vision_encoder"):
        config = _with_vision(config)
    elif _section(media, "whisper_model_args").get("encoder_args"):
        config = _with_sound(config)
    return {**beside, **config}


def _renamed(params: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    config = {_NAMES.get(key, key): value for key, value in params.items()}
    length = config.get("max_position_embeddings")
    if length is None:
        inner = beside.get("text_config")
        text = inner if isinstance(inner, Mapping) else beside
        length = text.get("max_position_embeddings") or _LENGTH
    config["max_position_embeddings"] = length
    config["model_type"] = params.get("model_type", "transformer")
    config["hidden_act"] = config.pop("activation", "silu")
    config["tie_word_embeddings"] = config.pop("tied_embeddings", False)
    config.setdefault("max_seq_len", length)
    if config.get("dtype") is None:
        config.pop("dtype", None)
    return config


def _section(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{PARAMS}: {key} must be an object, found {type(value).__name__}")
    return value


def _slide(config: dict[str, Any]) -> None:
    """A window for each layer of a pattern becomes layer types and one window."""
    window, layers = config.get("sliding_window"), config.get("num_hidden_layers")
    if not window or not isinstance(layers, int):
        return
    if isinstance(window, list):
        types = ["full_attention" if item is None else "sliding_attention" for item in window]
        config["layer_types"] = types * (layers // len(window))
        config["sliding_window"] = next((item for item in window if item), None)
    elif config.get("layer_types") is None:
        config["layer_types"] = ["sliding_attention"] * layers


def _quantize(config: dict[str, Any]) -> None:
    given = _section(config, "quantization")
    config.pop("quantization", None)
    if not given:
        return
    method = str(given.get("quant_method", "")).lower().replace("_", "-")
    if given.get("qformat_weight") == "fp8_e4m3":
        scheme = "dynamic" if given.get("qscheme_act") == "NO_SCALES" else "static"
        config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": scheme}
    elif method == "compressed-tensors":
        config["quantization_config"] = {**given, "quant_method": method}
    else:
        raise UnsupportedError("quantization", f"{PARAMS}: found unknown quantization={given!r:.80} in config")


def _choose(config: dict[str, Any]) -> None:
    """The class: Mistral Large 3 for latent attention or shared experts, Mixtral, else Mistral."""
    if config.get("qk_nope_head_dim") and not config.get("moe"):
        config["moe"] = {
            "num_experts": 1,
            "first_k_dense_replace": config.get("num_hidden_layers"),
            "route_every_n": 1,
            "num_shared_experts": 1,
            "expert_hidden_dim": config.get("intermediate_size"),
            "num_experts_per_tok": 1,
            "routed_scale": 1.0,
            "num_expert_groups": 1,
            "num_expert_groups_per_tok": 1,
        }
    experts = _section(config, "moe")
    if config["model_type"] == "mamba":
        config["architectures"] = ["Mamba2ForCausalLM"]
    elif experts and experts.get("num_shared_experts"):
        config |= {_EXPERTS[key]: value for key, value in experts.items() if key in _EXPERTS}
        config |= {"topk_method": None, "norm_topk_prob": True, "scoring_func": "softmax"}
        config |= {"model_type": "deepseek_v3", "architectures": ["MistralLarge3ForCausalLM"]}
    else:
        config["architectures"] = ["MixtralForCausalLM" if experts else "MistralForCausalLM"]


def _stretch(config: dict[str, Any]) -> None:
    yarn = _section(config, "yarn")
    if not yarn:
        return
    rope = {"rope_type": "yarn", "mscale_all_dim": 1}
    theta = config.pop("rope_theta", None)
    if theta:
        rope["rope_theta"] = theta
    rope |= {_YARN[key]: value for key, value in yarn.items() if key in _YARN}
    config["rope_parameters"] = rope


def _wrapped(config: dict[str, Any], kind: str, architecture: str) -> dict[str, Any]:
    outer: dict[str, Any] = {"model_type": kind, "architectures": [architecture], "text_config": config}
    if config.get("quantization_config"):
        outer["quantization_config"] = config["quantization_config"]
    return outer


def _with_vision(config: dict[str, Any]) -> dict[str, Any]:
    key = "multimodal" if config.get("multimodal") else "vision_encoder"
    vision = _section(config, key)
    del config[key]
    return {**_wrapped(config, "pixtral", "PixtralForConditionalGeneration"), "vision_config": vision}


def _with_sound(config: dict[str, Any]) -> dict[str, Any]:
    whisper = _section(_section(config, "multimodal"), "whisper_model_args")
    encoder, reduction = _section(whisper, "encoder_args"), _section(whisper, "downsample_args")
    causal, factor = bool(encoder.get("causal")), reduction.get("downsample_factor")
    name = "VoxtralRealtimeGeneration" if causal else "VoxtralForConditionalGeneration"
    sound = _section(encoder, "audio_encoding_args")
    audio = {
        "num_mel_bins": sound.get("num_mel_bins"),
        "downsample_factor": factor,
        "d_model": encoder.get("dim"),
        "encoder_layers": encoder.get("n_layers"),
        "encoder_ffn_dim": encoder.get("hidden_dim"),
        "encoder_attention_heads": encoder.get("n_heads"),
        "encoder_head_dim": encoder.get("head_dim"),
        "vocab_size": encoder.get("vocab_size"),
        "is_causal": causal,
        "sliding_window": encoder.get("sliding_window"),
        "block_pool_size": factor if causal else 1,
        "pos_embed": encoder.get("pos_embed", "sinusoidal"),
    }
    if encoder.get("max_source_positions") is not None:
        audio["max_source_positions"] = encoder["max_source_positions"]
    return {**_wrapped(config, "voxtral", name), "audio_config": audio}
