"""Release: what differs between vLLM releases, as data and names of strategies. No other room compares versions."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

RunnerRule = Literal["v1", "listed_dense", "dense_or_listed", "always_unless_unsupported"]
CaptureRule = Literal["eights", "grid", "grid_and_decode_sizes"]
LedgerRule = Literal["absolute_peak", "sum_of_terms", "consumed_plus_headroom"]
GraphBudget = Literal["none", "opt_in", "default"]
SamplerRule = Literal["sorted", "masked"]
Evidence = Literal[
    "verified on hardware",
    "read from source, not verified on hardware",
    "inferred from neighbouring releases and published logs, not verified on hardware",
]


class BatchTier(Struct, frozen=True, kw_only=True):
    """Scheduler defaults of `vllm serve` for one class of card. The first tier that a card meets is its own.

    A card meets it with at least `min_memory_bytes` (as NVML reports the total), a device name with one of `named`
    (where there are any) and without any of `not_named` (lower case), and a compute capability outside
    `not_capability`.
    """

    min_memory_bytes: int
    named: tuple[str, ...] = ()
    not_named: tuple[str, ...] = ()
    not_capability: tuple[tuple[int, int], ...] = ()
    max_num_batched_tokens: int
    max_num_seqs: int


class Release(Struct, frozen=True, kw_only=True):
    """One vLLM release.

    `runner_rule`: "v1" takes the V2 model runner only when the environment asks for it; "listed_dense" for unquantized
    dense models of `v2_architectures`; "dense_or_listed" for dense models and `v2_architectures`;
    "always_unless_unsupported" wherever no feature forbids it. `v2_speculative_methods` None: all but
    those in `v2_refused_speculative_methods`. `ledger_rule`: "absolute_peak" subtracts PyTorch's highest allocation and
    whatever else the device has given, the CUDA context included; "sum_of_terms" subtracts weights, peak and non-torch;
    "consumed_plus_headroom" subtracts all that startup consumed plus what the peak needs above it.
    `graph_budget`: whether the estimate for CUDA graphs is subtracted, by default or when
    VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS asks for it. `sampler_rule`: how V1's dummy sampler limits to top-k and
    top-p, by sorting the vocabulary or by masking it. `profile_splits_blocks`: whether the caching allocator may split
    large blocks during the profile run. `decode_graphs`: whole decode batches are captured too, not only pieces.
    `loads_few_modules`: little of what the process loads on the GPU outside PyTorch is there before the profile ends.
    `capture_cap_data_center_blackwell` holds on compute capability 10.x. `removed_architectures`: class names with
    the last version that served them. `own_cache_dtype_architectures`: classes whose attention layers are built without
    the cache's configuration, so that --kv-cache-dtype does not reach them. `pipeline_refused_architectures`: classes
    that claim pipeline parallelism but fail to build under it.
    """

    version: str
    evidence: Evidence
    sources: tuple[str, ...]
    default_gpu_memory_utilization: float
    default_block_size: int
    batch_tiers: tuple[BatchTier, ...]
    capture_cap: int
    capture_cap_data_center_blackwell: int
    capture_rule: CaptureRule
    runner_rule: RunnerRule
    v2_architectures: tuple[str, ...]
    v2_speculative_methods: tuple[str, ...] | None
    v2_refused_speculative_methods: tuple[str, ...]
    v2_profiles_encoder: bool
    v2_profiles_cuda_graphs: bool
    ledger_rule: LedgerRule
    graph_budget: GraphBudget = "default"
    sampler_rule: SamplerRule = "masked"
    profile_splits_blocks: bool = True
    decode_graphs: bool = True
    loads_few_modules: bool = False
    hybrid_prefix_caching_default: bool
    mamba_cache_modes: tuple[str, ...]
    kv_cache_dtypes: tuple[str, ...]
    quantization_methods: tuple[str, ...]
    deprecated_quantization_methods: tuple[str, ...]
    removed_architectures: tuple[tuple[str, str], ...]
    own_cache_dtype_architectures: tuple[str, ...] = ()
    pipeline_refused_architectures: tuple[str, ...]


class ReleaseChoice(Struct, frozen=True, kw_only=True):
    """The entry that answers for a requested version, whose numbers are `number`. `warning` is None where the entry
    is that very version and verified."""

    requested: str
    number: tuple[int, int, int]
    release: Release
    warning: str | None = None
