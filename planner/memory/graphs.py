"""CUDA graphs: what capturing them costs the device, and what the V1 runner sets aside for them beforehand."""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.memory import measured_constants as measured
from planner.memory.activation import forward_of
from planner.memory.allocator import Block, CachingAllocator
from planner.memory.constants import Measured
from planner.memory.layers import decoder_layers, latent_workspace_rows, split_bytes_per_token
from planner.memory.linear import cublas_workspace_bytes, linear_runs
from planner.memory.program import Program
from planner.memory.step import Step
from planner.model.modules import Attention, FusedMoE, MLAProjection
from planner.model.spec import ModelSpec
from planner.once import once
from planner.releases.choose import release_for
from planner.releases.release import GraphBudget
from planner.sharding.rank import RankShare
from planner.units import MIB
from planner.values import DTYPE_BYTES

ESTIMATE_VARIABLE = "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"
_ONE_STEP_ROWS = 256


def captured_graphs(config: EngineConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes captured piece by piece (mixed batches) and whole (decode batches), in tokens; with LoRA, a size appears
    once for each number of active adapters that it is captured with.

    Source: vLLM 0.26.0 v1/worker/gpu/cudagraph_utils.py:150 _init_candidates, v1/cudagraph_dispatcher.py (V1).
    """
    sizes = config.cudagraph_capture_sizes
    if config.lora_capture_cases != 1:
        sizes = tuple(size for size in sizes for _ in range(config.lora_capture_cases))
    if config.enforce_eager or not sizes or config.cudagraph_mode == "NONE":
        return (), ()
    most = config.max_num_seqs * (config.num_speculative_tokens + 1)
    whole = tuple([size for size in sizes if size <= most])
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
    nodes = (len(mixed) + len(whole)) * len(share.layers) * graph_node_bytes(model, share, config)
    rows = max(whole, default=0)
    splits = split_buffer_bytes(model, config, rows)
    if rows > _ONE_STEP_ROWS or (config.model_runner == "v2" and _attention_windows(model) > 1):
        splits *= 2
    stream = measured.GRAPH_STREAM_BYTES.value
    workspace = cublas_workspace_bytes(config.compute_capability)
    if config.model_runner == "v2":
        stream += workspace + (len(mixed) + len(whole)) * measured.GRAPH_BYTES_V2.value
    if any(layer.shared is not None for layer in decoder_layers(model, share)):
        stream += 2 * workspace
    pool = _pool_bytes(model, share, config, max((*mixed, *whole)))
    calibrated = config.calibrated_bytes("cuda_graph_actual_bytes")
    context = _empty_context_bytes(model, config) if config.model_runner == "v1" and mixed else 0
    return splits + pool + nodes + stream + context + draft_graph_bytes(model, config) + calibrated


def graph_node_bytes(model: ModelSpec, share: RankShare, config: EngineConfig) -> int:
    """What the driver keeps of one layer in one captured graph."""
    node = measured.GRAPH_NODE_BYTES_MOE if _expert_kind(model, share, config) else measured.GRAPH_NODE_BYTES
    return node.value


def draft_graph_bytes(model: ModelSpec, config: EngineConfig) -> int:
    """What capturing a draft head's graphs adds: one for each of the target's, one more for each number of requests
    where it drafts several tokens, and the logits of the largest. V1 captures the draft in pieces only.

    Source: vLLM 0.26.0 v1/worker/gpu/spec_decode/autoregressive/speculator.py:62, 86. No boot had one captured.
    """
    mixed, whole = captured_graphs(config)
    if model.draft is None or not (mixed or whole):
        return 0
    if config.model_runner == "v1" and model.draft.eager:
        return 0
    if config.model_runner == "v1":
        return len(mixed) * model.draft.layers * measured.GRAPH_NODE_BYTES.value
    query = config.num_speculative_tokens + 1
    steps = tuple(size for size in config.cudagraph_capture_sizes if size <= config.max_num_seqs) if query > 2 else ()
    graphs = len(mixed) + len(whole) + len(steps)
    rows = max((*(size // query for size in whole), *steps), default=0)
    words = model.draft.words + (model.draft.all_words if model.draft.target_layers else 0)
    node = model.draft.layers * measured.GRAPH_NODE_BYTES.value + measured.GRAPH_BYTES_V2.value
    return graphs * node + rows * words * DTYPE_BYTES[config.dtype]


def cuda_graph_estimate_bytes(model: ModelSpec, share: RankShare, config: EngineConfig) -> int:
    """What the engine subtracts from the KV cache for graphs, by its release's rule and the environment.

    V1: the first capture, and each further one at 1 MiB or more (vLLM 0.26.0 v1/worker/gpu_model_runner.py:6576). V2
    estimates nothing in 0.26; from 0.29 it captures the pieces and two whole graphs and multiplies
    (vLLM 0.29.0 v1/worker/gpu/cudagraph_utils.py:718).
    """
    terms = estimate_terms(model, share, config)
    if not terms:
        return 0
    mixed, whole = captured_graphs(config)
    splits = split_buffer_bytes(model, config, max(whole, default=0)) if config.model_runner == "v1" else 0
    graphs = max(0, len(mixed) - 1) + max(0, len(whole) - 1) if config.model_runner == "v1" else len(whole)
    node, nodes = terms[-1]
    floor = max(0, graphs * MIB - node.value * nodes)
    context = _empty_context_bytes(model, config) if config.model_runner == "v1" and mixed else 0
    return splits + floor + context + sum(constant.value * times for constant, times in terms)


def _empty_context_bytes(model: ModelSpec, config: EngineConfig) -> int:
    """The largest up-projected context, which latent attention allocates wherever it runs without metadata: in V1's
    first capture in pieces too (vLLM 0.26.0 layers/attention/mla_attention.py:707; DeepSeek-V3 on an H200)."""
    mla = next((module for module in model.modules if isinstance(module, MLAProjection)), None)
    if mla is None:
        return 0
    width = mla.num_heads // config.tensor_parallel_size * (mla.qk_nope_head_dim + mla.v_head_dim)
    return latent_workspace_rows(model, config) * width * DTYPE_BYTES[config.dtype]


def estimate_terms(model: ModelSpec, share: RankShare, config: EngineConfig) -> tuple[tuple[Measured, int], ...]:
    """The measured constants in the engine's estimate, each with how often it counts, the one of a node last."""
    mixed, whole = captured_graphs(config)
    release = release_for(config.vllm_version).release
    if not (mixed or whole) or not _subtracted(release.graph_budget, config):
        return ()
    layers = len(share.layers)
    nccl: tuple[tuple[Measured, int], ...] = ()
    if config.tensor_parallel_size > 1 and release.ledger_rule == "consumed_plus_headroom":
        nccl = ((measured.NCCL_GRAPH_BUFFERS, 1),)
    if config.model_runner == "v2":
        return (*nccl, (_v2_node(config), len(whole) * layers)) if release.v2_profiles_cuda_graphs else ()
    further = max(0, len(mixed) - 1) + max(0, len(whole) - 1)
    node = _estimate_node(model, share, config)
    grouped = _expert_kind(model, share, config) == "grouped"
    first = measured.GRAPH_ESTIMATE_FIRST_GROUPED if grouped else measured.GRAPH_ESTIMATE_FIRST
    return (*nccl, (first, 1), (node, further * layers))


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
    """FlashAttention 3's partial outputs, which a captured decode batch sets aside."""
    return split_bytes_per_token(model, config) * rows


@once
def _attention_windows(model: ModelSpec) -> int:
    """How many kinds of attention window the layers have. With two, V2's capture kept two split buffers (Gemma 3)."""
    layers = (m for m in model.modules if isinstance(m, Attention) and m.component == "language_model")
    return len({layer.window for layer in layers})


def _pool_bytes(model: ModelSpec, share: RankShare, config: EngineConfig, tokens: int) -> int:
    program = Program()
    hidden = forward_of(model, share, config).write(program, Step(attends=True))
    program.free(hidden)
    pool = CachingAllocator()
    kept: dict[str, Block] = {}
    program.replay(pool, tokens, min(tokens, config.max_num_seqs), kept)
    return pool.reserved_bytes


def _estimate_node(model: ModelSpec, share: RankShare, config: EngineConfig) -> Measured:
    kind = _expert_kind(model, share, config)
    if kind == "":
        return measured.GRAPH_ESTIMATE_NODE_BYTES
    if kind == "grouped":
        return measured.GRAPH_ESTIMATE_NODE_BYTES_GROUPED
    return measured.GRAPH_ESTIMATE_NODE_BYTES_MOE


def _expert_kind(model: ModelSpec, share: RankShare, config: EngineConfig) -> str:
    runs = linear_runs(model, share, config)
    for layer in decoder_layers(model, share):
        if isinstance(layer.experts, FusedMoE):
            return runs[layer.experts.name].kind
    return ""
