"""One layer's cache as vLLM's allocator sees it: a page of `block_size` tokens, or one request's recurrent state.

Source: vLLM 0.26.0 v1/kv_cache_interface.py (every KVCacheSpec), and the get_kv_cache_spec of each layer class.
"""

from __future__ import annotations

from math import prod
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from planner.errors import UnsupportedError
from planner.memory.kv_counts import round_up
from planner.sharding.rank import LayerKVSpec
from planner.values import DTYPE_BYTES, DType

CacheKind = Literal[
    "full_attention",
    "mla_attention",
    "sliding_window",
    "sliding_window_mla",
    "chunked_local_attention",
    "cross_attention",
    "mamba",
]

_SCALED_PER_TOKEN_HEAD = frozenset({"int4_per_token_head", "int8_per_token_head", "fp8_per_token_head"})
_FP8_DS_MLA_TOKEN_BYTES = {"": 656, "deepseek_v4": 584}

_TURBOQUANT_BITS = {
    "turboquant_k8v4": (8, 4),
    "turboquant_4bit_nc": (4, 4),
    "turboquant_k3v4_nc": (3, 4),
    "turboquant_3bit_nc": (3, 3),
}

SMALLEST_KERNEL_BLOCK = {
    "FLASH_ATTN": 16,
    "FLASH_ATTN_DIFFKV": 16,
    "TRITON_ATTN": 16,
    "TRITON_ATTN_DIFFKV": 16,
    "FLEX_ATTENTION": 16,
    "FLASHINFER": 16,
    "TURBOQUANT": 16,
    "FLASH_ATTN_MLA": 16,
    "TRITON_MLA": 16,
    "FLASHINFER_MLA": 32,
    "FLASHINFER_MLA_SPARSE": 32,
    "FLASHMLA": 64,
    "FLASHMLA_SPARSE": 64,
    "FLASH_ATTN_MLA_SPARSE": 64,
    "CUTLASS_MLA": 128,
    "MINIMAX_M3_SPARSE": 128,
    "FLASHMLA_SPARSE_DSV4": 256,
    "FLASHINFER_MLA_SPARSE_DSV4": 256,
}
"""Smallest of each backend's get_supported_kernel_block_sizes (vLLM 0.26.0 v1/attention/backends)."""

_PAGES_BY_STRIDE = frozenset(
    {
        "FLASH_ATTN",
        "FLASH_ATTN_DIFFKV",
        "TRITON_ATTN",
        "TRITON_ATTN_DIFFKV",
        "FLEX_ATTENTION",
        "FLASHINFER",
        "FLASHMLA",
        "FLASH_ATTN_MLA",
        "TRITON_MLA",
        "FLASHINFER_MLA",
        "CUTLASS_MLA",
    }
)


def smallest_kernel_block(attention_backend: str) -> int:
    """Tokens of the smallest block that the backend's kernels take; UnsupportedError for an unknown backend."""
    try:
        return SMALLEST_KERNEL_BLOCK[attention_backend]
    except KeyError:
        raise UnsupportedError(
            "attention_backend", f"attention backend {attention_backend!r}: its kernel block sizes are not known"
        ) from None


def indexes_by_block_stride(attention_backend: str) -> bool:
    """Whether the backend reads pages by stride, so that a page may carry padding
    (vLLM 0.26.0 v1/attention/backend.py:206 indexes_kv_by_block_stride)."""
    return attention_backend in _PAGES_BY_STRIDE


