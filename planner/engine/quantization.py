"""Which quantization method vLLM ends with, and whether the card and the dtype may run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import UnsupportedError
from planner.hardware.spec import GpuSpec
from planner.model.spec import QuantizationSpec
from planner.releases.release import Release
from planner.values import DType, reject

ONLINE_SHORTHANDS = (
    "fp8_per_tensor",
    "fp8_per_block",
    "fp8_per_channel",
    "int8_per_channel_weight_only",
    "nvfp4_per_token",
    "mxfp8",
    "online",
)
_AWQ_SPELLINGS = ("awq", "awq_marlin", "auto_awq", "marlin")
_GPTQ_SPELLINGS = ("gptq", "gptq_marlin", "auto_gptq", "marlin")
_NEEDS_FILE = ("awq", "auto_awq", "awq_marlin", "gptq", "auto_gptq", "gptq_marlin", "moe_wna16", "inc", "modelopt",
               "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed")  # fmt: skip
_NEEDS_CHECKPOINT = ("compressed-tensors", "quark", "torchao")
_UNKNOWN_ONLINE = ("mxfp4", "gpt_oss_mxfp4", "deepseek_v4_fp8", "humming")
_HALF = ("bfloat16", "float16")
_MIN_CAPABILITY = {
    "awq": 75, "auto_awq": 75, "awq_marlin": 75, "gptq": 60, "auto_gptq": 60, "gptq_marlin": 60, "fp8": 75,
    "deepseek_v4_fp8": 75, "fbgemm_fp8": 80, "fp_quant": 100, "modelopt": 89, "modelopt_fp4": 75, "modelopt_mxfp8": 80,
    "modelopt_mixed": 75, "mxfp8": 80, "humming": 75, "compressed-tensors": 70, "bitsandbytes": 70, "experts_int8": 80,
    "quark": 70, "moe_wna16": 70, "torchao": 75, "inc": 60, "mxfp4": 80, "gpt_oss_mxfp4": 80,
}  # fmt: skip
_ONLINE_MIN_CAPABILITY = 75
_SUPPORTED_DTYPES = {
    "fp_quant": ("bfloat16",),
    "modelopt_mxfp8": ("bfloat16",),
    "mxfp4": ("bfloat16",),
    "gpt_oss_mxfp4": ("bfloat16",),
    "mxfp8": ("bfloat16",),
    "bitsandbytes": ("float32", "float16", "bfloat16"),
    "compressed-tensors": ("float32", "float16", "bfloat16"),
    "torchao": ("float32", "float16", "bfloat16"),
    "modelopt_fp4": ("bfloat16", "float16", "float8_e4m3fn"),
    **dict.fromkeys(("awq", "auto_awq", "awq_marlin", "gptq", "auto_gptq", "gptq_marlin", "inc", "quark"),
                    ("float16", "bfloat16")),
}  # fmt: skip


def resolve_quantization(requested: str | None, checkpoint: QuantizationSpec | None, release: Release) -> str | None:
    """The method's name, None for an unquantized model.

    Raises Rejected for a name vLLM does not know, one that contradicts the checkpoint, a deprecated one, and one that
    needs a quantized checkpoint. Source: vLLM 0.26.0 config/model.py:1034 _verify_quantization and the methods'
    override_quantization_method; model_loader/weight_utils.py:240 get_quant_config.
    """
    named = requested.lower() if requested is not None else None
    method = named
    if checkpoint is not None:
        found = _detected(checkpoint, named)
        if found == named or named is None or _overrides(checkpoint, named):
            method = found
        else:
            raise reject(
                "flag",
                f"Quantization method specified in the model config ({found}) does not match the quantization method "
                f"specified in the `quantization` argument ({named}).",
                fix=("leave out --quantization",),
            )
    if method is None:
        return None
    if method not in release.quantization_methods:
        known = list(release.quantization_methods)
        raise reject("quantization_capability", f"Unknown quantization method: {method}. Must be one of {known}.")
    if method in release.deprecated_quantization_methods:
        raise reject(
            "quantization_capability",
            f"The quantization method {method} is deprecated and will be removed in future versions of vLLM. To "
            "bypass, set `--allow-deprecated-quantization`.",
        )
    if checkpoint is None:
        _refuse_unquantized(method)
    return method


def _detected(checkpoint: QuantizationSpec, named: str | None) -> str:
    """What detection makes of the checkpoint given the user's word."""
    raw = str(checkpoint.raw.get("quant_method", checkpoint.method))
    if named == "humming" or (named == "moe_wna16" and _is_wna16(checkpoint.raw, raw)):
        return named
    if raw in ("awq", "gptq") and not (named is None or _overrides(checkpoint, named)):
        return raw
    if raw == "fp8" and named == "deepseek_v4_fp8":
        return named
    return checkpoint.method


