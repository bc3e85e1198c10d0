"""What the recurrent mixers other than Qwen's delta nets allocate in a profile run, where they compute no state.

Source: vLLM 0.26.0 layers/mamba/{mamba_mixer,mamba_mixer2,short_conv}.py, gdn/{kimi,olmo}_gdn_linear_attn.py and
linear/bailing_linear_attn.py, the branches without attention metadata; boots of Mamba 2, Jamba, Granite 4, Falcon-H1
and LFM2 on an H200.
"""

from __future__ import annotations

from typing import Protocol

from planner.memory.layers import DecoderLayer
from planner.memory.program import Program
from planner.model.modules import Linear, StateSpace
from planner.sharding.division import column_shards

_INPUTS = ("in_proj", "in_proj_qkvg", "q_proj", "k_proj", "v_proj", "b_proj", "a_proj", "f_b_proj", "g_b_proj")
_OUTPUTS = ("out_proj", "o_proj")


class LinearWriter(Protocol):
    """Writes a linear layer's product: its output's handle. `width` is in bytes for each token."""

    def __call__(self, p: Program, name: str, what: str, width: int, *, reduced: bool = False) -> int: ...


def write_recurrent(
    p: Program, layer: DecoderLayer, state: StateSpace, linear: LinearWriter, *, item: int, hidden: int, tp: int,
    eager: bool,
) -> int:  # fmt: skip
    """The mixer of one layer; gives the handle of its output. `item`: bytes of an element; `hidden`: of a token's
    hidden state."""
    mixer = _mixer_linears(layer, state)
    if state.kind == "linear_attention":
        return _write_linear_attention(p, layer, mixer, linear, item=item, hidden=hidden, tp=tp)
    out = next((module for module in mixer if _last(module.name) in _OUTPUTS), None)
    inputs = [module for module in mixer if _last(module.name) in _INPUTS]
    if out is None or not inputs:
        raise layer.unsupported(f"recurrent layers ({state.kind})")
    inner = out.input_size // tp * item
    held = [linear(p, module.name, "projected inputs", _rank_width(module, tp) * item) for module in inputs]
    core = p.alloc("recurrent output", token=inner)
    if state.kind == "mamba2":
        p.free(_convolved(p, state, tp, item))
        if eager and state.num_groups != 1:
            normed = _gated_norm(p, inner // item, max(1, state.num_groups // tp), item)
            result = linear(p, out.name, "recurrent block output", hidden, reduced=True)
            p.free(core, normed, *held)
            return result
    elif state.kind in ("mamba1", "short_conv"):
        held.append(p.alloc("contiguous inputs", token=inner))
    normed = p.alloc("gated output", token=inner)
    result = linear(p, out.name, "recurrent block output", hidden, reduced=True)
    p.free(core, normed, *held)
    return result


def _write_linear_attention(
    p: Program, layer: DecoderLayer, mixer: list[Linear], linear: LinearWriter, *, item: int, hidden: int, tp: int
) -> int:
    """Ling 2.5's: query, key and value in float32, into an output that the caller has made (bailing_linear_attn.py)."""
    named = {_last(module.name): module for module in mixer}
    gate, dense = named.get("g_proj"), named.get("dense")
    if gate is None or dense is None:
        raise layer.unsupported("recurrent layers (linear_attention)")
    inner = dense.input_size // tp
    result = p.alloc("linear attention output", token=hidden)
    projected = linear(p, f"{dense.name.rpartition('.')[0]}.query_key_value", "projected inputs", 3 * inner * item)
    held = [p.alloc("projected inputs in float32", token=3 * inner * 4)]
    p.free(projected)
    held += [p.alloc(f"{name} in float32", token=inner * 4) for name in ("query", "key", "scaled query")]
    core = p.alloc("recurrent output", token=inner * 4)
    gated = linear(p, gate.name, "gate", inner * item)
    normed = p.alloc("gated output", token=inner * 4)
    p.free(core)
    narrow = p.alloc("gated output in the model's dtype", token=inner * item)
    p.free(normed, linear(p, dense.name, "recurrent block output", hidden, reduced=True), gated, narrow, *held)
    return result


def _mixer_linears(layer: DecoderLayer, state: StateSpace) -> list[Linear]:
    """The linear layers after the state in the layer's order: those of attention beside it come before."""
    at = layer.modules.index(state)
    return [module for module in layer.modules[at:] if isinstance(module, Linear)]


def _convolved(p: Program, state: StateSpace, tp: int, item: int) -> int:
    """A copy of x, B and C, which comes out transposed: back is no further one (mamba_mixer2.py:722)."""
    convolution = state.states[0]
    groups = state.num_groups if state.num_groups % tp == 0 else tp
    channels = (convolution.shape[1] + groups * convolution.group_size) // tp * item
    return p.alloc("contiguous inputs", token=channels)


def _gated_norm(p: Program, elements: int, groups: int, item: int) -> int:
    """With several groups the gated norm runs as PyTorch operations in float32 (mamba_mixer2.py:112)."""
    gate = p.alloc("gate in float32", token=4 * elements)
    active = p.alloc("activated gate", token=4 * elements)
    p.free(gate)
    gated = p.alloc("gated in float32", token=4 * elements)
    p.free(active)
    squares = p.alloc("squares", token=4 * elements)
    variance = p.alloc("variance", token=4 * groups)
    p.free(squares)
    shifted, root = p.alloc("variance + eps", token=4 * groups), p.alloc("reciprocal root", token=4 * groups)
    p.free(shifted)
    normed = p.alloc("normalized in float32", token=4 * elements)
    p.free(gated, root)
    narrow = p.alloc("normalized", token=elements * item)
    out = p.alloc("gated output", token=elements * item)
    p.free(narrow, normed, variance)
    return out


def _rank_width(module: Linear, tp: int) -> int:
    split = module.parallelism == "column" and module.tensor_parallel
    return sum(column_shards(module, tp)[0]) if split else sum(module.output_sizes)


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]
