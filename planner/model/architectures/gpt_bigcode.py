"""StarCoder's GPT-BigCode through transformers' own class, which has no plan of what tensor parallelism divides.

Source: vLLM 0.26.0 model_executor/models/registry.py _TRANSFORMERS_SUPPORTED_MODELS, models/transformers/base.py:437;
transformers 5.14.1 models/gpt_bigcode/modeling_gpt_bigcode.py.
"""

from __future__ import annotations

from typing import Literal

from planner.errors import UnsupportedError
from planner.model.architectures.assemble import Names, assemble
from planner.model.architectures.blocks import Architecture, Heads
from planner.model.config_view import ConfigView
from planner.model.modules import Attention, Buffer, Linear, Module, Parameter, QKVLinear
from planner.model.spec import TextDims


def gpt_bigcode(config: ConfigView) -> Architecture:
    """GPTBigCodeForCausalLM: each rank has every layer whole; only the embedding and the caches are divided. A mask of
    all positions against all is a buffer on each stage."""
    if config.flag("add_cross_attention"):
        raise UnsupportedError("add_cross_attention", f"{config.where}: cross attention is not supported")
    hidden, count = config.size("n_embd"), config.size("n_head")
    inner = config.optional_size("n_inner") or 4 * hidden
    heads = Heads(
        hidden_size=hidden,
        num_heads=count,
        num_kv_heads=1 if config.flag("multi_query", True) else count,
        head_size=hidden // count,
    )
    positions = config.size("n_positions")
    dims = TextDims(
        hidden_size=hidden,
        num_hidden_layers=config.layers("n_layer"),
        vocab_size=config.size("vocab_size"),
        num_attention_heads=count,
        num_kv_heads=heads.num_kv_heads,
        head_size=heads.head_size,
        intermediate_size=inner,
        max_position_embeddings=positions,
    )

    def feed_forward(at: str, layer: int) -> list[Module]:
        return [_whole(f"{at}.c_fc", layer, hidden, inner, "column"), _whole(f"{at}.c_proj", layer, inner, hidden)]

    return assemble(
        dims,
        names=Names(embed="wte", layers="h", attention="attn", mlp="mlp", norms=("ln_1", "ln_2"), final_norm="ln_f"),
        norm_bias=True,
        tied=config.flag("tie_word_embeddings", True),
        attention=lambda at, layer: _attention(at, layer, heads),
        feed_forward=feed_forward,
        fused={},
        extra=(
            Parameter(name="model.wpe.weight", shape=(positions, hidden)),
            Buffer(name="model.bias", shape=(positions, positions), dtype="bool"),
        ),
    )


def _attention(at: str, layer: int, heads: Heads) -> list[Module]:
    return [
        QKVLinear(
            name=f"{at}.c_attn",
            placement=layer,
            hidden_size=heads.hidden_size,
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=heads.head_size,
            bias=True,
            shard_names=("c_attn",),
            tensor_parallel=False,
        ),
        _whole(f"{at}.c_proj", layer, heads.hidden_size, heads.hidden_size),
        Attention(
            name=f"{at}.attn",
            placement=layer,
            kind="full_attention",
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=heads.head_size,
            has_rope=False,
            registered=False,
        ),
    ]


def _whole(name: str, layer: int, inputs: int, outputs: int, parallelism: Literal["column", "row"] = "row") -> Linear:
    return Linear(
        name=name,
        placement=layer,
        input_size=inputs,
        output_sizes=(outputs,),
        parallelism=parallelism,
        bias=True,
        tensor_parallel=False,
    )
