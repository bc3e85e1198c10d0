"""One eager forward pass of a decoder on one rank, as the tensors vLLM's Python code allocates and drops.

A tensor lives as long as a Python name refers to it, in any frame of the call stack: the model's loop keeps a layer's
input until the layer returns, an attention block keeps its fused QKV while the output projection runs. That, and which
operations work in place, decides the peak. Source: vLLM 0.26.0 model_executor/models/*.py, layers/*.py; checked to the
byte against boots on an H200.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.memory.adapters import write_embedding_adapter
from planner.memory.altup import altered_streams, join_streams, write_altered_layer
from planner.memory.drafting import KeptStates
from planner.memory.expanded import is_expanded, write_expanded_attention
from planner.memory.forward_attention import AttentionParts
from planner.memory.forward_mlp import FeedForwardParts
from planner.memory.hyper import residual_streams, write_compressed_attention
from planner.memory.layers import (
    DecoderLayer,
)
from planner.memory.per_layer import write_per_layer_inputs
from planner.memory.program import Program
from planner.memory.recurrent import write_recurrent
from planner.memory.step import Step
from planner.memory.sums import Block, write_adding_layer
from planner.model.modules import StateSpace


class Forward(AttentionParts, FeedForwardParts):
    """Writes the forward pass of one rank into a `Program`."""

    def write(self, program: Program, step: Step) -> int | None:
        """The pass over all layers of the rank. Gives the handle of the final hidden states (None: no layers).

        A step is written once; programs of whatever batch sizes use what was written.
        """
        key = (step, self._timed)
        part = self._parts.get(key)
        if part is None:
            fresh = Program()
            hidden = self._write(fresh, step)
            part = self._parts[key] = fresh.part(hidden, *self.kept.handles)
        self._timed = False
        handles = program.use(part)
        self.kept.handles = [handle for handle in handles[1:] if handle is not None]
        return handles[0]

    def _write(self, program: Program, step: Step) -> int | None:
        p, self.step, self._rotated, self._left = program, step, False, False
        p.stage("embedding")
        residual = None if self.kept_embeds else self._embed(p)
        each_layer = write_per_layer_inputs(p, self.model, self.item) if self.share.pp_rank == 0 else None
        loop: int | None = None
        self.kept = KeptStates(self.model, self.hidden)
        for index, layer in enumerate(self.layers):
            self.kept.before(p, layer.index)
            loop, residual = self._layer(p, layer, loop, residual, first=index == 0)
            if index < self.deepstack:
                joined = p.alloc("hidden states joined by a deepstack level", token=self.hidden)
                p.free(loop)
                loop = joined
        p.free(residual, each_layer)
        return join_streams(p, self.layers, loop, self.hidden)

    def _embed(self, p: Program) -> int:
        adapted = write_embedding_adapter(p, self.share)
        hidden = p.alloc("token embeddings", token=self.hidden)
        if self.tp > 1:
            total = p.alloc("token embeddings, summed over ranks", token=self.hidden)
            p.free(hidden)
            hidden = total
        p.free(adapted)
        if self.style.scaled_embedding:
            scaled = p.alloc("scaled token embeddings", token=self.hidden)
            p.free(hidden)
            hidden = scaled
        return hidden

    def _layer(
        self, p: Program, layer: DecoderLayer, loop: int | None, residual: int | None, *, first: bool
    ) -> tuple[int | None, int | None]:
        """One decoder layer. `loop` is the hidden state that the model's loop still holds while the layer runs."""
        p.stage(f"layer {layer.index}: attention")
        if altered_streams(layer):
            sizes = {"item": self.item, "hidden": self.hidden, "tp": self.tp}
            return write_altered_layer(p, layer, loop, self._mixer, self._linear, **sizes), residual
        streams = residual_streams(layer, self.hidden // self.item)
        if streams:
            return self._hyper_layer(p, layer, loop, residual, streams * self.hidden)
        if self.style.native_norm:
            return self._native_norm_layer(p, layer, loop, residual, first=first)
        if self.style.sums and not layer.has_one_part:
            given, before = (residual, None) if first else (loop, residual)
            blocks = self._mixers(layer), lambda p: self._feed_forward(p, layer)
            return write_adding_layer(p, layer, given, before, blocks, style=self.style, hidden=self.hidden)
        opens = first and self.share.pp_rank == 0
        normed = p.alloc("normalized input", token=self.hidden) if opens else None
        if layer.has_one_part:
            out = self._mixer(p, layer) if layer.mixes else self._feed_forward(p, layer)
            p.free(normed, loop)
            return out, residual
        given = p.alloc("attention output of the layer", token=self.hidden) if self.style.gives_output else None
        mixed = self._mixer(p, layer)
        if given is not None:
            p.free(mixed)
            mixed = given
        held = normed if self.style.keeps_input else None
        p.free(None if self.style.keeps_input else normed)
        if self.style.sandwich:
            after = p.alloc("normalized attention output", token=self.hidden)
            p.free(mixed)
            mixed = after
        p.stage(f"layer {layer.index}: {layer.feed_forward_name}")
        out = self._feed_forward(p, layer)
        if self.style.sandwich:
            after = p.alloc("normalized MLP output", token=self.hidden)
            p.free(out)
            out = after
        p.free(mixed, loop, held)
        return out, residual

    def _hyper_layer(
        self, p: Program, layer: DecoderLayer, loop: int | None, residual: int | None, wide: int
    ) -> tuple[int, int]:
        """A layer between hyper-connections: the residual of all streams is a new tensor before each block."""
        streams = p.alloc("residual streams", token=wide)
        mixed_in = p.alloc("normalized input", token=self.hidden)
        out = write_compressed_attention(p, layer, self.config, self._linear, item=self.item, hidden=self.hidden)
        p.free(mixed_in)
        p.stage(f"layer {layer.index}: {layer.feed_forward_name}")
        new = p.alloc("residual streams after attention", token=wide)
        normed = p.alloc("normalized MLP input", token=self.hidden)
        p.free(out)
        result = self._feed_forward(p, layer)
        p.free(normed, loop, streams, residual)
        return result, new

    def _native_norm_layer(
        self, p: Program, layer: DecoderLayer, loop: int | None, residual: int | None, *, first: bool
    ) -> tuple[int | None, int | None]:
        """A layer whose norms run as PyTorch operations in float32: the residual is a new tensor each time."""
        old = residual
        if first:
            normed = self._norm(p, "normalized input", self.hidden)
            inner = residual
        else:
            normed, inner = self._add_norm(p, "normalized input")
        mixed = self._mixer(p, layer)
        p.free(normed)
        if self.style.sandwich:
            after = self._norm(p, "normalized attention output", self.hidden)
            p.free(mixed)
            mixed = after
        p.stage(f"layer {layer.index}: {layer.feed_forward_name}")
        normed, new = self._add_norm(p, "normalized MLP input")
        p.free(mixed)
        if not first:
            p.free(inner)
        out = self._feed_forward(p, layer)
        p.free(normed)
        if self.style.sandwich:
            after = self._norm(p, "normalized MLP output", self.hidden)
            p.free(out)
            out = after
        p.free(loop)
        if old is not None:
            p.free(old)
        return out, new

    def _mixers(self, layer: DecoderLayer) -> Sequence[Block]:
        """Attention and recurrent state side by side, or whichever the layer has."""
        state = layer.state_space
        if state is None or layer.attention is None:
            return [lambda p: self._mixer(p, layer)]
        return [lambda p: self._attention(p, layer), lambda p: self._recurrent(p, layer, state)]

    def _mixer(self, p: Program, layer: DecoderLayer) -> int:
        if layer.state_space is not None:
            beside = self._attention(p, layer) if layer.attention is not None else None
            mixed = self._recurrent(p, layer, layer.state_space)
            p.free(beside)
            return mixed
        if layer.attention is not None and layer.attention.kind == "mla_attention":
            return self._mla(p, layer, layer.attention)
        if is_expanded(layer):
            return write_expanded_attention(p, layer, self._linear, item=self.item, hidden=self.hidden, tp=self.tp)
        if layer.qkv is None:
            return self._separate_attention(p, layer)
        return self._attention(p, layer)

    def _recurrent(self, p: Program, layer: DecoderLayer, state: StateSpace) -> int:
        """Gated delta net (Qwen3-Next, Qwen3.5). Source: vLLM 0.26.0 layers/mamba/gdn/qwen_gdn_linear_attn.py:829."""
        projection = layer.linear("in_proj_qkvz")
        if projection is None or state.kind != "gated_delta_net":
            eager = self.config.enforce_eager
            return write_recurrent(
                p, layer, state, self._linear, item=self.item, hidden=self.hidden, tp=self.tp, eager=eager
            )
        ba, out = layer.require("in_proj_ba"), layer.require("out_proj")
        inner = out.input_size // self.tp * self.item
        qkvz = sum(projection.output_sizes) // self.tp * self.item
        held = [self._linear(p, projection.name, "query, key, value and gate", qkvz)]
        width = sum(ba.output_sizes) // (self.tp if ba.tensor_parallel else 1) * self.item
        held.append(self._linear(p, ba.name, "beta and alpha", width))
        if len(projection.output_sizes) == 1:
            held += [p.alloc("value", token=inner), p.alloc("gate", token=inner), p.alloc("beta, alpha", token=width)]
            held += [p.alloc(name, token=(qkvz - 2 * inner) // 2) for name in ("query", "key")]
            held.append(p.alloc("query, key and value, joined", token=qkvz - inner))
        else:
            held.append(p.alloc("beta, alpha, contiguous", token=width))
        core = p.alloc("recurrent output", token=inner)
        if len(projection.output_sizes) > 1:
            held.append(p.alloc("gate, contiguous", token=inner))
        normed = p.alloc("normalized recurrent output", token=inner)
        result = self._linear(p, out.name, "attention block output", self.hidden, reduced=True)
        p.free(core, normed, *held)
        return result
