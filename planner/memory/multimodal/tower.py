"""The forward pass of a vision tower on one rank, as the tensors that vLLM's Python code allocates and drops.

A tensor lives as long as a name in some frame refers to it: PyTorch's module call keeps its arguments, so a block's
normalized input outlives the fused projection made of it. Source: vLLM 0.26.0 model_executor/models/*.py; the Qwen
towers are checked to the byte against runs on an H200.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.memory.program import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """Sizes of one tower on one rank, in elements; `tp` divides the widths of heads and MLPs.

    `fused_residual`: the second norm adds the residual in place (Qwen2.5-VL). `gated`: gate and up are one projection.
    `gathers_qkv`: the fused projection is gathered over the ranks (Qwen2-VL). `rotary_size`: columns of cos, and of
    sin. `flash`: attention keeps a log-sum-exp in float32. `splits`: parts of the keys, each with a float32 output
    of its own (FlashAttention 3). `quantized_inputs`: linears quantize what they read.
    """

    hidden: int
    heads: int
    head_size: int
    inner: int
    layers: int
    tp: int
    item: int
    gated: bool = False
    fused_residual: bool = False
    gathers_qkv: bool = False
    rotary_size: int = 0
    flash: bool = True
    splits: int = 1
    quantized_inputs: bool = False


class TowerRun:
    """Writes a tower's run over `rows` patches into a program. Sizes are whole bytes, fixed for the batch."""

    def __init__(self, program: Program, tower: Tower, rows: int) -> None:
        self.p = program
        self.tower = tower
        self.rows = rows
        self.width = tower.heads * tower.head_size

    def tensor(self, name: str, width: float, rows: int | None = None) -> int:
        """Allocate rows x width elements in the model's dtype."""
        count = self.rows if rows is None else rows
        return self.p.alloc(name, constant=int(count * width * self.tower.item))

    def block(self, x: int) -> int:
        """One transformer block: hands over the new hidden states and frees the old ones."""
        mixed = self._attention_half(x)
        if self.tower.fused_residual:
            down = self._mlp("MLP output")
            out = self.tensor("hidden states", self.tower.hidden)
            self.p.free(x, mixed, down)
            return out
        normed = self.tensor("normalized MLP input", self.tower.hidden)
        down = self._mlp("MLP output")
        self.p.free(normed)
        out = self.tensor("hidden states", self.tower.hidden)
        self.p.free(mixed, down)
        return out

    def _attention_half(self, x: int) -> int:
        """Norm, attention and, but for a fused residual, the sum that replaces `x`."""
        normed = self.tensor("normalized input", self.tower.hidden)
        attended = self.attention()
        self.p.free(normed)
        if self.tower.fused_residual:
            return attended
        total = self.tensor("hidden states", self.tower.hidden)
        self.p.free(attended, x)
        return total

    def attention(self) -> int:
        tower, width = self.tower, self.width
        rank = width // tower.tp
        scratch = self._quantized(tower.hidden)
        held = [self.tensor("fused query, key and value", 3 * rank)]
        self.p.free(*scratch)
        if tower.gathers_qkv and tower.tp > 1:
            parts = self.tensor("query, key and value, rank by rank", 3 * width)
            held.append(self.tensor("query, key and value of all ranks", 3 * width))
            self.p.free(parts)
        if tower.rotary_size:
            held.append(self.tensor("query and key", 2 * rank))
            held.append(self.tensor("rotated query and key", 2 * rank))
        output = self.tensor("attention output", rank)
        if tower.flash:
            self._flash_scratch(tower.heads // tower.tp)
        result = self.row_linear("attention block output", rank, tower.hidden)
        self.p.free(output, *held)
        return result

    def _flash_scratch(self, heads: int) -> None:
        scratch = [self.p.alloc("softmax log-sum-exp", constant=4 * self.rows * heads)]
        splits = self.tower.splits
        if splits > 1:
            partial = 4 * self.rows * heads * splits
            scratch.append(self.p.alloc("partial attention outputs", constant=partial * self.tower.head_size))
            scratch.append(self.p.alloc("partial log-sum-exps", constant=partial))
        self.p.free(*scratch)

    def _mlp(self, name: str) -> int:
        tower = self.tower
        inner = tower.inner // tower.tp
        scratch = self._quantized(tower.hidden)
        up = self.tensor(
            "gate and up projection" if tower.gated else "MLP hidden layer", inner * (2 if tower.gated else 1)
        )
        self.p.free(*scratch)
        active = self.tensor("MLP activation", inner)
        if not tower.gated:
            self.p.free(up)
        down = self.row_linear(name, inner, tower.hidden)
        self.p.free(active)
        if tower.gated:
            self.p.free(up)
        return down

    def row_linear(self, name: str, input_width: int, width: int, rows: int | None = None) -> int:
        """A row-parallel linear; its sum over the ranks is a new tensor."""
        scratch = self._quantized(input_width, rows)
        partial = self.tensor(name, width, rows)
        self.p.free(*scratch)
        if self.tower.tp == 1:
            return partial
        total = self.tensor("sum over ranks", width, rows)
        self.p.free(partial)
        return total

    def _quantized(self, width: int, rows: int | None = None) -> list[int]:
        if not self.tower.quantized_inputs:
            return []
        count = self.rows if rows is None else rows
        return [self.p.alloc("quantized input", constant=count * width)]
