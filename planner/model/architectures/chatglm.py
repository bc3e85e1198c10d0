"""ChatGLM 2 and 3, and GLM-4 in its first form.

Source: vLLM 0.26.0 model_executor/models/chatglm.py, transformers_utils/configs/chatglm.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.assemble import Names, assemble
from planner.model.architectures.blocks import Architecture, Heads, gated_mlp, self_attention
from planner.model.config_view import ConfigView
from planner.model.modules import Module
from planner.model.spec import TextDims
from planner.values import Rejected, reject


def chatglm(config: ConfigView, prefix: str = "") -> Architecture:
    """ChatGLMModel: biases by add_bias_linear / add_qkv_bias, half of each head rotated (chatglm.py:47).

    Raises: Rejected for a config with a vision part, which has a class of its own.
    """
    if "vision_config" in config.data:
        raise _vision_config()
    heads, dims = _chatglm_sizes(config)
    bias = config.flag("add_bias_linear")
    rope = {
        "rope_type": "default",
        "rope_theta": 10000 * config.number("rope_ratio", 1.0),
        "partial_rotary_factor": 0.5,
    }
    names = Names(
        model="transformer",
        embed="embedding",
        layers="encoder.layers",
        attention="self_attention",
        final_norm="encoder.final_layernorm" if config.flag("post_layer_norm", True) else "",
        head=".output_layer",
    )

    def attention(at: str, layer: int) -> list[Module]:
        return self_attention(
            at,
            layer,
            heads,
            qkv_bias=bias or config.flag("add_qkv_bias"),
            out_bias=bias,
            rope=rope,
            max_position=config.size("seq_length", 8192),
            qkv_name="query_key_value",
            out_name="dense",
            interleaved=not config.flag("original_rope"),
            shard_names=("query_key_value",),
        )

    def feed_forward(at: str, layer: int) -> list[Module]:
        up, down = gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size, bias=bias)
        return [
            replace(up, name=f"{at}.dense_h_to_4h", shard_names=("dense_h_to_4h",)),
            replace(down, name=f"{at}.dense_4h_to_h"),
        ]

    return assemble(
        dims,
        prefix=prefix,
        names=names,
        every_stage=True,
        norm_bias=not config.flag("rmsnorm", True),
        attention=attention,
        feed_forward=feed_forward,
        tied=config.flag("tie_word_embeddings"),
        fused={"query_key_value": ("query_key_value",), "dense_h_to_4h": ("dense_h_to_4h",)},
    )


def _chatglm_sizes(config: ConfigView) -> tuple[Heads, TextDims]:
    hidden, count = config.size("hidden_size"), config.size("num_attention_heads")
    kv_heads = config.size("multi_query_group_num", 1) if config.flag("multi_query_attention") else count
    heads = Heads(hidden_size=hidden, num_heads=count, num_kv_heads=kv_heads, head_size=hidden // count)
    dims = TextDims(
        hidden_size=hidden,
        num_hidden_layers=config.layers("num_layers", aliases=("num_hidden_layers",)),
        vocab_size=config.size("padded_vocab_size", 65024),
        num_attention_heads=count,
        num_kv_heads=kv_heads,
        head_size=hidden // count,
        intermediate_size=config.size("ffn_hidden_size", 13696),
        max_position_embeddings=config.size("seq_length", 2048),
    )
    return heads, dims


def _vision_config() -> Rejected:
    overrides = '{"architectures": ["GLM4VForCausalLM"]}'
    return reject(
        "flag",
        "The configuration of this model indicates that it supports vision inputs, but you instantiated the text-only "
        f"version of this model. Please use the vision model by setting `--hf-overrides '{overrides}'`",
    )
