"""The vocabulary in which an architecture is written down: the modules vLLM builds, before anything is split.

An architecture file turns a config into a tuple of these. Sizes are those of the whole model; `planner.sharding`
turns them into the tensors of one rank, and a quantization scheme decides how a `Linear` or `FusedMoE` is stored.
Names are the prefixes that vLLM gives its modules (its quantization ignore-lists match on them).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from planner.values import DType

Placement = Literal["first", "last", "every"]
Component = Literal["language_model", "vision_tower", "audio_tower", "draft_model"]
LinearParallelism = Literal["replicated", "column", "row", "qkv"]
AttentionKind = Literal[
    "full_attention", "sliding_window", "chunked_local_attention", "mla_attention", "cross_attention", "encoder_only"
]


class Module(Struct, frozen=True, kw_only=True):
    """Anything that holds memory on a rank.

    `placement` is the decoder layer index (pipeline parallelism moves it with its layer), or "first" / "last" for
    the stage that holds the embedding / the final norm and head, or "every" for what each stage builds.
    `component` says which part of the model owns it: text-only limits drop towers, `--mm-encoder-tp-mode data`
    replicates them.
    """

    name: str
    placement: int | Placement = "every"
    component: Component = "language_model"


class Parameter(Module, frozen=True, kw_only=True):
    """A plain parameter. `shard_dim` is the dimension that tensor parallelism divides, None when replicated.

    `dtype` None: the model's. `replicate_when_short`: a rank has one entry where there are fewer than ranks, as KV
    heads are replicated. `padded_to`: the rank's share of `shard_dim` is rounded up to a multiple of this.
    `norm_groups`: groups of a norm that ranks have whole, so that tensor parallelism has to divide them.
    """

    shape: tuple[int, ...]
    shard_dim: int | None = None
    dtype: DType | None = None
    replicate_when_short: bool = False
    padded_to: int = 1
    norm_groups: int | None = None


class Buffer(Module, frozen=True, kw_only=True):
    """A buffer that is no parameter (counts as weights memory, not as parameter bytes).

    Buffers with the same non-empty `shared_key` are one allocation (vLLM caches rotary tables in _ROPE_DICT).
    Replicated, unless tensor parallelism divides `shard_dim`; of that dimension each rank holds `whole_size` elements
    whole. `registered` False: a plain tensor that the module keeps, not among the model's buffers. `rows_by_length`:
    the first dimension is at most --max-model-len.
    """

    shape: tuple[int, ...]
    dtype: DType | None = None
    shared_key: str = ""
    shard_dim: int | None = None
    whole_size: int = 0
    registered: bool = True
    rows_by_length: bool = False


class Linear(Module, frozen=True, kw_only=True):
    """A linear layer: `input_size` -> sum(`output_sizes`), one entry for each shard fused into the weight.

    `parallelism`: "replicated"; "column" divides every entry of output_sizes; "row" divides the input;
    use `QKVLinear` for "qkv". `quantizable` is False where vLLM passes no quant_config.
    `shard_names` are the checkpoint's names of the fused shards, last part only ("gate_proj", "up_proj"): ignore
    lists of quantized checkpoints speak of those. `tensor_parallel` False: built with disable_tp (full copy).
    `whole_blocks`: the divided dimension is split in whole blocks of so many, the last ranks padded (DeepSeek-V4).
    `whole_in_sequence_parallel`: a shared expert that is whole where expert, tensor and data parallelism combine.
    A row-parallel bias is whole on each rank (vLLM linear.py RowParallelLinear).
    `num_heads`: attention heads that the class divides by the tensor-parallel size before it builds the layer.
    `whole_unless_divides`: where tensor parallelism does not divide this number, each rank has a full copy.
    `follows_encoder_mode` False: a tower's layer that stays divided under `--mm-encoder-tp-mode data`.
    `replicated_shards`: entries of output_sizes that each rank holds whole, the others divided; with more than one rank
    the weight then counts as one shard (Mamba-2 with a single group, mamba_mixer2.py:337).
    `whole_if_quantized`: quantization methods under which each rank has a full copy.
    `float32_gate`: a router that is float32 where vLLM has no kernel for it (fused_moe/router/gate_linear.py:67).
    """

    input_size: int
    output_sizes: tuple[int, ...]
    parallelism: LinearParallelism = "replicated"
    bias: bool = False
    quantizable: bool = True
    dtype: DType | None = None
    shard_names: tuple[str, ...] = ()
    tensor_parallel: bool = True
    num_heads: int | None = None
    whole_unless_divides: int | None = None
    follows_encoder_mode: bool = True
    whole_in_sequence_parallel: bool = False
    whole_blocks: int = 0
    replicated_shards: tuple[int, ...] = ()
    whole_if_quantized: tuple[str, ...] = ()
    float32_gate: bool = False


class QKVLinear(Module, frozen=True, kw_only=True):
    """Fused query, key and value (vLLM QKVParallelLinear): KV heads are replicated when tp exceeds them.

    `output_gate`: the query carries a gate of the same width (Qwen3-Next full attention), so it is counted twice.
    `index_head_size`: an indexer's queries, one a KV head, and its one replicated key follow in the same weight
    (MiniMax-M3).
    `whole_unless_divides`: as in `Linear`.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    head_size_v: int | None = None
    bias: bool = False
    quantizable: bool = True
    dtype: DType | None = None
    shard_names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    tensor_parallel: bool = True
    output_gate: bool = False
    index_head_size: int = 0
    whole_unless_divides: int | None = None


