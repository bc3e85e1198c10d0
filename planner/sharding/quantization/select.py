"""Which scheme stores which layer: the resolved method, the checkpoint's section, and the card."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.model.modules import Attention
from planner.model.spec import ModelSpec, QuantizationSpec
from planner.sharding.quantization.base import Scheme, Storage
from planner.sharding.quantization.context import BaseSelector, Context, QuantizableModule, context_of

_HOME = "planner.sharding.quantization"
ONLINE_METHODS = (
    "fp8_per_tensor",
    "fp8_per_block",
    "fp8_per_channel",
    "int8_per_channel_weight_only",
    "experts_int8",
    "nvfp4_per_token",
)
_KERNEL_SWITCHES = ("VLLM_MARLIN_INPUT_DTYPE", "VLLM_DISABLED_KERNELS", "VLLM_BATCH_INVARIANT")
CHECKPOINT_METHODS = {
    "auto_awq": "awq", "awq": "awq", "awq_marlin": "awq",
    "auto_gptq": "gptq", "gptq": "gptq", "gptq_marlin": "gptq",
    "fp8": "fp8",
    "compressed-tensors": "compressed_tensors",
    "modelopt": "modelopt", "modelopt_fp4": "modelopt", "modelopt_mxfp8": "modelopt", "modelopt_mixed": "modelopt",
    "mxfp8": "modelopt",
    "bitsandbytes": "bitsandbytes",
    "inc": "inc",
    "moe_wna16": "moe_wna16",
    "deepseek_v4_fp8": "deepseek_v4",
    "gpt_oss_mxfp4": "mxfp4", "mxfp4": "mxfp4",
}  # fmt: skip
"""vLLM's method name -> the file here whose `select(model, checkpoint, context)` makes its selector."""


class Selector(Protocol):
    """Chooses the scheme of each layer of one model under one configuration."""

    def scheme(self, module: QuantizableModule) -> Scheme: ...

    def kv_scales(self, module: Attention, num_kv_heads: int) -> Storage: ...


def selector_for(model: ModelSpec, config: EngineConfig) -> Selector:
    """The selector of the resolved quantization method. Raises UnsupportedError for a method not known here."""
    context = context_of(model, config)
    method = config.quantization
    if method is None:
        return BaseSelector(context)
    for switch in _KERNEL_SWITCHES:
        if context.env.get(switch, "0") not in ("0", ""):
            raise UnsupportedError("quantization", f"{switch} changes quantized layers in ways not known here")
    if method in ONLINE_METHODS or (method == "mxfp8" and model.quantization is None):
        from planner.sharding.quantization.online import select as select_online

        return select_online(model, method, context)
    file = CHECKPOINT_METHODS.get(method)
    if file is None:
        raise UnsupportedError("quantization", f"quantization method {method} is not supported by this planner")
    select: Callable[[ModelSpec, QuantizationSpec | None, Context], Selector]
    select = import_module(f"{_HOME}.{file}").select
    return select(model, model.quantization, context)
