"""The decoder layers of one rank: which module of the description plays which part in the forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.memory.allocator import DeepGemmAt, LoadTraits
from planner.memory.kv_blocks import align_block_sizes
from planner.memory.repeats import representatives
from planner.model.modules import (
    Attention,
    Buffer,
    FusedMoE,
    Linear,
    MLAProjection,
    Module,
    PackedCache,
    Parameter,
    QKVLinear,
    StateSpace,
)
from planner.model.spec import ModelSpec
from planner.once import once
from planner.sharding.rank import RankShare, Tensor
from planner.sharding.shard import kv_layers

FP8_CACHE = ("fp8", "fp8_e4m3")
"""Cache dtypes for which the query is quantized too (vLLM 0.26.0 layers/attention/attention.py:468)."""


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """The modules of one decoder layer, in vLLM's order; which of them plays which part is looked up once."""

    index: int
    modules: tuple[Module, ...]

    def unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError("activation memory", f"no memory rule for the {what} of layer {self.index}")

    def linear(self, suffix: str) -> Linear | None:
        """The linear layer whose name ends so."""
        return next((m for m in self.modules if isinstance(m, Linear) and m.name.endswith(suffix)), None)

    def require(self, suffix: str) -> Linear:
        found = self.linear(suffix)
        if found is None:
            raise self.unsupported(suffix)
        return found

    @cached_property
    def qkv(self) -> QKVLinear | None:
        return next((m for m in self.modules if isinstance(m, QKVLinear)), None)

    @cached_property
    def attention(self) -> Attention | None:
        return next((m for m in self.modules if isinstance(m, Attention)), None)

    @cached_property
    def state_space(self) -> StateSpace | None:
        return next((m for m in self.modules if isinstance(m, StateSpace)), None)

    @cached_property
    def mla(self) -> MLAProjection | None:
        return next((m for m in self.modules if isinstance(m, MLAProjection)), None)

    @cached_property
    def experts(self) -> FusedMoE | None:
        return next((m for m in self.modules if isinstance(m, FusedMoE)), None)

    @cached_property
    def has_qk_norm(self) -> bool:
        return any(isinstance(m, Parameter) and m.name.endswith("q_norm.weight") for m in self.modules)

    @cached_property
    def out_projection(self) -> Linear | None:
        """The row-parallel layer that follows the fused QKV."""
        seen = False
        for module in self.modules:
            seen = seen or isinstance(module, QKVLinear)
            if seen and isinstance(module, Linear) and module.parallelism == "row":
                return module
        return None

    @cached_property
    def router(self) -> Linear | None:
        if self.experts is None:
            return None
        return next(
            (m for m in self.modules if isinstance(m, Linear) and m.name.rsplit(".", 1)[-1] in ("gate", "router")), None
        )

    @cached_property
    def shared_gate(self) -> Linear | None:
        return self.linear("shared_expert_gate")

    @cached_property
    def shared(self) -> tuple[Linear, Linear] | None:
        """Up and down projection of the shared experts."""
        named = [m for m in self.modules if isinstance(m, Linear) and _is_shared(m.name)]
        return _pair([m for m in named if not m.name.endswith("shared_expert_gate")])

    @cached_property
    def mlp(self) -> tuple[Linear, Linear] | None:
        """Up and down projection of a dense feed-forward layer."""
        out = self.out_projection
        return _pair(
            [
                m
                for m in self.modules
                if isinstance(m, Linear) and m is not out and not _is_of_mixer(m.name) and not _is_shared(m.name)
            ]
        )

    @cached_property
    def mixes(self) -> bool:
        """Whether the layer has attention or a recurrent state."""
        return self.attention is not None or self.state_space is not None

    @cached_property
    def is_plain_attention(self) -> bool:
        """Attention with a fused projection, or latent attention."""
        return self.qkv is not None or self.mla is not None

    @cached_property
    def has_one_part(self) -> bool:
        """A layer that only mixes tokens, or is only a feed-forward layer (Nemotron-H, Mamba)."""
        return not (self.mixes and (self.experts is not None or self.mlp is not None))

    @cached_property
    def feed_forward_name(self) -> str:
        return "experts" if self.experts is not None else "MLP"

    def query_heads(self, tp: int) -> int:
        """UnsupportedError where ranks share the caches of attention that each has whole."""
        qkv = self._qkv()
        if tp > 1 and not qkv.tensor_parallel:
            raise self.unsupported("attention (whole on each rank)")
        return qkv.num_heads // tp

    def query_size(self, tp: int) -> int:
        return self.query_heads(tp) * self._qkv().head_size

    def key_size(self, tp: int) -> int:
        return self._kv_heads(tp) * self._qkv().head_size

    def value_size(self, tp: int) -> int:
        qkv = self._qkv()
        return self._kv_heads(tp) * (qkv.head_size_v or qkv.head_size)

    def output_size(self, tp: int) -> int:
        qkv = self._qkv()
        return self.query_heads(tp) * (qkv.head_size_v or qkv.head_size)

    def _kv_heads(self, tp: int) -> int:
        return max(1, self._qkv().num_kv_heads // tp)

    def _qkv(self) -> QKVLinear:
        if self.qkv is None:
            raise self.unsupported("attention")
        return self.qkv


def _is_shared(name: str) -> bool:
    """A linear of shared experts: Step names them in the singular."""
    return "shared_expert" in name or ".share_expert." in name


_MIXER_LINEARS = frozenset({
    "in_proj", "in_proj_qkvg", "in_proj_qkvz", "in_proj_ba", "x_proj", "dt_proj", "bcdt_proj", "conv", "conv1d",
    "q_proj", "k_proj", "v_proj", "kv_proj", "qkv_proj", "wq", "q_a_proj", "q_b_proj", "kv_b_proj",
    "kv_a_proj_with_mqa", "fused_qkv_a_proj", "o_proj", "out_proj", "a_proj", "b_proj", "g_proj", "f_a_proj",
    "f_b_proj", "g_a_proj", "g_b_proj", "q_conv1d", "k_conv1d", "v_conv1d",
})  # fmt: skip
"""Last names of the linear layers inside attention and recurrent mixers."""


def _is_of_mixer(name: str) -> bool:
    """A linear of a mixer, of the indexer in it, or a gate of its output (AFMoE, Muse, IQuest's loop)."""
    if name.rsplit(".", 1)[-1] in _MIXER_LINEARS:
        return True
    return ".indexer." in name or ".gate_projections." in name or name.endswith("attn.gate_proj")


_SIZES = {"max_model_len": 1 << 40, "max_num_seqs": 1 << 40, "max_num_batched_tokens": 1 << 40}
_BUDGET = {
    "cudagraph_capture_sizes": (), "gpu_memory_utilization": 1.0, "kv_cache_memory_bytes": None,
    "num_gpu_blocks_override": None, "warnings": (), "gpu_memory_bytes": 0,
}  # fmt: skip
_KEPT_CONFIGS = 64
_configs: dict[EngineConfig, EngineConfig] = {}


@once
def batchless(model: ModelSpec, config: EngineConfig) -> EngineConfig:
    """The configuration as far as a forward pass is written by it: one and the same object for all batch sizes.

    Only latent and compressed attention read sizes while they are written; for other models the sizes are put where
    nobody can take them for real ones.
    """
    common = config.model_copy(update=_BUDGET if _reads_sizes(model) else {**_BUDGET, **_SIZES})
    if common not in _configs and len(_configs) >= _KEPT_CONFIGS:
        del _configs[next(iter(_configs))]
    return _configs.setdefault(common, common)


@once
def _reads_sizes(model: ModelSpec) -> bool:
    return any(isinstance(module, MLAProjection | PackedCache) for module in model.modules)


def takes_media(model: ModelSpec, config: EngineConfig) -> bool:
    """Whether the runner feeds the model embeddings instead of tokens: a multimodal model with some media allowed.

    Source: vLLM 0.26.0 multimodal/registry.py supports_multimodal_inputs.
    """
    return model.is_multimodal and (not config.mm_limits or any(count for _, count in config.mm_limits))


@once
def rotary_table(model: ModelSpec) -> Buffer | None:
    """The language model's rotary table, None for models without one."""
    return next(
        (
            module
            for module in model.modules
            if isinstance(module, Buffer) and module.component == "language_model" and "cos_sin_cache" in module.name
        ),
        None,
    )


def load_traits(model: ModelSpec, share: RankShare, config: EngineConfig) -> LoadTraits:
    """YaRN tables are scaled; DeepSeek's stay in float32 where FlashInfer rotates, which is in eager mode. DeepGEMM
    starts where vLLM builds its first FP8 quantizer: a linear layer, latent attention, or a query for an FP8 cache.

    Source: vLLM 0.26.0 layers/rotary_embedding/yarn_scaling_rope.py, deepseek_scaling_rope.py:61,
    layers/quantization/input_quant_fp8.py:68, utils/deep_gemm.py:103.
    """
    table = rotary_table(model)
    yarn = table is not None and "yarn" in table.shared_key
    flashinfer = config.enforce_eager and config.dtype != "float32"
    deepseek = table is not None and "deepseek_yarn" in table.shared_key and table.shape[-1] in (64, 128, 256, 512)
    return LoadTraits(
        scaled_rotary=yarn, float32_rotary=deepseek and flashinfer, deep_gemm=_deep_gemm_at(model, share, config)
    )


def _deep_gemm_at(model: ModelSpec, share: RankShare, config: EngineConfig) -> DeepGemmAt:
    if not _runs_deep_gemm(config.compute_capability) or config.environment("VLLM_USE_DEEP_GEMM", "1") == "0":
        return ""
    if any(tensor.dtype.startswith("float8") and tensor.name == "weight" for tensor in share.loaded):
        return "linear"
    if model.use_mla or config.kv_cache_dtype in FP8_CACHE:
        return "attention"
    return ""


def uses_mrope(model: ModelSpec) -> bool:
    """Whether positions have three dimensions (Qwen-VL)."""
    table = rotary_table(model)
    return table is not None and "mrope_section" in table.shared_key


@once
def deepstack_levels(model: ModelSpec) -> int:
    """Layers whose output is joined by a level of the vision tower (Qwen3-VL)."""
    marked = (module.name.split(_DEEPSTACK)[1] for module in model.modules if _DEEPSTACK in module.name)
    return len({rest.split(".")[0] for rest in marked})


_DEEPSTACK = "deepstack_merger_list."


def decoder_layers(model: ModelSpec, share: RankShare) -> tuple[DecoderLayer, ...]:
    """The language model's layers that this rank holds."""
    return _decoder_layers(model, share.layers)


@once
def _decoder_layers(model: ModelSpec, indices: range | tuple[int, ...]) -> tuple[DecoderLayer, ...]:
    found: dict[int, list[Module]] = {index: [] for index in indices}
    for module in model.modules:
        if module.component == "language_model" and isinstance(module.placement, int) and module.placement in found:
            found[module.placement].append(module)
    return tuple(DecoderLayer(index, tuple(modules)) for index, modules in found.items())


def replayed_layers(model: ModelSpec, share: RankShare) -> tuple[DecoderLayer, ...]:
    """The rank's layers without the middle of long repetitions: they allocate, peak and leave what all layers do."""
    return _replayed_layers(model, share.layers, share.loaded)


@once
def _replayed_layers(
    model: ModelSpec, indices: range | tuple[int, ...], loaded: tuple[Tensor, ...]
) -> tuple[DecoderLayer, ...]:
    layers = _decoder_layers(model, indices)
    special = deepstack_levels(model)
    stored: dict[int | None, list[tuple[object, ...]]] = {}
    module, suffix = None, ""
    for tensor in loaded:
        if tensor.module != module:
            module = tensor.module
            suffix = module.rpartition(f".{tensor.layer}.")[2]
            same_layer = stored.setdefault(tensor.layer, []).append
        same_layer((suffix, tensor.name, tensor.shape, tensor.dtype))
    kinds = [
        (
            position < special,
            tuple((type(module), getattr(module, "kind", "")) for module in layer.modules),
            tuple(stored.get(layer.index, ())),
        )
        for position, layer in enumerate(layers)
    ]
    return tuple(layers[position] for position in representatives(kinds))


def _pair(linears: list[Linear]) -> tuple[Linear, Linear] | None:
    up = next((m for m in linears if m.parallelism in ("column", "replicated")), None)
    down = next((m for m in linears if m.parallelism == "row"), None) or (linears[1] if len(linears) == 2 else None)
    return None if up is None or down is None or up is down else (up, down)


def _runs_deep_gemm(capability: tuple[int, int]) -> bool:
    """vLLM 0.26.0 platforms/cuda.py:665 support_deep_gemm."""
    return capability == (9, 0) or capability[0] in (10, 12)


@once
def latent_workspace_rows(model: ModelSpec, config: EngineConfig) -> int:
    """Tokens of context that MLA's chunked prefill up-projects at once: at least a block for each request, and blocks
    beside recurrent states are large (vLLM 0.26.0 layers/attention/mla_attention.py:1688)."""
    size = config.block_size
    if model.is_hybrid:
        stages = range(config.pipeline_parallel_size)
        cached = [layer for stage in stages for layer in kv_layers(model, config, stage)]
        size = align_block_sizes(cached, config).block_size
    rows = min(max(8 * config.max_model_len, 4 * config.max_num_seqs * size), 64 * 1024)
    return max(rows, config.max_num_seqs * size)


def split_bytes_per_token(model: ModelSpec, config: EngineConfig) -> int:
    """FlashAttention 3's partial outputs in float32, for up to 32 splits, where batches can be captured in graphs.

    Source: vLLM 0.26.0 config/attention.py:42, v1/attention/backends/flash_attn.py:493.
    """
    if config.compute_capability != (9, 0):
        return 0
    tp = config.tensor_parallel_size
    if config.attention_backend == "FLASH_ATTN":
        widths = [
            module.num_heads // tp * (module.head_size_v or module.head_size)
            for module in model.modules
            if isinstance(module, QKVLinear) and module.component == "language_model"
        ]
    elif config.attention_backend == "FLASH_ATTN_MLA":
        widths = [m.num_heads // tp * m.kv_lora_rank for m in model.modules if isinstance(m, MLAProjection)]
    else:
        return 0
    return _MAX_SPLITS * max(widths, default=0) * 4


_MAX_SPLITS = 32
