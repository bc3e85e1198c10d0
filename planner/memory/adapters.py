"""What LoRA adapters take beside their slots: the kernels' index tensors, and scratch in every pass.

Each wrapped layer multiplies its input by A into a float32 tensor [slices, tokens, rank] before B is added to its
output, whether or not a request has an adapter. Source: vLLM 0.26.0 lora/punica_wrapper/punica_base.py:131,
punica_gpu.py:206, lora/ops/triton_ops/lora_kernel_metadata.py:48.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from planner.engine.config import EngineConfig
from planner.memory.program import LiveTensor, Program
from planner.sharding.rank import RankShare
from planner.values import DTYPE_BYTES


def adapter_indices(config: EngineConfig) -> tuple[LiveTensor, ...]:
    """Which token and which sampled row has which adapter; made before the slots."""
    if not config.enable_lora:
        return ()
    return (
        LiveTensor("adapter of each token", bytes_per_token=8),
        LiveTensor("adapter of each sampled row", bytes_per_token=8),
        LiveTensor("adapter of each sampled row, padded", bytes_per_token=8),
        LiveTensor("embedding indices of adapters", bytes_per_token=16),
        LiveTensor("adapter batch starts", bytes_per_seq=8),
        LiveTensor("adapter batch lengths", bytes_per_seq=8),
        LiveTensor("adapters of batches", bytes_per_seq=8),
        *_kernel_metadata("tokens", config.max_loras),
        *_kernel_metadata("sampled rows", config.max_loras),
        *((_FP4_TABLE,) if config.model_runner == "v2" else ()),
    )


_FP4_TABLE = LiveTensor("FlashInfer's table of 4-bit floats", constant_bytes=64)
"""Made on the GPU when vLLM's expert adapters import FlashInfer, which V1 has done before (seen on an H200)."""


def keep_addresses(p: Program, share: RankShare, config: EngineConfig) -> None:
    """Where the slots of fused layers lie, told to the kernels the first time that they run with adapters, which in V2
    is the profile run: one tensor for A, and for B two, or six where its slices differ in size.

    Source: vLLM 0.26.0 lora/ops/triton_ops/utils.py:24, 68.
    """
    if config.model_runner != "v2":
        return
    slices: dict[str, list[int]] = {}
    for tensor in share.adapters:
        if tensor.name == "lora_b" and len(tensor.shape) == _LINEAR_DIMENSIONS:
            slices.setdefault(tensor.module, []).append(tensor.shape[2])
    for module, sizes in slices.items():
        for index in range(0 if len(sizes) == 1 else 3 if len(set(sizes)) == 1 else 7):
            p.keep(f"addresses of adapters of {module}, {index}", constant=8 * len(sizes))


def _kernel_metadata(what: str, slots: int) -> tuple[LiveTensor, ...]:
    return (
        LiveTensor(f"adapters of {what}", bytes_per_token=4),
        LiveTensor(f"{what} sorted by adapter", bytes_per_token=4),
        LiveTensor(f"adapters among {what}", constant_bytes=4 * (slots + 1)),
        LiveTensor(f"{what} of each adapter", constant_bytes=4 * (slots + 1)),
        LiveTensor(f"starts of {what} of adapters", constant_bytes=4 * (slots + 2)),
    )


class AdapterRun(Struct, frozen=True):
    """How the adapters of one layer run. `slices`: layers fused into it. `rank_of_gpu` below `rank`: A is divided over
    ranks, which then exchange what they computed; `summed`: each has a part of every element instead.
    `slots_of_experts`: the adapters that an expert layer has room for; `expert_bytes`: of a token's input in adapter
    ranks, for each of its experts, where one kernel does not do it all."""

    slices: int = 0
    rank: int = 0
    rank_of_gpu: int = 0
    summed: bool = False
    slots_of_experts: int = 0
    expert_bytes: int = 0

    def write_experts(self, p: Program, top_k: int, num_experts: int, block: int) -> tuple[int, ...]:
        """What sorts the tokens by adapter and expert, alive until the experts are done."""
        slots = self.slots_of_experts
        if not slots:
            return ()
        padding = num_experts * (block - 1)
        blocks = -(-padding // block)
        return (
            p.alloc("tokens sorted by adapter and expert", token=4 * top_k * slots, constant=4 * slots * padding),
            p.alloc("experts of sorted blocks", token=-(-4 * top_k * slots // block), constant=4 * slots * blocks),
            p.alloc("experts' input in adapter ranks", token=top_k * self.expert_bytes),
        )

    def write(self, p: Program) -> None:
        """The layer's scratch, once its output exists."""
        if not self.slices:
            return
        part = p.alloc("input in adapter ranks", token=4 * self.slices * self.rank_of_gpu)
        whole = None
        if self.summed or self.rank_of_gpu < self.rank:
            whole = p.alloc("input in adapter ranks of all GPUs", token=4 * self.slices * self.rank)
        p.free(part, whole)


NO_ADAPTER = AdapterRun()


def adapter_runs(share: RankShare, config: EngineConfig) -> dict[str, AdapterRun]:
    """Of each linear or expert layer of the rank that has adapters, by module name.

    Fully sharded expert adapters have an intermediate tensor where they run, which V1's profile run does without
    (vLLM 0.26.0 lora/ops/triton_ops/fused_moe_lora_op.py:1486, 1573).
    """
    found: dict[str, AdapterRun] = {}
    exchanged = config.fully_sharded_loras and config.tensor_parallel_size > 1
    for tensor in share.adapters:
        if tensor.name == "adapter_enabled":
            found[tensor.module] = AdapterRun(slots_of_experts=config.max_loras)
        if tensor.name == "w13_lora_a" and config.fully_sharded_loras and config.model_runner == "v2":
            more = found[tensor.module].expert_bytes + config.max_lora_rank * DTYPE_BYTES[config.dtype]
            found[tensor.module] = replace(found[tensor.module], expert_bytes=more)
        if tensor.name != "lora_a" or len(tensor.shape) != _LINEAR_DIMENSIONS:
            continue
        known = found.get(tensor.module)
        own, rank = tensor.shape[2], config.max_lora_rank
        found[tensor.module] = AdapterRun(
            slices=1 if known is None else known.slices + 1,
            rank=rank,
            rank_of_gpu=own,
            summed=exchanged and own == rank,
        )
    return found


def write_embedding_adapter(p: Program, share: RankShare) -> int | None:
    """The tokens' rows of the embedding's adapters, alive until the embeddings exist. None without adapters there."""
    found = (tensor for tensor in share.adapters if tensor.name == "lora_a" and len(tensor.shape) < _LINEAR_DIMENSIONS)
    size = next((tensor.shape[-1] * DTYPE_BYTES[tensor.dtype] for tensor in found), 0)
    if not size:
        return None
    words = p.alloc("words of the tokens in their adapters", token=8)
    rows = p.alloc("token embeddings in adapter ranks", token=size)
    p.free(words)
    return rows


def head_adapter_rank(share: RankShare) -> int:
    """The rank of the output head's adapters, 0 without any."""
    return next((tensor.shape[2] for tensor in share.adapters if tensor.name == "logits_lora_a"), 0)


_LINEAR_DIMENSIONS = 4
