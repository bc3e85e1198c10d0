"""AutoAWQ checkpoints. Source: vLLM 0.26.0 layers/quantization/auto_awq.py."""

from __future__ import annotations

from msgspec import Struct

from planner.errors import UnsupportedError
from planner.model.modules import FusedMoE, LMHead
from planner.model.spec import ModelSpec, QuantizationSpec
from planner.sharding.quantization import marlin, wna16
from planner.sharding.quantization.base import UNQUANTIZED, LinearShard, MoEShard, Scheme, Storage, Stored
from planner.sharding.quantization.context import BaseSelector, Context, LinearModule, Section
from planner.sharding.quantization.match import is_layer_skipped, map_names
from planner.sharding.quantization.moe_wna16 import MoeWna16
from planner.sharding.quantization.wna16_moe import marlin_experts
from planner.values import reject

_PACK = 8
_NAMES = wna16.TensorNames(weight="qweight", scale="scales", zero_point="qzeros", g_idx="g_idx")
_MISALIGNED = (
    "The {} size is not aligned with the quantized weight shape. This can be caused by too large tensor parallel size."
)


class Awq(Struct, frozen=True):
    """4-bit weights packed along the output, one zero point and scale for each group of inputs.

    `strict_experts`: experts whose sizes Marlin would have to pad go to the Triton kernel (AutoRound).
    """

    context: Context
    group_size: int
    zero_point: bool
    strict_experts: bool = False
    name: str = "auto_awq"

    @property
    def is_for_marlin(self) -> bool:
        return self.zero_point and self.group_size in marlin.GROUP_SIZES

    def linear(self, shard: LinearShard) -> Storage:
        k, n = shard.input_size, shard.output_size
        group = shard.full_input_size if self.group_size == -1 else self.group_size
        marlin_type = self.is_for_marlin
        fits = self.group_size >= shard.full_input_size or k % self.group_size == 0  # any k is a multiple of -1
        if not (marlin_type and fits):
            if k % group:
                raise reject("quantization_alignment", _MISALIGNED.format("input"))
            if n % _PACK:
                raise reject("quantization_alignment", _MISALIGNED.format("output"))
        created = (
            Stored("qweight", (k, n // _PACK), "int32"),
            Stored("qzeros", (k // group, n // _PACK), "int32"),
            Stored("scales", (k // group, n), shard.dtype),
        )
        if not (marlin_type and fits):
            return Storage(created)
        problem = wna16.Problem(
            k=k, full_k=shard.full_input_size, n=n, weight_type="uint4", bits=4, dtype=shard.dtype,
            group_size=self.group_size, zero_points=self.zero_point, has_g_idx=False,
        )  # fmt: skip
        kernel = wna16.choose_kernel(problem, self.context)
        return Storage(created, *wna16.after_load(problem, kernel, _NAMES, created, self.context))

    def moe(self, shard: MoEShard) -> Storage:
        if not marlin.supports_moe(shard, self.group_size, padding=not self.strict_experts):
            return MoeWna16(bits=4, group_size=self.group_size, zero_points=self.zero_point, gptq=False).moe(shard)
        experts, hidden, inner = shard.num_local_experts, shard.hidden_size, shard.intermediate_size
        if self.group_size == -1:  # auto_awq.py:611 divides by the group as it is
            raise reject(
                "quantization_alignment",
                f"Trying to create tensor with negative dimension {-hidden}: [{experts}, {-hidden}, {2 * inner}]",
            )
        groups13, groups2 = hidden // self.group_size, inner // self.group_size
        work = marlin.workspace(self.context, 4)
        created = (
            Stored("w13_qweight", (experts, hidden, 2 * inner // _PACK), "int32"),
            Stored("w2_qweight", (experts, inner, hidden // _PACK), "int32"),
            Stored("w13_scales", (experts, groups13, 2 * inner), shard.dtype),
            Stored("w2_scales", (experts, groups2, hidden), shard.dtype),
            Stored("w13_qzeros", (experts, groups13, 2 * inner // _PACK), "int32"),
            Stored("w2_qzeros", (experts, groups2, hidden // _PACK), "int32"),
            work,
        )
        return Storage(created, (*marlin_experts(shard, bits=4, group_size=self.group_size, zero_points=True), work))


class AwqSelector(BaseSelector):
    """Skips modules_to_not_convert by substring.

    Without that list vLLM takes the modules whose tensors are all 16 or 32 bit in the safetensors headers (auto_awq.py
    maybe_update_config). Where the headers are not known, the checkpoint is taken to be what AWQ tools write: the
    language model packed, towers in 16 bit. (For a folder without safetensors files vLLM itself would pack both.)
    """

    def __init__(self, context: Context, model: ModelSpec, section: Section) -> None:
        super().__init__(context)
        bits = section.whole("w_bit", "bits")
        if bits != 4:
            raise reject(
                "quantization_capability",
                f"Unsupported num_bits = {bits}. Supported: 4. For 8-bit AWQ, use Marlin backend by setting "
                "backend='awq:marlin' or backend='marlin'.",
            )
        self.quantizes_lm_head = section.flag("lm_head", default=False)
        listed = section.strings("modules_to_not_convert")
        self.towers_are_packed = bool(listed) or model.unquantized_modules is not None
        self.skipped = map_names(listed or model.unquantized_modules or (), context.names)
        self.scheme_ = Awq(context, section.whole("q_group_size", "group_size"), section.flag("zero_point"))

    def linear(self, module: LinearModule) -> Scheme:
        if not self.towers_are_packed and module.component != "language_model":
            return UNQUANTIZED
        skipped = is_layer_skipped(module.name, self.skipped, self.fused, substrings=True)
        return UNQUANTIZED if skipped else self.scheme_

    def lm_head(self, module: LMHead) -> Scheme:
        if not self.quantizes_lm_head:
            return UNQUANTIZED
        if is_layer_skipped(module.name, self.skipped, self.fused, substrings=True):
            return UNQUANTIZED
        if self.scheme_.is_for_marlin:  # utils/marlin_utils.py:308 asks the head for what only linear layers have
            raise reject("quantization_capability", "'ParallelLMHead' object has no attribute 'output_size'")
        return self.scheme_

    def moe(self, module: FusedMoE) -> Scheme:
        skipped = is_layer_skipped(module.name, self.skipped, {}, substrings=True)
        return UNQUANTIZED if skipped else self.scheme_


def select(model: ModelSpec, checkpoint: QuantizationSpec | None, context: Context) -> AwqSelector:
    if checkpoint is None:
        raise UnsupportedError("quantization", "auto_awq needs a quantized checkpoint")
    return AwqSelector(context, model, Section(checkpoint.raw))
