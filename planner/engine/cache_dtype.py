"""The KV cache's dtype: the flag, what a quantized checkpoint asks for, and the dtype of the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.model.spec import ModelSpec, QuantizationSpec
from planner.releases.release import Release
from planner.values import DType, reject

_MODELOPT_CACHE = {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}
_TENSOR_DTYPES: dict[str, DType] = {
    "float16": "float16", "bfloat16": "bfloat16", "int8_per_token_head": "int8", "fp8_inc": "float8_e4m3fn",
}  # fmt: skip
_STORES_SCALES = ("fp8", "deepseek_v4_fp8", "modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed", "mxfp8")


def resolve_cache_dtype(requested: str, model: ModelSpec, release: Release) -> tuple[str, bool]:
    """The flag after checkpoint defaults, and whether the checkpoint scales the cache head by head.

    Raises Rejected for a value that vLLM's parser refuses, fp8_e5m2 with a checkpoint that brings fp8 scales, and
    nvfp4 with MLA. Source: vLLM 0.26.0 utils/torch_utils.py:310,374, config/cache.py:19, config/vllm.py
    validate_nvfp4_kv_cache_with_mla, model_executor/layers/attention/attention.py:150,238.
    """
    if requested not in release.kv_cache_dtypes:
        choices = ", ".join(map(repr, release.kv_cache_dtypes))
        raise reject(
            "kv_cache_dtype",
            f"argument --kv-cache-dtype: invalid choice: '{requested}' (choose from {choices})",
            fix=("--kv-cache-dtype fp8",),
        )
    scheme = _compressed_scheme(model.quantization)
    dtype = requested
    if dtype == "auto":
        dtype = _modelopt_cache(model.quantization) or ("fp8" if scheme is not None and not model.use_mla else "auto")
    if dtype == "bfloat16" and model.architecture == "DeepseekV32ForCausalLM":
        dtype = "auto"
    if dtype == "nvfp4" and model.use_mla:
        raise reject(
            "kv_cache_dtype",
            "nvfp4 KV cache is not supported with MLA (Multi-head Latent Attention) backends. Please use a different "
            "--kv-cache-dtype (e.g., 'fp8' or 'auto') for MLA models such as DeepSeek.",
            fix=("--kv-cache-dtype fp8", "--kv-cache-dtype auto"),
        )
    if scheme is None and model.architecture in release.own_cache_dtype_architectures:
        dtype = "auto"
    return dtype, scheme is not None and scheme.get("strategy") == "attn_head"


def cache_dtype_warnings(requested: str, model: ModelSpec, release: Release) -> tuple[str, ...]:
    """What a class that builds its layers without the cache's configuration makes of the flag."""
    if requested == "auto" or model.architecture not in release.own_cache_dtype_architectures:
        return ()
    return (
        f"--kv-cache-dtype {requested} has no effect: {model.architecture} of vLLM {release.version} does not hand it "
        "to its attention layers, whose cache keeps the model's dtype",
    )


def refuse_e5m2(cache_dtype: str, method: str | None, model: ModelSpec) -> None:
    """Checkpoints that bring fp8 scales take no fp8_e5m2 cache (attention.py _init_kv_cache_quant)."""
    brings_scales = method in _STORES_SCALES or _compressed_scheme(model.quantization) is not None
    if cache_dtype == "fp8_e5m2" and brings_scales:
        raise reject(
            "kv_cache_dtype",
            "fp8_e5m2 kv-cache is not supported with fp8 checkpoints.",
            fix=("--kv-cache-dtype fp8_e4m3", "--kv-cache-dtype auto"),
        )


def cache_tensor_dtype(cache_dtype: str, dtype: DType) -> DType:
    """The dtype of the cache tensors (vLLM 0.26.0 utils/torch_utils.py:33); packed formats are bytes."""
    return dtype if cache_dtype == "auto" else _TENSOR_DTYPES.get(cache_dtype, "uint8")


def skipped_layers(cache_dtype: str, model: ModelSpec) -> tuple[int, ...]:
    """Decoder layers that keep the model's dtype: TurboQuant spares the first and last two of a dense model.

    Source: vLLM 0.26.0 model_executor/layers/quantization/turboquant/config.py:177.
    """
    if not cache_dtype.startswith("turboquant_") or model.is_hybrid:
        return ()
    layers = model.text.num_hidden_layers
    count = min(2, layers // 2)
    return tuple(sorted({*range(count), *range(layers - count, layers)}))


def _compressed_scheme(quantization: QuantizationSpec | None) -> Mapping[str, Any] | None:
    if quantization is None or quantization.method != "compressed-tensors":
        return None
    scheme = quantization.raw.get("kv_cache_scheme")
    return scheme if isinstance(scheme, Mapping) else None


def _modelopt_cache(quantization: QuantizationSpec | None) -> str | None:
    """What a ModelOpt section says of the cache; unknown algorithms fall back to "auto"."""
    if quantization is None or not str(quantization.raw.get("quant_method", "")).startswith("modelopt"):
        return None
    raw = quantization.raw
    inner = raw.get("quantization", raw)
    inner = inner if isinstance(inner, Mapping) else {}
    named: Any = next(
        (
            value
            for key in ("kv_cache_scheme", "kv_cache_quant_algo")
            for section in (inner, raw)
            if (value := section.get(key))
        ),
        None,
    )
    if isinstance(named, Mapping):
        named = _scheme_name(named)
    return None if named is None else _MODELOPT_CACHE.get(str(named).lower(), "auto")


def _scheme_name(scheme: Mapping[str, Any]) -> str:
    if scheme.get("type") != "float":
        return "unknown"
    if scheme.get("num_bits") == 8 and scheme.get("dynamic") is False:
        return "fp8"
    return "nvfp4" if scheme.get("num_bits") == 4 else "unknown"
