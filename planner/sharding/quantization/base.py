"""How a quantization method stores one layer: the scheme interface, and the unquantized scheme."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from planner.sharding.rank import TensorRole
from planner.values import DType


class Stored(Struct, frozen=True):
    """One tensor a scheme creates: attribute name, shape on this rank, dtype, role."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    role: TensorRole = "parameter"


class LinearShard(Struct, frozen=True, kw_only=True):
    """One linear layer on one rank. `output_sizes` are the rank's rows of each fused shard;
    `full_input_size` and `full_output_size` the unsharded layer's. `row_parallel`: the layer is a RowParallelLinear.
    `dtype` is that of an unquantized weight, of scales and of the bias. `tensor_parallel_size`: vLLM's
    LinearBase.tp_size, 1 for a layer built with disable_tp."""

    name: str
    input_size: int
    output_sizes: tuple[int, ...]
    full_input_size: int
    full_output_sizes: tuple[int, ...]
    row_parallel: bool
    dtype: DType
    component: str = "language_model"
    tensor_parallel_size: int

    @property
    def output_size(self) -> int:
        return sum(self.output_sizes)

    @property
    def full_output_size(self) -> int:
        return sum(self.full_output_sizes)


class MoEShard(Struct, frozen=True, kw_only=True):
    """One layer's experts on one rank. `num_local_experts` of `num_experts`; `intermediate_size` is the rank's.
    `router_weight_on_input`: the routing weight multiplies the input (Llama 4), which Marlin cannot do."""

    name: str
    num_experts: int
    num_local_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    full_intermediate_size: int
    gated: bool
    bias: bool
    dtype: DType
    expert_parallel: bool
    activation: str
    router_weight_on_input: bool = False

    @property
    def w13_rows(self) -> int:
        return self.intermediate_size * (2 if self.gated else 1)


Shard = LinearShard | MoEShard


class Storage(Struct, frozen=True):
    """What construction creates, and what is there after weight post-processing (None: the same).

    `loaded_bias_size`: elements of the layer's bias after loading where the kernel pads it, else None.
    """

    created: tuple[Stored, ...]
    loaded: tuple[Stored, ...] | None = None
    loaded_bias_size: int | None = None

    @property
    def after_load(self) -> tuple[Stored, ...]:
        return self.created if self.loaded is None else self.loaded


class Scheme(Protocol):
    """The storage rules of one quantization method, as one layer sees them."""

    @property
    def name(self) -> str: ...

    def linear(self, shard: LinearShard) -> Storage:
        """Tensors of a linear layer's weight (its bias is added by the caller). May raise Rejected."""
        ...

    def moe(self, shard: MoEShard) -> Storage:
        """Tensors of a layer's routed experts, biases included. May raise Rejected."""
        ...


class Unquantized:
    """weight [N, K] in the model's dtype. Source: vLLM 0.26.0 layers/linear.py UnquantizedLinearMethod,
    fused_moe/unquantized_fused_moe_method.py."""

    name = "unquantized"

    def linear(self, shard: LinearShard) -> Storage:
        return Storage((Stored("weight", (shard.output_size, shard.input_size), shard.dtype),))

    def moe(self, shard: MoEShard) -> Storage:
        experts, hidden, inner = shard.num_local_experts, shard.hidden_size, shard.intermediate_size
        tensors = [
            Stored("w13_weight", (experts, shard.w13_rows, hidden), shard.dtype),
            Stored("w2_weight", (experts, hidden, inner), shard.dtype),
        ]
        if shard.bias:
            tensors[1:1] = [Stored("w13_bias", (experts, shard.w13_rows), shard.dtype)]
            tensors.append(Stored("w2_bias", (experts, hidden), shard.dtype))
        return Storage(tuple(tensors))


UNQUANTIZED = Unquantized()