def turboquant_slot_bytes(cache_dtype: str, head_size: int) -> int:
    """Bytes of one head's packed key and value of one token, rounded up to even
    (vLLM 0.26.0 model_executor/layers/quantization/turboquant/config.py:123-169)."""
    key_bits, value_bits = _TURBOQUANT_BITS[cache_dtype]
    key_bytes = head_size if key_bits == 8 else -(-head_size * key_bits // 8) + 2
    return round_up(key_bytes + -(-head_size * value_bits // 8) + 4, 2)


class CacheSpec(Struct, frozen=True, kw_only=True):
    """The page of one layer (vLLM KVCacheSpec). Two layers may share a block table only if their specs are equal.

    `window` is the sliding window or the local chunk in tokens; `state_bytes` one request's recurrent state before
    padding; `page_size_padded` the physical page where it is larger than the natural one; `strided_pages` that the
    backend tolerates such padding.
    """

    kind: CacheKind
    block_size: int
    num_kv_heads: int = 0
    head_size: int = 0
    head_size_v: int = 0
    dtype: DType = "bfloat16"
    cache_dtype: str = "auto"
    window: int | None = None
    compress_ratio: int = 1
    model_version: str = ""
    state_shapes: tuple[tuple[int, ...], ...] = ()
    state_dtypes: tuple[DType, ...] = ()
    mamba_kind: str = ""
    num_speculative_blocks: int = 0
    page_size_padded: int | None = None
    strided_pages: bool = False

    @property
    def page_size_bytes(self) -> int:
        """Bytes of one block of this layer in the pool."""
        if self.page_size_padded is not None:
            return self.page_size_padded
        if self.kind == "mamba":
            return self.state_bytes
        page_bytes = self.payload_bytes
        if self.cache_dtype in _SCALED_PER_TOKEN_HEAD:
            page_bytes += 2 * self.block_size * self.num_kv_heads * DTYPE_BYTES["float32"]
        return page_bytes

    @property
    def state_bytes(self) -> int:
        """One request's recurrent state in bytes (vLLM MambaSpec), 0 for token-based caches."""
        return sum(
            prod(shape) * DTYPE_BYTES[dtype] for shape, dtype in zip(self.state_shapes, self.state_dtypes, strict=True)
        )

    @property
    def payload_bytes(self) -> int:
        """Keys and values of one block, without scales and padding (vLLM real_page_size_bytes)."""
        if self.kind in ("mla_attention", "sliding_window_mla"):
            return self.block_size // self.compress_ratio * self._latent_bytes
        if self.cache_dtype.startswith("turboquant_") and self.kind == "full_attention":
            return self.block_size * self.num_kv_heads * turboquant_slot_bytes(self.cache_dtype, self.head_size)
        return self.block_size * self.num_kv_heads * self._key_value_elements * DTYPE_BYTES[self.dtype]

    @property
    def _latent_bytes(self) -> int:
        if self.cache_dtype == "fp8_ds_mla":
            return _FP8_DS_MLA_TOKEN_BYTES[self.model_version]
        packed = self.cache_dtype == "int4_per_token_head" and self.kind == "mla_attention"
        head_elements = self.head_size // 2 if packed else self.head_size
        return self.num_kv_heads * head_elements * DTYPE_BYTES[self.dtype]

    @property
    def _key_value_elements(self) -> int:
        """Stored elements of one head's key and value. A sliding window keeps int4 unpacked, as vLLM does."""
        if self.cache_dtype == "nvfp4":
            return sum(size // 2 + size // 16 for size in (self.head_size, self.head_size_v))
        if self.cache_dtype == "int4_per_token_head" and self.kind != "sliding_window":
            return self.head_size // 2 + self.head_size_v // 2
        return self.head_size + self.head_size_v


def cache_spec(
    layer: LayerKVSpec,
    *,
    block_size: int,
    window_block_size: int,
    mamba_block_size: int,
    mamba_page_padded_bytes: int | None = None,
    strided_pages: bool = False,
) -> CacheSpec:
    """The spec that a layer registers, given the pool's block sizes in tokens.

    `window_block_size` is the attention backend's smallest kernel block: a sliding-window layer takes that and not
    --block-size (vLLM 0.26.0 model_executor/layers/attention/attention.py:621). "encoder_only" layers register
    nothing and must not be given.
    """
    if layer.kind == "mamba":
        return CacheSpec(
            kind="mamba",
            block_size=mamba_block_size,
            state_shapes=layer.state_shapes,
            state_dtypes=layer.state_dtypes,
            mamba_kind=layer.mamba_kind,
            num_speculative_blocks=layer.num_speculative_blocks,
            page_size_padded=mamba_page_padded_bytes,
        )
    if layer.kind == "encoder_only":
        raise UnsupportedError("kv_cache", f"{layer.layer_name}: an encoder-only layer has no cache")
    symmetric = layer.kind in ("chunked_local_attention", "cross_attention") or layer.cache_dtype.startswith(
        "turboquant_"
    )
    own_block_size = window_block_size if layer.kind == "sliding_window" else block_size
    spec = CacheSpec(
        kind=layer.kind,
        block_size=layer.block_size or own_block_size,
        num_kv_heads=layer.num_kv_heads,
        head_size=layer.head_size,
        head_size_v=layer.head_size if symmetric else layer.head_size_v or layer.head_size,
        dtype=layer.dtype,
        cache_dtype=layer.cache_dtype,
        window=layer.window if layer.kind not in ("full_attention", "mla_attention", "cross_attention") else None,
        compress_ratio=layer.compress_ratio,
        model_version=layer.model_version,
        strided_pages=strided_pages,
    )
    if layer.alignment_bytes is None or spec.payload_bytes % layer.alignment_bytes == 0:
        return spec
    return replace(spec, page_size_padded=round_up(spec.payload_bytes, layer.alignment_bytes))
