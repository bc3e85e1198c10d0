"""One eager forward pass of a decoder on one rank, as the tensors vLLM's Python code allocates and drops.

A tensor lives as long as a Python name refers to it, in any frame of the call stack: the model's loop keeps a layer's
input until the layer returns, an attention block keeps its fused QKV while the output projection runs. That, and which
operations work in place, decides the peak. Source: vLLM 0.26.0 model_executor/models/*.py, layers/*.py; checked to the
byte against boots on an H200.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.engine.config import EngineConfig
from planner.memory.adapters import write_embedding_adapter
from planner.memory.allocator import ROTARY_TABLE
from planner.memory.altup import altered_streams, join_streams, write_altered_layer
from planner.memory.drafting import KeptStates
from planner.memory.expanded import is_expanded, write_expanded_attention
from planner.memory.hyper import residual_streams, write_compressed_attention
from planner.memory.indexer import write_indexer
from planner.memory.layers import (
    FP8_CACHE,
    DecoderLayer,
    deepstack_levels,
    latent_workspace_rows,
    replayed_layers,
    rotary_table,
    split_bytes_per_token,
    takes_media,
    uses_mrope,
)
from planner.memory.linear import LinearRun, linear_runs
from planner.memory.per_layer import write_per_layer_inputs
from planner.memory.program import Part, Program
from planner.memory.recurrent import write_recurrent
from planner.memory.step import Step
from planner.memory.styles import Style, style_of
from planner.memory.sums import Block, write_adding_layer
from planner.model.modules import Attention, FusedMoE, Linear, MLAProjection, StateSpace
from planner.model.spec import ModelSpec
from planner.sharding.rank import RankShare
from planner.values import DTYPE_BYTES

PARTIAL_OUTPUTS = "partial outputs of attention"


class Forward:
    """Writes the forward pass of one rank into a `Program`."""

    def __init__(self, model: ModelSpec, share: RankShare, config: EngineConfig) -> None:
        self.model = model
        self.share = share
        self.config = config
        self.item = DTYPE_BYTES[config.dtype]
        self.hidden = model.text.hidden_size * self.item
        self.style: Style = style_of(model.language_class or model.architecture)
        self.layers: Sequence[DecoderLayer] = replayed_layers(model, share)
        self.linears: Mapping[str, LinearRun] = linear_runs(model, share, config)
        self.tp = config.tensor_parallel_size
        self.kept_embeds = takes_media(model, config) or share.pp_rank > 0
        table = rotary_table(model)
        self.mrope = table.shape[-1] * self.item if table is not None and uses_mrope(model) else 0
        self.rotary_bytes = 0
        self._rotated = False
        if table is not None and table.dtype == "float32" and self.item < 4 and config.enforce_eager:
            self.rotary_bytes = table.shape[0] * table.shape[-1] * 4
        self.step = Step()
        self._left = self._timed = False
        self._parts: dict[tuple[Step, bool], Part] = {}
        self.kept = KeptStates(model, self.hidden)
        self.deepstack = deepstack_levels(model) if self.kept_embeds and share.pp_rank == 0 else 0

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

    def _norm(self, p: Program, name: str, width: int, heads: int = 1) -> int:
        """RMS norm with a float32 weight, as PyTorch operations (vLLM ir/ops/layernorm.py rms_norm)."""
        wide = width // self.item * 4
        x = p.alloc("input in float32", token=wide)
        return self._normalize(p, name, x, width, heads)

    def _add_norm(self, p: Program, name: str) -> tuple[int, int]:
        """Residual add and RMS norm as PyTorch operations: normalized output and new residual."""
        wide = self.hidden // self.item * 4
        x, r = p.alloc("input in float32", token=wide), p.alloc("residual in float32", token=wide)
        total = p.alloc("sum in float32", token=wide)
        p.free(x, r)
        residual = p.alloc("residual", token=self.hidden)
        return self._normalize(p, name, total, self.hidden, 1), residual

    def _normalize(self, p: Program, name: str, x: int, width: int, heads: int) -> int:
        wide = width // self.item * 4
        square = p.alloc("squares", token=wide)
        variance = p.alloc("variance", token=4 * heads)
        p.free(square)
        shifted, root = p.alloc("variance + eps", token=4 * heads), p.alloc("reciprocal root", token=4 * heads)
        p.free(shifted)
        scaled = p.alloc("normalized in float32", token=wide)
        p.free(root)
        weighted = p.alloc("weighted in float32", token=wide)
        p.free(scaled)
        out = p.alloc(name, token=width)
        p.free(x, variance, weighted)
        return out

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

    def _attention(self, p: Program, layer: DecoderLayer) -> int:
        qkv_layer, out_layer = layer.qkv, layer.out_projection
        if qkv_layer is None or out_layer is None:
            raise layer.unsupported("attention")
        query, key = layer.query_size(self.tp) * self.item, layer.key_size(self.tp) * self.item
        value = layer.value_size(self.tp) * self.item
        gated = qkv_layer.output_gate
        qkv = self._linear(p, qkv_layer.name, "fused query, key and value", query * (2 if gated else 1) + key + value)
        held = [qkv]
        q, gate = self._normed_query(p, layer, query, key, gated, held)
        if self.rotary_bytes and not self._rotated:
            self._rotated = True
            p.keep("rotary table in the model's dtype", constant=self.rotary_bytes // 4 * self.item)
            p.drop(ROTARY_TABLE, constant=self.rotary_bytes)
        if self.mrope:
            held += self._rotate_media(p, query, key, contiguous=layer.has_qk_norm)
        eighth = self.config.kv_cache_dtype in FP8_CACHE
        rounded = p.alloc("query in 8 bits", token=query // self.item) if eighth else None
        output = p.alloc("attention output", token=layer.output_size(self.tp) * self.item)
        self._attend(p, layer)
        p.free(rounded)
        if gate is not None:
            sigmoid = p.alloc("sigmoid of the gate", token=query)
            product = p.alloc("gated attention output", token=query)
            p.free(sigmoid, output)
            output = product
        result = self._linear(p, out_layer.name, "attention block output", self.hidden, reduced=True)
        p.free(output, q, gate, *held)
        return result

    def _separate_attention(self, p: Program, layer: DecoderLayer) -> int:
        """Attention whose query, key and value have layers of their own (cross attention). All outputs and copies of
        them in the heads' order are counted to the end, which no backend exceeds."""
        parts = [(name, layer.linear(f".{name}_proj")) for name in ("q", "k", "v")]
        out = layer.linear(".o_proj")
        if out is None or any(part is None for _, part in parts):
            raise layer.unsupported("attention")
        held = []
        for name, part in parts:
            if part is not None:
                width = sum(part.output_sizes) // self._tp(part) * self.item
                held += [self._linear(p, part.name, f"{name} projection", width), p.alloc(f"{name} copy", token=width)]
        output = p.alloc("attention output", token=out.input_size // self._tp(out) * self.item)
        result = self._linear(p, out.name, "attention block output", self.hidden, reduced=True)
        p.free(output, *held)
        return result

    def _normed_query(
        self, p: Program, layer: DecoderLayer, query: int, key: int, gated: bool, held: list[int]
    ) -> tuple[int | None, int | None]:
        """Copies of query and gate, and the norms of query and key (added to `held`).

        A gated query of a text-only engine is split, normalized and rotated by one kernel
        (vLLM 0.26.0 models/qwen3_next.py:326).
        """
        q = gate = None
        fused = gated and (not self.model.is_multimodal or self.config.language_model_only)
        if fused:
            q = p.alloc("normalized query", token=query)
            held.append(p.alloc("normalized key", token=key))
            return q, p.alloc("output gate", token=query)
        if gated:
            q, gate = p.alloc("query", token=query), p.alloc("output gate", token=query)
        if not layer.has_qk_norm:
            return q, gate
        if not self.style.native_norm:
            q, k = (self._wide_norm if self.style.wide_qk_norm else self._fused_norm)(p, query, key)
            held.append(k)
            return q, gate
        heads = layer.query_heads(self.tp)
        normed = self._norm(p, "normalized query", query, heads)
        p.free(q)
        held.append(self._norm(p, "normalized key", key, max(1, heads * key // query)))
        return normed, gate

    def _fused_norm(self, p: Program, query: int, key: int) -> tuple[int, int]:
        return p.alloc("normalized query", token=query), p.alloc("normalized key", token=key)

    def _wide_norm(self, p: Program, query: int, key: int) -> tuple[int, int]:
        """MiniMax-M2's (vLLM 0.26.0 layers/minimax_rms_norm/rms_norm_tp.py:374 forward_qk)."""
        sizes = {"query": query // self.item * 4, "key": key // self.item * 4}
        wide = {name: p.alloc(f"{name} in float32", token=size) for name, size in sizes.items()}
        for name, size in sizes.items():
            p.free(p.alloc(f"squares of the {name}", token=size))
        for name, size in sizes.items():
            scaled = p.alloc(f"{name}, scaled", token=size)
            weighted = p.alloc(f"{name}, weighted", token=size)
            p.free(scaled, wide[name])
            wide[name] = weighted
        q = p.alloc("normalized query", token=query)
        p.free(wide["query"])
        k = p.alloc("normalized key", token=key)
        p.free(wide["key"])
        return q, k

    def _attend(self, p: Program, layer: DecoderLayer) -> None:
        if not self.step.attends:
            return
        scratch = [p.alloc("softmax log-sum-exp", token=4 * layer.query_heads(self.tp))]
        if self.step.splits:
            scratch.append(p.alloc(PARTIAL_OUTPUTS, token=split_bytes_per_token(self.model, self.config)))
        p.free(*scratch)

    def _rotate_media(self, p: Program, query: int, key: int, *, contiguous: bool) -> list[int]:
        """Three-dimensional rotary embedding: gathers the tables, and copies query and key that are slices.

        Source: vLLM 0.26.0 layers/rotary_embedding/mrope.py:324 forward_cuda, triton_mrope.
        """
        tables = p.alloc("cos and sin of three dimensions", token=3 * self.mrope)
        copies = [] if contiguous else [p.alloc("query", token=query), p.alloc("key", token=key)]
        halves = [p.alloc(name, token=3 * self.mrope // 2) for name in ("cos", "sin")]
        p.free(*halves, tables)
        return copies

    def _mla(self, p: Program, layer: DecoderLayer, attention: Attention) -> int:
        """Multi-head latent attention. Without metadata it allocates, and drops, the largest up-projected context.

        Source: vLLM 0.26.0 model_executor/layers/mla.py forward, layers/attention/mla_attention.py:707.
        """
        mla = layer.mla
        if mla is None:
            raise layer.unsupported("latent attention")
        heads = mla.num_heads // self.tp
        rope = attention.head_size - mla.kv_lora_rank
        held, query = self._latent_projections(p, layer, mla, rope)
        held.append(query)
        write_indexer(p, layer, self.config, self._linear, self.item)
        held.append(p.alloc("normalized latent", token=mla.kv_lora_rank * self.item))
        output = p.alloc("attention output", token=heads * mla.v_head_dim * self.item)
        self._latent_context(p, mla, rope)
        result = self._linear(p, layer.require("o_proj").name, "attention block output", self.hidden, reduced=True)
        p.free(output, *held)
        return result

    def _latent_projections(
        self, p: Program, layer: DecoderLayer, mla: MLAProjection, rope: int
    ) -> tuple[list[int], int]:
        """The latent projections that stay alive beside the query, and the query."""
        held: list[int] = []
        fused = layer.linear("fused_qkv_a_proj")
        if fused is not None:
            held.append(self._linear(p, fused.name, "latent query, key and value", sum(fused.output_sizes) * self.item))
            held.append(p.alloc("normalized latent query", token=fused.output_sizes[0] * self.item))
            query = layer.require("q_b_proj")
        else:
            latent = layer.require("kv_a_proj_with_mqa")
            held.append(self._linear(p, latent.name, "latent key and value", sum(latent.output_sizes) * self.item))
            query = layer.require("q_proj")
        size = mla.num_heads // self.tp * (mla.qk_nope_head_dim + rope) * self.item
        return held, self._linear(p, query.name, "query", size)

    def _latent_context(self, p: Program, mla: MLAProjection, rope: int) -> None:
        heads = mla.num_heads // self.tp
        up = heads * (mla.qk_nope_head_dim + mla.v_head_dim) * self.item
        if self.step.attends and self.step.decodes:
            latent = heads * mla.kv_lora_rank * self.item
            scratch = [p.alloc("absorbed query", token=latent), p.alloc("latent attention output", token=latent)]
            if self.step.splits:
                scratch.append(p.alloc(PARTIAL_OUTPUTS, token=split_bytes_per_token(self.model, self.config)))
            p.free(*scratch, p.alloc("softmax log-sum-exp", token=4 * heads))
        elif self.step.attends:
            p.free(
                p.alloc("up-projected keys and values", token=up),
                p.alloc("keys", token=heads * (mla.qk_nope_head_dim + rope) * self.item),
                p.alloc("attention of new tokens", token=heads * mla.v_head_dim * self.item),
                p.alloc("softmax log-sum-exp", token=4 * heads),
            )
        else:
            rows = latent_workspace_rows(self.model, self.config)
            p.free(p.alloc("largest up-projected context", constant=rows * up))

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

    def _feed_forward(self, p: Program, layer: DecoderLayer) -> int:
        return (
            self._experts(p, layer, layer.experts) if layer.experts is not None else self._mlp(p, layer.mlp, self.style)
        )

    def _mlp(self, p: Program, pair: tuple[Linear, Linear] | None, style: Style, *, reduced: bool = True) -> int:
        """Gate and up projection, activation, down projection. Some classes keep the fused projection to the end."""
        if pair is None:
            raise self.layers[0].unsupported("feed-forward layers")
        up, down = pair
        inner = down.input_size // self._tp(down) * self.item
        width = sum(up.output_sizes) // self._tp(up) * self.item
        fused = self._gate_and_up(p, up, width)
        scratch = p.alloc("activated gate", token=inner) if len(fused) > 1 else None
        active = p.alloc("activation", token=inner)
        p.free(scratch)
        if not style.keeps_gate_up:
            p.free(*fused)
        out = self._linear(p, down.name, "MLP output", self.hidden, reduced=reduced)
        p.free(active)
        if style.keeps_gate_up:
            p.free(*fused)
        return out

    def _gate_and_up(self, p: Program, up: Linear, width: int) -> tuple[int, ...]:
        """Fused, or one after the other in a class that keeps them apart (vLLM 0.26.0 models/laguna.py:106)."""
        if not up.name.endswith(".gate_proj"):
            return (self._linear(p, up.name, "gate and up projection", width),)
        other = up.name.removesuffix("gate_proj") + "up_proj"
        return self._linear(p, up.name, "gate projection", width), self._linear(p, other, "up projection", width)

    def _experts(self, p: Program, layer: DecoderLayer, moe: FusedMoE) -> int:
        """Router, shared experts, and the routed experts' kernel with its lasting workspace.

        Source: vLLM 0.26.0 layers/fused_moe/runner/moe_runner.py _forward_impl, modular_kernel.py _allocate_buffers,
        experts/triton_moe.py workspace_shapes.
        """
        run = self.linears[moe.name]
        logits = None
        if layer.router is not None:
            logits = self._router(p, layer.router)
        shared = None
        if layer.shared is not None:
            shared = self._shared_experts(p, layer, layer.shared)
        top_k = moe.top_k
        chosen = [p.alloc("routing weights", token=4 * top_k), p.alloc("routed experts", token=4 * top_k)]
        p.free(p.alloc("routing scratch", token=4 * top_k))
        routed = p.alloc("routed output", token=self.hidden)
        inner = moe.intermediate_size if self.config.enable_expert_parallel else moe.intermediate_size // self._moe_tp()
        run.write_experts(p, moe, inner, self.item)
        p.free(*chosen, logits)
        if shared is not None:
            total = p.alloc("shared and routed output", token=self.hidden)
            p.free(shared, routed)
            routed = total
        return self._reduce(p, routed, self._moe_tp() > 1)

    def _router(self, p: Program, router: Linear) -> int:
        """Router logits; a float32 router takes its input in float32."""
        count = sum(router.output_sizes)
        if self.item == 4 or not self.linears[router.name].float32:
            return self._linear(p, router.name, "router logits", count * self.item)
        wide = p.alloc("router input in float32", token=self.hidden // self.item * 4)
        logits = self._linear(p, router.name, "router logits", count * 4)
        p.free(wide)
        return logits

    def _shared_experts(self, p: Program, layer: DecoderLayer, pair: tuple[Linear, Linear]) -> int:
        """Few tokens go through them on a stream of their own (fused_moe/runner/shared_experts.py:102).

        The first time, vLLM asks for the current stream and gets a new one for good, instead of the default stream
        (utils/torch_utils.py:662).
        """
        if self.step.leaves and not self._left:
            self._left = True
            p.leave()
        if self.step.overlaps:
            p.aside()
        shared = self._mlp(p, pair, self.style, reduced=False)
        if layer.shared_gate is not None:
            scaled = p.alloc("scaled shared expert output", token=self.hidden)
            p.free(shared)
            shared = scaled
        if self.step.overlaps:
            p.back()
        return shared

    def _moe_tp(self) -> int:
        return self.config.tensor_parallel_size * self.config.data_parallel_size

    def _linear(self, p: Program, name: str, what: str, width: int, *, reduced: bool = False) -> int:
        """A linear layer: its kernel's workspace and input copy, the output, and the sum over ranks of a row layer."""
        scratch = self.linears[name].before(p)
        out = p.alloc(what, token=width)
        self.linears[name].during(p)
        self.linears[name].after(p, scratch)
        return self._reduce(p, out, reduced and self.tp > 1)

    def _reduce(self, p: Program, partial: int, needed: bool) -> int:
        """An all-reduce writes a new tensor (vLLM distributed/device_communicators/cuda_communicator.py:273)."""
        if not needed:
            return partial
        total = p.alloc("sum over ranks", token=self.hidden)
        p.free(partial)
        return total

    def _tp(self, linear: Linear) -> int:
        return self.tp if linear.tensor_parallel and linear.parallelism != "replicated" else 1
