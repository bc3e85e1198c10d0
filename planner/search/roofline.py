"""Estimates of speed from the roofs of a card: bytes over bandwidth, operations over FLOPS, all-reduces over the link.

An estimate with an interval, not a promise and no part of any ledger. A decode step of B sequences reads each weight of
the rank once (of experts those that B tokens are routed to) and each sequence's cache, multiplies B rows, all-reduces
twice a layer, and waits for the host. Prefill multiplies the prompt's rows and attends over their pairs, in chunks of
max_num_batched_tokens. The slower roof of each part counts; parts add up. How much of each roof real kernels reach is
in planner.search.kernel_shares; slow and fast ends take all of them at their slow or fast ends at once.

Left out: the vision encoder, speculation, prefix caching, preemption, expert parallelism's own transfers, and tokens on
the way between pipeline stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from planner.hardware.spec import GpuSpec
from planner.memory.assess import Deployment
from planner.memory.kv_pool import KVPool
from planner.model.modules import Attention, FusedMoE, Linear, LMHead, MLAProjection, Module, QKVLinear, VocabEmbedding
from planner.model.spec import ModelSpec
from planner.search import kernel_shares as shares
from planner.search.kernel_shares import Share

_HALF = ("bfloat16", "float16")
_OTHER_KERNELS = 4
"""Beside its matrix multiplications and attention a layer runs about so many: norms, rotary embedding, activation."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What one engine (all its ranks) does. Bytes are of the busiest rank; operations of all ranks together.

    `dense_bytes` and `expert_bytes`: weights that a decode step reads. `touched`: share of the experts that one
    sequence meets. `cache_bytes`: of one sequence of average length. `routed_flops`: of the experts, in both others.
    `attention`: operations for a query and a key, and the window (0: none), of each layer. `multiplications`: dense
    kernels with weights in a stage, `routed_layers` layers with experts. `reduced_bytes`: of one token in an
    all-reduce, of which a stage has `reductions`.
    """

    dense_bytes: int
    expert_bytes: int
    touched: float
    cache_bytes: int
    decode_flops: int
    prefill_flops: int
    ranks: int
    stages: int
    routed_flops: int
    routed_layers: int
    attention: tuple[tuple[int, int], ...]
    multiplications: int
    reduced_bytes: int
    reductions: int
    eight_bit: bool
    packed: bool
    chunk_tokens: int
    eager: bool


def engine_load(deployment: Deployment) -> EngineLoad:
    """The load of one engine with the deployment's lengths. Embeddings (a row a token) and towers are not read."""
    model, config = deployment.model, deployment.config
    experts = {module.name: module for module in model.modules if isinstance(module, FusedMoE)}
    dense = routed = 0
    stored: dict[str, int] = {}
    looked_up = {module.name for module in model.modules if isinstance(module, VocabEmbedding)}
    for share in deployment.shares:
        sizes = [0, 0]
        for tensor in share.loaded:
            of_experts = tensor.module in experts
            read = tensor.role == "parameter" or (of_experts and tensor.role == "workspace")
            if read and tensor.component == "language_model" and tensor.module not in looked_up:
                size = tensor.size_bytes
                sizes[of_experts] += size
                if not of_experts:
                    stored[tensor.dtype] = stored.get(tensor.dtype, 0) + size
        if sum(sizes) > dense + routed:
            dense, routed = sizes
    body, head, routed_body = _operations(model)
    length = max(config.max_model_len // 2, 1)
    language = [module for module in model.modules if module.component == "language_model"]
    attending = [module for module in language if isinstance(module, Attention)]
    stages, ranks = config.pipeline_parallel_size, config.tensor_parallel_size
    commonest = max(stored, key=lambda dtype: stored[dtype], default="bfloat16")
    return EngineLoad(
        dense_bytes=dense,
        expert_bytes=routed,
        touched=max((moe.top_k / moe.num_experts for moe in experts.values()), default=1.0),
        cache_bytes=cache_read_bytes(deployment.pool, length),
        decode_flops=body + head,
        prefill_flops=body,
        ranks=ranks,
        stages=stages,
        routed_flops=routed_body,
        attention=tuple(_pair(module, language) for module in attending),
        multiplications=ceil(sum(isinstance(module, (Linear, QKVLinear)) for module in language) / stages),
        routed_layers=ceil(len(experts) / stages),
        reduced_bytes=2 * model.text.hidden_size if ranks > 1 else 0,
        reductions=2 * ceil(model.text.num_hidden_layers / stages) if ranks > 1 else 0,
        eight_bit=commonest in ("float8_e4m3fn", "int8"),
        packed=commonest in ("int32", "uint8"),
        chunk_tokens=config.max_num_batched_tokens,
        eager=config.enforce_eager,
    )


def decode_tokens_per_s(load: EngineLoad, gpu: GpuSpec, dtype: str, sequences: int, speed: int = 0) -> float | None:
    """Tokens per second of `sequences` at once, none of them reading its prompt; None where the card's bandwidth is
    not known. `speed`: the slow (-1), expected (0) or fast (1) end."""
    step = step_seconds(load, gpu, dtype, sequences, speed)
    return None if step is None else sequences / step


def prefill_tokens_per_s(load: EngineLoad, gpu: GpuSpec, dtype: str, speed: int = 0) -> float | None:
    """Prompt tokens per second of full batches of short prompts, stages working side by side; None where FLOPS are
    not known."""
    if not load.prefill_flops or flops_of(gpu, dtype) is None:
        return None
    tokens = load.chunk_tokens
    seconds = _rows_seconds(load, gpu, dtype, tokens, speed) / load.stages + _reductions(load, gpu, tokens, speed)
    return tokens / (seconds + _host(1, speed))


def step_seconds(load: EngineLoad, gpu: GpuSpec, dtype: str, sequences: int, speed: int = 0) -> float | None:
    """One decode step of `sequences`, each with the load's cache. None where the bandwidth is not known."""
    bandwidth = gpu.memory_bandwidth_bytes_per_s
    if bandwidth is None or sequences < 1:
        return None
    weights = (shares.BANDWIDTH_8 if load.eight_bit or load.packed else shares.BANDWIDTH_16).at(speed)
    multiplied = load.dense_bytes / (bandwidth * weights)
    routed = load.expert_bytes * (1 - (1 - load.touched) ** sequences) / (bandwidth * shares.EXPERT_BANDWIDTH.at(speed))
    if flops_of(gpu, dtype) is not None:
        dense_flops = sequences * (load.decode_flops - load.routed_flops) / load.stages
        multiplied = max(multiplied, dense_flops / _multiplied_per_s(load, gpu, dtype, speed))
        routed = max(routed, sequences * load.routed_flops / load.stages / _routed_per_s(load, gpu, dtype, speed))
    routed = max(routed, load.routed_layers * shares.EXPERT_SECONDS.at(speed, seconds=True))
    layers = ceil(len(load.attention) / load.stages)
    cache = load.cache_bytes * sequences / (bandwidth * shares.ATTENTION_BANDWIDTH.at(speed))
    attended = max(cache, layers * shares.ATTENTION_SECONDS.at(speed, seconds=True))
    kernels = (load.multiplications + _OTHER_KERNELS * layers) * shares.KERNEL_SECONDS.at(speed, seconds=True)
    stage = multiplied + routed + attended + kernels + _reductions(load, gpu, sequences, speed)
    return _launched(load, load.stages * stage, speed) + _host(sequences, speed)


def prompt_seconds(load: EngineLoad, gpu: GpuSpec, dtype: str, tokens: int, speed: int = 0) -> float | None:
    """What one prompt adds to the steps that read it: its rows, the pairs it attends over, its all-reduces. None where
    FLOPS are not known."""
    flops = flops_of(gpu, dtype)
    if flops is None:
        return None
    rows = _rows_seconds(load, gpu, dtype, tokens, speed)
    pairs = sum(
        operations * (tokens * tokens / 2 if not window or tokens <= window else tokens * window)
        for operations, window in load.attention
    )
    attended = pairs / (flops * load.ranks * shares.ATTENTION_FLOPS.at(speed))
    return rows + attended + load.stages * _reductions(load, gpu, tokens, speed)


def cache_read_bytes(pool: KVPool, tokens: int) -> int:
    """Bytes of the fullest stage's rank that a decode step reads of the cache of one sequence with so many tokens:
    all of them, the window's, or a recurrent layer's state."""
    read = 0
    for group in pool.fullest.groups:
        seen = tokens if group.window_tokens is None else min(tokens, group.window_tokens)
        pages = seen / group.block_size if group.grows else 1
        read += ceil(pages * group.page_size_bytes * group.num_layers)
    return read


def flops_of(gpu: GpuSpec, dtype: str) -> int | None:
    """Dense FLOPS of the dtype that activations have: 16-bit ones where 8-bit weights are unpacked or not supported."""
    known = [gpu.dense_flops[name] for name in (dtype, *_HALF) if name in gpu.dense_flops]
    return known[0] if known else None


def _multiplied_per_s(load: EngineLoad, gpu: GpuSpec, dtype: str, speed: int) -> float:
    """Operations per second of the tensor-parallel ranks in matrix multiplications of many rows."""
    flops = flops_of(gpu, dtype)
    assert flops is not None
    half = flops * shares.FLOPS_16.at(speed) * load.ranks
    eight = gpu.dense_flops.get("float8_e4m3fn") if load.eight_bit else None
    return half if eight is None else eight * shares.FLOPS_8.at(speed) * load.ranks


def _routed_per_s(load: EngineLoad, gpu: GpuSpec, dtype: str, speed: int) -> float:
    """Operations per second of the tensor-parallel ranks in experts, whatever their storage."""
    flops = flops_of(gpu, dtype)
    assert flops is not None
    return flops * shares.EXPERT_FLOPS.at(speed) * load.ranks


def _rows_seconds(load: EngineLoad, gpu: GpuSpec, dtype: str, tokens: int, speed: int) -> float:
    """Matrix multiplications of a batch of prompt tokens, all stages one after the other."""
    dense = tokens * (load.prefill_flops - load.routed_flops) / _multiplied_per_s(load, gpu, dtype, speed)
    return dense + tokens * load.routed_flops / _routed_per_s(load, gpu, dtype, speed)


def _launched(load: EngineLoad, seconds: float, speed: int) -> float:
    """What the card takes, or the host to launch the kernels one by one where there are no graphs."""
    if not load.eager:
        return seconds
    kernels = load.stages * (load.multiplications + load.routed_layers) + (_OTHER_KERNELS + 1) * len(load.attention)
    return max(seconds, kernels * shares.EAGER_KERNEL_SECONDS.at(speed, seconds=True))


def _reductions(load: EngineLoad, gpu: GpuSpec, tokens: int, speed: int) -> float:
    """All-reduces of one step of one stage."""
    if not load.reductions:
        return 0.0
    size = 2 if load.ranks <= 2 else 4 if load.ranks <= 4 else 8
    link: float
    share: Share
    if gpu.nvlink_bytes_per_s is not None:
        link, share, least = gpu.nvlink_bytes_per_s, shares.NVLINK, shares.NVLINK_SECONDS[size]
    else:
        link, share, least = _pcie(gpu), shares.PCIE[size], shares.PCIE_SECONDS[size]
    moved = tokens * load.reduced_bytes * 2 * (load.ranks - 1) / load.ranks
    return load.reductions * (least.at(speed, seconds=True) + moved / (link * share.at(speed)))


def _pcie(gpu: GpuSpec) -> int:
    generation = gpu.pcie_gen or (5 if gpu.compute_capability[0] >= 10 else 4 if gpu.compute_capability[0] >= 8 else 3)
    return shares.PCIE_BYTES_PER_S[min(max(generation, 3), 5)]


def _host(sequences: int, speed: int) -> float:
    """What a step waits for the host: once, and for each sequence."""
    once = shares.STEP_SECONDS.at(speed, seconds=True)
    return once + sequences * shares.SEQUENCE_SECONDS.at(speed, seconds=True)


def _operations(model: ModelSpec) -> tuple[int, int, int]:
    """Operations for one token: of the layers, of the output head, and of the experts among the layers'."""
    body = head = routed = 0
    for module in model.modules:
        if module.component == "language_model":
            if isinstance(module, LMHead):
                head += 2 * module.num_embeddings * module.hidden_size
            else:
                body += 2 * _multiplied(module)
                routed += 2 * _multiplied(module) if isinstance(module, FusedMoE) else 0
    return body, head, routed


def _multiplied(module: Module) -> int:
    """Weights of a module that one token is multiplied with."""
    if isinstance(module, Linear):
        return module.input_size * sum(module.output_sizes)
    if isinstance(module, QKVLinear):
        queries = module.num_heads * module.head_size * (2 if module.output_gate else 1)
        return module.hidden_size * (
            queries + module.num_kv_heads * (module.head_size + (module.head_size_v or module.head_size))
        )
    if isinstance(module, FusedMoE):
        return module.top_k * module.hidden_size * module.intermediate_size * (3 if module.gated else 2)
    return 0


def _pair(module: Attention, language: list[Module]) -> tuple[int, int]:
    """Operations of one query with one key in a layer, all heads, and its window. MLA's prefill unpacks its keys."""
    if module.kind == "mla_attention":
        unpacked = next((other for other in language if isinstance(other, MLAProjection)), None)
        if unpacked is not None:
            rotated = module.head_size - unpacked.kv_lora_rank
            return 2 * module.num_heads * (unpacked.qk_nope_head_dim + rotated + unpacked.v_head_dim), 0
    return 2 * module.num_heads * (module.head_size + (module.head_size_v or module.head_size)), module.window or 0
