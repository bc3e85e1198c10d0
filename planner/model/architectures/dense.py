"""Dense decoders with fused attention and a gated MLP whose names, norms or biases differ from Llama's.

Source: vLLM 0.26.0 model_executor/models/{glm4,granite,exaone,exaone4,olmo3,stablelm,seed_oss,solar,orion,
minicpm,internlm2,telechat2,commandr}.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from planner.model.architectures.assemble import LLAMA_NAMES, Names, Windows, alternate, assemble
from planner.model.architectures.blocks import (
    LLAMA_FUSED,
    Architecture,
    gated_mlp,
    norm,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.llama import decoder
from planner.model.config_view import ConfigView
from planner.model.modules import Linear, Module, Parameter
from planner.model.rope import rope_parameters

POST_NORMS = replace(LLAMA_NAMES, norms=("post_attention_layernorm", "post_feedforward_layernorm"))


def attention_bias(config: ConfigView) -> bool:
    """One bias switch for the whole attention, under either of its names."""
    return config.flag("attention_bias") or config.flag("bias")


def granite(config: ConfigView, prefix: str = "") -> Architecture:
    """GraniteForCausalLM, SolarForCausalLM (granite.py:186, solar.py:185). Windows are the model's, not a layer's."""
    config.require("hidden_act", ("silu",), "silu")
    bias = attention_bias(config)
    return decoder(config, prefix, qkv_bias=bias, out_bias=bias, mlp_bias=config.flag("mlp_bias"), per_layer=False)


def hyperclovax(config: ConfigView, prefix: str = "") -> Architecture:
    """HyperCLOVAXForCausalLM: Granite with two more norms a layer where use_post_norm says so (hyperclovax.py:196)."""
    config.require("hidden_act", ("silu",), "silu")
    bias, post = config.flag("attention_bias"), config.flag("use_post_norm")
    return decoder(
        config,
        prefix,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.flag("mlp_bias"),
        per_layer=False,
        names=replace(LLAMA_NAMES, norms=(*LLAMA_NAMES.norms, "post_norm1", "post_norm2")) if post else LLAMA_NAMES,
    )


def seed_oss(config: ConfigView, prefix: str = "") -> Architecture:
    """SeedOssForCausalLM: q, k and v always have a bias (seed_oss.py:154)."""
    return decoder(config, prefix, qkv_bias=True, head_size=config.size("head_dim"), per_layer=False)


def glm4(config: ConfigView, prefix: str = "") -> Architecture:
    """Glm4ForCausalLM: four norms a layer, half of each head rotated unless the config says otherwise (glm4.py:93)."""
    names = replace(LLAMA_NAMES, norms=(*LLAMA_NAMES.norms, "post_self_attn_layernorm", "post_mlp_layernorm"))
    rope = {"partial_rotary_factor": 0.5} | rope_parameters(config)
    return decoder(
        config,
        prefix,
        qkv_bias=config.flag("attention_bias"),
        rope=rope,
        interleaved=True,
        names=names,
        per_layer=False,
    )


def exaone4(config: ConfigView, prefix: str = "") -> Architecture:
    """Exaone4ForCausalLM: norms after the parts, q and k norms, windows by layer type (exaone4.py:108)."""
    bias = attention_bias(config)
    layers = config.layers()
    period = config.explicit("sliding_window_pattern") if config.explicit("sliding_window") is not None else 0
    types = alternate(layers, period) if isinstance(period, int) else None
    if types and period:
        types[-1] = "full_attention"
    return decoder(
        config,
        prefix,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.flag("mlp_bias"),
        qk_norm=True,
        types=types,
        names=POST_NORMS,
    )


def olmo3(config: ConfigView, prefix: str = "") -> Architecture:
    """Olmo3ForCausalLM: whole-width q and k norms on each rank, rotary settings by layer type (olmo3.py:74)."""
    heads = read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))
    dims = text_dims(config, heads)
    windows = Windows(config, types=alternate(dims.num_hidden_layers, 4))
    kinds = {
        "full_attention": rope_parameters(config, "full_attention"),
        "sliding_window": rope_parameters(config, "sliding_attention"),
    }

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        parts = self_attention(
            at, layer, heads, rope=kinds[kind], max_position=dims.max_position_embeddings, kind=kind, window=window
        )
        parts += norm(f"{at}.k_norm", heads.num_kv_heads * heads.head_size, layer)
        return parts + norm(f"{at}.q_norm", dims.hidden_size, layer)

    return assemble(
        dims,
        prefix=prefix,
        names=POST_NORMS,
        every_stage=True,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=lambda at, layer: gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size),
    )


def stablelm(config: ConfigView, prefix: str = "") -> Architecture:
    """StableLmForCausalLM: LayerNorm with bias, built whole on each stage (stablelm.py:94)."""
    config.require("use_parallel_residual", (False,), False)
    config.require("qk_layernorm", (False,), False)
    heads = read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))
    dims = text_dims(config, heads)
    rope = rope_parameters(config)
    return assemble(
        dims,
        prefix=prefix,
        norm_bias=True,
        every_stage=True,
        tied=config.flag("tie_word_embeddings"),
        attention=lambda at, layer: self_attention(
            at, layer, heads, qkv_bias=config.flag("use_qkv_bias"), rope=rope, max_position=dims.max_position_embeddings
        ),
        feed_forward=lambda at, layer: gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size),
    )


def orion(config: ConfigView, prefix: str = "") -> Architecture:
    """OrionForCausalLM: Llama's parts with LayerNorm, built whole on each stage (orion.py:163)."""
    heads = read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))
    dims = text_dims(config, heads)
    rope = rope_parameters(config)
    return assemble(
        dims,
        prefix=prefix,
        norm_bias=True,
        every_stage=True,
        tied=config.flag("tie_word_embeddings"),
        attention=lambda at, layer: self_attention(
            at, layer, heads, rope=rope, max_position=dims.max_position_embeddings
        ),
        feed_forward=lambda at, layer: gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size),
    )


