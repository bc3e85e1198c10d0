"""CUDA graphs: what capturing them costs the device, and what the V1 runner sets aside for them beforehand."""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.memory import measured_constants as measured
from planner.memory.activation import forward_of
from planner.memory.allocator import Block, CachingAllocator
from planner.memory.constants import Measured
from planner.memory.layers import decoder_layers
from planner.memory.linear import cublas_workspace_bytes, linear_runs
from planner.memory.program import Program
from planner.model.modules import FusedMoE, MLAProjection, QKVLinear
from planner.model.spec import ModelSpec
from planner.releases.choose import release_for
from planner.releases.release import GraphBudget
from planner.sharding.rank import RankShare
from planner.units import MIB

ESTIMATE_VARIABLE = "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"
_MAX_SPLITS = 32
_ONE_STEP_ROWS = 256


def captured_graphs(config: EngineConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes captured piece by piece (mixed batches) and whole (decode batches), in tokens.

    Source: vLLM 0.26.0 v1/worker/gpu/cudagraph_utils.py:150 _init_candidates, v1/cudagraph_dispatcher.py (V1).
    """
    sizes = config.cudagraph_capture_sizes
    if config.enforce_eager or not sizes or config.cudagraph_mode == "NONE":
        return (), ()
    query = config.num_speculative_tokens + 1
    whole = tuple(size for size in sizes if size <= config.max_num_seqs * query)
    if config.cudagraph_mode == "FULL_AND_PIECEWISE":
        return sizes, whole
    if config.cudagraph_mode == "FULL_DECODE_ONLY":
        return (), whole
    return (sizes, ()) if config.cudagraph_mode == "PIECEWISE" else ((), sizes)


def cuda_graph_actual_bytes(model: ModelSpec, share: RankShare, config: EngineConfig) -> int:
    """What the device holds more once all graphs are captured (vLLM's "Graph capturing finished ... took").

    The graphs' pool has the largest size's activations and FlashAttention's split buffers; the driver keeps every
    node; the capture stream, and that of shared experts, have cuBLAS workspaces of their own.
    """
    mixed, whole = captured_graphs(config)
    if not mixed and not whole:
        return 0
    nodes = (len(mixed) + len(whole)) * len(share.layers) * measured.GRAPH_NODE_BYTES.value
    rows = max(whole, default=0)
    splits = split_buffer_bytes(model, config, rows)
    if rows > _ONE_STEP_ROWS:
        splits *= 2
    stream = measured.GRAPH_STREAM_BYTES.value
    workspace = cublas_workspace_bytes(config.compute_capability)
    if config.model_runner == "v2":
        stream += workspace
    if any(layer.shared is not None for layer in decoder_layers(model, share)):
        stream += 2 * workspace
    return splits + _pool_bytes(model, share, config, max((*mixed, *whole))) + nodes + stream


def cuda_graph_estimate_bytes(model: ModelSpec, share: RankShare, config: EngineConfig) -> int:
    """What the engine subtracts from the KV cache for graphs, by its release's rule and the environment.

    V1: the first capture, and each further one at 1 MiB or more (vLLM 0.26.0 v1/worker/gpu_model_runner.py:6576). V2
    estimates nothing in 0.26; from 0.29 it captures the pieces and two whole graphs and multiplies
    (vLLM 0.29.0 v1/worker/gpu/cudagraph_utils.py:718).
    """
    mixed, whole = captured_graphs(config)
    release = release_for(config.vllm_version).release
    if not (mixed or whole) or not _subtracted(release.graph_budget, config):
        return 0
    nccl = measured.NCCL_GRAPH_BUFFERS.value if config.tensor_parallel_size > 1 else 0
    if config.model_runner == "v2":
        if not release.v2_profiles_cuda_graphs:
            return 0
        return len(whole) * max(MIB, len(share.layers) * _v2_node(config).value) + nccl
    if release.ledger_rule == "sum_of_terms":
        nccl = 0
    further = max(0, len(mixed) - 1) + max(0, len(whole) - 1)
    each = max(MIB, len(share.layers) * _estimate_node_bytes(model, share, config))
    first = split_buffer_bytes(model, config, max(whole, default=0)) + measured.GRAPH_ESTIMATE_FIRST.value
    return first + further * each + nccl


def _subtracted(budget: GraphBudget, config: EngineConfig) -> bool:
    asked = dict(config.env).get(ESTIMATE_VARIABLE)
    if budget == "none" or asked == "0":
        return False
    return budget == "default" or asked == "1"


def _v2_node(config: EngineConfig) -> Measured:
    if config.compute_capability < (9, 0):
        return measured.GRAPH_ESTIMATE_V2_NODE_BEFORE_HOPPER
    return measured.GRAPH_ESTIMATE_V2_NODE


def split_buffer_bytes(model: ModelSpec, config: EngineConfig, rows: int) -> int:
    """FlashAttention 3's partial outputs in float32, for up to 32 splits, which a captured decode batch sets aside.

    Source: vLLM 0.26.0 config/attention.py:42, v1/attention/backends/flash_attn.py:493.
    """
    if config.compute_capability != (9, 0):
        return 0
    tp = config.tensor_parallel_size
    if config.attention_backend == "FLASH_ATTN":
        widths = [
            module.num_heads // tp * (module.head_size_v or module.head_size)
            for module in model.modules
            if isinstance(module, QKVLinear) and module.component == "language_model"
        ]
    elif config.attention_backend == "FLASH_ATTN_MLA":
        widths = [m.num_heads // tp * m.kv_lora_rank for m in model.modules if isinstance(m, MLAProjection)]
    else:
        return 0
    return _MAX_SPLITS * max(widths, default=0) * 4 * rows


def _pool_bytes(model: ModelSpec, share: RankShare, config: EngineConfig, tokens: int) -> int:
    program = Program()
    hidden = forward_of(model, share, config).write(program, attends=True)
    program.free(hidden)
    pool = CachingAllocator()
    kept: dict[str, Block] = {}
    program.replay(pool, tokens, min(tokens, config.max_num_seqs), kept)
    return pool.reserved_bytes


def _estimate_node_bytes(model: ModelSpec, share: RankShare, config: EngineConfig) -> int:
    kind = _expert_kind(model, share, config)
    if kind == "":
        return measured.GRAPH_ESTIMATE_NODE_BYTES.value
    if kind == "grouped":
        return measured.GRAPH_ESTIMATE_NODE_BYTES_GROUPED.value
    return measured.GRAPH_ESTIMATE_NODE_BYTES_MOE.value


def _expert_kind(model: ModelSpec, share: RankShare, config: EngineConfig) -> str:
    runs = linear_runs(model, share, config)
    for layer in decoder_layers(model, share):
        if isinstance(layer.experts, FusedMoE):
            return runs[layer.experts.name].kind
    return ""
