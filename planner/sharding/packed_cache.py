"""The KV layers of DeepSeek-V4, whose cache is compressed and packed."""

from __future__ import annotations

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.model.modules import PackedCache
from planner.sharding.rank import LayerKVSpec
from planner.values import reject

_LAYOUT = "fp8_ds_mla"
_ALIGNMENT_BYTES = 576
_MODEL_VERSION = "deepseek_v4"


def packed_cache_spec(module: PackedCache, config: EngineConfig) -> LayerKVSpec:
    """The spec of one cache under the FlashMLA layout, the default everywhere but on compute capability 12.

    Raises: Rejected for a cache dtype that is not fp8, UnsupportedError for the FlashInfer layouts.
    Source: vLLM 0.26.0 models/deepseek_v4/attention.py:83, 605, 648, compressor.py:169,
    v1/attention/backends/mla/sparse_swa.py:82, models/deepseek_v4/nvidia/model.py:760.
    """
    if config.compute_capability[0] == 12 or "FLASHINFER" in config.attention_backend:
        raise UnsupportedError(
            "attention_backend", "DeepSeek-V4 with a FlashInfer cache is not supported by this planner"
        )
    if not config.kv_cache_dtype.startswith("fp8"):
        raise reject(
            "kv_cache_dtype", f"DeepseekV4 {_LAYOUT} layout only supports fp8 kv-cache, got {config.kv_cache_dtype}"
        )
    packed = module.role in ("keys", "window")
    return LayerKVSpec(
        layer_name=module.name,
        kind="mla_attention" if module.window is None else "sliding_window_mla",
        num_kv_heads=1,
        head_size=module.head_size,
        head_size_v=module.head_size,
        dtype="float32" if module.role == "state" else "uint8",
        window=module.window,
        cache_dtype=_LAYOUT if packed else "auto",
        block_size=module.block_size or None,
        compress_ratio=module.compress_ratio,
        alignment_bytes=_ALIGNMENT_BYTES,
        model_version=_MODEL_VERSION if packed else "",
    )