def minicpm(config: ConfigView, prefix: str = "") -> Architecture:
    """MiniCPMForCausalLM: Llama's parts, built whole on each stage (minicpm.py:236, 400)."""
    config.require("num_experts", (0,), 0)
    head_size = config.size("hidden_size") // config.size("num_attention_heads")
    tied = config.flag("tie_word_embeddings", True)
    return decoder(config, prefix, head_size=head_size, every_stage=True, per_layer=False, tied=tied)


def internlm2(config: ConfigView, prefix: str = "") -> Architecture:
    """InternLM2ForCausalLM: its own names, built whole on each stage (internlm2.py:91, 250)."""
    config.require("hidden_act", ("silu",), "silu")
    heads = read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))
    dims = text_dims(config, heads)
    names = Names(
        embed="tok_embeddings",
        attention="attention",
        mlp="feed_forward",
        norms=("attention_norm", "ffn_norm"),
        head="output",
    )
    rope = rope_parameters(config)
    windows = Windows(config, per_layer=False)

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        return self_attention(
            at,
            layer,
            heads,
            rope=rope,
            max_position=dims.max_position_embeddings,
            qkv_name="wqkv",
            out_name="wo",
            kind=kind,
            window=window,
            shard_names=("wqkv",),
        )

    def feed_forward(at: str, layer: int) -> list[Module]:
        hidden, inner = dims.hidden_size, dims.intermediate_size
        return [
            Linear(
                name=f"{at}.gate_up_proj",
                placement=layer,
                input_size=hidden,
                output_sizes=(inner, inner),
                parallelism="column",
                shard_names=("w1", "w3"),
            ),
            Linear(name=f"{at}.w2", placement=layer, input_size=inner, output_sizes=(hidden,), parallelism="row"),
        ]

    return assemble(
        dims,
        prefix=prefix,
        names=names,
        every_stage=True,
        tied=config.flag("tie_word_embeddings"),
        attention=attention,
        feed_forward=feed_forward,
        fused={"wqkv": ("wqkv",), "gate_up_proj": ("w1", "w3")},
    )


