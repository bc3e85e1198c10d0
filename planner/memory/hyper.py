"""DeepSeek-V4's layers: a residual of several streams (hyper-connections) around compressed sparse attention.

Every tensor that a Python name can still hold is counted to the end of its block, so that the sum is at or above the
engine's peak. Read from vLLM 0.26.0 models/deepseek_v4/{attention,nvidia/model,nvidia/flashmla}.py; no boot was there
to compare with.
"""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.memory.layers import DecoderLayer
from planner.memory.linear import EXPERT_WORKSPACE
from planner.memory.program import Program
from planner.memory.recurrent import LinearWriter
from planner.model.modules import Linear, PackedCache, Parameter

_CHUNK_REQUESTS = 4
_PADDED_HEADS = (64, 128)


def residual_streams(layer: DecoderLayer, hidden_size: int) -> int:
    """How many hidden states wide the residual is; 0 for layers without hyper-connections."""
    mixer = next((m for m in layer.modules if isinstance(m, Parameter) and m.name.endswith(".hc_attn_fn")), None)
    return 0 if mixer is None else mixer.shape[-1] // hidden_size


def write_compressed_attention(
    p: Program, layer: DecoderLayer, config: EngineConfig, linear: LinearWriter, *, item: int, hidden: int
) -> int:
    """The attention block of one layer; gives the handle of its output. `hidden`: bytes of a token's hidden state."""
    tp = config.tensor_parallel_size
    window = next((m for m in layer.modules if isinstance(m, PackedCache) and m.role == "window"), None)
    query, latent = layer.require("attn.wq_b"), layer.require("fused_wqa_wkv")
    first, last = layer.require("attn.wo_a"), layer.require("attn.wo_b")
    if window is None:
        raise layer.unsupported("attention")
    heads = query.output_sizes[0] // tp // window.head_size
    padded = next((count for count in _PADDED_HEADS if heads <= count), heads) * window.head_size * item
    held = [p.alloc("attention output of all padded heads", token=padded)]
    held.append(linear(p, latent.name, "latent query and keys", sum(latent.output_sizes) * item))
    held.append(p.alloc("normalized latent query and keys", token=sum(latent.output_sizes) * item))
    held += [_beside(p, module) for module in layer.modules if isinstance(module, Linear) and _is_beside(module)]
    scratch = [linear(p, query.name, "query", query.output_sizes[0] // tp * item)]
    scratch.append(p.alloc("normalized and padded query", token=padded))
    workspace = _gathered_rows(layer, config, window) * window.head_size * 2
    p.grow(EXPERT_WORKSPACE, constant=workspace)
    p.free(*scratch)
    held.append(p.alloc("attention output in 8 bits, with scales", token=heads * window.head_size * 33 // 32))
    held.append(linear(p, first.name, "grouped output", sum(first.output_sizes) // tp * item))
    result = linear(p, last.name, "attention block output", hidden, reduced=True)
    p.free(*held)
    return result


def _gathered_rows(layer: DecoderLayer, config: EngineConfig, window: PackedCache) -> int:
    """Rows of keys that a prefill chunk gathers in 16 bits (nvidia/flashmla.py:92)."""
    keys = next((m for m in layer.modules if isinstance(m, PackedCache) and m.role == "keys"), None)
    compressed = 0 if keys is None else -(-config.max_model_len // keys.compress_ratio)
    return _CHUNK_REQUESTS * (compressed + (window.window or 0) + config.max_num_batched_tokens)


def _is_beside(module: Linear) -> bool:
    return "compressor." in module.name or "indexer." in module.name


def _beside(p: Program, module: Linear) -> int:
    """What the indexer and the compressors project, in float32."""
    return p.alloc(f"{module.name.rsplit('.', 1)[-1]} in float32", token=4 * sum(module.output_sizes))
