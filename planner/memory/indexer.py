"""The lightning indexer of sparse latent attention (DeepSeek-V3.2): what it allocates, above all its dummy logits.

Source: vLLM 0.26.0 model_executor/layers/sparse_attn_indexer.py:325, models/deepseek_v2.py Indexer.forward.
"""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.memory.layers import DecoderLayer
from planner.memory.linear import EXPERT_WORKSPACE
from planner.memory.program import Program
from planner.memory.recurrent import LinearWriter
from planner.units import MIB

_MAX_LOGITS_MIB = "512"
_CONTEXTS = 40
_KEY_BYTES = 132
_TOP_K_WORKSPACE_BYTES = MIB


def write_indexer(p: Program, layer: DecoderLayer, config: EngineConfig, linear: LinearWriter, item: int) -> None:
    """Projections, their 8-bit copies, the gather workspace, and logits at their limit, all dropped on return."""
    query, keys = layer.linear("indexer.wq_b"), layer.linear("indexer.wk_weights_proj")
    if query is None or keys is None:
        return
    wide = sum(query.output_sizes)
    held = [
        linear(p, query.name, "indexer query", wide * item),
        linear(p, keys.name, "indexer key and weights", sum(keys.output_sizes) * item),
        p.alloc("indexer query in 8 bits, with scales", token=wide * 33 // 32),
        p.alloc("indexer key and weights in float32", token=4 * sum(keys.output_sizes)),
    ]
    p.grow(EXPERT_WORKSPACE, constant=_CONTEXTS * config.max_model_len * _KEY_BYTES + _TOP_K_WORKSPACE_BYTES)
    logits = int(config.environment("VLLM_SPARSE_INDEXER_MAX_LOGITS_MB", _MAX_LOGITS_MIB)) * MIB
    p.free(p.alloc("largest indexer logits", constant=logits), *held)
