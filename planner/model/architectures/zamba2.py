"""Zamba2: Mamba-2 layers, with a few shared attention blocks that take turns beside some of them.

Source: vLLM 0.26.0 model_executor/models/zamba2.py; the sizes that follow from others are those of transformers 5.14.1
Zamba2Config.
"""

from __future__ import annotations

from msgspec import Struct

from planner.errors import InputError
from planner.model.architectures.blocks import Architecture, gated_mlp, norm
from planner.model.architectures.mixers import Mamba2, mamba2_mixer
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, Linear, LMHead, Module, PackedNames, QKVLinear, VocabEmbedding
from planner.model.rope import rope_parameters, rotary_cache
from planner.model.spec import TextDims
from planner.values import reject

_LONG_CONTEXT = 16384


class _Shared(Struct, frozen=True, kw_only=True):
    """Sizes of the shared blocks. Attention sees the hidden state beside the embedding, hence twice the width.

    `turns`: for each block, the hybrid layers (counted among themselves) that it serves.
    """

    hidden_size: int
    inner_size: int
    num_heads: int
    head_size: int
    adapter_rank: int
    adapts_attention: bool
    bias: bool
    turns: tuple[range, ...]
    hybrid_layers: tuple[int, ...]

    @property
    def width(self) -> int:
        return 2 * self.hidden_size


def zamba2(config: ConfigView) -> Architecture:
    """Zamba2ForCausalLM, which does not implement SupportsPP; its head is always tied (zamba2.py:910)."""
    if config.text("hidden_act") != "gelu":
        raise reject("flag", f"Only GELU activation is supported (got `hidden_act`: {config.text('hidden_act')})")
    shared = _read_shared(config)
    hidden, inner = shared.hidden_size, config.size("mamba_expand") * shared.hidden_size
    heads = config.size("n_mamba_heads")
    mixer = Mamba2(
        hidden_size=hidden,
        inner_size=inner,
        num_heads=heads,
        head_size=inner // heads,
        num_groups=config.size("mamba_ngroups"),
        state_size=config.size("mamba_d_state"),
        kernel=config.size("mamba_d_conv"),
        conv_bias=config.flag("use_conv_bias"),
        bias=shared.bias,
        chunk_size=config.size("chunk_size"),
    )
    dims = TextDims(
        hidden_size=hidden,
        num_hidden_layers=len(_layer_types(config)),
        vocab_size=config.size("vocab_size"),
        num_attention_heads=shared.num_heads,
        num_kv_heads=shared.num_heads,
        head_size=shared.head_size,
        intermediate_size=shared.inner_size,
        max_position_embeddings=_positions(config),
    )
    modules: list[Module] = [
        VocabEmbedding(name="model.embed_tokens", num_embeddings=dims.vocab_size, hidden_size=hidden, quantizable=False)
    ]
    for block in range(len(shared.turns)):
        modules += _block(config, shared, block)
    for layer in range(dims.num_hidden_layers):
        at = f"model.layers.{layer}"
        if layer in shared.hybrid_layers:
            modules.append(Linear(name=f"{at}.linear", placement=layer, input_size=hidden, output_sizes=(hidden,)))
        modules += mamba2_mixer(f"{len(shared.hybrid_layers) + layer}.mixer", layer, mixer)
        modules += norm(f"{at}.mamba.input_layernorm", hidden, layer)
    modules += norm("model.final_layernorm", hidden, "every")
    modules.append(
        LMHead(
            name="lm_head",
            placement="every",
            num_embeddings=dims.vocab_size,
            hidden_size=hidden,
            tied_to="model.embed_tokens",
            quantizable=False,
        )
    )
    return Architecture(
        modules=tuple(modules),
        text=dims,
        names=PackedNames(),
        tie_word_embeddings=True,
        is_hybrid=True,
        supports_pp=False,
    )


def _layer_types(config: ConfigView) -> tuple[str, ...]:
    types = config.strings("layers_block_type")
    if not types or not set(types) <= {"mamba", "linear_attention", "hybrid"}:
        raise InputError(f"{config.where}: layers_block_type must name mamba or hybrid for each layer")
    return types


