"""RankShare: what one rank of one model holds, tensor by tensor."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from planner.model.modules import AttentionKind, Component
from planner.values import DTYPE_BYTES, DType

TensorRole = Literal["parameter", "buffer", "workspace"]


class Tensor(Struct, frozen=True, gc=False):
    """`count` equal tensors of one rank. `module` is vLLM's module prefix, `name` the attribute in it."""

    module: str
    name: str
    shape: tuple[int, ...]
    dtype: DType
    role: TensorRole = "parameter"
    component: Component = "language_model"
    layer: int | None = None

    @property
    def size_bytes(self) -> int:
        size = DTYPE_BYTES[self.dtype]
        for dimension in self.shape:
            size *= dimension
        return size


class LayerKVSpec(Struct, frozen=True, kw_only=True):
    """One layer's cache on one rank (vLLM KVCacheSpec). Token-based kinds use heads and sizes; "mamba" uses states.

    `num_kv_heads` is the rank's. `dtype` the cache tensors'. `window` the sliding window or chunk. For "mamba",
    `state_shapes` and `state_dtypes` are one request's on this rank; page_size_bytes is their sum before padding.
    `cache_dtype` is the kv-cache-dtype flag's value where the layout depends on it ("fp8_ds_mla",
    "int8_per_token_head"); an indexer's cache is an "mla_attention" layer of its own, with cache_dtype "auto".
    `head_size_v` 0: as head_size.
    `block_size` is set only by caches that choose their own (DeepSeek-V4's windows and compressor states);
    `compress_ratio`, `alignment_bytes` and `model_version` ("deepseek_v4") are those of vLLM's MLA specs.
    `chunk_size` is the "mamba" kernel's chunk (ModelConfig.get_mamba_chunk_size), used by mamba_cache_mode "all".
    """

    layer_name: str
    kind: AttentionKind | Literal["sliding_window_mla", "mamba"]
    num_kv_heads: int = 0
    head_size: int = 0
    head_size_v: int = 0
    dtype: DType = "bfloat16"
    window: int | None = None
    state_shapes: tuple[tuple[int, ...], ...] = ()
    state_dtypes: tuple[DType, ...] = ()
    mamba_kind: str = ""
    cache_dtype: str = "auto"
    num_speculative_blocks: int = 0
    block_size: int | None = None
    compress_ratio: int = 1
    alignment_bytes: int | None = None
    model_version: str = ""
    chunk_size: int = 0


class RankShare(Struct, frozen=True):
    """One rank. `created` is what model construction allocates; `loaded` what is there after weight
    post-processing (repacking, absorbed copies, workspaces); `adapters` the slots of LoRA adapters, made after both."""

    tp_rank: int
    pp_rank: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    layers: range | tuple[int, ...]
    created: tuple[Tensor, ...]
    loaded: tuple[Tensor, ...]
    kv_layers: tuple[LayerKVSpec, ...]
    adapters: tuple[Tensor, ...] = ()

    @property
    def parameter_bytes(self) -> int:
        """Parameters alone as created: the sum that vLLM's model has before repacking."""
        return sum(tensor.size_bytes for tensor in self.created if tensor.role == "parameter")
