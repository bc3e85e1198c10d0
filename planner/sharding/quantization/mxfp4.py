"""MXFP4: two 4-bit floats in a byte, one E8M0 exponent for each 32 inputs.

Source: vLLM 0.26.0 layers/quantization/mxfp4.py, layers/fused_moe/oracle/mxfp4.py (backends and their rounding of
sizes), quantization/utils/mxfp4_utils.py:36, third_party/triton_kernels/tensor_details/layout_details.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from planner.model.modules import FusedMoE
from planner.model.spec import ModelSpec, QuantizationSpec
from planner.sharding.quantization import marlin
from planner.sharding.quantization.base import LinearShard, MoEShard, Scheme, Storage, Stored
from planner.sharding.quantization.context import BaseSelector, Context
from planner.sharding.quantization.marlin import padded_nk, round_up
from planner.values import DType

GROUP = 32
Backend = Literal["triton", "trtllm", "deep_gemm", "marlin"]


class Mxfp4Linear(Struct, frozen=True):
    """compressed-tensors MXFP4 linear layers: FlashInfer from 10.0, Marlin below."""

    context: Context
    name: str = "mxfp4"

    def linear(self, shard: LinearShard) -> Storage:
        n, k = shard.output_size, shard.input_size
        created = (
            Stored("weight_packed", (n, k // 2), "uint8"),
            Stored("weight_scale", (n, k // GROUP), "uint8"),
        )
        if self.context.capability >= 100:
            scale = Stored("weight_scale", (round_up(n, 128), round_up(k // GROUP, 4)), "uint8")
            return Storage(created, (Stored("weight", (n, k // 2), "uint8"), scale))
        padded_n, padded_k = padded_nk(n, k, GROUP)
        loaded = (
            marlin.repacked("weight", padded_n, padded_k, 4),
            Stored("weight_scale", (padded_k // GROUP, padded_n), "float8_e8m0fnu"),
            marlin.workspace(self.context),
        )
        return Storage(created, loaded, padded_n if padded_n != n else None)

    def moe(self, shard: MoEShard) -> Storage:
        raise AssertionError("experts have schemes of their own")


class Mxfp4Experts(Struct, frozen=True):
    """Experts whose sizes are rounded up, as created, to what the backend's tiles need. Biases are bfloat16."""

    backend: Backend
    context: Context
    name: str = "mxfp4"

    def linear(self, shard: LinearShard) -> Storage:
        raise AssertionError("linear layers keep 16 bit")

    def moe(self, shard: MoEShard) -> Storage:
        experts = shard.num_local_experts
        hidden, inner = self._rounded(shard.hidden_size, shard.intermediate_size)
        created = [
            Stored("w13_weight", (experts, 2 * inner, hidden // 2), "uint8"),
            Stored("w13_weight_scale", (experts, 2 * inner, hidden // GROUP), "uint8"),
            Stored("w2_weight", (experts, hidden, inner // 2), "uint8"),
            Stored("w2_weight_scale", (experts, hidden, inner // GROUP), "uint8"),
        ]
        if shard.bias:
            created += self._biases(experts, hidden, inner, "bfloat16")
        return Storage(tuple(created), self._loaded(shard, tuple(created), hidden, inner))

    def _rounded(self, hidden: int, inner: int) -> tuple[int, int]:
        """mxfp4_round_up_hidden_size_and_intermediate_size."""
        if self.backend == "triton":
            return hidden, round_up(inner, 64)
        if self.backend == "trtllm":
            return round_up(hidden, 256), round_up(inner, 256)
        if self.backend == "deep_gemm":
            return round_up(hidden, 128), round_up(inner, 128)
        return round_up(hidden, 256), round_up(inner, 128)

    def _biases(self, experts: int, hidden: int, inner: int, dtype: DType) -> list[Stored]:
        return [Stored("w13_bias", (experts, 2 * inner), dtype), Stored("w2_bias", (experts, hidden), dtype)]

    def _loaded(self, shard: MoEShard, created: tuple[Stored, ...], hidden: int, inner: int) -> tuple[Stored, ...]:
        experts = shard.num_local_experts
        if self.backend == "marlin":
            loaded = [
                marlin.repacked_experts("w13_weight", experts, 2 * inner, hidden, 4),
                marlin.repacked_experts("w2_weight", experts, hidden, inner, 4),
                Stored("w13_weight_scale", (experts, hidden // GROUP, 2 * inner), "float8_e8m0fnu"),
                Stored("w2_weight_scale", (experts, inner // GROUP, hidden), "float8_e8m0fnu"),
            ]
            return tuple(loaded + (self._biases(experts, hidden, inner, shard.dtype) if shard.bias else []))
        if self.backend == "triton":
            loaded = self._swizzled("w13", experts, 2 * inner, hidden) + self._swizzled("w2", experts, hidden, inner)
        else:
            loaded = [stored for stored in created if not stored.name.endswith("bias")]
        if self.backend == "trtllm":
            loaded += [
                Stored(name, (experts,), "float32", "workspace")
                for name in ("gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit")
            ]
        return tuple(loaded + (self._biases(experts, hidden, inner, "float32") if shard.bias else []))

    def _swizzled(self, name: str, experts: int, n: int, k: int) -> list[Stored]:
        """Triton's layouts, held outside the module: values and scales padded for 9.0, or for Blackwell."""
        if self.context.capability >= 100:
            values = (experts, round_up(k // 2, 128), n)
            scales = (experts, round_up(n, 128), round_up(k // GROUP, 8))
        else:
            values = (experts, round_up(k // 2, 32), round_up(n, 16))
            scales = (experts, round_up(n, 256), round_up(k // GROUP, 4))
        return [
            Stored(f"{name}_weight", values, "uint8", "workspace"),
            Stored(f"{name}_weight_scale", scales, "uint8", "workspace"),
        ]


def gpt_oss_backend(context: Context) -> Backend:
    """select_mxfp4_moe_backend: TRT-LLM on 10.x, Triton's kernels on 9.0, Marlin elsewhere and with LoRA."""
    if context.enable_lora:
        return "marlin"
    if context.family == 100:
        return "trtllm"
    return "triton" if context.capability == 90 else "marlin"


def deepseek_backend(context: Context) -> Backend:
    """select_deepseek_v4_mxfp4_moe_backend: TRT-LLM with MXFP8 activations on 10.x, DeepGEMM on 12.x, else Marlin."""
    if context.family == 100:
        return "trtllm"
    return "deep_gemm" if context.family == 120 else "marlin"


class GptOssSelector(BaseSelector):
    """Only experts are quantized; linear layers, embeddings and the head keep 16 bit."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.scheme_ = Mxfp4Experts(gpt_oss_backend(context), context)

    def moe(self, module: FusedMoE) -> Scheme:
        return self.scheme_


def select(model: ModelSpec, checkpoint: QuantizationSpec | None, context: Context) -> GptOssSelector:
    return GptOssSelector(context)
