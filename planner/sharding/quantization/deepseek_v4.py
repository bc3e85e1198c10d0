"""DeepSeek-V4 checkpoints: FP8 blocks for linear layers, and FP4 or FP8 experts.

Source: vLLM 0.26.0 models/deepseek_v4/quant_config.py. `expert_dtype` is a key of config.json itself, "fp4" unless it
says otherwise; with FP4 experts the linear scales are E8M0 exponents.
"""

from __future__ import annotations

from msgspec import Struct

from planner.errors import UnsupportedError
from planner.model.modules import FusedMoE
from planner.model.spec import ModelSpec, QuantizationSpec
from planner.sharding.quantization import fp8_kernels as kernels
from planner.sharding.quantization.base import UNQUANTIZED, LinearShard, MoEShard, Scheme, Storage, Stored
from planner.sharding.quantization.context import Context, Section
from planner.sharding.quantization.fp8 import Fp8Checkpoint, Fp8Selector
from planner.sharding.quantization.match import is_layer_skipped
from planner.sharding.quantization.mxfp4 import Mxfp4Experts, deepseek_backend
from planner.sharding.quantization.nvfp4 import MODELOPT, Nvfp4
from planner.values import reject


class ExponentBlocks(Struct, frozen=True):
    """FP8 blocks with one E8M0 exponent each. DeepGEMM reads exponents as float32, and packs them on Blackwell."""

    context: Context
    block: tuple[int, int]
    name: str = "deepseek_v4_fp8"

    def linear(self, shard: LinearShard) -> Storage:
        kernels.validate_block_shape(shard, self.block, fused_may_differ=True)
        scale = kernels.block_scale("weight_scale_inv", shard, self.block, "float8_e8m0fnu")
        weight = Stored("weight", (shard.output_size, shard.input_size), "float8_e4m3fn")
        read = kernels.block_scale("weight_scale_inv", shard, self.block)
        loaded = read if kernels.uses_deep_gemm(shard, self.context) else scale
        return Storage((weight, scale), *kernels.block_after_load(shard, self.context, self.block, loaded))

    def moe(self, shard: MoEShard) -> Storage:
        raise AssertionError("experts have schemes of their own")


class DeepseekV4Selector(Fp8Selector):
    def __init__(self, context: Context, ignored: tuple[str, ...], linear: Scheme, experts: Scheme) -> None:
        super().__init__(context, ignored, linear)
        self.experts = experts

    def moe(self, module: FusedMoE) -> Scheme:
        return UNQUANTIZED if is_layer_skipped(module.name, self.ignored, self.fused) else self.experts


def select(model: ModelSpec, checkpoint: QuantizationSpec | None, context: Context) -> DeepseekV4Selector:
    if checkpoint is None:
        raise UnsupportedError("quantization", "deepseek_v4_fp8 needs a quantized checkpoint")
    section = Section(checkpoint.raw)
    expert_dtype = section.value("expert_dtype", default="fp4")
    if expert_dtype not in ("fp4", "fp8"):
        raise reject(
            "quantization_capability",
            f"Unsupported DeepSeek V4 expert_dtype={expert_dtype!r}; expected one of ('fp4', 'fp8').",
        )
    block = section.whole_pair("weight_block_size")
    if block is None:
        raise UnsupportedError(
            "quantization", "deepseek_v4_fp8 checkpoints without weight_block_size are not supported"
        )
    ignored = section.strings("ignored_layers") or section.strings("modules_to_not_convert")
    fp8 = Fp8Checkpoint(context, static=False, block=block)
    if expert_dtype == "fp8":
        return DeepseekV4Selector(context, ignored, fp8, fp8)
    experts: Scheme = Mxfp4Experts(deepseek_backend(context), context)
    if str(section.value("moe_quant_algo") or "").upper() == "NVFP4":
        experts = Nvfp4(context, MODELOPT, use_a16=False)
    return DeepseekV4Selector(context, ignored, ExponentBlocks(context, block), experts)
