"""Intern-S1-Pro: Qwen3-VL's tower, a sparse Qwen3 decoder whose positions are Fourier series with weights.

Source: vLLM 0.26.0 model_executor/models/interns1_pro.py, layers/rotary_embedding/fope.py.
"""

from __future__ import annotations

from math import pi

from msgspec.structs import replace

from planner.errors import InputError
from planner.model.architectures.blocks import Architecture
from planner.model.architectures.moe import qwen3_moe
from planner.model.architectures.qwen_vl import QWEN3_PREFIXES, qwen3_spec, qwen3_vision_tower
from planner.model.architectures.vision_blocks import multimodal, text_view
from planner.model.config_view import ConfigView
from planner.model.modules import Buffer, Linear, Module, Parameter, QKVLinear

_KEYS = ("fope_init_factor", "fope_sep_head", "num_inv_freq")


def interns1_pro(config: ConfigView) -> Architecture:
    """InternS1ProForConditionalGeneration: neither the tower nor the gates are quantized."""
    section = text_view(config, "qwen3_moe")
    text = qwen3_moe(section, "language_model.")
    given = config.section("vision_config")
    vision = ConfigView({"deepstack_visual_indexes": [], **given.data}, given.where, None, config.files)
    decoder = [_plain(part) for part in text.modules if not isinstance(part, Buffer)]
    table = _fourier(section, text)
    tower = [_plain(part, all_linears=True) for part in qwen3_vision_tower(vision)]
    spec = qwen3_spec(config, vision, "Qwen3VL")
    whole = replace(text, modules=(*decoder, *table))
    return multimodal(whole, tower, vision=spec, prefixes=QWEN3_PREFIXES, encoder_data=True)


def _plain(part: Module, *, all_linears: bool = False) -> Module:
    unquantized = isinstance(part, Linear | QKVLinear) and (all_linears or part.name.endswith(".mlp.gate"))
    return replace(part, quantizable=False) if unquantized else part


def _fourier(config: ConfigView, text: Architecture) -> list[Module]:
    """One table that all layers share: for each KV head of a rank a matrix over the frequencies, twice, and the cosines
    and sines of every position."""
    scaling = config.section("rope_scaling" if config.data.get("rope_scaling") else "rope_parameters")
    if all(scaling.raw(key) is None for key in _KEYS):
        raise InputError(f"{config.where}: should use FOPE for InternS1Pro model")
    if not scaling.flag("fope_sep_head"):
        raise InputError(f"{config.where}: fope_sep_head must be true for a table of each head")
    head, heads, rows = text.text.head_size, text.text.num_kv_heads, text.text.max_position_embeddings
    count = scaling.optional_size("num_inv_freq")
    theta = scaling.number("rope_theta", config.number("rope_theta", 10000.0))
    frequencies = [theta ** (-index / head) for index in range(0, head, 2)]
    kept = len(frequencies[:count]) if count else sum(one > 2.0 * pi / rows for one in frequencies)
    at = "language_model.model.layers.0.self_attn.rotary_emb"
    return [
        Buffer(name=f"{at}.inv_freq", shape=(kept,), dtype="float32"),
        *(
            Parameter(name=f"{at}.{name}", shape=(heads, kept, kept), shard_dim=0, replicate_when_short=True)
            for name in ("cos_coef", "sin_coef")
        ),
        Buffer(name=f"{at}.cos_sin_cache", shape=(rows, heads, 2 * head), shard_dim=1),
    ]
