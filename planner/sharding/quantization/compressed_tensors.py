"""compressed-tensors checkpoints: which scheme a layer gets.

Source: vLLM 0.26.0 layers/quantization/compressed_tensors/compressed_tensors.py (get_quant_method,
_get_scheme_from_parts) and compressed_tensors_moe/compressed_tensors_moe.py (get_moe_method).
"""

from __future__ import annotations

from planner.errors import UnsupportedError
from planner.model.modules import Attention, FusedMoE, LMHead, QKVLinear, VocabEmbedding
from planner.model.spec import ModelSpec, QuantizationSpec
from planner.sharding.quantization import compressed_linear as linear
from planner.sharding.quantization import compressed_moe as moe
from planner.sharding.quantization.base import UNQUANTIZED, Scheme, Storage, Stored
from planner.sharding.quantization.compressed_args import ACTIVATION_FORMATS, QuantArgs, Target, read_targets
from planner.sharding.quantization.context import BaseSelector, Context, LinearModule, Section
from planner.sharding.quantization.match import find_target, map_name, should_ignore_layer
from planner.sharding.quantization.mxfp4 import Mxfp4Linear
from planner.sharding.quantization.mxfp8 import Mxfp8
from planner.sharding.quantization.nvfp4 import Nvfp4, Nvfp4Names
from planner.values import reject

_CLASS_NAMES = {
    "replicated": "ReplicatedLinear", "column": "ColumnParallelLinear", "row": "RowParallelLinear",
    "qkv": "QKVParallelLinear",
}  # fmt: skip
_EXPERT_SHARDS = (".0.gate_proj", ".0.up_proj", ".0.down_proj")
_CT_FP4 = Nvfp4Names(
    weight="weight_packed", scale="weight_scale", global_scale="weight_global_scale",
    input_scale="input_global_scale",
)  # fmt: skip


