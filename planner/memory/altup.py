"""Gemma 3n's layers: several streams of hidden states, predicted before each layer and corrected after it.

Every tensor that a Python name still holds is counted to the end of its function. Read from vLLM 0.26.0
models/gemma3n.py:127-560 and layers/activation.py:295; no boot was there to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.memory.layers import DecoderLayer
from planner.memory.program import Program
from planner.memory.recurrent import LinearWriter

_SPARSE_COPIES = 3
"""A gate below its threshold is cut off in copies: the difference, what is left of it, and its activation."""


def altered_streams(layer: DecoderLayer) -> int:
    """How many streams the layer has; 0 for layers without alternating updates."""
    coefficients = layer.linear("altup.correction_coefs")
    return 0 if coefficients is None else coefficients.input_size


def write_altered_layer(
    p: Program,
    layer: DecoderLayer,
    streams: int | None,
    mixer: Callable[[Program, DecoderLayer], int],
    linear: LinearWriter,
    *,
    item: int,
    hidden: int,
    tp: int,
) -> int:
    """The handle of all streams after the layer; `streams` those before it, None for the first layer of the rank."""
    wide = altered_streams(layer) * hidden
    before = p.alloc("streams of hidden states", token=wide) if streams is None else streams
    mixed = p.alloc("predicted streams, transposed", token=wide)
    predicted = p.alloc("predicted streams", token=wide)
    p.free(mixed)
    held = [p.alloc(name, token=hidden) for name in ("normalized input", "low-rank residual")]
    attended = mixer(p, layer)
    held += [p.alloc(name, token=hidden) for name in ("normalized attention output", "residual", "joined residual")]
    p.free(attended)
    p.stage(f"layer {layer.index}: {layer.feed_forward_name}")
    held += [p.alloc("normalized MLP input", token=hidden), _mlp(p, layer, linear, item=item, hidden=hidden, tp=tp)]
    held += [p.alloc(name, token=hidden) for name in ("normalized MLP output", "hidden states after the MLP")]
    p.stage(f"layer {layer.index}: correction")
    innovation = p.alloc("innovation of each stream", token=wide)
    corrected = p.alloc("corrected streams", token=wide)
    p.free(innovation, predicted, before, *held)
    return corrected


def join_streams(p: Program, layers: Sequence[DecoderLayer], loop: int | None, hidden: int) -> int | None:
    """The mean of the streams after the last layer; anything else as it is."""
    if not layers or not altered_streams(layers[-1]):
        return loop
    joined = p.alloc("mean of the streams", token=hidden)
    p.free(loop)
    return joined


def _mlp(p: Program, layer: DecoderLayer, linear: LinearWriter, *, item: int, hidden: int, tp: int) -> int:
    up, down = layer.require(".mlp.gate_up_proj"), layer.require(".mlp.down_proj")
    inner = down.input_size // tp * item
    fused = linear(p, up.name, "gate and up projection", 2 * inner)
    copies = [p.alloc(f"gate cut at its threshold, copy {index + 1}", token=inner) for index in range(_SPARSE_COPIES)]
    active = p.alloc("activation", token=inner)
    p.free(*copies)
    out = linear(p, down.name, "MLP output", hidden, reduced=True)
    p.free(active, fused)
    return out