class VocabEmbedding(Module, frozen=True, kw_only=True):
    """Token embedding (VocabParallelEmbedding): rows padded to a multiple of `padding`, then divided by tp."""

    num_embeddings: int
    hidden_size: int
    padding: int = 64
    dtype: DType | None = None
    tensor_parallel: bool = True
    quantizable: bool = True


class LMHead(Module, frozen=True, kw_only=True):
    """Output head (ParallelLMHead). `tied_to` names the embedding whose tensor it is; on another pipeline stage the
    last stage then holds its own copy."""

    num_embeddings: int
    hidden_size: int
    bias: bool = False
    padding: int = 64
    tied_to: str | None = None
    dtype: DType | None = None
    quantizable: bool = True


class FusedMoE(Module, frozen=True, kw_only=True):
    """The routed experts of one layer: w13 [E, 2I, H] and w2 [E, H, I] (vLLM fused_moe).

    `gated` False: no gate projection, so w13 is [E, I, H] (Nemotron-H relu2 experts). `bias`: gpt-oss style.
    Shared experts and the router are their own modules. `router_weight_on_input`: the routing weight multiplies the
    experts' input instead of their output (Llama 4, vLLM apply_router_weight_on_input).
    """

    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    gated: bool = True
    bias: bool = False
    quantizable: bool = True
    dtype: DType | None = None
    shard_names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    activation: str = "silu"
    router_weight_on_input: bool = False


class Attention(Module, frozen=True, kw_only=True):
    """One attention layer's cache, and what its kernel needs to know. Holds no weights itself.

    `num_kv_heads` is the whole model's; a rank has max(1, num_kv_heads / tp). `window` is the sliding window or the
    chunk, in tokens. `shares_kv_with` names the layer whose cache it reuses (Gemma-3n, Gemma-4): no cache of its own.
    For "mla_attention", head_size is kv_lora_rank + qk_rope_head_dim and num_kv_heads is 1. `registered` False: the
    layer is no submodule of the model, so that its scales are not among the model's buffers (Transformers backend).
    `quantizable` False: vLLM passes the layer no quant_config, so that it has no scales to load.
    """

    kind: AttentionKind
    num_heads: int
    num_kv_heads: int
    head_size: int
    head_size_v: int | None = None
    window: int | None = None
    shares_kv_with: str | None = None
    has_sinks: bool = False
    has_rope: bool = True
    softcap: bool = False
    quantizable: bool = True
    registered: bool = True


class MLAProjection(Module, frozen=True, kw_only=True):
    """The absorbed copies W_UK_T and W_UV that vLLM makes after load from kv_b_proj
    (mla_attention.py process_weights_after_loading), kept beside it, in the model's dtype."""

    num_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    v_head_dim: int


class IndexerCache(Module, frozen=True, kw_only=True):
    """The key cache of a sparse attention's indexer: one head of `head_size` elements a token, replicated, a KV layer
    of its own (vLLM deepseek_v2.py DeepseekV32IndexerCache, models/minimax_m3/common/indexer.py). Its dtype does not
    follow --kv-cache-dtype; None: the model's."""

    head_size: int
    dtype: DType | None = "uint8"


class PackedCache(Module, frozen=True, kw_only=True):
    """One of the caches of a DeepSeek-V4 layer, each a KV layer of its own (vLLM models/deepseek_v4/attention.py:605).

    "keys" holds one entry for `compress_ratio` tokens, "window" the last `window` tokens, "index" the indexer's keys,
    "state" what the compressor keeps (float32, `window` tokens). `block_size` 0: the engine's.
    """

    role: Literal["keys", "window", "index", "state"]
    head_size: int
    compress_ratio: int = 1
    window: int | None = None
    block_size: int = 0


class TokenBuffer(Module, frozen=True, kw_only=True):
    """Memory that the model allocates while loading, neither parameter nor buffer: `columns` for each token of a
    batch (max_num_batched_tokens), shared by all layers. `dtype` None: the model's. `heads`: as many columns again for
    each head of the rank, which has at least one."""

    columns: int
    dtype: DType | None = None
    heads: int = 1


class StateSpace(Module, frozen=True, kw_only=True):
    """A recurrent layer's per-request state (vLLM MambaSpec). Weights are separate modules.

    `kind` is the layer's attention backend in vLLM. `num_heads` and, for Mamba-2, `num_groups` are what tensor
    parallelism divides; a single group is repeated on each rank. `chunk_size`: tokens that the kernel takes at once.
    """

    kind: Literal["mamba1", "mamba2", "gated_delta_net", "linear_attention", "short_conv"]
    states: tuple[State, ...]
    num_heads: int = 0
    num_groups: int = 0
    chunk_size: int = 0


class State(Struct, frozen=True, kw_only=True):
    """One state tensor of a request: shape for the whole model and the dimension that tensor parallelism divides.

    `role`: the engine has a dtype for each, unless `dtype` fixes one. `group_size`: elements that each of the layer's
    groups adds to the divided dimension. `row_per_draft`: one more row for each speculative token.
    """

    role: Literal["conv", "ssm"]
    shape: tuple[int, ...]
    shard_dim: int
    group_size: int = 0
    row_per_draft: bool = False
    dtype: DType | None = None


class PackedNames(Struct, frozen=True):
    """How a fused vLLM module's name expands to checkpoint names, and how checkpoint prefixes map to vLLM's.

    `fused`: {"qkv_proj": ("q_proj", "k_proj", "v_proj"), ...}; `prefixes`: ordered (checkpoint, vllm) pairs.
    """

    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    prefixes: tuple[tuple[str, str], ...] = ()
