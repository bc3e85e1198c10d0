"""DeciLM: Llama whose layers differ in KV heads, in MLP width, or lack a part (found by architecture search).

Source: vLLM 0.26.0 model_executor/models/nemotron_nas.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.assemble import LLAMA_NAMES, assemble
from planner.model.architectures.blocks import Architecture, Heads, gated_mlp, norm, self_attention
from planner.model.architectures.llama import llama_biases
from planner.model.config_view import ConfigView
from planner.model.modules import Module
from planner.model.rope import rope_parameters
from planner.model.spec import TextDims


def deci_lm(config: ConfigView, prefix: str = "") -> Architecture:
    """DeciLMForCausalLM: block_configs say what each layer has (nemotron_nas.py:124)."""
    blocks = _blocks(config)
    hidden, count = config.size("hidden_size"), config.size("num_attention_heads")
    head_size = config.optional_size("head_dim") or hidden // count
    position = config.size("max_position_embeddings", 8192)
    rope, (qkv_bias, out_bias), mlp_bias = rope_parameters(config), llama_biases(config), config.flag("mlp_bias")
    kv_heads = [_kv_heads(block.section("attention"), count) for block in blocks]
    widths = [_width(block.section("ffn"), hidden) for block in blocks]
    dims = TextDims(
        hidden_size=hidden,
        num_hidden_layers=len(blocks),
        vocab_size=config.size("vocab_size"),
        num_attention_heads=count,
        num_kv_heads=max((size for size in kv_heads if size), default=count),
        head_size=head_size,
        intermediate_size=max((size for size in widths if size), default=1),
        max_position_embeddings=position,
    )

    def attention(at: str, layer: int) -> list[Module]:
        kv = kv_heads[layer]
        if kv is None:
            return []
        heads = Heads(hidden_size=hidden, num_heads=count, num_kv_heads=kv, head_size=head_size)
        parts = self_attention(at, layer, heads, qkv_bias=qkv_bias, out_bias=out_bias, rope=rope, max_position=position)
        return parts + norm(f"{at.rpartition('.')[0]}.input_layernorm", hidden, layer)

    def feed_forward(at: str, layer: int) -> list[Module]:
        width = widths[layer]
        if width is None:
            return []
        parts = gated_mlp(at, layer, hidden, width, bias=mlp_bias)
        return parts + norm(f"{at.rpartition('.')[0]}.post_attention_layernorm", hidden, layer)

    return assemble(
        dims,
        prefix=prefix,
        names=replace(LLAMA_NAMES, norms=()),
        attention=attention,
        feed_forward=feed_forward,
        tied=config.flag("tie_word_embeddings"),
    )


def _blocks(config: ConfigView) -> list[ConfigView]:
    given = config.raw("block_configs")
    if not isinstance(given, list) or len(given) != config.layers():
        raise InputError(f"{config.where}: block_configs must have one entry for each of the {config.layers()} layers")
    return [ConfigView(entry, f"{config.where}: block_configs[{index}]") for index, entry in enumerate(given)]


def _kv_heads(attention: ConfigView, count: int) -> int | None:
    attention.require("replace_with_linear", (False,), False)
    if attention.flag("no_op"):
        return None
    return count // attention.size("n_heads_in_group")


def _width(ffn: ConfigView, hidden: int) -> int | None:
    """intermediate_size, or two thirds of ffn_mult times the hidden size rounded up to 256 (nemotron_nas.py:60)."""
    ffn.require("replace_with_linear", (False,), False)
    if ffn.flag("no_op"):
        return None
    if "ffn_mult" not in ffn:
        return ffn.size("intermediate_size")
    width = -(-int(2 * ffn.number("ffn_mult") * hidden / 3) // 256) * 256
    if width < 1:
        raise InputError(f"{ffn.where}: ffn_mult must be above 0, found {ffn.number('ffn_mult')}")
    return width
