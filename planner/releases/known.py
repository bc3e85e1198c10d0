"""The releases whose source was read. 0.26.0 is also measured; everything here is checked against those sources."""

from __future__ import annotations

from planner.releases.release import BatchTier, Release
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
        _LARGE_CARD.model_copy(update={"not_capability": ((12, 1),)}),
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
    hybrid_prefix_caching_default=True,
    mamba_cache_modes=("align", "none"),
    kv_cache_dtypes=_KV_CACHE_DTYPES_0_33,
    quantization_methods=tuple(name for name in _QUANTIZATION_METHODS_0_26 if name != "bitsandbytes"),
    deprecated_quantization_methods=("fbgemm_fp8", "fp_quant"),
    removed_architectures=REMOVED_BY_0_33,
    pipeline_refused_architectures=(),
)

RELEASES: tuple[Release, ...] = (V0_26_0, V0_33_0)
DEFAULT_VERSION = V0_26_0.version
