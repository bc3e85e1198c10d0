"""One embed_multimodal call of Gemma 4's vision and audio towers, which transformers runs eagerly on each rank.

Derived from the code, not measured. Source: vLLM 0.26.0 model_executor/models/gemma4_mm.py:1155-1420; transformers
5.14.1 models/gemma4/modeling_gemma4.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from planner.memory.multimodal.item import MediaItem
from planner.memory.program import Program
from planner.model.vision_spec import AudioFrames, Encoder

_INDEX_BYTES = 8
_FLOAT_BYTES = 4
_MASK_UNIT = 16
_STEM_TENSORS = 3
"""Outputs of the first convolution that live together: itself, its norm (or the norm's input in rows) and a copy."""


def encoder_chunk(patches: int, positions: int, free_bytes: int, total_bytes: int) -> int:
    """Images of so many patches that vLLM encodes at once: what half of the free memory, at most a tenth of the card,
    holds of a one-hot table of positions (gemma4_mm.py:1207)."""
    budget = min(free_bytes // 2, total_bytes // 10)
    return max(1, budget // (patches * 4 * positions * _INDEX_BYTES))


class Gemma4Vision(Struct, frozen=True):
    """The tower's run. `chunk`: images or frames encoded at once. `item`: bytes of an element of the model's dtype."""

    p: Program
    encoder: Encoder
    item: int
    chunk: int

    def write(self, items: Sequence[MediaItem]) -> int:
        """Write the run over `items` of one modality; the handle of their embeddings, in one tensor."""
        squares, patches = sum(entry.sequences for entry in items), sum(entry.patches for entry in items)
        rows, pixels = patches // squares, sum(entry.input_values for entry in items) // patches
        positions = self._alloc("patch positions", 2 * patches, _INDEX_BYTES)
        states: list[int] = []
        left = squares
        while left:
            count = min(self.chunk, left)
            left -= count
            states.append(self._encode(count, rows, pixels, copies=items[0].modality == "image"))
        if items[0].modality == "video":
            states = [self._joined(states, patches)]
        tokens, width = sum(entry.tokens for entry in items), self.encoder.hidden_size
        self.p.stage("pooling")
        pooled = self._alloc("pooled states in float32", tokens * width, _FLOAT_BYTES)
        flat = self._alloc("pooled states", tokens * width)
        normed = self._alloc("normalized pooled states", tokens * width)
        out = self._alloc("embeddings", tokens * self.encoder.output_size)
        self.p.free(normed, flat, pooled, positions, *states)
        return out

    def _alloc(self, name: str, values: int, size: int | None = None) -> int:
        return self.p.alloc(name, constant=values * (self.item if size is None else size))

    def _joined(self, states: list[int], patches: int) -> int:
        joined = self._alloc("hidden states of all frames", patches * self.encoder.hidden_size)
        self.p.free(*states)
        return joined

    def _encode(self, count: int, rows: int, pixels: int, *, copies: bool) -> int:
        """One chunk, one block of it: the next blocks find the memory of the one before."""
        p, encoder, total = self.p, self.encoder, count * rows
        hidden = total * encoder.hidden_size
        p.stage("patch embedding")
        held = [self._alloc("pixel values of the chunk", total * pixels)] if copies else []
        shifted = self._alloc("shifted pixel values", total * pixels)
        scaled = self._alloc("scaled pixel values", total * pixels)
        p.free(shifted)
        projected = self._alloc("embedded patches", hidden)
        p.free(scaled)
        axes = [self._alloc(f"{axis} position embeddings", hidden) for axis in ("column", "row")]
        places = self._alloc("position embeddings", hidden)
        p.free(*axes)
        held.append(self._alloc("input of the encoder", hidden))
        p.free(places, projected)
        held.append(self._alloc("cos and sin of the patches", 2 * total * encoder.head_size))
        held.append(self._alloc("attention mask", count * rows * rows, 1))
        p.stage("encoder block")
        out = self._block(count, rows)
        p.free(*held)
        return out

    def _block(self, count: int, rows: int) -> int:
        p, encoder, total = self.p, self.encoder, count * rows
        hidden, wide = total * encoder.hidden_size, total * encoder.num_heads * encoder.head_size
        x = self._alloc("hidden states", hidden)
        normed = self._norm("normalized input", hidden)
        heads = [self._head(name, wide, rotated=name != "value") for name in ("query", "key", "value")]
        attended = self._attention(count, rows, wide)
        projected = self._alloc("attention block output", hidden)
        p.free(attended, normed, *heads)
        x = self._add(x, projected, hidden)
        normed = self._norm("normalized MLP input", hidden)
        inner = total * encoder.intermediate_size
        gate = self._alloc("gate projection", inner)
        active = self._alloc("gate activation", inner)
        p.free(gate)
        up = self._alloc("up projection", inner)
        product = self._alloc("gated MLP hidden layer", inner)
        p.free(up, active)
        down = self._alloc("MLP output", hidden)
        p.free(product, normed)
        return self._add(x, down, hidden)

    def _head(self, name: str, values: int, *, rotated: bool) -> int:
        projected = self._alloc(f"{name} projection", values)
        normed = self._norm(name, values)
        self.p.free(projected)
        if not rotated:
            return normed
        halves = self._alloc(f"{name} rotated by axis", values)
        turned = self._alloc(f"rotated {name}", values)
        self.p.free(halves, normed)
        return turned

    def _attention(self, count: int, rows: int, values: int) -> int:
        """Images with padded patches have a mask: made of numbers for the kernel, padded to 16 columns."""
        mask = self._alloc("attention mask in numbers", count * rows * rows)
        if rows % _MASK_UNIT:
            columns = -(-rows // _MASK_UNIT) * _MASK_UNIT
            padded = self._alloc("attention mask, padded", count * rows * columns)
            self.p.free(mask)
            mask = padded
        out = self._alloc("attention output", values)
        sums = self._alloc("softmax log-sum-exp", count * rows * self.encoder.num_heads, _FLOAT_BYTES)
        self.p.free(mask, sums)
        return out

    def _norm(self, name: str, values: int) -> int:
        """RMSNorm in float32, one product after the other."""
        wide = self._alloc("input in float32", values, _FLOAT_BYTES)
        scaled = self._alloc("scaled in float32", values, _FLOAT_BYTES)
        self.p.free(wide)
        weighted = self._alloc("weighted in float32", values, _FLOAT_BYTES)
        self.p.free(scaled)
        out = self._alloc(name, values)
        self.p.free(weighted)
        return out

    def _add(self, x: int, result: int, values: int) -> int:
        normed = self._norm("normalized output", values)
        self.p.free(result)
        total = self._alloc("hidden states", values)
        self.p.free(normed, x)
        return total


def write_gemma4_audio(
    p: Program, encoder: Encoder, audio: AudioFrames, items: Sequence[MediaItem], item_bytes: int
) -> int:
    """Sounds of a batch padded to the longest. The first of two strided convolutions has the highest moment: half the
    frames times half the mel bins times its channels; the Conformer layers behind it stay below."""
    count, frames = len(items), max(entry.frames for entry in items)
    stem = count * audio.stem_channels * -(-frames // 2) * -(-audio.mel_bins // 2)
    rows = count * max(entry.tokens for entry in items)
    p.stage("first convolution")
    tensors = [p.alloc(f"convolved sound {copy}", constant=stem * item_bytes) for copy in range(1, _STEM_TENSORS + 1)]
    p.free(*tensors)
    p.stage("projector")
    states = p.alloc("sound states", constant=rows * (encoder.projector_size or encoder.hidden_size) * item_bytes)
    normed = p.alloc("normalized", constant=rows * (encoder.projector_size or encoder.hidden_size) * item_bytes)
    out = p.alloc("embeddings", constant=rows * encoder.output_size * item_bytes)
    p.free(states, normed)
    return out
