"""vLLM's attention backends as data: what each accepts, and the block sizes of its kernel.

The rules that need more than a list (FlashAttention's versions, shapes a kernel is built for) are functions of an
`AttentionQuery`. Source: vLLM 0.26.0 v1/attention/backends/*.py and mla/*.py, the classes' supports_* and
get_supported_kernel_block_sizes. Kernels are taken as present as in the published wheel: FlashAttention 2, 3 and 4,
FlashMLA, FlashInfer with its TRT-LLM kernels; the separate tokenspeed-mla package is not.
"""

from __future__ import annotations

from planner.engine.backend import PLAIN, AttentionQuery, Backend, always, never
from planner.values import DType

_ANY_FLOAT: tuple[DType, ...] = ("float16", "bfloat16", "float32")
_FP8 = ("fp8", "fp8_e4m3")


def flash_attn_supported(version: int, capability: tuple[int, int]) -> bool:
    """Source: vLLM 0.26.0 vllm_flash_attn/flash_attn_interface.py."""
    if version == 2:
        return capability >= (8, 0)
    return capability[0] == 9 if version == 3 else capability[0] in (9, 10, 11)


def flash_attn_version(query: AttentionQuery, head_size: int | None = None) -> int | None:
    """The FlashAttention that a layer would run with, None when none runs on the card. `head_size` None asks for the
    card's in general. Source: vLLM 0.26.0 v1/attention/backends/fa_utils.py:92 get_flash_attn_version."""
    major = query.capability[0]
    version = {9: 3, 10: 4}.get(major, 2) if query.flash_attn_version is None else query.flash_attn_version
    if major >= 10 and version == 3:
        version = 4 if flash_attn_supported(4, query.capability) else 2
    if version == 3 and major == 9 and head_size is not None and head_size > 256:
        version = 4
    if version == 4 and major >= 10 and head_size is not None and head_size > 128 and head_size != 192:
        version = 2
    return version if flash_attn_supported(version, query.capability) else None


def _flash_attn_head(query: AttentionQuery) -> bool:
    widest = 512 if flash_attn_supported(4, query.capability) else 256
    return query.head_size % 8 == 0 and query.head_size <= widest


def _flash_attn_kv(query: AttentionQuery) -> bool:
    if query.kv_cache_dtype in _FP8:
        return flash_attn_version(query) == 3 and query.capability[0] == 9
    return query.kv_cache_dtype in PLAIN


def _flash_attn_combination(query: AttentionQuery) -> str | None:
    if query.has_sink and query.capability < (9, 0):
        return "sink not supported on compute capability < 9.0"
    if query.use_mm_prefix and flash_attn_version(query, query.head_size) != 4:
        return (
            "mm_prefix (PrefixLM bidirectional attention) requires FlashAttention v4, which does not resolve for this "
            "head_size"
        )
    return None


def _flashinfer_kv(query: AttentionQuery) -> bool:
    if query.kv_cache_dtype == "nvfp4":
        return query.capability[0] == 10
    return query.kv_cache_dtype in (*PLAIN, *_FP8, "fp8_e5m2")


def _flash_attn_mla_only_hopper(query: AttentionQuery) -> str | None:
    return None if query.capability[0] == 9 else "FlashAttention MLA not supported on this device"


def _flash_attn_mla_sparse(query: AttentionQuery) -> str | None:
    if query.kv_cache_dtype not in PLAIN:
        return "FlashAttention MLA Sparse currently supports only FP16/BF16 KV cache"
    if query.capability[0] != 9:
        return "FlashAttention MLA not supported on this device"
    if query.decode_context_parallel_size > 1:
        return "FlashAttention MLA Sparse does not support DCP for now"
    return None if query.index_topk is not None else "FlashAttention MLA Sparse requires model with index_topk"


