"""NVIDIA ModelOpt checkpoints: FP8, NVFP4, MXFP8, and a method for each layer.

Source: vLLM 0.26.0 layers/quantization/modelopt.py.
"""

from __future__ import annotations

from msgspec import Struct

from planner.errors import InputError, UnsupportedError
from planner.model.modules import Attention, FusedMoE, LMHead, PackedNames
from planner.model.spec import ModelSpec, QuantizationSpec
from planner.sharding.quantization import fp8_kernels as kernels
from planner.sharding.quantization import fp8_moe
from planner.sharding.quantization.base import UNQUANTIZED, LinearShard, MoEShard, Scheme, Storage, Stored
from planner.sharding.quantization.context import BaseSelector, Context, LinearModule, Section, scalar_kv_scales
from planner.sharding.quantization.match import Exclusions, exclusions, map_name, map_names
from planner.sharding.quantization.mxfp8 import Mxfp8
from planner.sharding.quantization.nvfp4 import MODELOPT, Nvfp4
from planner.values import reject

_VISION = ("vision_tower", "vision_model", "vit_large_projector")
_FUSED_FALLBACK = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_BLOCK = 128


class ModelOptFp8(Struct, frozen=True):
    """FP8 with static per-tensor scales, per-channel scales, or 128 x 128 blocks (FP8_PB_WO)."""

    context: Context
    algorithm: str
    name: str = "modelopt fp8"

    def linear(self, shard: LinearShard) -> Storage:
        n, k, parts = shard.output_size, shard.input_size, len(shard.output_sizes)
        weight = Stored("weight", (n, k), "float8_e4m3fn")
        if self.algorithm == "FP8":
            scales = tuple(Stored(name, (parts,), "float32") for name in ("weight_scale", "input_scale"))
            return Storage((weight, *scales), *kernels.tensor_after_load(shard, self.context, static=True))
        if self.algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
            scale = Stored("weight_scale", (n,), "float32")
            return Storage((weight, scale), *kernels.channel_after_load(shard, self.context))
        for side, size in (("out", n), ("in", k)):
            if size % _BLOCK:
                raise reject(
                    "quantization_alignment",
                    f"ModelOpt FP8_PB_WO requires {side}_features divisible by {_BLOCK}, got {size}.",
                )
        scale = Stored("weight_scale", (n // _BLOCK, 1, k // _BLOCK, 1), "float32")
        loaded = Stored("weight_scale", (n // _BLOCK, k // _BLOCK), "float32")
        return Storage((weight, scale), (weight, loaded))

    def moe(self, shard: MoEShard) -> Storage:
        shards = 2 if shard.gated else 1
        created = fp8_moe.created_experts(shard, "tensor", static=True, shards=shards, suffix="weight_scale")
        loaded = fp8_moe.loaded_experts(shard, created, "tensor", self.context, static=True, suffix="weight_scale")
        return Storage(created, loaded)


class ModelOptSelector(BaseSelector):
    """One algorithm for every linear layer, head and expert that exclude_modules does not cover."""

    def __init__(self, context: Context, scheme: Scheme, excluded: tuple[str, ...]) -> None:
        super().__init__(context)
        self.scheme_ = scheme
        self.excluded = _exclusions(excluded, context.names)

    def linear(self, module: LinearModule) -> Scheme:
        return self._scheme(module.name)

    def lm_head(self, module: LMHead) -> Scheme:
        return self._scheme(module.name)

    def moe(self, module: FusedMoE) -> Scheme:
        return self._scheme(module.name)

    def kv_scales(self, module: Attention, num_kv_heads: int) -> Storage:
        return scalar_kv_scales(self.context.dtype)

    def _scheme(self, name: str) -> Scheme:
        excluded = self.excluded.cover(name)
        return UNQUANTIZED if excluded or any(part in name for part in _VISION) else self.scheme_


class MixedSelector(BaseSelector):
    """MIXED_PRECISION: `quantized_layers` names the algorithm of each layer."""

    def __init__(self, context: Context, section: Section, excluded: tuple[str, ...], has_kv_scales: bool) -> None:
        super().__init__(context)
        self.excluded = _exclusions(excluded, context.names)
        self.has_kv_scales = has_kv_scales
        layers = section.section("quantized_layers")
        if not layers.data:
            raise reject(
                "quantization_capability",
                "MIXED_PRECISION quant_algo requires a non-empty 'quantized_layers' mapping in the quantization "
                "config.",
            )
        self.algorithms = {
            map_name(name, context.names): str(layers.section(name).value("quant_algo")).upper() for name in layers.data
        }
        group = _group_size(section) or _first_group_size(layers) or 16
        self.schemes: dict[str, Scheme] = {
            "FP8": ModelOptFp8(context, "FP8"),
            "NVFP4": Nvfp4(context, MODELOPT, use_a16=False, group_size=group),
            "W4A16_NVFP4": Nvfp4(context, MODELOPT, use_a16=True, group_size=group),
            "MXFP8": Mxfp8(context),
        }
        self.prefixes = _prefixes(self.algorithms)

    def linear(self, module: LinearModule) -> Scheme:
        return self._scheme(module.name)

    def lm_head(self, module: LMHead) -> Scheme:
        return self._scheme(module.name)

    def moe(self, module: FusedMoE) -> Scheme:
        return self._scheme(module.name)

    def kv_scales(self, module: Attention, num_kv_heads: int) -> Storage:
        wanted = self.has_kv_scales and module.kind != "mla_attention"
        return scalar_kv_scales(self.context.dtype) if wanted else Storage(())

    def _scheme(self, name: str) -> Scheme:
        if self.excluded.cover(name):
            return UNQUANTIZED
        algorithm = self._algorithm(name)
        return self.schemes.get(algorithm, UNQUANTIZED) if algorithm else UNQUANTIZED

    def _algorithm(self, name: str) -> str | None:
        """_resolve_quant_algo: the layer itself, its fused parts, anything beneath it, the experts' siblings."""
        for candidate in _candidates(name):
            if candidate in self.algorithms:
                return self.algorithms[candidate]
        parent, _, last = name.rpartition(".")
        for parts in (self.fused.get(last, ()), _FUSED_FALLBACK.get(last, ())):
            found = {
                self.algorithms[f"{base}.{part}"]
                for base in _candidates(parent)
                for part in parts
                if f"{base}.{part}" in self.algorithms
            }
            if len(found) > 1:
                raise reject(
                    "quantization_alignment",
                    f"Mixed quant_algo within fused layer {name}: {found}. All shards must use the same quantization.",
                )
            if found:
                return found.pop()
        for candidate in _candidates(name):
            if candidate in self.prefixes:
                return self.prefixes[candidate]
        return self.prefixes.get(name.removesuffix(".experts")) if name.endswith(".experts") else None


def _prefixes(algorithms: dict[str, str]) -> dict[str, str]:
    """Each proper prefix of a listed name -> the algorithm of the first name that it begins."""
    found: dict[str, str] = {}
    for name, algorithm in algorithms.items():
        while "." in name:
            name = name.rpartition(".")[0]
            found.setdefault(name, algorithm)
    return found


def _candidates(name: str) -> tuple[str, ...]:
    """_quantized_layer_prefix_candidates: the two spellings of a multimodal model's language part."""
    found = [name]
    if name.endswith(".lm_head"):
        found.append("lm_head")
    if name.startswith("language_model.model."):
        found.append("model.language_model." + name.removeprefix("language_model.model."))
    elif name.startswith("model.language_model."):
        found.append("language_model.model." + name.removeprefix("model.language_model."))
    return tuple(found)


def _exclusions(excluded: tuple[str, ...], names: PackedNames) -> Exclusions:
    """`path*` stands for the path and everything beneath it (ModelOptQuantConfigBase.apply_vllm_mapper)."""
    split: list[str] = []
    for entry in excluded:
        if len(entry) >= 2 and entry[-1] == "*" and entry[-2] != ".":
            split += [entry[:-1], entry[:-1] + ".*"]
        else:
            split.append(entry)
    return exclusions(map_names(split, names), tuple(names.fused.items()))


def _group_size(section: Section) -> int | None:
    value = section.value("group_size")
    if value is None:
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        raise InputError(f"{section.where}: group_size must be a whole number, found {value!r}") from None


def _first_group_size(layers: Section) -> int | None:
    for name in layers.data:
        layer = layers.section(name)
        if str(layer.value("quant_algo")).upper() in ("NVFP4", "W4A16_NVFP4"):
            return _group_size(layer)
    return None


def select(model: ModelSpec, checkpoint: QuantizationSpec | None, context: Context) -> BaseSelector:
    if checkpoint is None:
        raise UnsupportedError("quantization", "modelopt needs a quantized checkpoint")
    section = Section(checkpoint.raw)
    if "quantization" in section.data:
        section = section.section("quantization")
        excluded, kv = section.strings("exclude_modules"), section.value("kv_cache_quant_algo")
    elif checkpoint.method == "mxfp8":
        return ModelOptSelector(context, Mxfp8(context), section.strings("ignored_layers"))
    else:
        excluded = section.strings("ignore")
        scheme = section.section("kv_cache_scheme")
        kv = "FP8" if scheme.value("type") == "float" and scheme.value("num_bits") == 8 else None
    algorithm = str(section.value("quant_algo") or "").upper()
    if algorithm == "MIXED_PRECISION":
        return MixedSelector(context, section, excluded, has_kv_scales=kv is not None)
    return ModelOptSelector(context, _scheme_of(algorithm, section, context), excluded)


def _scheme_of(algorithm: str, section: Section, context: Context) -> Scheme:
    if algorithm in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO"):
        return ModelOptFp8(context, algorithm)
    if algorithm in ("NVFP4", "W4A16_NVFP4"):
        group = _group_size(section) or 16
        return Nvfp4(context, MODELOPT, use_a16=algorithm == "W4A16_NVFP4", group_size=group)
    if algorithm == "MXFP8":
        return Mxfp8(context)
    if not algorithm:
        raise reject("quantization_capability", "Missing 'quant_algo' in quantization config")
    raise UnsupportedError("quantization", f"ModelOpt algorithm {algorithm} is not supported by this planner")
