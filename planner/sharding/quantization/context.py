"""What kernel choices depend on beside the layer, and the base of the selectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from planner.engine.config import EngineConfig
from planner.errors import InputError
from planner.model.modules import Attention, FusedMoE, Linear, LMHead, PackedNames, QKVLinear, VocabEmbedding
from planner.model.spec import ModelSpec
from planner.sharding.quantization.base import UNQUANTIZED, Scheme, Storage, Stored
from planner.values import DType

LinearModule = Linear | QKVLinear
QuantizableModule = LinearModule | FusedMoE | LMHead | VocabEmbedding


class Context(Struct, frozen=True, kw_only=True):
    """The card and the engine as kernel selection sees them.

    `capability` is major * 10 + minor. `sm_count` 0 when the card's is not known: Marlin's workspaces, 4 bytes an SM
    and layer, are then left out. `dtype` is the engine's.
    """

    capability: int
    sm_count: int
    dtype: DType
    tensor_parallel_size: int
    enable_lora: bool
    names: PackedNames
    model_type: str
    env: Mapping[str, str]

    @property
    def family(self) -> int:
        """vLLM's capability family: 100 for 10.x, 120 for 12.x (platforms is_device_capability_family)."""
        return self.capability // 10 * 10


def context_of(model: ModelSpec, config: EngineConfig) -> Context:
    major, minor = config.compute_capability
    return Context(
        capability=major * 10 + minor,
        sm_count=config.sm_count or 0,
        dtype=config.dtype,
        tensor_parallel_size=config.tensor_parallel_size,
        enable_lora=config.enable_lora,
        names=model.names,
        model_type=model.model_type,
        env=dict(config.env),
    )


class BaseSelector:
    """Dispatches a module to its kind. A method overrides the kinds that it quantizes."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.fused = context.names.fused

    def scheme(self, module: QuantizableModule) -> Scheme:
        if isinstance(module, FusedMoE):
            return self.moe(module)
        if isinstance(module, LMHead):
            return self.lm_head(module)
        if isinstance(module, VocabEmbedding):
            return self.embedding(module)
        return self.linear(module)

    def linear(self, module: LinearModule) -> Scheme:
        return UNQUANTIZED

    def moe(self, module: FusedMoE) -> Scheme:
        return UNQUANTIZED

    def lm_head(self, module: LMHead) -> Scheme:
        return UNQUANTIZED

    def embedding(self, module: VocabEmbedding) -> Scheme:
        return UNQUANTIZED

    def kv_scales(self, module: Attention, num_kv_heads: int) -> Storage:
        """Scale parameters that the method gives an attention layer (num_kv_heads: the rank's). None by default.

        Those that stay after loading take the place of the layer's buffers of the same name.
        """
        return Storage(())


def scalar_kv_scales(dtype: DType) -> Storage:
    """BaseKVCacheMethod: four scalars in torch's default dtype, the model's, that are dropped after loading
    (vLLM 0.26.0 layers/quantization/kv_cache.py)."""
    return Storage(tuple(Stored(name, (), dtype) for name in ("q_scale", "k_scale", "v_scale", "prob_scale")), ())


class Section:
    """Typed reading of a checkpoint's quantization section. Wrong types are an InputError naming the key."""

    def __init__(self, data: Mapping[str, Any], where: str = "config.json: quantization_config") -> None:
        self.data = data
        self.where = where

    def value(self, *keys: str, default: Any = None) -> Any:
        for key in keys:
            if key in self.data:
                return self.data[key]
        return default

    def whole(self, *keys: str, default: int | None = None) -> int:
        value = self.value(*keys, default=default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{self.where}: {keys[0]} must be a whole number, found {value!r}")
        return value

    def flag(self, *keys: str, default: bool | None = None) -> bool:
        value = self.value(*keys, default=default)
        if not isinstance(value, bool):
            raise InputError(f"{self.where}: {keys[0]} must be true or false, found {value!r}")
        return value

    def strings(self, *keys: str) -> tuple[str, ...]:
        """A list of texts; absent, null and empty are the same."""
        value = self.value(*keys) or ()
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{self.where}: {keys[0]} must be a list of texts, found {str(value)[:60]}")
        return tuple(value)

    def section(self, key: str) -> Section:
        value = self.data.get(key) or {}
        if not isinstance(value, Mapping):
            raise InputError(f"{self.where}: {key} must be an object")
        return Section(value, f"{self.where}: {key}")

    def whole_pair(self, key: str) -> tuple[int, int] | None:
        value = self.data.get(key)
        if value is None:
            return None
        if (
            not isinstance(value, (list, tuple))
            or len(value) != 2
            or not all(type(item) is int and item > 0 for item in value)
        ):
            raise InputError(f"{self.where}: {key} must be two whole numbers, found {str(value)[:60]}")
        return value[0], value[1]
