"""Llama, Mistral, Qwen2, Qwen3 and the decoders that share their shape.

Source: vLLM 0.26.0 model_executor/models/llama.py, qwen2.py, qwen3.py, mistral.py.
"""

from __future__ import annotations

from planner.model.architectures.blocks import (
    Architecture,
    embedding,
    gated_mlp,
    lm_head,
    norm,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.config_view import ConfigView
from planner.model.modules import AttentionKind, Module
from planner.model.rope import rope_parameters


def llama(config: ConfigView, prefix: str = "") -> Architecture:
    """LlamaForCausalLM: biases by attention_bias / bias, mlp_bias (llama.py:228)."""
    config.require("hidden_act", ("silu",), "silu")
    bias = config.flag("attention_bias") or config.flag("bias")
    qkv_bias = config.flag("qkv_bias") if config.stated("qkv_bias") else bias
    return decoder(config, prefix, qkv_bias=qkv_bias, out_bias=bias, mlp_bias=config.flag("mlp_bias"))


def qwen2(config: ConfigView, prefix: str = "") -> Architecture:
    """Qwen2ForCausalLM: q, k and v always have a bias (qwen2.py:151); head size is hidden / heads."""
    config.require("hidden_act", ("silu",), "silu")
    heads = config.size("hidden_size") // config.size("num_attention_heads")
    return decoder(config, prefix, qkv_bias=True, head_size=heads)


def qwen3(config: ConfigView, prefix: str = "") -> Architecture:
    """Qwen3ForCausalLM: per-head q and k norms, bias by attention_bias (qwen3.py)."""
    config.require("hidden_act", ("silu",), "silu")
    return decoder(config, prefix, qkv_bias=config.flag("attention_bias"), qk_norm=True)


def decoder(
    config: ConfigView, prefix: str = "", *, qkv_bias: bool = False, out_bias: bool = False, mlp_bias: bool = False,
    qk_norm: bool = False, head_size: int | None = None,
) -> Architecture:
    """A pre-norm decoder with gated MLP. `prefix` is "language_model." inside a multimodal model."""
    heads = read_heads(config, head_size)
    dims = text_dims(config, heads)
    base = f"{prefix}model"
    rope = rope_parameters(config)
    modules: list[Module] = [embedding(f"{base}.embed_tokens", dims.vocab_size, dims.hidden_size)]
    for layer in range(dims.num_hidden_layers):
        kind, window = layer_window(config, layer)
        at = f"{base}.layers.{layer}"
        modules += self_attention(
            f"{at}.self_attn", layer, heads, qkv_bias=qkv_bias, out_bias=out_bias, rope=rope,
            max_position=dims.max_position_embeddings, qk_norm=qk_norm, kind=kind, window=window,
        )
        modules += gated_mlp(f"{at}.mlp", layer, dims.hidden_size, dims.intermediate_size, bias=mlp_bias)
        modules += norm(f"{at}.input_layernorm", dims.hidden_size, layer)
        modules += norm(f"{at}.post_attention_layernorm", dims.hidden_size, layer)
    modules += norm(f"{base}.norm", dims.hidden_size, "last")
    tied = config.flag("tie_word_embeddings")
    modules.append(lm_head(f"{prefix}lm_head", dims.vocab_size, dims.hidden_size, tied_to=f"{base}.embed_tokens" if tied else None))
    return Architecture(modules=tuple(modules), text=dims, tie_word_embeddings=tied)


def layer_window(config: ConfigView, layer: int) -> tuple[AttentionKind, int | None]:
    """Sliding or full attention of a layer, from layer_types where the config has them (llama.py:181)."""
    types = config.raw("layer_types")
    if isinstance(types, list) and layer < len(types) and types[layer] == "sliding_attention":
        return "sliding_window", config.size("sliding_window")
    return "full_attention", None