def _flashmla_dense(query: AttentionQuery) -> str | None:
    if query.use_sparse:
        supported = query.capability[0] in (9, 10)
        return None if supported else "FlashMLA Sparse is only supported on Hopper and Blackwell DC devices."
    return None if query.capability[0] == 9 else "FlashMLA Dense is only supported on Hopper devices."


def _flashinfer_mla(query: AttentionQuery) -> str | None:
    if query.qk_nope_head_dim in (64, 128, 192):
        return None
    return f"FlashInfer MLA kernel requires qk_nope_head_dim in [64, 128, 192], but got {query.qk_nope_head_dim}"


def _flashinfer_mla_sparse(query: AttentionQuery) -> str | None:
    if query.kv_cache_dtype == "fp8_ds_mla":
        return "FLASHINFER_MLA_SPARSE SM10 does not support fp8_ds_mla kv-cache dtype"
    if query.qk_nope_head_dim not in (128, 192):
        return f"FlashInfer MLA Sparse kernel requires qk_nope_head_dim in [128, 192], but got {query.qk_nope_head_dim}"
    return None if query.index_topk is not None else "FlashInfer MLA Sparse requires model with index_topk config"


def _flashinfer_mla_sparse_sm120(query: AttentionQuery) -> str | None:
    if query.dtype != "bfloat16":
        return "dtype not supported"
    if query.kv_cache_dtype not in ("auto", *_FP8, "fp8_ds_mla"):
        return "kv_cache_dtype not supported"
    if query.index_topk is None:
        return "FLASHINFER_MLA_SPARSE_SM120 requires a model with index_topk config"
    if query.index_topk != 2048:
        return f"FLASHINFER_MLA_SPARSE_SM120 requires index_topk=2048; got {query.index_topk}"
    return None


def _tokenspeed_missing(_: AttentionQuery) -> str | None:
    return "tokenspeed_mla package is not installed. Install it with: `uv pip install tokenspeed-mla`"


def _mla_head(query: AttentionQuery) -> bool:
    return query.head_size in (320, 576)


def _mla_kv(query: AttentionQuery) -> bool:
    return query.kv_cache_dtype in (*PLAIN, *_FP8)


