"""FP8 checkpoints, and --quantization fp8 on 16-bit weights. Source: vLLM 0.26.0 layers/quantization/fp8.py."""

from __future__ import annotations

from msgspec import Struct

from planner.errors import UnsupportedError
from planner.model.modules import Attention, FusedMoE
from planner.model.spec import ModelSpec, QuantizationSpec
from planner.sharding.quantization import fp8_kernels as kernels
from planner.sharding.quantization import fp8_moe
from planner.sharding.quantization.base import UNQUANTIZED, LinearShard, MoEShard, Scheme, Storage, Stored
from planner.sharding.quantization.context import BaseSelector, Context, LinearModule, Section, scalar_kv_scales
from planner.sharding.quantization.match import is_layer_skipped, map_names
from planner.sharding.quantization.online import OnlineFp8
from planner.values import reject


class Fp8Checkpoint(Struct, frozen=True):
    """FP8 weights with a scale for each fused shard, or for each block where `block` is set.

    `static`: the checkpoint has input scales.
    """

    context: Context
    static: bool
    block: tuple[int, int] | None
    name: str = "fp8"

    def linear(self, shard: LinearShard) -> Storage:
        weight = Stored("weight", (shard.output_size, shard.input_size), "float8_e4m3fn")
        if self.block is not None:
            kernels.validate_block_shape(shard, self.block, fused_may_differ=True)
            scale = kernels.block_scale("weight_scale_inv", shard, self.block)
            return Storage((weight, scale), *kernels.block_after_load(shard, self.context, self.block, scale))
        parts = len(shard.output_sizes)
        created = [weight, Stored("weight_scale", (parts,), "float32")]
        if self.static:
            created.append(Stored("input_scale", (parts,), "float32"))
        return Storage(tuple(created), *kernels.tensor_after_load(shard, self.context, static=self.static))

    def moe(self, shard: MoEShard) -> Storage:
        if self.block is not None:
            kernels.validate_moe_block_shape(shard, self.block, self.context)
            strategy: fp8_moe.Strategy = "block"
            suffix, block = "weight_scale_inv", self.block
        else:
            strategy, suffix, block = "tensor", "weight_scale", (128, 128)
        created = fp8_moe.created_experts(shard, strategy, static=self.static, shards=2, block=block, suffix=suffix)
        loaded = fp8_moe.loaded_experts(
            shard, created, strategy, self.context, static=self.static, suffix=suffix, block=block
        )
        return Storage(created, loaded)


class Fp8Selector(BaseSelector):
    """Fp8Config: exact names in ignored_layers (else modules_to_not_convert) stay 16 bit; attention gets KV scales."""

    def __init__(self, context: Context, ignored: tuple[str, ...], scheme: Scheme) -> None:
        super().__init__(context)
        self.ignored = frozenset(map_names(ignored, context.names))
        self.scheme_ = scheme

    def linear(self, module: LinearModule) -> Scheme:
        return UNQUANTIZED if is_layer_skipped(module.name, self.ignored, self.fused) else self.scheme_

    def moe(self, module: FusedMoE) -> Scheme:
        return UNQUANTIZED if is_layer_skipped(module.name, self.ignored, self.fused) else self.scheme_

    def kv_scales(self, module: Attention, num_kv_heads: int) -> Storage:
        return Storage(()) if module.kind == "mla_attention" else scalar_kv_scales(self.context.dtype)


def select(model: ModelSpec, checkpoint: QuantizationSpec | None, context: Context) -> Fp8Selector:
    """The checkpoint's FP8 section, or per-tensor quantization while loading when there is none."""
    if checkpoint is None:
        return Fp8Selector(context, (), OnlineFp8(context, "tensor"))
    section = Section(checkpoint.raw)
    if section.value("store_dtype") not in (None, "fp8"):
        raise UnsupportedError(
            "quantization", f"fp8 checkpoints with store_dtype {section.value('store_dtype')!r} are not supported"
        )
    scheme = section.value("activation_scheme")
    if scheme not in ("static", "dynamic"):
        raise reject("quantization_capability", f"Unsupported activation scheme {scheme}")
    block = section.whole_pair("weight_block_size")
    if block is not None and scheme != "dynamic":
        raise reject(
            "quantization_capability",
            "The block-wise quantization only supports dynamic activation scheme for now, but got "
            f"{scheme} activation scheme.",
        )
    ignored = section.strings("ignored_layers") or section.strings("modules_to_not_convert")
    return Fp8Selector(context, ignored, Fp8Checkpoint(context, scheme == "static", block))
