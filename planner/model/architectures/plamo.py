"""PLaMo 2, Mamba-like layers beside attention, and PLaMo 3, attention of two windows.

Source: vLLM 0.26.0 model_executor/models/{plamo2,plamo3}.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.assemble import LLAMA_NAMES, SLIDING, assemble
from planner.model.architectures.blocks import (
    Architecture,
    Heads,
    gated_mlp,
    norm,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.mixers import convolution, out_projection, sharded
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Linear, LMHead, Module, Parameter, State, StateSpace
from planner.model.rope import rope_parameters

_NAMES = replace(
    LLAMA_NAMES,
    layers="layers.layers",
    attention="mixer",
    norms=("pre_mixer_norm", "post_mixer_norm", "pre_mlp_norm", "post_mlp_norm"),
)
_FUSED = {"qkv_proj": ("qkv_proj",), "gate_up_proj": ("gate_up_proj",)}
_HEAD_UNIT, _VOCABULARY_UNIT = 16, 64


def plamo2(config: ConfigView) -> Architecture:
    """Plamo2ForCausalLM: everything but the layers on each stage; the rotary table ends at --max-model-len."""
    size = config.size("hidden_size_per_head")
    heads = Heads(
        hidden_size=config.size("hidden_size"),
        num_heads=config.size("num_attention_heads"),
        num_kv_heads=config.size("num_key_value_heads"),
        head_size=size,
    )
    dims = text_dims(config, heads)
    recurrent = _recurrent_layers(config, dims.num_hidden_layers)
    rope = rope_parameters(config)

    def attention(at: str, layer: int) -> list[Module]:
        if layer in recurrent:
            return _mamba(at, layer, config)
        parts = self_attention(
            at, layer, heads, rope=rope, max_position=dims.max_position_embeddings, shard_names=("qkv_proj",)
        )
        return [
            *_within_length(parts),
            Parameter(name=f"{at}.q_norm.weight", placement=layer, shape=(heads.num_heads, size), shard_dim=0),
            Parameter(
                name=f"{at}.k_norm.weight",
                placement=layer,
                shape=(heads.num_kv_heads, size),
                shard_dim=0,
                replicate_when_short=True,
            ),
        ]

    built = assemble(
        dims,
        names=_NAMES,
        attention=attention,
        feed_forward=lambda at, layer: gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size),
        every_stage=True,
        tied=config.flag("tie_word_embeddings", True),
        head_quantizable=False,
        fused={**_FUSED, "in_proj": ("in_proj",)},
    )
    return replace(built, is_hybrid=True)


def _recurrent_layers(config: ConfigView, count: int) -> frozenset[int]:
    """All but one layer of each mamba_step; all but the last where there are few (plamo2.py:98)."""
    step = config.size("mamba_step")
    if step < 2:
        raise InputError(f"{config.where}: mamba_step must be above 1, found {step}")
    if count <= step // 2:
        return frozenset(range(count - 1))
    return frozenset(layer for layer in range(count) if layer % step != step // 2)


def _mamba(at: str, layer: int, config: ConfigView) -> list[Module]:
    """Plamo2MambaMixer: Mamba-2's recurrence, B, C and dt projected from the convolved inputs as in Mamba-1."""
    hidden, heads, size = (
        config.size("hidden_size"),
        config.size("mamba_num_heads"),
        config.size("hidden_size_per_head"),
    )
    inner, state, kernel = heads * size, config.size("mamba_d_state"), config.size("mamba_d_conv")
    rank = max(64, hidden // 16)
    return [
        StateSpace(
            name=at,
            placement=layer,
            kind="mamba2",
            states=(
                State(role="conv", shape=(kernel - 1, inner), shard_dim=1, row_per_draft=True),
                State(role="ssm", shape=(heads, size, state), shard_dim=0),
            ),
            num_heads=heads,
            chunk_size=config.size("mamba_chunk_size"),
        ),
        convolution(f"{at}.conv1d", layer, kernel, (inner,)),
        Linear(
            name=f"{at}.in_proj",
            placement=layer,
            input_size=hidden,
            output_sizes=(inner, inner),
            parallelism="column",
            shard_names=("in_proj",),
        ),
        out_projection(f"{at}.bcdt_proj", layer, inner, rank + 2 * state),
        Linear(name=f"{at}.dt_proj", placement=layer, input_size=rank, output_sizes=(heads,), parallelism="column"),
        sharded(f"{at}.A", layer, heads, dtype="float32"),
        sharded(f"{at}.D", layer, heads),
        sharded(f"{at}.dt_bias", layer, heads),
        out_projection(f"{at}.out_proj", layer, inner, hidden),
        *norm(f"{at}.dt_norm", rank, layer),
        *norm(f"{at}.B_norm", state, layer),
        *norm(f"{at}.C_norm", state, layer),
    ]


def _within_length(parts: list[Module]) -> list[Module]:
    """The rotary table ends where the served length does (plamo2.py:598, plamo3.py:181)."""
    return [replace(part, rows_by_length=True) if isinstance(part, Buffer) else part for part in parts]


def plamo3(config: ConfigView) -> Architecture:
    """Plamo3ForCausalLM: a window for each layer, a rotary table for each kind of layer, a padded head."""
    heads = read_heads(config)
    dims = text_dims(config, heads)
    windows = config.raw("interleaved_sliding_window")
    types = config.strings("layer_types") or tuple(SLIDING if window else "full_attention" for window in windows or ())
    if not isinstance(windows, list) or len(windows) != dims.num_hidden_layers or len(types) != len(windows):
        raise InputError(f"{config.where}: interleaved_sliding_window must have an entry for each layer")
    whole, local = rope_parameters(config), {"rope_type": "default", "rope_theta": config.raw("rope_local_theta")}

    def attention(at: str, layer: int) -> list[Module]:
        window, table = windows[layer], whole
        if types[layer] == SLIDING:
            table = local
        parts = self_attention(
            at,
            layer,
            heads,
            rope=table,
            max_position=dims.max_position_embeddings,
            qk_norm=True,
            shard_names=("qkv_proj",),
            kind="full_attention" if window is None else "sliding_window",
            window=window,
        )
        return _within_length(parts)

    built = assemble(
        dims,
        names=_NAMES,
        attention=attention,
        feed_forward=lambda at, layer: gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size),
        every_stage=True,
        tied=config.flag("tie_word_embeddings"),
        head_quantizable=False,
        fused=_FUSED,
    )
    rows = _padded(dims.vocab_size, _VOCABULARY_UNIT) + _padded(dims.vocab_size, _HEAD_UNIT) - dims.vocab_size
    head = built.modules[-1]
    assert isinstance(head, LMHead)
    return replace(built, modules=(*built.modules[:-1], replace(head, num_embeddings=rows)))


def _padded(rows: int, unit: int) -> int:
    """The head is asked for more rows than the vocabulary has, and pads those beside the padded vocabulary."""
    return -(-rows // unit) * unit
