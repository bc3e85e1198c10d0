"""AutoGPTQ and GPTQModel checkpoints. Source: vLLM 0.26.0 layers/quantization/auto_gptq.py, utils/gptq_utils.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from planner.errors import InputError, UnsupportedError
from planner.model.modules import FusedMoE, LMHead
from planner.model.spec import ModelSpec, QuantizationSpec
from planner.sharding.quantization import marlin, wna16
from planner.sharding.quantization.base import UNQUANTIZED, LinearShard, MoEShard, Scheme, Storage, Stored
from planner.sharding.quantization.context import BaseSelector, Context, LinearModule, Section
from planner.sharding.quantization.match import is_layer_listed, map_names, match_pattern
from planner.sharding.quantization.moe_wna16 import MoeWna16, scheme_of
from planner.sharding.quantization.wna16_moe import marlin_experts
from planner.values import reject

_NAMES = wna16.TensorNames(weight="qweight", scale="scales", zero_point="qzeros", g_idx="g_idx")


class Gptq(Struct, frozen=True):
    """Symmetric 4 or 8-bit weights packed along the input. `fallback`: the experts' scheme where Marlin cannot.

    `strict_experts`: experts whose sizes Marlin would have to pad take the fallback (AutoRound).
    """

    context: Context
    bits: int
    group_size: int
    desc_act: bool
    sym: bool
    fallback: MoeWna16
    strict_experts: bool = False
    name: str = "auto_gptq"

    def checked(self) -> Gptq:
        if self.bits not in (4, 8) or not self.sym:
            raise reject(
                "quantization_capability", f"Unsupported quantization config: bits={self.bits}, sym={self.sym}"
            )
        return self

    def linear(self, shard: LinearShard) -> Storage:
        if self.group_size not in marlin.GROUP_SIZES:
            raise reject(
                "quantization_capability",
                f"Marlin does not support group_size = {self.group_size}. Only group_sizes = "
                f"{list(marlin.GROUP_SIZES)} are supported.",
            )
        pack = 32 // self.bits
        k, n, full_k = shard.input_size, shard.output_size, shard.full_input_size
        problem = wna16.Problem(
            k=k, full_k=full_k, n=n, weight_type=wna16.weight_type(self.bits, zero_points=False), bits=self.bits,
            dtype=shard.dtype, group_size=self.group_size, zero_points=False, has_g_idx=self.desc_act,
        )  # fmt: skip
        kernel = wna16.choose_kernel(problem, self.context)
        repeats = self.desc_act or (self.group_size == -1 and k != full_k)
        rows = (full_k if repeats else k) // (full_k if self.group_size == -1 else self.group_size)
        created = (
            Stored("qweight", (k // pack, n), "int32"),
            Stored("g_idx", (k,), "int32"),
            Stored("scales", (rows, n), shard.dtype),
            Stored("qzeros", (rows, n // pack), "int32"),
        )
        return Storage(created, *wna16.after_load(problem, kernel, _NAMES, created, self.context))

    def moe(self, shard: MoEShard) -> Storage:
        padding = not (self.desc_act or self.strict_experts)
        if not self.sym or not marlin.supports_moe(shard, self.group_size, padding=padding):
            return self.fallback.moe(shard)
        pack = 32 // self.bits
        experts, hidden, inner = shard.num_local_experts, shard.hidden_size, shard.intermediate_size
        w2_rows = shard.full_intermediate_size if self.desc_act else inner
        groups13 = 1 if self.group_size == -1 else hidden // self.group_size
        groups2 = 1 if self.group_size == -1 else w2_rows // self.group_size
        work = marlin.workspace(self.context, 4)
        zeros = (
            Stored("w13_qzeros", (experts, groups13, 2 * inner // pack), shard.dtype),
            Stored("w2_qzeros", (experts, groups2, hidden // pack), shard.dtype),
        )
        indices = tuple(
            Stored(f"{name}_{kind}", (experts, size), "int32")
            for kind in ("g_idx", "g_idx_sort_indices")
            for name, size in (("w13", hidden), ("w2", inner))
        )
        created = (
            Stored("w13_qweight", (experts, hidden // pack, 2 * inner), "int32"),
            Stored("w2_qweight", (experts, inner // pack, hidden), "int32"),
            Stored("w13_scales", (experts, groups13, 2 * inner), shard.dtype),
            Stored("w2_scales", (experts, groups2, hidden), shard.dtype),
            *zeros,
            *indices,
            work,
        )
        loaded = marlin_experts(
            shard, bits=self.bits, group_size=self.group_size, act_order=self.desc_act, g_idx=True,
            full_scale_rows=self.desc_act,
        )  # fmt: skip
        return Storage(created, (*loaded, *zeros, work))


class GptqSelector(BaseSelector):
    """Quantizes the layers of modules_in_block_to_quantize, by substring, adjusted by GPTQModel's `dynamic` rules.

    Without that list vLLM takes the modules with packed tensors from the safetensors headers (auto_gptq.py:278).
    Where headers are not known, the checkpoint is taken to pack every linear layer of the language model, as the
    GPTQ tools write it; vLLM itself would find no header, and no quantized layer, in such a folder.
    """

    def __init__(self, context: Context, model: ModelSpec, section: Section) -> None:
        super().__init__(context)
        group = section.whole("group_size")
        fallback = scheme_of(Section({**section.data, "quant_method": "gptq"}))
        self.scheme_ = Gptq(
            context=context, bits=section.whole("bits"), group_size=group,
            desc_act=section.flag("desc_act") and group != -1, sym=section.flag("sym"), fallback=fallback,
        ).checked()  # fmt: skip
        self.quantizes_lm_head = section.flag("lm_head", default=False)
        self.dynamic = _rules(section)
        self.listed = self._listed(model, section)

    def _listed(self, model: ModelSpec, section: Section) -> tuple[str, ...] | None:
        raw = section.value("modules_in_block_to_quantize") or ()
        flat = [item for entry in raw for item in (entry if isinstance(entry, (list, tuple)) else (entry,))]
        if not all(isinstance(item, str) for item in flat):
            raise InputError("config.json: quantization_config: modules_in_block_to_quantize must list names")
        names = flat or model.quantized_modules
        return None if names is None else map_names(names, self.context.names)

    def linear(self, module: LinearModule) -> Scheme:
        return self._linear(module.name, module.component)

    def lm_head(self, module: LMHead) -> Scheme:
        return self._linear(module.name, module.component) if self.quantizes_lm_head else UNQUANTIZED

    def _linear(self, name: str, component: str) -> Scheme:
        if self.listed is None:
            quantized = component == "language_model"
        else:
            quantized = is_layer_listed(name, self.listed, self.fused)
        scheme = self._overridden(name)
        return scheme if quantized and scheme is not None else UNQUANTIZED

    def moe(self, module: FusedMoE) -> Scheme:
        return self._overridden(module.name) or UNQUANTIZED

    def _overridden(self, name: str) -> Gptq | None:
        """The scheme of a layer after the first `dynamic` rule that matches; None: a "-:" rule skips it."""
        for pattern, changes in self.dynamic:
            if pattern.startswith("-:"):
                if match_pattern(pattern[2:], name):
                    return None
            elif match_pattern(pattern.removeprefix("+:"), name):
                return replace(self.scheme_, **changes).checked()
        return self.scheme_


def _rules(section: Section) -> tuple[tuple[str, dict[str, Any]], ...]:
    raw = section.value("dynamic") or {}
    if not isinstance(raw, Mapping) or not all(isinstance(value, Mapping) for value in raw.values()):
        raise InputError("config.json: quantization_config: dynamic must map patterns to objects")
    keys = {"bits": int, "group_size": int, "desc_act": bool, "sym": bool}
    rules = []
    for pattern, changes in raw.items():
        kept = {key: changes[key] for key, kind in keys.items() if type(changes.get(key)) is kind}
        rules.append((str(pattern), kept))
    return tuple(rules)


def select(model: ModelSpec, checkpoint: QuantizationSpec | None, context: Context) -> GptqSelector:
    if checkpoint is None:
        raise UnsupportedError("quantization", "auto_gptq needs a quantized checkpoint")
    return GptqSelector(context, model, Section(checkpoint.raw))
