"""One rank's tensors, module by module, as vLLM's constructors create them."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatchmethod

from msgspec.structs import astuple

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.model.modules import (
    Attention,
    Buffer,
    FusedMoE,
    IndexerCache,
    Linear,
    LMHead,
    MLAProjection,
    Module,
    PackedCache,
    Parameter,
    QKVLinear,
    StateSpace,
    TokenBuffer,
    VocabEmbedding,
)
from planner.model.spec import ModelSpec
from planner.sharding.division import (
    check_norm_groups,
    column_shards,
    divide,
    kv_heads_per_rank,
    padded_to_blocks,
    sequence_parallel_experts,
)
from planner.sharding.packed_cache import packed_cache_spec
from planner.sharding.quantization.base import UNQUANTIZED, LinearShard, MoEShard, Scheme, Shard, Storage, Stored
from planner.sharding.quantization.select import Selector
from planner.sharding.rank import LayerKVSpec, Tensor, TensorRole
from planner.sharding.state import mamba_spec
from planner.values import DType, reject

_BY_SELF = (Attention, Buffer, IndexerCache, LMHead, PackedCache, StateSpace)
"""Kinds whose names and predecessors matter while they are added."""
_WITH_SCHEME = (FusedMoE, Linear, QKVLinear, VocabEmbedding)
_SCALES = ("_k_scale", "_v_scale", "_q_scale", "_prob_scale")


class RankBuilder:
    """Collects the tensors of one rank while walking the modules in creation order."""

    def __init__(self, model: ModelSpec, config: EngineConfig, pp_rank: int, selector: Selector) -> None:
        self.model = model
        self.config = config
        self.pp_rank = pp_rank
        self.selector = selector
        self.created: list[Tensor] = []
        self.loaded: list[Tensor] = []
        self.kv_layers: list[LayerKVSpec] = []
        self.wrappable: list[tuple[Module, Shard]] = []
        self._buffers: set[str] = set()
        self._attention_names: set[str] = set()
        self._encoder_data_parallel = config.mm_encoder_tp_mode == "data" and model.supports_encoder_tp_data
        self._emitted: list[Storage] = []
        self._attention: dict[tuple[object, ...], tuple[int, Storage, Storage]] = {}
        self._known: dict[tuple[object, ...], tuple[tuple[Storage, ...], Scheme | None]] = {}

    def take(self, module: Module, add: Callable[[Module], None]) -> None:
        """`add` a module; one that differs from an earlier one only in its place is stored as that was."""
        if isinstance(module, _BY_SELF) or self.config.enable_lora:
            add(module)
            return
        scheme = self._scheme(module) if isinstance(module, _WITH_SCHEME) else None
        key = (type(module), *astuple(module)[2:], id(scheme))
        known = self._known.get(key)
        if known is None:
            self._emitted = []
            add(module)
            self._known[key] = tuple(self._emitted), scheme
            return
        for storage in known[0]:
            self._write(module, storage)

    @singledispatchmethod
    def add(self, module: Module) -> None:
        raise UnsupportedError(type(module).__name__, f"no sharding rule for {type(module).__name__} ({module.name})")

    @add.register
    def _(self, module: Parameter) -> None:
        shape = module.shape
        if module.shard_dim is not None:
            tp = self._tp(module)
            if module.norm_groups is not None:
                check_norm_groups(module.norm_groups, tp)
            whole = shape[module.shard_dim]
            size = kv_heads_per_rank(whole, tp) if module.replicate_when_short else divide(whole, tp)
            size += -size % module.padded_to
            shape = (*shape[: module.shard_dim], size, *shape[module.shard_dim + 1 :])
        self._emit(module, Storage((Stored("", shape, module.dtype or self.config.dtype),)))

    @add.register
    def _(self, module: Buffer) -> None:
        if module.shared_key:
            if module.shared_key in self._buffers:
                return
            self._buffers.add(module.shared_key)
        shape = module.shape
        if module.rows_by_length:
            shape = (min(shape[0], self.config.max_model_len), *shape[1:])
        if module.shard_dim is not None:
            size = divide(shape[module.shard_dim] - module.whole_size, self._tp(module)) + module.whole_size
            shape = (*shape[: module.shard_dim], size, *shape[module.shard_dim + 1 :])
        role: TensorRole = "buffer" if module.registered else "workspace"
        self._emit(module, Storage((Stored("", shape, module.dtype or self.config.dtype, role),)))

    @add.register
    def _(self, module: Linear) -> None:
        tp = self._linear_tp(module)
        if module.whole_blocks:
            module = padded_to_blocks(module, tp)
        inputs, outputs = module.input_size, module.output_sizes
        if module.num_heads is not None:
            divide(module.num_heads, tp)
        full_outputs = outputs
        if module.parallelism == "column":
            outputs, full_outputs = column_shards(module, tp)
        elif module.parallelism == "row":
            inputs = divide(inputs, tp)
        linear = LinearShard(
            name=module.name,
            input_size=inputs,
            output_sizes=outputs,
            full_input_size=module.input_size,
            full_output_sizes=full_outputs,
            row_parallel=module.parallelism == "row",
            dtype=self._linear_dtype(module),
            component=module.component,
            tensor_parallel_size=tp,
        )
        self.wrappable.append((module, linear))
        self._emit(module, _with_bias(self._scheme(module).linear(linear), linear, module.bias))

    @add.register
    def _(self, module: QKVLinear) -> None:
        tp = self._linear_tp(module)
        heads = divide(module.num_heads, tp)
        kv_heads = kv_heads_per_rank(module.num_kv_heads, tp)
        head_size_v = module.head_size_v or module.head_size
        query = heads * module.head_size * (2 if module.output_gate else 1)
        outputs = [query, kv_heads * module.head_size, kv_heads * head_size_v]
        if module.index_head_size:
            outputs += [kv_heads * module.index_head_size, module.index_head_size]
        linear = LinearShard(
            name=module.name,
            input_size=module.hidden_size,
            output_sizes=tuple(outputs),
            full_input_size=module.hidden_size,
            full_output_sizes=tuple(size * tp for size in outputs),
            row_parallel=False,
            dtype=module.dtype or self.config.dtype,
            component=module.component,
            tensor_parallel_size=tp,
        )
        self.wrappable.append((module, linear))
        self._emit(module, _with_bias(self._scheme(module).linear(linear), linear, module.bias))

    @add.register
    def _(self, module: VocabEmbedding) -> None:
        self._vocabulary(module, bias=False, tp=self._tp(module) if module.tensor_parallel else 1)

    @add.register
    def _(self, module: LMHead) -> None:
        if module.tied_to is None:
            self._vocabulary(module, module.bias, self._tp(module))
        elif self.pp_rank > 0 and module.placement != "every":
            self._vocabulary(module, False, self._tp(module))
        else:
            self.wrappable.append((module, self._rows(module, self._tp(module))))

    def _vocabulary(self, module: VocabEmbedding | LMHead, bias: bool, tp: int) -> None:
        linear = self._rows(module, tp)
        self.wrappable.append((module, linear))
        self._emit(module, _with_bias(self._scheme(module).linear(linear), linear, bias))

    def _rows(self, module: VocabEmbedding | LMHead, tp: int) -> LinearShard:
        """The rank's rows of a vocabulary."""
        padded = -(-module.num_embeddings // module.padding) * module.padding
        if padded % tp:
            raise reject("vocab_divisibility", f"{padded} is not divisible by {tp}")
        return LinearShard(
            name=module.name,
            input_size=module.hidden_size,
            output_sizes=(padded // tp,),
            full_input_size=module.hidden_size,
            full_output_sizes=(padded,),
            row_parallel=False,
            dtype=module.dtype or self.config.dtype,
            tensor_parallel_size=tp,
        )

    @add.register
    def _(self, module: FusedMoE) -> None:
        config = self.config
        expert_parallel = config.enable_expert_parallel
        group = config.tensor_parallel_size * config.data_parallel_size
        if expert_parallel:
            local, inner = -(-module.num_experts // group), module.intermediate_size
        else:
            local, inner = module.num_experts, divide(module.intermediate_size, group)
        moe = MoEShard(
            name=module.name,
            num_experts=module.num_experts,
            num_local_experts=local,
            top_k=module.top_k,
            hidden_size=module.hidden_size,
            intermediate_size=inner,
            full_intermediate_size=module.intermediate_size,
            gated=module.gated,
            bias=module.bias,
            dtype=module.dtype or config.dtype,
            expert_parallel=expert_parallel,
            activation=module.activation,
            router_weight_on_input=module.router_weight_on_input,
        )
        self.wrappable.append((module, moe))
        self._emit(module, self._scheme(module).moe(moe))
        if expert_parallel and group > 1:
            self._emit(module, Storage((Stored("expert_map", (module.num_experts,), "int32", "buffer"),)))

    @add.register
    def _(self, module: MLAProjection) -> None:
        heads = divide(module.num_heads, self._tp(module))
        copies = (
            Stored("W_UK_T", (heads, module.qk_nope_head_dim, module.kv_lora_rank), self.config.dtype, "buffer"),
            Stored("W_UV", (heads, module.kv_lora_rank, module.v_head_dim), self.config.dtype, "buffer"),
        )
        self._emit(module, Storage((), copies))

    @add.register
    def _(self, module: Attention) -> None:
        kind = (module.kind, module.num_kv_heads, module.component, module.quantizable, module.registered)
        known = self._attention.get(kind)
        if known is None:
            known = self._attention[kind] = self._scales(module)
        heads, buffers, scales = known
        self._emit(module, buffers)
        self._emit(module, scales)
        self._attention_names.add(module.name)
        if module.shares_kv_with is not None and module.shares_kv_with not in self._attention_names:
            raise reject("parallelism", _unshared(module.name, module.shares_kv_with))
        if module.kind == "encoder_only" or module.shares_kv_with is not None:
            return
        plain = module.placement in self.config.kv_cache_dtype_skip_layers
        self.kv_layers.append(
            LayerKVSpec(
                layer_name=module.name,
                kind=module.kind,
                num_kv_heads=heads,
                head_size=module.head_size,
                head_size_v=module.head_size_v or module.head_size,
                dtype=self.config.dtype if plain else self.config.kv_torch_dtype,
                window=module.window,
                cache_dtype="auto" if plain else self.config.kv_cache_dtype,
            )
        )

    def _scales(self, module: Attention) -> tuple[int, Storage, Storage]:
        """KV heads of the rank, the layer's own buffers, and what its quantization method adds."""
        replicated = module.kind in ("mla_attention", "encoder_only")
        heads = 1 if replicated else kv_heads_per_rank(module.num_kv_heads, self._tp(module))
        scales = self.selector.kv_scales(module, heads) if module.quantizable else Storage(())
        replaced = {stored.name for stored in scales.after_load}
        buffers = tuple(Stored(name, (), "float32", "buffer") for name in _SCALES if module.registered)
        kept = tuple(stored for stored in buffers if stored.name not in replaced)
        return heads, Storage(buffers, kept if replaced else None), scales

    @add.register
    def _(self, module: IndexerCache) -> None:
        spec = LayerKVSpec(
            layer_name=module.name,
            kind="mla_attention",
            num_kv_heads=1,
            head_size=module.head_size,
            head_size_v=module.head_size,
            dtype=module.dtype or self.config.dtype,
        )
        self.kv_layers.append(spec)

    @add.register
    def _(self, module: TokenBuffer) -> None:
        heads = max(1, module.heads // self.config.tensor_parallel_size)
        shape = (self.config.max_num_batched_tokens, heads * module.columns)
        self._emit(module, Storage((Stored("", shape, module.dtype or self.config.dtype, "workspace"),)))

    @add.register
    def _(self, module: PackedCache) -> None:
        self.kv_layers.append(packed_cache_spec(module, self.config))

    @add.register
    def _(self, module: StateSpace) -> None:
        self.kv_layers.append(mamba_spec(module, self.config))

    def _tp(self, module: Module) -> int:
        if module.component == "vision_tower" and self._encoder_data_parallel:
            return 1
        return self.config.tensor_parallel_size

    def _linear_tp(self, module: Linear | QKVLinear) -> int:
        tp = self._tp(module) if module.tensor_parallel else 1
        if isinstance(module, Linear) and not module.follows_encoder_mode:
            tp = self.config.tensor_parallel_size
        if isinstance(module, Linear) and module.whole_in_sequence_parallel and sequence_parallel_experts(self.config):
            tp = 1
        if isinstance(module, Linear) and self.config.quantization in module.whole_if_quantized:
            return 1
        unit = module.whole_unless_divides
        return 1 if unit is not None and unit % tp else tp

    def _linear_dtype(self, module: Linear) -> DType:
        major, minor = self.config.compute_capability
        if module.float32_gate and (major, minor) != (9, 0) and major != 10:
            return "float32"
        return module.dtype or self.config.dtype

    def _scheme(self, module: Linear | QKVLinear | FusedMoE | LMHead | VocabEmbedding) -> Scheme:
        return self.selector.scheme(module) if module.quantizable else UNQUANTIZED

    def _emit(self, module: Module, storage: Storage) -> None:
        self._emitted.append(storage)
        self._write(module, storage)

    def _write(self, module: Module, storage: Storage) -> None:
        name, component = module.name, module.component
        layer = module.placement if isinstance(module.placement, int) else None
        created = [
            Tensor(name, item.name, item.shape, item.dtype, item.role, component, layer) for item in storage.created
        ]
        self.created += created
        if storage.loaded is None:
            self.loaded += created
            return
        self.loaded += [
            Tensor(name, item.name, item.shape, item.dtype, item.role, component, layer) for item in storage.loaded
        ]


def _unshared(name: str, target: str) -> str:
    """vLLM's refusal of a layer whose keys and values are another stage's (layers/attention/attention.py:55)."""
    return (
        f"Specified KV sharing target layer for {name} is not valid: target layer {target} "
        "is not a valid Attention layer in the model."
    )


def _with_bias(storage: Storage, linear: LinearShard, bias: bool) -> Storage:
    """The weight's storage plus its bias: the rank's rows of a column layer, all of a row layer's."""
    if not bias:
        return storage
    created = (*storage.created, Stored("bias", (linear.output_size,), linear.dtype))
    if storage.loaded is None:
        return Storage(created)
    size = linear.output_size if storage.loaded_bias_size is None else storage.loaded_bias_size
    return Storage(created, (*storage.loaded, Stored("bias", (size,), linear.dtype)))
