"""Feed-forward layers in a forward pass: dense, and with experts."""

from __future__ import annotations

from planner.memory.forward_parts import ForwardParts
from planner.memory.layers import (
    DecoderLayer,
)
from planner.memory.program import Program
from planner.memory.styles import Style
from planner.model.modules import FusedMoE, Linear


class FeedForwardParts(ForwardParts):
    """Writes the feed-forward part of a layer."""

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