def _positions(config: ConfigView) -> int:
    return _LONG_CONTEXT if config.flag("use_long_context") else config.size("max_position_embeddings")


def _read_shared(config: ConfigView) -> _Shared:
    hidden, heads, blocks = (
        config.size("hidden_size"),
        config.size("num_attention_heads"),
        config.size("num_mem_blocks"),
    )
    hybrid = tuple(layer for layer, kind in enumerate(_layer_types(config)) if kind == "hybrid")
    stated = config.optional_size("intermediate_size") if config.stated("intermediate_size") else None
    return _Shared(
        hidden_size=hidden,
        inner_size=stated or 4 * hidden,
        num_heads=heads,
        head_size=2 * hidden // heads,
        adapter_rank=config.size("adapter_rank"),
        adapts_attention=config.flag("use_shared_attention_adapter"),
        bias=config.flag("add_bias_linear"),
        turns=tuple(range(block, len(hybrid), blocks) for block in range(blocks)),
        hybrid_layers=hybrid,
    )


def _block(config: ConfigView, shared: _Shared, block: int) -> list[Module]:
    """One shared block: its weights once, a cache for each layer that it serves, and low-rank adapters for each.

    It is placed with the first layer that it serves.
    """
    turns, at = shared.turns[block], f"model.blocks.{block}"
    layer = shared.hybrid_layers[turns[0]] if turns else 0
    first = block * (len(shared.hybrid_layers) + len(shared.turns) - 1) // len(shared.turns)
    parts: list[Module] = [
        QKVLinear(
            name=f"{at}.qkv_proj",
            placement=layer,
            hidden_size=shared.width,
            num_heads=shared.num_heads,
            num_kv_heads=shared.num_heads,
            head_size=shared.head_size,
        ),
        Linear(
            name=f"{at}.o_proj",
            placement=layer,
            input_size=shared.width,
            output_sizes=(shared.hidden_size,),
            parallelism="row",
        ),
    ]
    parts += [_cache(f"model.attn.{first + turn}", layer, shared, config) for turn in range(len(turns))]
    if config.flag("use_mem_rope"):
        parts.append(
            rotary_cache(
                f"{at}.rotary_emb", shared.head_size, _positions(config), rope_parameters(config), placement=layer
            )
        )
    parts += gated_mlp(f"{at}.feed_forward", layer, shared.hidden_size, shared.inner_size, bias=shared.bias)
    parts += norm(f"{at}.input_layernorm", shared.width, layer)
    parts += norm(f"{at}.pre_ff_layernorm", shared.hidden_size, layer)
    for turn in turns:
        if shared.adapts_attention:
            for name in ("q", "k", "v"):
                parts += _adapter(
                    f"{at}.linear_{name}_adapter_list.{turn}", layer, shared, (shared.width,), shared.width
                )
        gate_up = (shared.inner_size, shared.inner_size)
        parts += _adapter(f"{at}.gate_up_proj_adapter_list.{turn}", layer, shared, gate_up, shared.hidden_size)
    return parts


def _cache(name: str, layer: int, shared: _Shared, config: ConfigView) -> Attention:
    return Attention(
        name=name,
        placement=layer,
        kind="full_attention",
        num_heads=shared.num_heads,
        num_kv_heads=shared.num_heads,
        head_size=shared.head_size,
        has_rope=config.flag("use_mem_rope"),
        quantizable=False,
    )


def _adapter(at: str, layer: int, shared: _Shared, outputs: tuple[int, ...], inputs: int) -> list[Module]:
    """Zamba2LoRA: both factors are column-parallel (zamba2.py:76)."""
    return [
        Linear(
            name=f"{at}.A",
            placement=layer,
            input_size=inputs,
            output_sizes=(shared.adapter_rank,),
            parallelism="column",
        ),
        Linear(
            name=f"{at}.B",
            placement=layer,
            input_size=shared.adapter_rank,
            output_sizes=outputs,
            parallelism="column",
        ),
    ]
