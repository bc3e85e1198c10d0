"""The releases that are entered, oldest first: read from their source, 0.26.0 also measured, a few inferred."""

from __future__ import annotations

from msgspec.structs import replace

from planner.releases.release import BatchTier, Evidence, Release
from planner.releases.removed import REMOVED_BY_0_26, REMOVED_BY_0_33
from planner.units import GIB

_KV_CACHE_DTYPES_0_26 = (
    "auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla",
    "turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc",
    "int4_per_token_head", "int8_per_token_head", "fp8_per_token_head", "nvfp4",
)  # fmt: skip
_KV_CACHE_DTYPES_0_33 = (
    *_KV_CACHE_DTYPES_0_26,
    "nvfp4_ds_mla", "octave_k3v4", "octave_k3v3", "octave_k3v3_compact", "ultraquant_4bit", "nvfp4_4over6",
)  # fmt: skip

_QUANTIZATION_METHODS_0_26 = (
    "awq", "auto_awq", "fp8", "fbgemm_fp8", "fp_quant", "modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed",
    "auto_gptq", "gptq", "gptq_marlin", "awq_marlin", "humming", "compressed-tensors", "bitsandbytes", "experts_int8",
    "quark", "moe_wna16", "torchao", "inc", "mxfp4", "gpt_oss_mxfp4", "deepseek_v4_fp8", "online",
    "fp8_per_tensor", "fp8_per_block", "fp8_per_channel", "int8_per_channel_weight_only", "nvfp4_per_token", "mxfp8",
)  # fmt: skip

_READ: Evidence = "read from source, not verified on hardware"
_INFERRED: Evidence = "inferred from neighbouring releases and published logs, not verified on hardware"

_LARGE_CARD = BatchTier(min_memory_bytes=70 * GIB, not_named=("a100",), max_num_batched_tokens=8192, max_num_seqs=1024)
_SMALL_CARD = BatchTier(min_memory_bytes=0, max_num_batched_tokens=2048, max_num_seqs=256)

V0_26_0 = Release(
    version="0.26.0",
    evidence="verified on hardware",
    sources=(
        "vLLM 0.26.0 config/cache.py:19,47,68",
        "vLLM 0.26.0 config/vllm.py:68,512,550,1739,2127",
        "vLLM 0.26.0 engine/arg_utils.py:2431",
        "vLLM 0.26.0 model_executor/layers/quantization/__init__.py:12",
        "vLLM 0.26.0 v1/worker/gpu_worker.py:448",
        "boots on H200, 2026",
    ),
    default_gpu_memory_utilization=0.92,
    default_block_size=16,
    batch_tiers=(_LARGE_CARD, _SMALL_CARD),
    capture_cap=512,
    capture_cap_data_center_blackwell=512,
    capture_rule="grid",
    runner_rule="dense_or_listed",
    v2_architectures=(
        "DeepseekV2ForCausalLM",
        "GraniteMoeForCausalLM",
        "InklingForCausalLM",
        "InklingForConditionalGeneration",
        "LongcatFlashNgramForCausalLM",
        "Qwen2MoeForCausalLM",
    ),
    v2_speculative_methods=("eagle", "eagle3", "mtp", "dflash", "dspark"),
    v2_refused_speculative_methods=(),
    v2_profiles_encoder=False,
    v2_profiles_cuda_graphs=False,
    ledger_rule="sum_of_terms",
    hybrid_prefix_caching_default=False,
    mamba_cache_modes=("all", "align", "none"),
    kv_cache_dtypes=_KV_CACHE_DTYPES_0_26,
    quantization_methods=_QUANTIZATION_METHODS_0_26,
    deprecated_quantization_methods=("fbgemm_fp8", "fp_quant"),
    removed_architectures=REMOVED_BY_0_26,
    own_cache_dtype_architectures=("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"),
    pipeline_refused_architectures=("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"),
)

V0_33_0 = Release(
    version="0.33.0",
    evidence="read from source, not verified on hardware",
    sources=(
        "vLLM 0.33.0 config/cache.py:185,215",
        "vLLM 0.33.0 config/vllm.py:731",
        "vLLM 0.33.0 engine/arg_utils.py get_batch_defaults",
        "vLLM 0.33.0 model_executor/layers/quantization/__init__.py",
        "vLLM 0.33.0 v1/worker/gpu/model_runner.py:1022,1069",
    ),
    default_gpu_memory_utilization=0.92,
    default_block_size=16,
    batch_tiers=(
        BatchTier(min_memory_bytes=160 * GIB, max_num_batched_tokens=16384, max_num_seqs=1024),
        replace(_LARGE_CARD, not_capability=((12, 1),)),
        _SMALL_CARD,
    ),
    capture_cap=512,
    capture_cap_data_center_blackwell=1024,
    capture_rule="grid_and_decode_sizes",
    runner_rule="always_unless_unsupported",
    v2_architectures=(),
    v2_speculative_methods=None,
    v2_refused_speculative_methods=("suffix", "custom_class"),
    v2_profiles_encoder=True,
    v2_profiles_cuda_graphs=True,
    ledger_rule="consumed_plus_headroom",
    profile_splits_blocks=False,
    hybrid_prefix_caching_default=True,
    mamba_cache_modes=("align", "none"),
    kv_cache_dtypes=_KV_CACHE_DTYPES_0_33,
    quantization_methods=tuple(name for name in _QUANTIZATION_METHODS_0_26 if name != "bitsandbytes"),
    deprecated_quantization_methods=("fbgemm_fp8", "fp_quant"),
    removed_architectures=REMOVED_BY_0_33,
    own_cache_dtype_architectures=(),
    pipeline_refused_architectures=(),
)


