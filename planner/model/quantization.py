"""How a checkpoint says that it is quantized, in any of the dialects, as one QuantizationSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import InputError
from planner.model.spec import QuantizationSpec
from planner.values import reject

_MODELOPT_METHODS = {
    "FP8": "modelopt",
    "FP8_PER_CHANNEL_PER_TOKEN": "modelopt",
    "FP8_PB_WO": "modelopt",
    "NVFP4": "modelopt_fp4",
}


def read_quantization(config: Mapping[str, Any], hf_quant: Mapping[str, Any]) -> QuantizationSpec | None:
    """The quantization of a model folder, None where vLLM would see none.

    Looks where vLLM looks, in its order: quantization_config, else the separate hf_quant_config.json, else
    compression_config, else the same keys of text_config. `method` is the name vLLM ends with when the user names
    none; `raw` is the dictionary with "quant_method" as vLLM normalizes it, and DeepSeek-V4's expert_dtype, which
    stands outside the section (models/deepseek_v4/quant_config.py). Raises Rejected for a ModelOpt algorithm that vLLM
    refuses, InputError where the section is no object. Source: vLLM 0.26.0 transformers_utils/config.py:758,
    transformers_utils/model_arch_config_convertor.py _normalize_quantization_config, config/model.py:1034.
    """
    found = _object(config.get("quantization_config"), "quantization_config")
    if found is None and hf_quant:
        found = dict(hf_quant)
    raw = _normalized(found, _object(config.get("compression_config"), "compression_config"))
    if raw is None and isinstance(text := config.get("text_config"), Mapping):
        raw = _normalized(
            _object(text.get("quantization_config"), "text_config: quantization_config"),
            _object(text.get("compression_config"), "text_config: compression_config"),
        )
    if raw is None or not raw["quant_method"]:
        return None
    method = resolved_name(raw, str(config.get("model_type", "")))
    if method == "deepseek_v4_fp8" and "expert_dtype" in config:
        raw["expert_dtype"] = config["expert_dtype"]
    return QuantizationSpec(method=method, raw=raw)


def resolved_name(raw: Mapping[str, Any], model_type: str) -> str:
    """The method that vLLM's own detection makes of a normalized section when the user names none.

    Source: vLLM 0.26.0 override_quantization_method of auto_awq.py, auto_gptq.py, inc.py, modelopt.py, mxfp4.py,
    models/deepseek_v4/quant_config.py.
    """
    method = str(raw["quant_method"])
    simple = {"awq": "auto_awq", "gptq": "auto_gptq", "auto-round": "inc"}
    if method in simple:
        return simple[method]
    if method.startswith("modelopt"):
        return _modelopt_name(raw) or method
    if method == "mxfp4" and model_type == "gpt_oss":
        return "gpt_oss_mxfp4"
    if method == "fp8" and model_type == "deepseek_v4":
        return "deepseek_v4_fp8"
    return method


def _modelopt_name(raw: Mapping[str, Any]) -> str | None:
    inner = raw.get("quantization", raw)
    if not isinstance(inner, Mapping):
        return None
    algorithm = str(inner.get("quant_algo", "")).upper()
    if algorithm == "FP8":
        return "modelopt"
    if "FP4" in algorithm:
        return "modelopt_fp4"
    if "MXFP8" in algorithm:
        return "modelopt_mxfp8"
    return "modelopt_mixed" if algorithm == "MIXED_PRECISION" else None


def _normalized(quantization: dict[str, Any] | None, compression: dict[str, Any] | None) -> dict[str, Any] | None:
    raw = compression if quantization is None else quantization
    if raw is None:
        return None
    if quantization is not None:
        _name_legacy_modelopt(raw)
    raw["quant_method"] = str(raw.get("quant_method") or "").lower().replace("compressed_tensors", "compressed-tensors")
    return raw


def _name_legacy_modelopt(raw: dict[str, Any]) -> None:
    """A ModelOpt section with its producer's name gets its quant_method from the algorithm."""
    inner = raw.get("quantization")
    inner = inner if isinstance(inner, Mapping) else {}
    producer = raw.get("producer")
    named = isinstance(producer, Mapping) and producer.get("name") == "modelopt"
    if not named and "modelopt_quant_config" not in inner:
        return
    algorithm = inner.get("quant_algo")
    if algorithm is None:
        return
    method = _MODELOPT_METHODS.get(str(algorithm).upper())
    if method is None:
        raise reject("quantization_capability", f"Unknown ModelOpt quant algo: {algorithm}")
    raw["quant_method"] = method


def _object(value: Any, where: str) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InputError(f"config.json: {where} must be an object, found {type(value).__name__}")
    return dict(value)
