"""The parts of a mixture-of-experts layer: router, its correction bias, routed experts."""

from __future__ import annotations

from planner.errors import InputError
from planner.model.config_view import ConfigView
from planner.model.modules import FusedMoE, Linear, Parameter
from planner.values import DType

MIXTRAL_SHARDS = ("w1", "w3", "w2")


def router(
    name: str,
    layer: int,
    hidden: int,
    outputs: int,
    *,
    dtype: DType | None = None,
    bias: bool = False,
    quantizable: bool = False,
) -> Linear:
    """A replicated gate. Most classes pass it no quant_config."""
    return Linear(
        name=name,
        placement=layer,
        input_size=hidden,
        output_sizes=(outputs,),
        bias=bias,
        dtype=dtype,
        quantizable=quantizable,
    )


def correction_bias(name: str, layer: int, experts: int, dtype: DType | None = "float32") -> Parameter:
    """e_score_correction_bias and its kin: one number for each expert, float32 whatever the model's dtype."""
    return Parameter(name=name, placement=layer, shape=(experts,), dtype=dtype)


def experts(
    at: str,
    layer: int,
    *,
    count: int,
    top_k: int,
    hidden: int,
    inner: int,
    shard_names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj"),
    activation: str = "silu",
    bias: bool = False,
) -> FusedMoE:
    """The routed experts below `at`, named "experts" as in every class."""
    return FusedMoE(
        name=f"{at}.experts",
        placement=layer,
        num_experts=count,
        top_k=top_k,
        hidden_size=hidden,
        intermediate_size=inner,
        shard_names=shard_names,
        activation=activation,
        bias=bias,
    )


def by_layer(config: ConfigView, key: str, layer: int, default: int | None = None) -> int:
    """A whole number that a config states once or as a list with an entry for each layer."""
    value = config.raw(key, default)
    if isinstance(value, list):
        if layer >= len(value):
            raise InputError(f"{config.where}: {key} has {len(value)} entries, none for layer {layer}")
        value = value[layer]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{config.where}: {key} must hold whole numbers, found {value!r}")
    return value


def layer_list(config: ConfigView, key: str) -> frozenset[int] | None:
    """A text such as "3,4,5" that lists layers; None where the config has none."""
    value = config.raw(key)
    if value is None:
        return None
    try:
        return frozenset(int(part) for part in str(value).strip().split(","))
    except ValueError:
        raise InputError(f"{config.where}: {key} must list layers, found {value!r}") from None


def sparse_layers(config: ConfigView, key: str, num_layers: int) -> list[bool]:
    """A list with a truth value for each layer."""
    value = config.raw(key)
    if not isinstance(value, list) or len(value) < num_layers:
        raise InputError(f"{config.where}: {key} must have an entry for each of the {num_layers} layers")
    return [bool(item) for item in value]
