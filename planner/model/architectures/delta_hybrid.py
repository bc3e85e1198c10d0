"""Kimi Linear and OLMo Hybrid: other gated delta nets, beside latent or plain attention.

Source: vLLM 0.26.0 model_executor/models/{kimi_linear,olmo_hybrid}.py, layers/mamba/gdn/{kimi,olmo}_gdn_linear_attn.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.assemble import assemble
from planner.model.architectures.blocks import LLAMA_FUSED, Architecture, Heads, gated_mlp, norm, read_heads, text_dims
from planner.model.architectures.experts import MIXTRAL_SHARDS, experts, router
from planner.model.architectures.mixers import DeltaNet, convolution, delta_net_state, out_projection, sharded
from planner.model.architectures.mla import latent_attention, latent_dims, read_latent
from planner.model.config_view import ConfigView
from planner.model.modules import (
    Attention,
    Linear,
    LMHead,
    Module,
    PackedNames,
    Parameter,
    QKVLinear,
    State,
    StateSpace,
    VocabEmbedding,
)
from planner.model.rope import rope_parameters, rotary_cache
from planner.values import DTYPE_BYTES, DType


def kimi_linear(config: ConfigView) -> Architecture:
    """KimiLinearForCausalLM: Kimi delta attention, latent attention without positions, experts (kimi_linear.py)."""
    config.require("hidden_act", ("silu",), "silu")
    config.require("mla_use_nope", (True,))
    config.require("q_lora_rank", (None,))
    sizes = read_latent(config)
    dims = latent_dims(config, sizes)
    linear = config.section("linear_attn_config")
    recurrent = set(linear.sizes("kda_layers", ()))
    count = config.count("num_experts", 0)

    def attention(at: str, layer: int) -> list[Module]:
        if layer + 1 in recurrent:
            return _kimi_delta(at, layer, dims.hidden_size, linear)
        return latent_attention(at, layer, sizes, None, 0)

    def feed_forward(at: str, layer: int) -> list[Module]:
        sparse = layer >= config.count("first_k_dense_replace", 0) and layer % config.size("moe_layer_freq", 1) == 0
        if not count or not sparse:
            return gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size)
        return _kimi_experts(f"{at.rpartition('.')[0]}.block_sparse_moe", layer, config)

    built = assemble(
        dims,
        attention=attention,
        feed_forward=feed_forward,
        tied=False,
        fused={},
        num_experts=count,
        use_mla=True,
    )
    return replace(built, is_hybrid=True)


def _kimi_delta(at: str, layer: int, hidden: int, config: ConfigView) -> list[Module]:
    """KimiGatedDeltaNetAttention: three float32 convolutions and low-rank gates (kimi_gdn_linear_attn.py:96)."""
    heads, size, kernel = config.size("num_heads"), config.size("head_dim"), config.size("short_conv_kernel_size")
    inner = heads * size

    def projection(name: str, inputs: int, outputs: int, *, whole: bool = False) -> Linear:
        return Linear(
            name=f"{at}.{name}",
            placement=layer,
            input_size=inputs,
            output_sizes=(outputs,),
            parallelism="replicated" if whole else "column",
        )

    state = StateSpace(
        name=at,
        placement=layer,
        kind="gated_delta_net",
        states=(
            State(role="conv", shape=(kernel - 1, 3 * inner), shard_dim=1),
            State(role="ssm", shape=(heads, size, size), shard_dim=0, dtype="float32"),
        ),
        num_heads=heads,
    )
    return [
        state,
        *(projection(f"{name}_proj", hidden, inner) for name in "qkv"),
        projection("f_a_proj", hidden, size, whole=True),
        projection("f_b_proj", size, inner),
        sharded(f"{at}.dt_bias", layer, inner, dtype="float32"),
        projection("b_proj", hidden, heads),
        *(convolution(f"{at}.{name}_conv1d", layer, kernel, (inner,), dtype="float32") for name in "qkv"),
        Parameter(name=f"{at}.A_log", placement=layer, shape=(1, 1, heads, 1), shard_dim=2, dtype="float32"),
        projection("g_a_proj", hidden, size, whole=True),
        projection("g_b_proj", size, inner),
        *norm(f"{at}.o_norm", size, layer),
        out_projection(f"{at}.o_proj", layer, inner, hidden),
    ]


def _kimi_experts(at: str, layer: int, config: ConfigView) -> list[Module]:
    """KimiMoE: the correction bias has the model's dtype (kimi_linear.py:135)."""
    hidden, count, inner = config.size("hidden_size"), config.size("num_experts"), config.size("moe_intermediate_size")
    shared = config.count("num_shared_experts", 0)
    return [
        router(f"{at}.gate", layer, hidden, count),
        Parameter(name=f"{at}.gate.e_score_correction_bias", placement=layer, shape=(count,)),
        *(gated_mlp(f"{at}.shared_experts", layer, hidden, inner * shared) if shared else []),
        experts(
            at,
            layer,
            count=count,
            top_k=config.size("num_experts_per_token"),
            hidden=hidden,
            inner=inner,
            shard_names=MIXTRAL_SHARDS,
        ),
    ]


