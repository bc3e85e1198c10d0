"""One embed_multimodal call of Qwen2-VL, Qwen2.5-VL and Qwen3-VL towers.

Source: vLLM 0.26.0 model_executor/models/qwen2_vl.py:480-720, qwen2_5_vl.py:756-1120, qwen3_vl.py:560-850.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.tower import TowerRun

KEPT_ROTARY = "rotary tables of grid"
_INDEX_BYTES = 8
_BLOCKS = 2
"""Further blocks find the memory of those before them. Deepstack levels are kept until the end, so that a block after
the last of them is the highest moment: here they follow the first blocks."""


class QwenMerger(Struct, frozen=True, kw_only=True):
    """`merge`: patches of one token. `output`: one embedding without deepstack levels. `deepstack`: the levels;
    `merges_last`: their hidden states are kept until the last block and merged then (Qwen3-Omni). `windowed`: patches
    are reordered by window and back (Qwen2.5-VL). `position_table`: interpolated positions live through the run
    (Qwen3-VL)."""

    merge: int
    output: int
    deepstack: int
    merges_last: bool
    windowed: bool
    position_table: bool


def write_qwen(run: TowerRun, merger: QwenMerger, items: Sequence[MediaItem]) -> int:
    """Write the run over `items`; the handle of their embeddings, one after the other in one tensor."""
    p, tower = run.p, run.tower
    tokens = run.rows // merger.merge**2
    p.stage("patch embedding")
    x = run.tensor("hidden states", tower.hidden)
    held = _positions(run, merger, items)
    if merger.position_table:
        table = run.tensor("interpolated positions", tower.hidden)
        total = run.tensor("hidden states", tower.hidden)
        p.free(x)
        x, held = total, [table, *held]
    if merger.windowed:
        reordered = run.tensor("hidden states in window order", tower.hidden)
        p.free(x)
        x = reordered
    levels: list[int] = []
    kept: list[int] = []
    for layer in range(min(tower.layers, _BLOCKS + merger.deepstack)):
        p.stage(f"vision block {layer}")
        x = run.block(None if x in kept else x)
        if len(levels) + len(kept) < merger.deepstack:
            p.stage("deepstack merger")
            if merger.merges_last:
                kept.append(x)
            else:
                levels.append(_merge(run, merger, tokens))
    p.stage("merger")
    merged = _merge(run, merger, tokens)
    levels += [_merge(run, merger, tokens) for _ in kept]
    p.free(x, *kept)
    if levels or merger.windowed:
        out = run.tensor("embeddings", merger.output * (1 + merger.deepstack), tokens)
        p.free(merged, *levels)
        merged = out
    p.free(*held)
    return merged


def _positions(run: TowerRun, merger: QwenMerger, items: Sequence[MediaItem]) -> list[int]:
    """Cos and sin of each patch. Qwen2.5-VL caches them for each grid it has seen, and concatenates a copy."""
    p, tower = run.p, run.tower
    if merger.windowed:
        for grid in dict.fromkeys(item.grid for item in items if item.grid):
            patches = grid[0] * grid[1] * grid[2]
            p.keep(f"{KEPT_ROTARY} {grid}", constant=2 * patches * tower.rotary_size * tower.item)
        tokens = run.rows // merger.merge**2
        order = p.alloc("window order and its inverse", constant=2 * tokens * _INDEX_BYTES)
        return [run.tensor("cos and sin of the patches", 2 * tower.rotary_size), order]
    return [run.tensor("cos and sin of the patches", 2 * tower.rotary_size)]


def _merge(run: TowerRun, merger: QwenMerger, tokens: int) -> int:
    """Norm, linear, GELU, linear: merge x merge patches become one token."""
    p, tower = run.p, run.tower
    wide = tower.hidden * merger.merge**2
    normed = run.tensor("normalized patches", tower.hidden)
    first = run.tensor("merger hidden layer", wide // tower.tp, tokens)
    active = run.tensor("merger activation", wide // tower.tp, tokens)
    p.free(first)
    out = run.row_linear("merged tokens", wide // tower.tp, merger.output, tokens)
    p.free(normed, active)
    return out
