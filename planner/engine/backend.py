"""What one of vLLM's attention backends is asked, and what it answers.

Source: vLLM 0.26.0 v1/attention/backend.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from planner.values import DType

AttentionType = Literal["decoder", "encoder_decoder"]

HALF: tuple[DType, ...] = ("float16", "bfloat16")
PLAIN = ("auto", "float16", "bfloat16")
"""Cache dtypes that are not quantized."""


class AttentionQuery(Struct, frozen=True, kw_only=True):
    """One kind of attention layer on one card: vLLM's AttentionSelectorConfig and what its checks look up elsewhere.

    `kv_cache_dtype` is the flag's value, `block_size` the user's or None. `num_heads` and `num_kv_heads` are the
    rank's. The sizes after `flash_attn_version` are MLA's; `flash_attn_version` is the one a model forces.
    """

    head_size: int
    dtype: DType
    kv_cache_dtype: str
    block_size: int | None = None
    use_mla: bool = False
    has_sink: bool = False
    use_sparse: bool = False
    use_mm_prefix: bool = False
    use_per_head_quant_scales: bool = False
    attn_type: AttentionType = "decoder"
    has_sliding_window: bool = False
    capability: tuple[int, int] = (9, 0)
    num_heads: int = 1
    num_kv_heads: int = 1
    decode_context_parallel_size: int = 1
    flash_attn_version: int | None = None
    qk_nope_head_dim: int = 1
    index_topk: int | None = None


def _no_reason(_: AttentionQuery) -> str | None:
    return None


def always(_: AttentionQuery) -> bool:
    return True


def never(_: AttentionQuery) -> bool:
    return False


class Backend(Struct, frozen=True, kw_only=True):
    """`kernel_block_sizes`: sizes of which the kernel takes every multiple.

    The functions say for a query whether it is taken; `combination` gives vLLM's reason against it or None.
    `uniform_decode_graphs`: full CUDA graphs for decode steps of several tokens a request (speculative decoding).
    """

    name: str
    dtypes: tuple[DType, ...] = HALF
    kernel_block_sizes: tuple[int, ...] = (16,)
    capability: Callable[[tuple[int, int]], bool] = lambda _: True
    head_size: Callable[[AttentionQuery], bool] = always
    kv_cache: Callable[[AttentionQuery], bool] = lambda query: query.kv_cache_dtype in PLAIN
    sink: Callable[[AttentionQuery], bool] = never
    mm_prefix: Callable[[AttentionQuery], bool] = never
    per_head_scales: Callable[[AttentionQuery], bool] = never
    combination: Callable[[AttentionQuery], str | None] = _no_reason
    is_mla: bool = False
    is_sparse: bool = False
    sliding_window: bool = False
    attn_types: tuple[AttentionType, ...] = ("decoder",)
    uniform_decode_graphs: Callable[[AttentionQuery], bool] = always

    def refusals(self, query: AttentionQuery) -> list[str]:
        """vLLM's reasons against this backend, in its words and order; empty when it is valid.

        Source: vLLM 0.26.0 v1/attention/backend.py validate_configuration.
        """
        checks = (
            (self.head_size(query), "head_size not supported"),
            (query.dtype in self.dtypes, "dtype not supported"),
            (self.kv_cache(query), "kv_cache_dtype not supported"),
            (self.takes_block_size(query.block_size), "block_size not supported"),
            (not query.use_mm_prefix or self.mm_prefix(query), "partial multimodal token full attention not supported"),
            (query.use_mla == self.is_mla, "MLA not supported" if query.use_mla else "non-MLA not supported"),
            (not query.has_sink or self.sink(query), "attention sinks not supported"),
            (
                query.use_sparse == self.is_sparse,
                "sparse not supported" if query.use_sparse else "non-sparse not supported",
            ),
            (
                not query.use_per_head_quant_scales or self.per_head_scales(query),
                "per-head quant scales not supported",
            ),
            (self.capability(query.capability), "compute capability not supported"),
            (query.attn_type in self.attn_types, f"attention type {query.attn_type} not supported"),
            (not query.has_sliding_window or self.sliding_window, "sliding window not supported"),
        )
        reasons = [reason for accepted, reason in checks if not accepted]
        combination = self.combination(query)
        return reasons if combination is None else [*reasons, combination]

    def takes_block_size(self, block_size: int | None) -> bool:
        return block_size is None or any(block_size % size == 0 for size in self.kernel_block_sizes)

    def preferred_block_size(self, default: int) -> int:
        """The block size vLLM sets when the user names none (get_preferred_block_size)."""
        return default if self.takes_block_size(default) else min(self.kernel_block_sizes)