_FLASH_ATTN = Backend(
    name="FLASH_ATTN",
    capability=lambda capability: capability >= (8, 0),
    head_size=_flash_attn_head,
    kv_cache=_flash_attn_kv,
    sink=lambda query: flash_attn_version(query) in (3, 4),
    mm_prefix=lambda query: flash_attn_supported(4, query.capability),
    per_head_scales=lambda query: (flash_attn_version(query) or 0) >= 3,
    combination=_flash_attn_combination,
    sliding_window=True,
    attn_types=("decoder", "encoder_decoder"),
)
_TRITON_ATTN = Backend(
    name="TRITON_ATTN",
    dtypes=_ANY_FLOAT,
    head_size=lambda query: query.head_size >= 32,
    kv_cache=lambda query: (
        query.kv_cache_dtype in (*PLAIN, *_FP8, "fp8_e5m2") or query.kv_cache_dtype.endswith("_per_token_head")
    ),
    sink=always,
    mm_prefix=always,
    sliding_window=True,
    attn_types=("decoder", "encoder_decoder"),
)

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        _FLASH_ATTN,
        _TRITON_ATTN,
        Backend(
            name="FLASHINFER",
            kernel_block_sizes=(16, 32, 64),
            capability=lambda capability: (8, 0) <= capability <= (12, 1),
            head_size=lambda query: query.head_size in (64, 128, 256, 512),
            kv_cache=_flashinfer_kv,
            sink=lambda query: query.capability[0] == 10,
            sliding_window=True,
            uniform_decode_graphs=lambda query: query.capability[0] == 10 and query.num_heads % query.num_kv_heads == 0,
        ),
        Backend(
            name="FLEX_ATTENTION",
            dtypes=_ANY_FLOAT,
            mm_prefix=always,
            sliding_window=True,
        ),
        Backend(
            name="TURBOQUANT",
            kernel_block_sizes=(16, 32, 64, 128),
            kv_cache=lambda query: query.kv_cache_dtype.startswith("turboquant_"),
        ),
        Backend(
            name="FLASH_ATTN_DIFFKV",
            capability=lambda capability: capability >= (9, 0),
        ),
        Backend(name="TRITON_ATTN_DIFFKV", dtypes=_ANY_FLOAT),
        Backend(
            name="FLASH_ATTN_MLA",
            capability=lambda capability: capability[0] == 9,
            head_size=_mla_head,
            combination=_flash_attn_mla_only_hopper,
            is_mla=True,
        ),
        Backend(
            name="FLASHMLA",
            kernel_block_sizes=(64,),
            capability=lambda capability: capability[0] in (9, 10),
            head_size=_mla_head,
            kv_cache=_mla_kv,
            combination=_flashmla_dense,
            is_mla=True,
        ),
        Backend(
            name="FLASHINFER_MLA",
            kernel_block_sizes=(32, 64),
            capability=lambda capability: capability[0] == 10,
            head_size=_mla_head,
            kv_cache=_mla_kv,
            combination=_flashinfer_mla,
            is_mla=True,
        ),
        Backend(
            name="TOKENSPEED_MLA",
            kernel_block_sizes=(32, 64),
            capability=lambda capability: capability[0] == 10,
            head_size=_mla_head,
            kv_cache=lambda query: query.kv_cache_dtype in _FP8,
            combination=_tokenspeed_missing,
            is_mla=True,
        ),
        Backend(
            name="CUTLASS_MLA",
            kernel_block_sizes=(128,),
            capability=lambda capability: capability[0] == 10,
            head_size=_mla_head,
            kv_cache=_mla_kv,
            is_mla=True,
            uniform_decode_graphs=never,
        ),
        Backend(name="TRITON_MLA", kv_cache=_mla_kv, is_mla=True, uniform_decode_graphs=never),
        Backend(
            name="FLASH_ATTN_MLA_SPARSE",
            kernel_block_sizes=(64,),
            capability=lambda capability: capability[0] == 9,
            combination=_flash_attn_mla_sparse,
            is_mla=True,
            is_sparse=True,
        ),
        Backend(
            name="FLASHMLA_SPARSE",
            dtypes=("bfloat16",),
            kernel_block_sizes=(64,),
            capability=lambda capability: capability[0] in (9, 10),
            head_size=lambda query: query.head_size == 576,
            kv_cache=lambda query: query.kv_cache_dtype in ("auto", "bfloat16", "fp8_ds_mla", "fp8"),
            is_mla=True,
            is_sparse=True,
        ),
        Backend(
            name="FLASHINFER_MLA_SPARSE",
            kernel_block_sizes=(32, 64),
            capability=lambda capability: capability[0] == 10,
            head_size=lambda query: query.head_size == 576,
            kv_cache=_mla_kv,
            combination=_flashinfer_mla_sparse,
            is_mla=True,
            is_sparse=True,
        ),
        Backend(
            name="FLASHINFER_MLA_SPARSE_SM120",
            dtypes=("bfloat16",),
            kernel_block_sizes=(64, 256),
            capability=lambda capability: capability[0] == 12,
            head_size=lambda query: query.head_size == 576,
            kv_cache=lambda query: query.kv_cache_dtype in ("auto", *_FP8, "fp8_ds_mla"),
            combination=_flashinfer_mla_sparse_sm120,
            is_mla=True,
            is_sparse=True,
        ),
        Backend(name="FLASHMLA_SPARSE_DSV4", kernel_block_sizes=(256,), is_mla=True, is_sparse=True),
        Backend(
            name="FLASHINFER_MLA_SPARSE_DSV4",
            kernel_block_sizes=(256,),
            is_mla=True,
            is_sparse=True,
        ),
    )
}
