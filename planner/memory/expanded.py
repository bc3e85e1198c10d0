"""Attention with projections between the first one and the cache: MiniCPM3 expands whole keys and values from a latent,
Step3 spreads one query over its heads."""

from __future__ import annotations

from collections.abc import Callable

from planner.memory.layers import DecoderLayer
from planner.memory.program import Program


def is_expanded(layer: DecoderLayer) -> bool:
    """Whether the layer projects to a latent and caches whole keys all the same, or spreads a shared query."""
    return layer.mla is None and (layer.linear("kv_a_proj_with_mqa") or layer.linear(".wq")) is not None


def write_expanded_attention(
    p: Program, layer: DecoderLayer, linear: Callable[..., int], *, item: int, hidden: int, tp: int
) -> int:
    """The handle of the block's output. The value is padded to the key's width, the output cut back before it is
    projected; every copy lives until the block returns. `item`, `hidden`: bytes of an element and of a token.

    Source: vLLM 0.26.0 models/minicpm3.py:137 forward.
    """
    if layer.linear(".wq") is not None:
        return _shared_query(p, layer, linear, item=item, hidden=hidden, tp=tp)
    attention, out = layer.attention, layer.require("o_proj")
    down, up = layer.require("kv_a_proj_with_mqa"), layer.require("kv_b_proj")
    if attention is None:
        raise layer.unsupported("attention")
    key = attention.num_heads // tp * attention.head_size * item
    rotated = attention.num_heads // tp * (sum(down.output_sizes) - up.input_size) * item
    query_latent = layer.require("q_a_proj")
    latent = linear(p, query_latent.name, "latent query", sum(query_latent.output_sizes) * item)
    normed = p.alloc("normalized latent query", token=sum(query_latent.output_sizes) * item)
    p.free(latent)
    held = [linear(p, layer.require("q_b_proj").name, "query", key)]
    p.free(normed)
    held.append(linear(p, down.name, "latent key and value", sum(down.output_sizes) * item))
    copied = p.alloc("latent, contiguous", token=up.input_size * item)
    held.append(p.alloc("normalized latent", token=up.input_size * item))
    p.free(copied)
    held.append(linear(p, up.name, "expanded keys and values", sum(up.output_sizes) // tp * item))
    held += [p.alloc("rotated query", token=rotated), p.alloc("key", token=key), p.alloc("padded value", token=key)]
    padded = p.alloc("attention output", token=key)
    output = p.alloc("attention output, cut to the value", token=out.input_size // tp * item)
    p.free(padded)
    result = linear(p, out.name, "attention block output", hidden, reduced=True)
    p.free(output, *held)
    return result


def _shared_query(
    p: Program, layer: DecoderLayer, linear: Callable[..., int], *, item: int, hidden: int, tp: int
) -> int:
    """The fused projection is whole on each rank (vLLM 0.26.0 models/step3_text.py:211 forward)."""
    fused, spread, out = layer.require(".qkv_proj"), layer.require(".wq"), layer.require("o_proj")
    held = [linear(p, fused.name, "shared query, key and value", sum(fused.output_sizes) * item)]
    normed = p.alloc("normalized shared query", token=spread.input_size * item)
    held.append(linear(p, spread.name, "query", sum(spread.output_sizes) // tp * item))
    p.free(normed)
    output = p.alloc("attention output", token=out.input_size // tp * item)
    result = linear(p, out.name, "attention block output", hidden, reduced=True)
    p.free(output, *held)
    return result