def _overrides(checkpoint: QuantizationSpec, named: str) -> bool:
    """Whether the checkpoint's own method replaces the name that the user gave."""
    raw = str(checkpoint.raw.get("quant_method", checkpoint.method))
    if raw == "awq":
        return named in _AWQ_SPELLINGS
    if raw == "gptq":
        return named in _GPTQ_SPELLINGS
    return raw == "auto-round" or raw != checkpoint.method or raw.startswith("modelopt")


def _is_wna16(raw: Mapping[str, Any], method: str) -> bool:
    bits = raw.get("bits")
    return (method == "gptq" and not raw.get("desc_act") and bits in (4, 8)) or (method == "awq" and bits == 4)


def _refuse_unquantized(method: str) -> None:
    if method in _NEEDS_FILE:
        raise reject(
            "quantization_capability",
            f"Cannot find the config file for {method}",
            fix=("use a checkpoint that is quantized so", "leave out --quantization", "--quantization fp8"),
        )
    if method in _NEEDS_CHECKPOINT:
        raise reject(
            "quantization_capability",
            f"--quantization {method} needs a checkpoint quantized with it: config.json has no quantization_config",
            fix=("leave out --quantization", "--quantization fp8"),
        )
    if method in _UNKNOWN_ONLINE:
        raise UnsupportedError(
            "quantization", f"--quantization {method} on an unquantized checkpoint is not supported by this planner"
        )


def refuse_quantization(method: str | None, dtype: DType, gpu: GpuSpec, checkpoint: QuantizationSpec | None) -> None:
    """The card's capability and the dtype against the method. Raises Rejected with vLLM's sentence.

    Source: vLLM 0.26.0 config/vllm.py:670 _get_quantization_config, quantization/*.py get_min_capability and
    get_supported_act_dtypes.
    """
    if method is None:
        return
    capability = gpu.compute_capability[0] * 10 + gpu.compute_capability[1]
    online = checkpoint is None and method in ONLINE_SHORTHANDS
    minimum = _ONLINE_MIN_CAPABILITY if online else _MIN_CAPABILITY.get(method, _ONLINE_MIN_CAPABILITY)
    if capability < minimum:
        raise reject(
            "quantization_capability",
            f"The quantization method {method} is not supported for the current GPU. Minimum capability: {minimum}. "
            f"Current capability: {capability}.",
        )
    supported = _HALF if online else _SUPPORTED_DTYPES.get(method, _HALF)
    if dtype not in supported:
        listed = "[" + ", ".join(f"torch.{name}" for name in supported) + "]"
        raise reject(
            "dtype_capability",
            f"torch.{dtype} is not supported for quantization method {method}. Supported dtypes: {listed}",
            fix=(f"--dtype {supported[0]}",) if gpu.compute_capability >= (8, 0) else (),
        )
    if checkpoint is not None:
        _refuse_scheme(method, checkpoint.raw, capability)


def _refuse_scheme(method: str, raw: Mapping[str, Any], capability: int) -> None:
    """What fails only when a layer picks its kernel: the methods' declared minimum is lower than their kernels'.

    Source: vLLM 0.26.0 compressed_tensors/compressed_tensors.py:376 and schemes/*.py, utils/marlin_utils.py.
    """
    if method == "auto_gptq" and capability < 75:
        kind = {4: "uint4b8", 8: "uint8b128"}.get(raw.get("bits", 4), "None")
        raise reject(
            "quantization_capability",
            f"Marlin does not support weight_bits = {kind}. Only types = [] are supported (for group_size = "
            f"{raw.get('group_size')}, device_capability = {capability}, zp = False).",
        )
    if method == "compressed-tensors":
        minimum = 80 if "mxfp4" in str(raw.get("format", "")) else 75
        if capability < minimum:
            raise reject(
                "quantization_capability",
                f"Quantization scheme is not supported for the current GPU. Min capability: {minimum}. Current "
                f"capability: {capability}.",
            )
