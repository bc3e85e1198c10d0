"""How many tokens a block holds once recurrent states and mixed precisions share the pool with it.

Source: vLLM 0.26.0 platforms/interface.py:609 update_block_size_for_backend, :661 _align_heterogeneous_kv_block_size,
:765 _align_hybrid_block_size. The backend's own preference is already in EngineConfig.block_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

from msgspec import Struct
from msgspec.structs import replace

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.memory.kv_counts import ceil_div
from planner.memory.kv_pages import CacheSpec, cache_spec, smallest_kernel_block
from planner.sharding.rank import LayerKVSpec

_DEFAULT_MAMBA_CHUNK = 2048


class BlockSizes(Struct, frozen=True):
    """Tokens in an attention block and in a recurrent one; `mamba_page_padded_bytes` None: states need no padding."""

    block_size: int
    mamba_block_size: int
    mamba_page_padded_bytes: int | None = None


def align_block_sizes(layers: Sequence[LayerKVSpec], config: EngineConfig) -> BlockSizes:
    """The block sizes vLLM ends with for these layers (all of one stage or of the whole model)."""
    attention = [layer for layer in layers if layer.kind != "mamba"]
    states = [layer for layer in layers if layer.kind == "mamba"]
    sizes = BlockSizes(config.block_size, _initial_mamba_block_size(config))
    if attention and states:
        sizes = _align_hybrid(attention, states[0], sizes, config)
    if attention and _skipped(attention, config):
        sizes = _align_mixed_precision(attention, sizes, config)
    return sizes


def _initial_mamba_block_size(config: EngineConfig) -> int:
    """vLLM 0.26.0 model_executor/models/config.py:550 MambaModelConfig."""
    return config.max_model_len if config.mamba_cache_mode == "none" else config.block_size


def _align_hybrid(
    attention: list[LayerKVSpec], state: LayerKVSpec, sizes: BlockSizes, config: EngineConfig
) -> BlockSizes:
    """Enlarge the attention block until its page covers one request's state, then pad the state to that page."""
    token_bytes = _attention_token_bytes(attention, config)
    state_bytes = _one_token_spec(state).state_bytes
    if state_bytes == 0:
        return sizes
    unit = max(smallest_kernel_block(config.attention_backend), sizes.block_size)
    if config.mamba_cache_mode == "all":
        chunk = lcm(state.chunk_size or _DEFAULT_MAMBA_CHUNK, unit)
        needed = chunk * ceil_div(ceil_div(state_bytes, token_bytes), chunk)
    else:
        needed = unit * ceil_div(state_bytes, unit * token_bytes)
    block_size = max(sizes.block_size, needed)
    mamba_block_size = {"all": needed, "align": block_size, "none": sizes.mamba_block_size}[config.mamba_cache_mode]
    page_bytes = block_size * token_bytes
    return BlockSizes(block_size, mamba_block_size, page_bytes if page_bytes != state_bytes else None)


def _attention_token_bytes(attention: list[LayerKVSpec], config: EngineConfig) -> int:
    """One token's bytes in one attention layer, as the platform computes them from the model's config."""
    latent = [layer for layer in attention if layer.kind == "mla_attention"]
    if latent:
        main = max(latent, key=lambda layer: layer.head_size)
        scheme = config.kv_cache_dtype if config.kv_cache_dtype != "fp8_ds_mla" else "auto"
        primary = replace(main, dtype=config.kv_torch_dtype, cache_dtype=scheme)
        return _one_token_spec(primary).page_size_bytes
    quantized = _primary_token_bytes(attention, config)
    if not config.kv_cache_dtype.startswith("turboquant_"):
        return quantized
    packed = _one_token_spec(replace(attention[0], kind="full_attention", cache_dtype=config.kv_cache_dtype))
    if _skipped(attention, config):
        return lcm(packed.page_size_bytes, _unquantized_token_bytes(attention, config))
    return packed.page_size_bytes


def _align_mixed_precision(attention: list[LayerKVSpec], sizes: BlockSizes, config: EngineConfig) -> BlockSizes:
    """Enlarge the quantized layers' block until its page covers the unquantized layers' smallest one."""
    if any(layer.kind == "sliding_window" for layer in attention):
        raise UnsupportedError(
            "kv_cache_dtype", f"--kv-cache-dtype {config.kv_cache_dtype} with sliding-window layers is not supported"
        )
    primary = _primary_token_bytes(attention, config)
    unquantized = _unquantized_token_bytes(attention, config)
    if unquantized == primary:
        return sizes
    kernel_block = smallest_kernel_block(config.attention_backend)
    unit = max(kernel_block, sizes.block_size)
    required = max(unquantized * kernel_block, sizes.mamba_page_padded_bytes or 0)
    block_size = max(sizes.block_size, unit * ceil_div(required, unit * primary))
    padded = None if sizes.mamba_page_padded_bytes is None else block_size * primary
    return BlockSizes(block_size, sizes.mamba_block_size, padded)


def _skipped(attention: list[LayerKVSpec], config: EngineConfig) -> bool:
    """Whether some layers keep the model's dtype while --kv-cache-dtype quantizes the others."""
    if config.kv_cache_dtype == "auto":
        return False
    plain = [layer for layer in attention if layer.kind not in ("mla_attention", "sliding_window_mla")]
    return len({layer.cache_dtype == "auto" for layer in plain}) > 1


def _primary_token_bytes(attention: list[LayerKVSpec], config: EngineConfig) -> int:
    """One token of a plain layer in the pool's dtype; TurboQuant's packing is not in this figure, as in vLLM."""
    scheme = config.kv_cache_dtype if not config.kv_cache_dtype.startswith("turboquant_") else "auto"
    return _plain_token_bytes(replace(attention[0], dtype=config.kv_torch_dtype, cache_dtype=scheme))


def _unquantized_token_bytes(attention: list[LayerKVSpec], config: EngineConfig) -> int:
    return _plain_token_bytes(replace(attention[0], dtype=config.dtype, cache_dtype="auto"))


def _plain_token_bytes(layer: LayerKVSpec) -> int:
    return _one_token_spec(replace(layer, kind="full_attention", head_size_v=layer.head_size)).page_size_bytes


def _one_token_spec(layer: LayerKVSpec) -> CacheSpec:
    plain = replace(layer, block_size=None, compress_ratio=1, alignment_bytes=None)
    return cache_spec(plain, block_size=1, window_block_size=1, mamba_block_size=1)
