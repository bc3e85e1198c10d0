"""Decoder layers that add their residual themselves: sums and norms are new tensors, where others norm in place.

Source: vLLM 0.26.0 model_executor/models: before the blocks granite.py, granitemoe.py, granitemoeshared.py,
granitemoehybrid.py, phimoe.py, falcon_h1.py, minicpm.py, stablelm.py and hyperclovax.py, after them olmo3.py,
flex_olmo.py and exaone4.py, beside them commandr.py, cohere2_moe.py and phi.py. To the byte as boots of Granite,
Granite 4, Phi-mini-MoE, Falcon-H1, OLMo 3 and Command R on an H200.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.memory.layers import DecoderLayer
from planner.memory.program import Program
from planner.memory.styles import Style

Block = Callable[[Program], int]
"""Writes one block of a layer: the handle of its output."""


def write_adding_layer(
    p: Program,
    layer: DecoderLayer,
    given: int | None,
    before: int | None,
    blocks: tuple[Sequence[Block], Block],
    *,
    style: Style,
    hidden: int,
) -> tuple[int, int | None]:
    """One layer on its input `given`; gives its output and the residual that the model's loop then holds.

    `before`: the residual of the layer before, where the loop holds it. `blocks`: mixers, whose outputs are added, and
    the feed-forward block.
    """
    mixers, feed = blocks
    if style.sums == "beside":
        normed = p.alloc("normalized input", token=hidden)
        parts = [mix(p) for mix in mixers]
        p.stage(f"layer {layer.index}: {layer.feed_forward_name}")
        parts.append(feed(p))
        partial = p.alloc("sum of residual and attention", token=hidden)
        out = p.alloc("hidden states", token=hidden)
        p.free(partial, normed, *parts, before)
        if style.returns_residual:
            return out, given
        p.free(given)
        return out, None
    first = style.sums == "before"
    total, kept = _mixed(p, mixers, hidden) if first else (_mixed_then_normed(p, mixers[0], hidden), [])
    p.stage(f"layer {layer.index}: {layer.feed_forward_name}")
    normed_input = p.alloc("normalized MLP input", token=hidden) if first else None
    result = feed(p)
    p.free(normed_input)
    if not first:
        after = p.alloc("normalized MLP output", token=hidden)
        p.free(result)
        result = after
    out = p.alloc("hidden states", token=hidden)
    p.free(result, *kept, given, before)
    if style.returns_residual:
        return out, total
    p.free(total)
    return out, None


def _mixed(p: Program, mixers: Sequence[Block], hidden: int) -> tuple[int, list[int]]:
    """The hidden states after attention, and mixers' outputs that have names of their own to the layer's end: those
    of two that work side by side on scaled copies of the input (Falcon-H1)."""
    normed = p.alloc("normalized input", token=hidden)
    if len(mixers) == 1:
        mixed = mixers[0](p)
        p.free(normed)
        total = p.alloc("hidden states after attention", token=hidden)
        p.free(mixed)
        return total, []
    kept = []
    for mix in mixers:
        scaled = p.alloc("scaled input", token=hidden)
        kept.append(mix(p))
        p.free(scaled)
    both = p.alloc("sum of both mixers", token=hidden)
    total = p.alloc("hidden states after attention", token=hidden)
    p.free(normed, both)
    return total, kept


def _mixed_then_normed(p: Program, mix: Block, hidden: int) -> int:
    mixed = mix(p)
    after = p.alloc("normalized attention output", token=hidden)
    p.free(mixed)
    total = p.alloc("hidden states after attention", token=hidden)
    p.free(after)
    return total