def _removed_before(version: tuple[int, int, int]) -> tuple[tuple[str, str], ...]:
    """Classes that a release older than 0.26 no longer served."""
    return tuple(
        (name, last) for name, last in REMOVED_BY_0_26 if tuple(int(part) for part in last.split(".")) < version
    )


V0_29_0 = replace(
    V0_33_0,
    version="0.29.0",
    sources=(
        "vLLM 0.29.0 config/cache.py:39,111",
        "vLLM 0.29.0 config/vllm.py use_v2_model_runner",
        "vLLM 0.29.0 engine/arg_utils.py get_batch_defaults",
        "vLLM 0.29.0 v1/worker/gpu_worker.py determine_available_memory",
        "vLLM 0.29.0 v1/worker/gpu/cudagraph_utils.py:718",
    ),
    batch_tiers=(V0_33_0.batch_tiers[0], _LARGE_CARD, _SMALL_CARD),
    v2_speculative_methods=("eagle", "eagle3", "mtp", "dflash", "dspark"),
    v2_refused_speculative_methods=(),
    profile_splits_blocks=True,
    kv_cache_dtypes=(*_KV_CACHE_DTYPES_0_26, "nvfp4_4over6"),
    mamba_cache_modes=("all", "align", "none"),
)

V0_28_0 = replace(
    V0_29_0,
    version="0.28.0",
    evidence=_INFERRED,
    sources=(
        "vLLM 0.29.0",
        "KV caches on A100 80GB, published by ridgepoint: no graphs in V2's budget",
    ),
    v2_profiles_cuda_graphs=False,
)

V0_22_1 = replace(
    V0_26_0,
    version="0.22.1",
    evidence=_READ,
    sources=(
        "vLLM 0.22.1 config/cache.py:66",
        "vLLM 0.22.1 config/vllm.py:69,528",
        "vLLM 0.22.1 v1/worker/gpu_worker.py determine_available_memory",
    ),
    runner_rule="listed_dense",
    v2_architectures=("Qwen3ForCausalLM",),
    v2_speculative_methods=("eagle", "eagle3", "mtp"),
    removed_architectures=_removed_before((0, 22, 1)),
)

V0_19_0 = replace(
    V0_22_1,
    version="0.19.0",
    sources=(
        "vLLM 0.19.0 config/cache.py:41",
        "vLLM 0.19.0 envs.py:250,1605",
        "vLLM 0.19.0 v1/worker/gpu_worker.py determine_available_memory",
        "vLLM 0.19.0 v1/worker/gpu_model_runner.py profile_run, _dummy_sampler_run",
        "logs of 43 boots on H100, published by llm-d-planner",
    ),
    default_gpu_memory_utilization=0.9,
    runner_rule="v1",
    v2_architectures=(),
    graph_budget="opt_in",
    removed_architectures=_removed_before((0, 19, 0)),
)

V0_17_0 = replace(
    V0_19_0,
    version="0.17.0",
    evidence=_INFERRED,
    sources=("vLLM 0.19.0", "peaks of Qwen3-14B on H100 from 0.15 to 0.18, published by llm-d-planner"),
    removed_architectures=_removed_before((0, 17, 0)),
)

V0_16_0 = replace(
    V0_17_0,
    version="0.16.0",
    graph_budget="none",
    sampler_rule="sorted",
    loads_few_modules=True,
    removed_architectures=_removed_before((0, 16, 0)),
)

V0_10_2 = replace(
    V0_16_0,
    version="0.10.2",
    sources=(
        "vLLM 0.8.3 and 0.19.0",
        "vLLM pull request 19312: the ledger of 0.8 was replaced by the sum of terms",
    ),
    decode_graphs=False,
    capture_rule="eights",
    removed_architectures=_removed_before((0, 10, 2)),
)

V0_8_3 = replace(
    V0_10_2,
    version="0.8.3",
    evidence=_READ,
    sources=(
        "vLLM 0.8.3 config.py:1169,3705",
        "vLLM 0.8.3 engine/arg_utils.py _set_default_args_v1",
        "vLLM 0.8.3 v1/worker/gpu_worker.py determine_available_memory",
        "vLLM 0.8.3 v1/sample/ops/topk_topp_sampler.py",
    ),
    batch_tiers=(
        BatchTier(min_memory_bytes=0, named=("h100", "h200"), max_num_batched_tokens=8192, max_num_seqs=1024),
        BatchTier(min_memory_bytes=0, max_num_batched_tokens=2048, max_num_seqs=1024),
    ),
    ledger_rule="absolute_peak",
    removed_architectures=(),
)

RELEASES: tuple[Release, ...] = (
    V0_8_3, V0_10_2, V0_16_0, V0_17_0, V0_19_0, V0_22_1, V0_26_0, V0_28_0, V0_29_0, V0_33_0,
)  # fmt: skip
DEFAULT_VERSION = V0_26_0.version
