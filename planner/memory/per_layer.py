"""Gemma 4's input of each layer, made for all layers at once before the first."""

from __future__ import annotations

from planner.memory.program import Program
from planner.model.modules import VocabEmbedding
from planner.model.spec import ModelSpec
from planner.once import once


def write_per_layer_inputs(p: Program, model: ModelSpec, item: int) -> int | None:
    """Embeddings, a projection of the hidden states, and their scaled sum, whose handle this gives.

    Source: vLLM 0.26.0 models/gemma4.py:842 get_per_layer_inputs, project_per_layer_inputs.
    """
    table = _table(model)
    if table is None:
        return None
    width = table.hidden_size * item
    scratch = [
        p.alloc("embeddings for each layer", token=width),
        p.alloc("projection for each layer", token=width),
        p.alloc("normalized projection for each layer", token=width),
        p.alloc("input of each layer, unscaled", token=width),
    ]
    kept = p.alloc("input of each layer", token=width)
    p.free(*scratch)
    return kept


@once
def _table(model: ModelSpec) -> VocabEmbedding | None:
    return next((m for m in model.modules if isinstance(m, VocabEmbedding) and "per_layer" in m.name), None)
