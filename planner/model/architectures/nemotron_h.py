"""Nemotron-H and Nemotron 3: each layer is one of Mamba-2, attention, MLP or experts in a latent space.

Source: vLLM 0.26.0 model_executor/models/nemotron_h.py; the keys are those of transformers 5.14.1 NemotronHConfig.
"""

from __future__ import annotations

from planner.errors import InputError, UnsupportedError
from planner.model.architectures.blocks import (
    Architecture,
    Heads,
    norm,
    plain_mlp,
    read_heads,
    self_attention,
    text_dims,
)
from planner.model.architectures.experts import correction_bias
from planner.model.architectures.mixers import Mamba2, mamba2_mixer
from planner.model.architectures.mla import whole_in_sequence_parallel
from planner.model.architectures.moe import QKV_FUSED
from planner.model.config_view import ConfigView
from planner.model.modules import FusedMoE, Linear, LMHead, Module, PackedNames, VocabEmbedding

_BY_LETTER = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
_BY_NAME = {"linear_attention": "mamba", "mamba": "mamba", "full_attention": "attention", "attention": "attention",
            "moe": "moe", "mlp": "mlp"}  # fmt: skip
_UP_DOWN = ("up_proj", "down_proj")


def nemotron_h(config: ConfigView, prefix: str = "") -> Architecture:
    """NemotronHForCausalLM: embedding, final norm and an untied head on each pipeline stage (nemotron_h.py:530)."""
    if config.raw("block_configs") is not None:
        raise UnsupportedError("block_configs", f"{config.where}: layers of different sizes are not supported")
    config.require("mlp_hidden_act", ("relu2",), "relu2")
    kinds = _layer_kinds(config)
    heads = read_heads(config)
    hidden = heads.hidden_size
    counted = ConfigView({**config.data, "num_hidden_layers": len(kinds)}, config.where, config.model_type)
    dims = text_dims(counted, heads, max(_widths(config)))
    modules: list[Module] = [
        VocabEmbedding(
            name=f"{prefix}model.embed_tokens",
            num_embeddings=dims.vocab_size,
            hidden_size=hidden,
            quantizable=False,
        )
    ]
    mixer = _mamba(config)
    for layer, kind in enumerate(kinds):
        at = f"{prefix}model.layers.{layer}.mixer"
        if kind == "mamba":
            modules += mamba2_mixer(at, layer, mixer)
        elif kind == "attention":
            modules += _attention(at, layer, heads, config)
        elif kind == "mlp":
            width = _width(config, kinds[: layer + 1].count("mlp") - 1)
            modules += plain_mlp(at, layer, hidden, width, names=_UP_DOWN, bias=config.flag("mlp_bias"))
        else:
            modules += _experts(at, layer, config)
        modules += norm(f"{prefix}model.layers.{layer}.norm", hidden, layer)
    modules += norm(f"{prefix}model.norm_f", hidden, "every")
    modules.append(
        LMHead(name=f"{prefix}lm_head", placement="every", num_embeddings=dims.vocab_size, hidden_size=hidden)
    )
    sparse = "moe" in kinds
    return Architecture(
        modules=tuple(modules),
        text=dims,
        names=PackedNames(
            fused={**QKV_FUSED}, prefixes=(("backbone", "model"), ("model.embeddings", "model.embed_tokens"))
        ),
        is_moe=sparse,
        is_hybrid=True,
        num_experts=config.size("n_routed_experts") if sparse else 0,
    )


def _layer_kinds(config: ConfigView) -> list[str]:
    """layers_block_type, else the letters of hybrid_override_pattern; num_hidden_layers is not asked."""
    pattern = config.raw("hybrid_override_pattern")
    if config.stated("layers_block_type") or pattern is None:
        names = list(config.strings("layers_block_type"))
        found = [_BY_NAME.get(name) for name in names]
    else:
        names = list(str(pattern))
        found = [_BY_LETTER.get(letter) for letter in names]
    kinds = [kind for kind in found if kind is not None]
    if not kinds or len(kinds) != len(found):
        unknown = next((name for name, kind in zip(names, found, strict=True) if kind is None), "")
        raise InputError(f"{config.where}: {unknown!r} is no kind of layer that a Nemotron-H model has")
    return kinds


