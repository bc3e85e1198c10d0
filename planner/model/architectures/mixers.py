"""Recurrent layers: the weights of Mamba, Mamba-2, gated delta net and short convolution, each with its state.

Source: vLLM 0.26.0 model_executor/layers/mamba/{mamba_mixer,mamba_mixer2,short_conv}.py and
gdn/qwen_gdn_linear_attn.py; the state shapes are those of mamba/mamba_utils.py MambaStateShapeCalculator.
"""

from __future__ import annotations

from msgspec import Struct

from planner.model.modules import Linear, Module, Parameter, State, StateSpace
from planner.values import DType

MARLIN_METHODS = ("auto_awq", "auto_gptq", "inc")
"""Methods under which in_proj_ba stays whole: its shards would be too narrow (qwen_gdn_linear_attn.py:514)."""

MAMBA1_CHUNK = 2048


class Mamba2(Struct, frozen=True, kw_only=True):
    """Sizes of a Mamba-2 mixer, whole model. `rms_norm` False: gated without a norm."""

    hidden_size: int
    inner_size: int
    num_heads: int
    head_size: int
    num_groups: int
    state_size: int
    kernel: int
    conv_bias: bool
    bias: bool
    chunk_size: int
    rms_norm: bool = True

    @property
    def group_sizes(self) -> tuple[int, int]:
        """Widths of B and C."""
        return self.num_groups * self.state_size, self.num_groups * self.state_size


def mamba2_mixer(at: str, layer: int, sizes: Mamba2, *, quantizable: bool = True) -> list[Module]:
    """MambaMixer2: in_proj holds gate, x, B, C and dt; the single group of B and C is repeated on each rank."""
    once = sizes.num_groups == 1
    return [
        mamba2_state(at, layer, sizes),
        convolution(
            f"{at}.conv1d",
            layer,
            sizes.kernel,
            (sizes.inner_size, *sizes.group_sizes),
            bias=sizes.conv_bias,
            repeated=(1, 2) if once else (),
        ),
        Linear(
            name=f"{at}.in_proj",
            placement=layer,
            input_size=sizes.hidden_size,
            output_sizes=(sizes.inner_size, sizes.inner_size, *sizes.group_sizes, sizes.num_heads),
            parallelism="column",
            bias=sizes.bias,
            quantizable=quantizable,
            replicated_shards=(2, 3) if once else (),
        ),
        sharded(f"{at}.A", layer, sizes.num_heads, dtype="float32"),
        sharded(f"{at}.D", layer, sizes.num_heads),
        sharded(f"{at}.dt_bias", layer, sizes.num_heads),
        out_projection(
            f"{at}.out_proj", layer, sizes.inner_size, sizes.hidden_size, bias=sizes.bias, quantizable=quantizable
        ),
        *([sharded(f"{at}.norm.weight", layer, sizes.inner_size)] if sizes.rms_norm else []),
    ]


def mamba2_state(at: str, layer: int, sizes: Mamba2) -> StateSpace:
    convolution = State(
        role="conv",
        shape=(sizes.kernel - 1, sizes.inner_size),
        shard_dim=1,
        group_size=2 * sizes.state_size,
        row_per_draft=True,
    )
    recurrent = State(role="ssm", shape=(sizes.num_heads, sizes.head_size, sizes.state_size), shard_dim=0)
    return StateSpace(
        name=at,
        placement=layer,
        kind="mamba2",
        states=(convolution, recurrent),
        num_heads=sizes.num_heads,
        num_groups=sizes.num_groups,
        chunk_size=sizes.chunk_size,
    )


class Mamba1(Struct, frozen=True, kw_only=True):
    """Sizes of a Mamba mixer, whole model. `norms`: dt, B and C are normalized with weights (Jamba)."""

    hidden_size: int
    inner_size: int
    state_size: int
    kernel: int
    dt_rank: int
    conv_bias: bool
    bias: bool
    norms: bool = False


def mamba1_mixer(at: str, layer: int, sizes: Mamba1) -> list[Module]:
    """MambaMixer: vLLM passes none of its projections a quantization method (mamba_mixer.py:82)."""
    inner, state, rank = sizes.inner_size, sizes.state_size, sizes.dt_rank
    parts: list[Module] = [
        StateSpace(
            name=at,
            placement=layer,
            kind="mamba1",
            states=(
                State(role="conv", shape=(sizes.kernel - 1, inner), shard_dim=1),
                State(role="ssm", shape=(inner, state), shard_dim=0),
            ),
            chunk_size=MAMBA1_CHUNK,
        ),
        convolution(f"{at}.conv1d", layer, sizes.kernel, (inner,), bias=sizes.conv_bias),
        Linear(
            name=f"{at}.in_proj",
            placement=layer,
            input_size=sizes.hidden_size,
            output_sizes=(inner, inner),
            parallelism="column",
            bias=sizes.bias,
            quantizable=False,
        ),
        out_projection(f"{at}.x_proj", layer, inner, rank + 2 * state, quantizable=False),
        Linear(
            name=f"{at}.dt_proj",
            placement=layer,
            input_size=rank,
            output_sizes=(inner,),
            parallelism="column",
            bias=True,
            quantizable=False,
        ),
        Parameter(name=f"{at}.A", placement=layer, shape=(inner, state), shard_dim=0, dtype="float32"),
        sharded(f"{at}.D", layer, inner),
        out_projection(f"{at}.out_proj", layer, inner, sizes.hidden_size, bias=sizes.bias, quantizable=False),
    ]
    if sizes.norms:
        widths = {"dt_layernorm": rank, "b_layernorm": state, "c_layernorm": state}
        parts += [
            Parameter(name=f"{at}.{name}.weight", placement=layer, shape=(size,)) for name, size in widths.items()
        ]
    return parts