def exaone(config: ConfigView, prefix: str = "") -> Architecture:
    """ExaoneForCausalLM: GPT-2 names around Llama's parts (exaone.py:104)."""
    heads = read_heads(config)
    dims = text_dims(config, heads)
    bias, mlp_bias = attention_bias(config), config.flag("mlp_bias")
    names = Names(
        model="model",
        embed="wte",
        layers="h",
        attention="attn.attention",
        norms=("ln_1", "ln_2"),
        final_norm="ln_f",
    )
    rope = rope_parameters(config)

    def feed_forward(at: str, layer: int) -> list[Module]:
        up, down = gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size, bias=mlp_bias)
        return [replace(up, shard_names=("c_fc_0", "c_fc_1")), replace(down, name=f"{at}.c_proj")]

    return assemble(
        dims,
        prefix=prefix,
        names=names,
        tied=config.flag("tie_word_embeddings"),
        feed_forward=feed_forward,
        attention=lambda at, layer: self_attention(
            at,
            layer,
            heads,
            qkv_bias=bias,
            out_bias=bias,
            rope=rope,
            max_position=dims.max_position_embeddings,
            out_name="out_proj",
        ),
        fused={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("c_fc_0", "c_fc_1")},
    )


def telechat2(config: ConfigView, prefix: str = "") -> Architecture:
    """TeleChat2ForCausalLM: Llama with biases on the two output projections only (telechat2.py:35)."""
    view = ConfigView(
        {
            "num_hidden_layers": config.raw("n_layer"),
            "num_attention_heads": config.raw("n_head"),
            "intermediate_size": config.raw("ffn_hidden_size"),
            **config.data,
        },
        config.where,
    )
    base = decoder(view, prefix)
    biased = tuple(
        replace(module, bias=True) if isinstance(module, Linear) and module.parallelism == "row" else module
        for module in base.modules
    )
    return replace(base, modules=biased)


def cohere(config: ConfigView, prefix: str = "") -> Architecture:
    """CohereForCausalLM, Cohere2ForCausalLM: one norm a layer, no biases, q and k norms by head (commandr.py:126)."""
    heads = read_heads(config, config.size("hidden_size") // config.size("num_attention_heads"))
    dims = text_dims(config, heads)
    config.require("tie_word_embeddings", (True,), True)
    second = config.model_type != "cohere"
    windows = Windows(
        config,
        types=alternate(dims.num_hidden_layers, config.size("sliding_window_pattern", 4)) if second else None,
        per_layer=second,
    )
    longest = config.optional_size("model_max_length") or config.size("max_position_embeddings", 8192)
    rope, qk_norm = rope_parameters(config), config.flag("use_qk_norm")

    def attention(at: str, layer: int) -> list[Module]:
        kind, window = windows.of(layer)
        parts = self_attention(
            at, layer, heads, rope=rope, max_position=longest, kind=kind, window=window, interleaved=True
        )
        if qk_norm:
            parts.append(
                Parameter(
                    name=f"{at}.q_norm.weight", placement=layer, shape=(heads.num_heads, heads.head_size), shard_dim=0
                )
            )
            parts.append(
                Parameter(
                    name=f"{at}.k_norm.weight",
                    placement=layer,
                    shape=(heads.num_kv_heads, heads.head_size),
                    shard_dim=0,
                )
            )
        return parts

    return assemble(
        dims,
        prefix=prefix,
        names=replace(LLAMA_NAMES, norms=("input_layernorm",)),
        every_stage=True,
        tied=True,
        attention=attention,
        feed_forward=lambda at, layer: gated_mlp(at, layer, dims.hidden_size, dims.intermediate_size),
        fused=LLAMA_FUSED,
    )