def _mamba(config: ConfigView) -> Mamba2:
    """Older files have the sizes under mamba_ names, which win."""
    heads, head_size = config.size("mamba_num_heads"), config.size("mamba_head_dim")
    old_bias = config.raw("mamba_conv_bias")
    return Mamba2(
        hidden_size=config.size("hidden_size"),
        inner_size=heads * head_size,
        num_heads=heads,
        head_size=head_size,
        num_groups=config.optional_size("mamba_n_groups") or config.size("n_groups"),
        state_size=config.size("ssm_state_size"),
        kernel=config.optional_size("mamba_d_conv") or config.size("conv_kernel"),
        conv_bias=config.flag("use_conv_bias") if old_bias is None else config.flag("mamba_conv_bias"),
        bias=config.flag("use_bias"),
        chunk_size=config.optional_size("mamba_chunk_size") or config.size("chunk_size"),
    )


def _attention(at: str, layer: int, heads: Heads, config: ConfigView) -> list[Module]:
    """Without biases and positions, whatever the config says; windowed where it has a window (nemotron_h.py:425)."""
    window = config.optional_size("sliding_window")
    return self_attention(
        at, layer, heads, kind="full_attention" if window is None else "sliding_window", window=window
    )


def _widths(config: ConfigView) -> tuple[int, ...]:
    value = config.raw("intermediate_size")
    return config.sizes("intermediate_size") if isinstance(value, list) else (config.size("intermediate_size"),)


def _width(config: ConfigView, index: int) -> int:
    """Width of the index-th MLP layer: one for all, or one each."""
    widths = _widths(config)
    if len(widths) > 1 and index >= len(widths):
        raise InputError(f"{config.where}: intermediate_size has {len(widths)} entries, none for MLP {index}")
    return widths[index] if len(widths) > 1 else widths[0]


def _experts(at: str, layer: int, config: ConfigView) -> list[Module]:
    """NemotronHMoE: experts without a gate projection, in moe_latent_size where the config has it; the shared expert
    stays in the model's width (nemotron_h.py:112)."""
    hidden, count, bias = config.size("hidden_size"), config.size("n_routed_experts"), config.flag("mlp_bias")
    latent, shared = config.optional_size("moe_latent_size"), config.count("n_shared_experts", 0)
    parts: list[Module] = [
        Linear(
            name=f"{at}.gate",
            placement=layer,
            input_size=hidden,
            output_sizes=(count,),
            quantizable=False,
            float32_gate=True,
        ),
        correction_bias(f"{at}.gate.e_score_correction_bias", layer, count),
    ]
    if shared:
        width = config.size("moe_shared_expert_intermediate_size") * shared
        expert = plain_mlp(f"{at}.shared_experts", layer, hidden, width, names=_UP_DOWN, bias=False)
        parts += whole_in_sequence_parallel(expert)
    if latent is not None:
        parts += [
            Linear(name=f"{at}.{name}", placement=layer, input_size=inputs, output_sizes=(outputs,), bias=bias)
            for name, inputs, outputs in (("fc1_latent_proj", hidden, latent), ("fc2_latent_proj", latent, hidden))
        ]
    parts.append(
        FusedMoE(
            name=f"{at}.experts",
            placement=layer,
            num_experts=count,
            top_k=config.size("num_experts_per_tok"),
            hidden_size=latent or hidden,
            intermediate_size=config.size("moe_intermediate_size"),
            gated=False,
            shard_names=(*_UP_DOWN, ""),
            activation="relu2_no_mul",
        )
    )
    return parts
