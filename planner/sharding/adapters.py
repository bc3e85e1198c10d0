"""The slots that vLLM reserves for LoRA adapters beside each layer of a rank.

Every wrapped layer gets, for each checkpoint layer fused into it, two stacks over the slots: A [slots, 1, rank, input]
and B [slots, 1, output, rank]. Tensor parallelism divides what the layer itself divides; with --fully-sharded-loras it
divides the rank of a column layer's A and the output of a row layer's B too.
Source: vLLM 0.26.0 lora/model_manager.py:391 _create_lora_modules, lora/layers/*.py create_lora_weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.engine.config import EngineConfig
from planner.errors import UnsupportedError
from planner.model.adapters import FAILING, REFUSING, TRAITS, AdapterTraits
from planner.model.modules import FusedMoE, Linear, LMHead, Module, QKVLinear, VocabEmbedding
from planner.model.spec import ModelSpec
from planner.sharding.quantization.base import LinearShard, MoEShard, Shard
from planner.sharding.rank import Tensor
from planner.values import DType, reject

MOST_WORDS = 258048


def adapter_traits(model: ModelSpec, config: EngineConfig) -> AdapterTraits:
    """Raises Rejected for a class without adapters, UnsupportedError for one whose wrapped layers are not known."""
    traits, refusing = TRAITS.get(model.architecture), REFUSING.get(model.architecture)
    if refusing is not None:
        raise reject("flag", f"{refusing} does not support LoRA yet.")
    if model.architecture in FAILING:
        raise reject("flag", FAILING[model.architecture])
    if traits is None:
        message = f"LoRA adapters of {model.architecture} are not supported by this planner"
        raise UnsupportedError("enable_lora", message)
    if config.pipeline_parallel_size > 1 and model.tie_word_embeddings and traits.embeddings:
        message = "LoRA adapters of a head tied to another stage's embedding are not supported by this planner"
        raise UnsupportedError("enable_lora", message)
    if model.is_moe and config.compute_capability[0] == 10:
        raise UnsupportedError("enable_lora", "LoRA adapters on Blackwell's experts are not supported by this planner")
    if model.is_moe and config.quantization is not None:
        raise UnsupportedError("enable_lora", "LoRA adapters on quantized experts are not supported by this planner")
    return traits


class Slots:
    """The adapter slots of one rank, layer by layer in the order in which the layers are walked."""

    def __init__(self, traits: AdapterTraits, config: EngineConfig) -> None:
        self._traits = traits
        self._config = config
        self._slots, self._rank = config.max_loras, config.max_lora_rank
        self._sharded = config.fully_sharded_loras
        self._dtype: DType = config.lora_dtype or config.dtype

    def of(self, layers: Sequence[tuple[Module, Shard]]) -> tuple[Tensor, ...]:
        """Tensors of all layers. Raises Rejected where vLLM refuses to wrap one."""
        return tuple(tensor for module, shard in layers for tensor in self._layer(module, shard))

    def _layer(self, module: Module, shard: Shard) -> Iterator[Tensor]:
        if not module.name.startswith(self._traits.language_model) or module.component != "language_model":
            return
        name = module.name.rpartition(".")[2]
        packed = self._traits.packed.get(name, 0)
        if not self._is_target(module, name) or name in self._traits.passed_over:
            return
        if isinstance(module, FusedMoE) and isinstance(shard, MoEShard):
            yield from self._experts(module, shard)
        elif isinstance(module, LMHead) and isinstance(shard, LinearShard):
            if name in self._traits.embeddings:
                yield from self._head(module, shard)
        elif isinstance(module, VocabEmbedding):
            if name in self._traits.embeddings:
                yield from self._embedding(module, module.num_embeddings, module.hidden_size)
        elif isinstance(module, QKVLinear) and isinstance(shard, LinearShard):
            yield from self._fused_attention(module, shard, packed)
        elif isinstance(module, Linear) and isinstance(shard, LinearShard):
            yield from self._linear(module, shard, packed)

    def _is_target(self, module: Module, name: str) -> bool:
        """--lora-target-modules. Source: vLLM 0.26.0 lora/utils.py is_in_target_modules."""
        targets = self._config.lora_target_modules
        if targets is None:
            return True
        parts = module.shard_names if isinstance(module, Linear | QKVLinear) else ()
        return any(part in targets for part in (name, module.name, *parts))

    def _fused_attention(self, module: QKVLinear, shard: LinearShard, packed: int) -> Iterator[Tensor]:
        if module.index_head_size:
            return
        tp = shard.tensor_parallel_size
        if packed == 1:
            yield from self._pair(module, shard.input_size, (shard.output_size,), tp)
        elif packed == 3:
            query, key, _ = shard.output_sizes
            yield from self._pair(module, shard.input_size, (query, key, key), tp)

    def _linear(self, module: Linear, shard: LinearShard, packed: int) -> Iterator[Tensor]:
        tp, outputs = shard.tensor_parallel_size, shard.output_sizes
        if module.parallelism == "row":
            rows = _divide(shard.output_size, tp) if self._sharded else shard.output_size
            yield self._stack(module, "lora_a", self._rank, shard.input_size)
            yield self._stack(module, "lora_b", rows, self._rank)
        elif len(outputs) == 1:
            yield from self._pair(module, shard.input_size, outputs, tp if module.parallelism == "column" else 1)
        elif packed == 2:
            yield from self._pair(module, shard.input_size, outputs, tp)
        elif packed == 1 and len(outputs) == 2:
            yield from self._pair(module, shard.input_size, (shard.output_size,), tp)
        elif len(outputs) > 2 and not self._sharded:
            yield from self._pair(module, shard.input_size, outputs, tp)

    def _pair(self, module: Module, inputs: int, outputs: tuple[int, ...], tp: int) -> Iterator[Tensor]:
        """A and B of a layer whose outputs are divided."""
        rank = _divide(self._rank, tp) if self._sharded else self._rank
        for _ in outputs:
            yield self._stack(module, "lora_a", rank, inputs)
        for size in outputs:
            yield self._stack(module, "lora_b", size, self._rank)

    def _experts(self, module: FusedMoE, shard: MoEShard) -> Iterator[Tensor]:
        """w13's and w2's stacks over slots and the rank's experts (lora/layers/fused_moe.py:247)."""
        if self._sharded and shard.expert_parallel:
            raise reject(
                "flag",
                "Fused MoE LoRA does not support enable_expert_parallel=True together with fully_sharded_loras=True. "
                "Disable one of them.",
            )
        tp = self._config.tensor_parallel_size * self._config.data_parallel_size
        fused = self._traits.fused_experts
        slices = 1 if fused or not shard.gated else 2
        inner = shard.intermediate_size * (2 if fused else 1)
        rank = _divide(self._rank, tp) if self._sharded else self._rank
        hidden = _divide(shard.hidden_size, tp) if self._sharded else shard.hidden_size
        local = shard.num_local_experts
        yield self._tensor(module, "adapter_enabled", (self._slots + 1,), "int32")
        for _ in range(slices):
            yield self._tensor(module, "w13_lora_a", (self._slots, local, rank, shard.hidden_size))
        yield self._tensor(module, "w2_lora_a", (self._slots, local, self._rank, shard.intermediate_size))
        for _ in range(slices):
            yield self._tensor(module, "w13_lora_b", (self._slots, local, inner, self._rank))
        yield self._tensor(module, "w2_lora_b", (self._slots, local, hidden, self._rank))

    def _embedding(self, module: Module, words: int, hidden: int) -> Iterator[Tensor]:
        yield self._tensor(module, "lora_a", (self._slots, words, self._rank))
        yield self._stack(module, "lora_b", hidden, self._rank)

    def _head(self, module: LMHead, shard: LinearShard) -> Iterator[Tensor]:
        """Of the logits. A head that is the embedding's own module is wrapped as an embedding once more."""
        words = module.num_embeddings
        if words > MOST_WORDS:
            raise reject("flag", f"When using LoRA, vocab size must be <= {MOST_WORDS}")
        if module.tied_to is not None and self._traits.shares_embedding:
            yield from self._embedding(module, words, module.hidden_size)
        yield self._stack(module, "logits_lora_a", self._rank, module.hidden_size)
        yield self._stack(module, "logits_lora_b", words, self._rank)
        if shard.tensor_parallel_size > 1:
            yield self._tensor(module, "sharded_to_full_mapping", (shard.full_output_size,), "int64")

    def _stack(self, module: Module, name: str, rows: int, columns: int) -> Tensor:
        return self._tensor(module, name, (self._slots, 1, rows, columns))

    def _tensor(self, module: Module, name: str, shape: tuple[int, ...], dtype: DType | None = None) -> Tensor:
        layer = module.placement if isinstance(module.placement, int) else None
        return Tensor(module.name, name, shape, dtype or self._dtype, "workspace", module.component, layer)


def _divide(size: int, parts: int) -> int:
    if size % parts:
        raise reject("flag", f"{size} is not divisible by {parts}")
    return size // parts