class DeltaNet(Struct, frozen=True, kw_only=True):
    """Sizes of a gated delta net, whole model."""

    hidden_size: int
    num_key_heads: int
    num_value_heads: int
    key_head_size: int
    value_head_size: int
    kernel: int

    @property
    def key_size(self) -> int:
        return self.num_key_heads * self.key_head_size

    @property
    def value_size(self) -> int:
        return self.num_value_heads * self.value_head_size


def delta_net(at: str, layer: int, sizes: DeltaNet, *, interleaved: bool) -> list[Module]:
    """QwenGatedDeltaNetAttention. `interleaved`: Qwen3-Next stores q, k, v, z and b, a as one shard each, grouped by
    key head; Qwen3.5 as separate shards, of which b and a stay whole under Marlin methods."""
    qkvz = (sizes.key_size, sizes.key_size, sizes.value_size, sizes.value_size)
    heads = sizes.num_value_heads
    return [
        delta_net_state(at, layer, sizes),
        convolution(f"{at}.conv1d", layer, sizes.kernel, (2 * sizes.key_size + sizes.value_size,)),
        Linear(
            name=f"{at}.in_proj_qkvz",
            placement=layer,
            input_size=sizes.hidden_size,
            output_sizes=(sum(qkvz),) if interleaved else qkvz,
            parallelism="column",
        ),
        Linear(
            name=f"{at}.in_proj_ba",
            placement=layer,
            input_size=sizes.hidden_size,
            output_sizes=(2 * heads,) if interleaved else (heads, heads),
            parallelism="column",
            whole_if_quantized=() if interleaved else MARLIN_METHODS,
        ),
        sharded(f"{at}.dt_bias", layer, heads),
        sharded(f"{at}.A_log", layer, heads, dtype="float32"),
        Parameter(name=f"{at}.norm.weight", placement=layer, shape=(sizes.value_head_size,)),
        out_projection(f"{at}.out_proj", layer, sizes.value_size, sizes.hidden_size),
    ]


def delta_net_state(at: str, layer: int, sizes: DeltaNet) -> StateSpace:
    channels = 2 * sizes.key_size + sizes.value_size
    recurrent = (sizes.num_value_heads, sizes.value_head_size, sizes.key_head_size)
    return StateSpace(
        name=at,
        placement=layer,
        kind="gated_delta_net",
        states=(
            State(role="conv", shape=(sizes.kernel - 1, channels), shard_dim=1, row_per_draft=True),
            State(role="ssm", shape=recurrent, shard_dim=0),
        ),
        num_heads=sizes.num_value_heads,
    )


def short_conv(at: str, layer: int, width: int, kernel: int, *, bias: bool, name: str) -> list[Module]:
    """ShortConv, none of it quantized. `name` is what the state is registered as."""
    return [
        StateSpace(
            name=name,
            placement=layer,
            kind="short_conv",
            states=(State(role="conv", shape=(kernel - 1, width), shard_dim=1),),
        ),
        convolution(f"{at}.conv", layer, kernel, (width,), bias=bias),
        Linear(
            name=f"{at}.in_proj",
            placement=layer,
            input_size=width,
            output_sizes=(width, width, width),
            parallelism="column",
            bias=bias,
            quantizable=False,
        ),
        out_projection(f"{at}.out_proj", layer, width, width, bias=bias, quantizable=False),
    ]


def convolution(
    name: str,
    layer: int,
    kernel: int,
    channels: tuple[int, ...],
    *,
    bias: bool = False,
    repeated: tuple[int, ...] = (),
    dtype: DType | None = None,
) -> Linear:
    """A depthwise convolution, which vLLM keeps as a column-parallel layer over its kernel [channels, 1, kernel]."""
    return Linear(
        name=name,
        placement=layer,
        input_size=kernel,
        output_sizes=channels,
        parallelism="column",
        bias=bias,
        quantizable=False,
        replicated_shards=repeated,
        dtype=dtype,
    )


def out_projection(
    name: str, layer: int, inner: int, hidden: int, *, bias: bool = False, quantizable: bool = True
) -> Linear:
    return Linear(
        name=name,
        placement=layer,
        input_size=inner,
        output_sizes=(hidden,),
        parallelism="row",
        bias=bias,
        quantizable=quantizable,
    )


def sharded(name: str, layer: int, size: int, *, dtype: DType | None = None) -> Parameter:
    return Parameter(name=name, placement=layer, shape=(size,), shard_dim=0, dtype=dtype)
