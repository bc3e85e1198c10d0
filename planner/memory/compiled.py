"""One forward pass of a compiled decoder on one rank: what vLLM's piecewise compilation by inductor keeps alive.

The graph is cut at the attention operations. A piece runs from one attention output to the next attention's inputs;
its arguments stay alive while it runs, its own buffers go with their last use, and norms write new tensors. While a
piece is compiled, inductor times its kernels on example arguments of full size: those of the embedding kernel, a whole
embedding table and two hidden states, are often the highest moment of the profile run.
Source: vLLM 0.26.0 compilation/backends.py, PyTorch 2.11 _inductor/codegen/wrapper.py generate_and_run_autotune_block;
checked to the byte against boots and allocator records on an H200.
"""

from __future__ import annotations

from planner.memory.drafting import KeptStates
from planner.memory.forward import Forward
from planner.memory.indexer import write_indexer
from planner.memory.layers import DecoderLayer
from planner.memory.program import Program
from planner.memory.step import Step
from planner.model.modules import VocabEmbedding
from planner.units import MIB

FLUSH_BYTES = 60 * MIB
"""What inductor's kernel timer writes to empty the L2 cache between runs: the cache's size, here an H200's."""


_FLUSH = "cache flush of the kernel timer"


class CompiledForward(Forward):
    """The same layers as `Forward`, with inductor's lifetimes. Layers of other kinds keep the eager ones."""

    _arguments: tuple[int | None, ...] = ()

    def _write(self, program: Program, step: Step) -> int | None:
        if not self._in_pieces:
            return super()._write(program, step)
        p, self.step = program, step
        p.stage("embedding")
        residual = None if self.kept_embeds else self._embed(p)
        output: int | None = None
        self.kept = KeptStates(self.model, self.hidden)
        for index, layer in enumerate(self.layers):
            self.kept.before(p, layer.index)
            residual, output = self._piece(p, layer, residual, output, first=index == 0)
        p.free(output, *self._arguments)
        self._arguments, self._timed = (), False
        return residual

    @property
    def _in_pieces(self) -> bool:
        """Whether each layer is attention and then a feed-forward layer, between pre-norms."""
        plain = all(layer.is_plain_attention for layer in self.layers)
        return self.style.pieces and plain and not self.is_recurrent

    @property
    def is_recurrent(self) -> bool:
        """Whether some layers keep a recurrent state, or are a mixer or a feed-forward layer alone."""
        return any(layer.state_space is not None or layer.has_one_part for layer in self.layers)

    def write_compilation(self, program: Program) -> None:
        """The example arguments of the embedding kernel, where the compiled graph begins with the tokens."""
        self._timed = True
        if self.kept_embeds:
            return
        program.stage("compilation: embedding kernel")
        self.write_embedding_kernel(program)

    def write_embedding_kernel(self, program: Program, joined: int = 0) -> None:
        """The timed run of an embedding kernel: a table, its rows, and the rows normalized, after two flushes. That of
        a draft head writes `joined` tensors of embeddings and hidden states instead, between flushes."""
        rows = next((t.size_bytes for t in self.share.created if t.module in self._embeddings()), 0)
        flushes = [program.alloc(_FLUSH, constant=FLUSH_BYTES) for _ in range(2)]
        program.free(*flushes)
        examples = [
            program.alloc("example embedding table", constant=rows),
            program.alloc("example hidden states", token=self.hidden),
        ]
        if joined:
            examples += [program.alloc("example joined states", token=2 * self.hidden) for _ in range(joined)]
            examples.append(program.alloc(_FLUSH, constant=FLUSH_BYTES))
        else:
            examples.append(program.alloc("example normalized hidden states", token=self.hidden))
        program.free(*examples)

    def _embeddings(self) -> frozenset[str]:
        return frozenset(m.name for m in self.model.modules if isinstance(m, VocabEmbedding))

    def _piece(
        self, p: Program, layer: DecoderLayer, residual: int | None, output: int | None, *, first: bool
    ) -> tuple[int | None, int | None]:
        """From the last MLP's output to this layer's: the new residual and the new output."""
        p.stage(f"layer {layer.index}: attention")
        carried = residual
        if not first:
            carried = p.alloc("residual", token=self.hidden)
        normed = p.alloc("normalized input", token=self.hidden)
        if self._timed and not first:
            self._timed = False
            p.free(p.alloc(_FLUSH, constant=FLUSH_BYTES))
        if not first:
            p.free(output, residual)
        mixed, attention = self._mix(p, layer, normed)
        p.stage(f"layer {layer.index}: {layer.feed_forward_name}")
        after = p.alloc("residual after attention", token=self.hidden)
        normed = p.alloc("normalized MLP input", token=self.hidden)
        p.free(mixed)
        out = self._compiled_feed_forward(p, layer, normed)
        self._arguments = (attention, carried)
        return after, out

    def _mix(self, p: Program, layer: DecoderLayer, normed: int) -> tuple[int, int]:
        """Inputs of the attention operation, its output, and the output projection that begins the next piece."""
        if layer.attention is not None and layer.attention.kind == "mla_attention":
            inputs, attention = self._latent_inputs(p, layer, normed)
            out_layer = layer.require("o_proj")
        else:
            inputs, attention = self._attention_inputs(p, layer, normed)
            found = layer.out_projection
            if found is None:
                raise layer.unsupported("attention")
            out_layer = found
        p.free(*inputs)
        return self._linear(p, out_layer.name, "attention block output", self.hidden, reduced=True), attention

    def _attention_inputs(self, p: Program, layer: DecoderLayer, normed: int) -> tuple[list[int], int]:
        qkv_layer = layer.qkv
        if qkv_layer is None:
            raise layer.unsupported("attention")
        query, key = layer.query_size(self.tp) * self.item, layer.key_size(self.tp) * self.item
        value = layer.value_size(self.tp) * self.item
        width = query * (2 if qkv_layer.output_gate else 1) + key + value
        inputs = [self._linear(p, qkv_layer.name, "fused query, key and value", width)]
        p.free(normed, *self._arguments)
        if self.mrope:
            tables = [p.alloc(name, token=self.mrope) for name in ("cos", "sin")]
            inputs += tables
        inputs += [p.alloc("rotated query", token=query), p.alloc("rotated key", token=key)]
        attention = p.alloc("attention output", token=layer.output_size(self.tp) * self.item)
        self._attend(p, layer)
        return inputs, attention

    def _latent_inputs(self, p: Program, layer: DecoderLayer, normed: int) -> tuple[list[int], int]:
        mla, attention = layer.mla, layer.attention
        if mla is None or attention is None:
            raise layer.unsupported("latent attention")
        heads, rope = mla.num_heads // self.tp, attention.head_size - mla.kv_lora_rank
        held, query = self._latent_projections(p, layer, mla, rope)
        p.free(normed, *self._arguments)
        inputs = [
            query,
            p.alloc("normalized latent", token=mla.kv_lora_rank * self.item),
            p.alloc("rotated key", token=rope * self.item),
        ]
        p.free(*held)
        write_indexer(p, layer, self.config, self._linear, self.item)
        output = p.alloc("attention output", token=heads * mla.v_head_dim * self.item)
        self._latent_context(p, mla, rope)
        return inputs, output

    def _compiled_feed_forward(self, p: Program, layer: DecoderLayer, normed: int) -> int:
        if layer.experts is not None:
            out = self._experts(p, layer, layer.experts)
            p.free(normed)
            return out
        if layer.mlp is None:
            raise layer.unsupported("feed-forward layers")
        up, down = layer.mlp
        width = sum(up.output_sizes) // self._tp(up) * self.item
        fused = self._gate_and_up(p, up, width)
        p.free(normed)
        active = p.alloc("activation", token=down.input_size // self._tp(down) * self.item)
        if self._timed:
            p.free(p.alloc(_FLUSH, constant=FLUSH_BYTES))
        p.free(*fused)
        out = self._linear(p, down.name, "MLP output", self.hidden, reduced=True)
        p.free(active)
        return out
