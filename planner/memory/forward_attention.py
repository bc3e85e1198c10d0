"""Attention in a forward pass: fused, apart, and latent."""

from __future__ import annotations

from planner.memory.allocator import ROTARY_TABLE
from planner.memory.forward_parts import ForwardParts
from planner.memory.indexer import write_indexer
from planner.memory.layers import (
    FP8_CACHE,
    DecoderLayer,
    latent_workspace_rows,
    split_bytes_per_token,
)
from planner.memory.program import Program
from planner.model.modules import Attention, MLAProjection

PARTIAL_OUTPUTS = "partial outputs of attention"


class AttentionParts(ForwardParts):
    """Writes the attention of a layer."""

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
