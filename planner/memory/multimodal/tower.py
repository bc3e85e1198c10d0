"""The forward pass of a vision tower on one rank, as the tensors that vLLM's Python code allocates and drops.

A tensor lives as long as a name in some frame refers to it: PyTorch's module call keeps its arguments, so a block's
normalized input outlives the fused projection made of it. Source: vLLM 0.26.0 model_executor/models/*.py; the Qwen
towers are checked to the byte against runs on an H200.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from planner.memory.program import Program


class Tower(Struct, frozen=True, kw_only=True):
    """Sizes of one tower on one rank, in elements; `tp` divides the widths of heads and MLPs.

    `fused_residual`: the second norm adds the residual in place (Qwen2.5-VL). `gated`: gate and up are one projection.
    `gathers_qkv`: the fused projection is gathered over the ranks (Qwen2-VL). `rotation`: how query and key are
    rotated; `rotary_size`: columns of cos, and of sin. `flash`: attention keeps a log-sum-exp in float32; else
    PyTorch's runs over one sequence after the other, and their outputs are joined (v1/attention/ops/
    vit_attn_wrappers.py:215). `splits`: parts of the keys, each with a float32 output of its own (FlashAttention 3).
    `transposes`: PyTorch's attention over all at once, whose output is copied back to rows. `quantized_inputs`:
    linears quantize what they read. `copied_qkv`: query, key and value are copied out of the fused projection;
    `float_tables`: cos and sin are made in float32 in each block; `keeps_attention`: its output lives until the block
    returns.
    """

    hidden: int
    heads: int
    head_size: int
    inner: int
    layers: int
    tp: int
    item: int
    gated: bool
    fused_residual: bool
    gathers_qkv: bool
    rotation: Literal["none", "joined", "wide", "contiguous", "complex"]
    rotary_size: int
    flash: bool
    splits: int
    transposes: bool
    quantized_inputs: bool
    copied_qkv: bool
    float_tables: bool
    keeps_attention: bool


class TowerRun:
    """Writes a tower's run over `rows` patches into a program. Sizes are whole bytes, fixed for the batch."""

    def __init__(self, program: Program, tower: Tower, rows: int) -> None:
        self.p = program
        self.tower = tower
        self.rows = rows
        self.width = tower.heads * tower.head_size
        self.padded_mask_bytes = 0

    def tensor(self, name: str, width: float, rows: int | None = None) -> int:
        """Allocate rows x width elements in the model's dtype."""
        count = self.rows if rows is None else rows
        return self.p.alloc(name, constant=int(count * width * self.tower.item))

    def block(self, x: int | None) -> int:
        """One transformer block. The tower's loop holds the old hidden states until the block returns; None where
        something else holds them longer still."""
        normed = self.tensor("normalized input", self.tower.hidden)
        middle, attention = self.attention(), None
        self.p.free(normed)
        if not self.tower.fused_residual:
            total = self.tensor("hidden states after attention", self.tower.hidden)
            if not self.tower.keeps_attention:
                self.p.free(middle)
            middle, attention = total, middle if self.tower.keeps_attention else None
        inner = None if self.tower.fused_residual else self.tensor("normalized MLP input", self.tower.hidden)
        down = self._mlp()
        out = self.tensor("hidden states", self.tower.hidden)
        self.p.free(down, inner, middle, attention, x)
        return out

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
        held += self._rotate(rank)
        joins = not (tower.flash or tower.transposes)
        parted = self.tensor("attention output of each sequence", rank) if joins else None
        padded = self.padded_mask_bytes
        mask = self.p.alloc("attention mask, padded", constant=padded) if padded else None
        output = self.tensor("attention output", rank)
        self.p.free(parted, mask)
        if tower.flash:
            self._flash_scratch(tower.heads // tower.tp)
        if tower.transposes:
            held.append(self.tensor("attention output in rows", rank))
        result = self.row_linear("attention block output", rank, tower.hidden)
        self.p.free(output, *held)
        return result

    def _rotate(self, rank: int) -> list[int]:
        """Query and key copied together, then rotated. Complex rotation works on float32 copies of each, the wide one
        on one of both."""
        tower = self.tower
        if tower.rotation == "none":
            return []
        if tower.rotation == "complex":
            wide = 4 * self.rows * rank
            scratch = [self.p.alloc(f"{name} in float32", constant=wide) for name in ("query", "key")]
            scratch += [self.p.alloc(f"rotated {name} in float32", constant=wide) for name in ("query", "key")]
            rotated = [self.tensor("rotated query", rank), self.tensor("rotated key", rank)]
            self.p.free(*scratch)
            return rotated
        if tower.rotation == "wide":
            copies = [self.tensor(f"{name} copy", rank) for name in ("query", "key") if tower.copied_qkv]
            both = [self.tensor("value copy", rank)] if tower.copied_qkv else []
            both.append(self.tensor("query and key", 2 * rank))
            if tower.float_tables:
                table = 4 * self.rows * tower.rotary_size
                copies += [self.p.alloc(f"{name} in float32", constant=table) for name in ("cos", "sin")]
            wide = 8 * self.rows * rank
            copies += [self.p.alloc(f"{name} in float32", constant=wide) for name in ("query and key", "rotated")]
            both.append(self.tensor("rotated query and key", 2 * rank))
            self.p.free(*copies)
            return both
        if tower.rotation == "joined":
            return [self.tensor("query and key", 2 * rank), self.tensor("rotated query and key", 2 * rank)]
        contiguous = self.tensor("contiguous query and key", 2 * rank)
        value = self.tensor("contiguous value", rank)
        held = [value, self.tensor("query and key", 2 * rank), self.tensor("rotated query and key", 2 * rank)]
        self.p.free(contiguous)
        return held

    def _flash_scratch(self, heads: int) -> None:
        scratch = [self.p.alloc("softmax log-sum-exp", constant=4 * self.rows * heads)]
        splits = self.tower.splits
        if splits > 1:
            partial = 4 * self.rows * heads * splits
            scratch.append(self.p.alloc("partial attention outputs", constant=partial * self.tower.head_size))
            scratch.append(self.p.alloc("partial log-sum-exps", constant=partial))
        self.p.free(*scratch)

    def _mlp(self) -> int:
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
        down = self.row_linear("MLP output", inner, tower.hidden)
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