def olmo_hybrid(config: ConfigView) -> Architecture:
    """OlmoHybridForCausalLM: everything but the layers is built on each pipeline stage (olmo_hybrid.py:300)."""
    heads = read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))
    dims = text_dims(config, heads)
    hidden, net, rope = dims.hidden_size, _olmo_net(config), _olmo_rope(config)
    embed, tied = "model.embed_tokens", config.flag("tie_word_embeddings")
    modules: list[Module] = [
        VocabEmbedding(name=embed, num_embeddings=dims.vocab_size, hidden_size=hidden, quantizable=False)
    ]
    for layer, recurrent in enumerate(_olmo_layers(config)):
        at = f"model.layers.{layer}"
        if recurrent:
            modules += _olmo_delta(f"{at}.linear_attn", layer, net, _stated_dtype(config))
            norms = ("input_layernorm", "post_attention_layernorm")
        else:
            modules += _olmo_attention(f"{at}.self_attn", layer, heads, rope, dims.max_position_embeddings)
            norms = ("post_attention_layernorm", "post_feedforward_layernorm")
        for name in norms:
            modules += norm(f"{at}.{name}", hidden, layer)
        modules += gated_mlp(f"{at}.mlp", layer, hidden, dims.intermediate_size)
    modules += norm("model.norm", hidden, "every")
    modules.append(
        LMHead(
            name="lm_head",
            placement="every",
            num_embeddings=dims.vocab_size,
            hidden_size=hidden,
            tied_to=embed if tied else None,
        )
    )
    return Architecture(
        modules=tuple(modules),
        text=dims,
        names=PackedNames(fused={**LLAMA_FUSED, "in_proj_qkvg": ("q_proj", "k_proj", "v_proj", "g_proj")}),
        tie_word_embeddings=tied,
        is_hybrid=True,
    )


def _olmo_layers(config: ConfigView) -> list[bool]:
    """Whether each layer is recurrent: layer_types, else all but each fourth (configs/olmo_hybrid.py)."""
    count = config.layers()
    types = config.strings("layer_types")
    if types:
        if len(types) != count or not set(types) <= {"linear_attention", "full_attention"}:
            raise InputError(
                f"{config.where}: layer_types must name linear_attention or full_attention for {count} layers"
            )
        return [kind == "linear_attention" for kind in types]
    found = [layer % 4 != 3 for layer in range(count)]
    return found if not all(found) else [*found[:-1], False]


def _olmo_net(config: ConfigView) -> DeltaNet:
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    key_heads = config.optional_size("linear_num_key_heads") or heads
    key_size = config.optional_size("linear_key_head_dim") or int(0.75 * hidden / key_heads)
    return DeltaNet(
        hidden_size=hidden,
        num_key_heads=key_heads,
        num_value_heads=config.optional_size("linear_num_value_heads") or heads,
        key_head_size=key_size,
        value_head_size=config.optional_size("linear_value_head_dim") or 2 * key_size,
        kernel=config.size("linear_conv_kernel_dim"),
    )


def _olmo_rope(config: ConfigView) -> Mapping[str, Any] | None:
    """None where the file has no positions: vLLM's own config class has no default for them."""
    stated = any(config.data.get(key) is not None for key in ("rope_parameters", "rope_scaling", "rope_theta"))
    parameters = rope_parameters(config) if stated else {}
    return parameters if parameters.get("rope_theta") is not None else None


def _stated_dtype(config: ConfigView) -> DType | None:
    """The checkpoint's dtype, in which the gated norm stays whatever dtype is served (olmo_gdn_linear_attn.py:256)."""
    named = str(config.raw("dtype") or config.raw("torch_dtype") or "").removeprefix("torch.")
    return cast(DType, named) if named in DTYPE_BYTES else None


def _olmo_delta(at: str, layer: int, sizes: DeltaNet, norm_dtype: DType | None) -> list[Module]:
    """OlmoHybridGatedDeltaNetAttention: beta and alpha stay apart, A_log has the model's dtype."""
    heads, hidden = sizes.num_value_heads, sizes.hidden_size

    def column(name: str, *outputs: int) -> Linear:
        return Linear(
            name=f"{at}.{name}", placement=layer, input_size=hidden, output_sizes=outputs, parallelism="column"
        )

    return [
        delta_net_state(at, layer, sizes),
        column("in_proj_qkvg", sizes.key_size, sizes.key_size, sizes.value_size, sizes.value_size),
        column("b_proj", heads),
        column("a_proj", heads),
        convolution(f"{at}.conv1d", layer, sizes.kernel, (2 * sizes.key_size + sizes.value_size,)),
        sharded(f"{at}.dt_bias", layer, heads),
        sharded(f"{at}.A_log", layer, heads),
        *norm(f"{at}.o_norm", sizes.value_head_size, layer, dtype=norm_dtype),
        out_projection(f"{at}.o_proj", layer, sizes.value_size, hidden),
    ]


def _olmo_attention(at: str, layer: int, heads: Heads, rope: Mapping[str, Any] | None, position: int) -> list[Module]:
    """q and k norms span all heads, whole on each rank (olmo_hybrid.py:100)."""
    size, hidden = heads.head_size, heads.hidden_size
    parts: list[Module] = [
        QKVLinear(
            name=f"{at}.qkv_proj",
            placement=layer,
            hidden_size=hidden,
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=size,
        ),
        *norm(f"{at}.k_norm", heads.num_kv_heads * size, layer),
        *norm(f"{at}.q_norm", hidden, layer),
        Attention(
            name=f"{at}.attn",
            placement=layer,
            kind="full_attention",
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=size,
            has_rope=rope is not None,
        ),
    ]
    if rope is not None:
        parts.append(rotary_cache(f"{at}.rotary_emb", size, position, rope, placement=layer))
    return [*parts, out_projection(f"{at}.o_proj", layer, heads.num_heads * size, hidden)]