class CompressedTensorsSelector(BaseSelector):
    """Targets and ignore lists by name, class name, "re:" pattern; attention layers get scales and zero points."""

    def __init__(self, context: Context, section: Section) -> None:
        super().__init__(context)
        self.targets = {self._mapped(name): target for name, target in read_targets(section).items()}
        self.ignored = tuple(self._mapped(name) for name in section.strings("ignore"))
        self.kv_cache = section.section("kv_cache_scheme")

    def linear(self, module: LinearModule) -> Scheme:
        kind = "qkv" if isinstance(module, QKVLinear) else module.parallelism
        target = self._target(module.name, _CLASS_NAMES[kind])
        return UNQUANTIZED if target is None else self._linear_scheme(target, module.name)

    def lm_head(self, module: LMHead) -> Scheme:
        target = self._target(module.name, "ParallelLMHead")
        return UNQUANTIZED if target is None else self._linear_scheme(target, module.name)

    def embedding(self, module: VocabEmbedding) -> Scheme:
        target = self._target(module.name, "VocabParallelEmbedding")
        if target is None:
            return UNQUANTIZED
        weights = target.weights
        if weights.strategy not in ("group", "channel") or weights.is_float or weights.dynamic:
            raise reject(
                "quantization_capability",
                "compressed-tensors embeddings only support weight-only INT group/channel (WNA16) quantization",
            )
        return linear.PackedEmbedding(weights)

    def moe(self, module: FusedMoE) -> Scheme:
        targets = dict(self.targets)
        if "Linear" in targets:
            targets.setdefault("RoutedExperts", targets["Linear"])
        found = [self._target(module.name + shard, "RoutedExperts", targets) for shard in _EXPERT_SHARDS]
        if any(target != found[-1] for target in found):
            raise reject(
                "quantization_capability",
                "All MoE projections need to have same quantization scheme but found multiple",
            )
        return UNQUANTIZED if found[-1] is None else self._moe_scheme(found[-1], module.name)

    def kv_scales(self, module: Attention, num_kv_heads: int) -> Storage:
        """k, v and q scales and zero points. The scales stay, in the place of the attention's own buffers."""
        if module.kind == "mla_attention":
            return Storage(())
        scheme = self.kv_cache
        if scheme.data:
            _check_kv_scheme(scheme)
        count = num_kv_heads if scheme.value("strategy") == "attn_head" else 1
        scales = tuple(Stored(name, (count,), "float32") for name in ("k_scale", "v_scale", "q_scale"))
        zeros = tuple(
            Stored(name, (count,), self.context.dtype) for name in ("k_zero_point", "v_zero_point", "q_zero_point")
        )
        kept = tuple(Stored(f"_{scale.name}", scale.shape, scale.dtype) for scale in scales)
        return Storage(scales + zeros, kept)

    def _mapped(self, name: str) -> str:
        """Only paths are names of layers: class names and patterns stay (apply_vllm_mapper)."""
        return map_name(name, self.context.names) if "." in name and not name.startswith("re:") else name

    def _target(self, name: str, class_name: str, targets: dict[str, Target] | None = None) -> Target | None:
        targets = self.targets if targets is None else targets
        if should_ignore_layer(name, self.ignored, self.fused):
            return None
        found = find_target(name, class_name, targets, self.fused)
        return None if found is None else targets[found]

    def _linear_scheme(self, target: Target, name: str) -> Scheme:
        """_get_scheme_from_parts, in its order."""
        weights, inputs, context = target.weights, target.inputs, self.context
        if weights.is_nvfp4:
            if inputs is not None and not inputs.is_nvfp4:
                raise reject(
                    "quantization_capability",
                    "For NVFP4 weights, input quantization must also be NVFP4 format, None for NVFP4A16",
                )
            return Nvfp4(context, _CT_FP4, use_a16=inputs is None)
        if weights.is_mxfp4:
            self._require_capability(80)
            return Mxfp4Linear(context)
        if weights.is_mxfp8:
            return Mxfp8(context)
        is_packed = target.format == "pack-quantized"
        if weights.strategy in ("channel", "group") and inputs is None and not weights.dynamic and is_packed:
            self._require_capability(75)
            return linear.Wna16(context, weights, name)
        if target.format in ACTIVATION_FORMATS and target.outputs is None:
            scheme = self._activation_scheme(weights, inputs)
            if scheme is not None:
                return scheme
        raise UnsupportedError(
            "quantization",
            f"compressed-tensors scheme of {name} is not supported by this planner: {weights.num_bits}-bit weights, "
            f"strategy {weights.strategy}, format {target.format}",
        )

    def _activation_scheme(self, weights: QuantArgs, inputs: QuantArgs | None) -> Scheme | None:
        float8 = (
            weights.is_float and weights.symmetric and not weights.dynamic
            and weights.strategy in ("tensor", "channel", "block")
        )  # fmt: skip
        if float8 and weights.num_bits == 8:
            static = inputs is not None and not inputs.dynamic
            return linear.Fp8(self.context, weights, static=static, weight_only=inputs is None)
        if inputs is None or weights.num_bits != 8 or inputs.num_bits != 8 or not weights.symmetric:
            return None
        rows = weights.strategy in ("tensor", "channel") and not weights.dynamic
        static = inputs.strategy == "tensor" and not inputs.dynamic
        if rows and (static or (inputs.strategy == "token" and inputs.dynamic)):
            self._require_capability(75)
            return linear.Int8(weights, static=static, symmetric=inputs.symmetric)
        return None

    def _moe_scheme(self, target: Target, name: str) -> Scheme:
        weights, inputs, context = target.weights, target.inputs, self.context
        if weights.is_mxfp8:
            return Mxfp8(context)
        if weights.strategy in ("channel", "group") and inputs is None and not weights.dynamic and not weights.is_float:
            return moe.wna16_experts(context, weights, target.format)
        if weights.is_nvfp4:
            if inputs is not None and not inputs.is_nvfp4:
                raise reject(
                    "quantization_capability",
                    "For NVFP4 weights, input quantization must also be NVFP4 format or None for NVFP4A16",
                )
            return Nvfp4(context, _CT_FP4, use_a16=inputs is None)
        if weights.is_float and inputs is not None and inputs.is_float and weights.num_bits == 8:
            return moe.Fp8Experts(context, weights, inputs)
        if (
            inputs is not None and weights.num_bits == inputs.num_bits == 8 and weights.strategy == "channel"
            and inputs.strategy == "token"
        ):  # fmt: skip
            return moe.Int8Experts()
        raise UnsupportedError(
            "quantization",
            f"compressed-tensors scheme of the experts {name} is not supported by this planner: "
            f"{weights.num_bits}-bit weights, strategy {weights.strategy}, format {target.format}",
        )

    def _require_capability(self, minimum: int) -> None:
        if self.context.capability < minimum:
            raise reject(
                "quantization_capability",
                f"Quantization scheme is not supported for the current GPU. Min capability: {minimum}. Current "
                f"capability: {self.context.capability}.",
            )


def _check_kv_scheme(scheme: Section) -> None:
    """CompressedTensorsKVCacheMethod.validate_kv_cache_scheme."""
    kind, bits = scheme.value("type"), scheme.value("num_bits")
    if kind != "float" or bits != 8:
        raise reject(
            "kv_cache_dtype",
            f"Currently supported kv cache quantization is num_bits=8, type=float, however received num_bits={bits}, "
            f"type={kind}",
        )
    if scheme.value("strategy") not in ("tensor", "attn_head"):
        raise reject("kv_cache_dtype", "Invalid strategy for compressed-tensors KV cache.")
    if not scheme.value("symmetric"):
        raise reject(
            "kv_cache_dtype",
            "Only support symmetric scaling factor for compressed-tensors KV cache. However found symmetric: "
            f"{scheme.value('symmetric')}",
        )


def select(model: ModelSpec, checkpoint: QuantizationSpec | None, context: Context) -> CompressedTensorsSelector:
    if checkpoint is None:
        raise UnsupportedError("quantization", "compressed-tensors needs a quantized checkpoint")
    return CompressedTensorsSelector(context, Section(checkpoint.raw))
