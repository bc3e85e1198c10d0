"""PyTorch's CUDA caching allocator, as far as byte counts go, and what vLLM logs as the memory of the weights.

Source: PyTorch 2.11 c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h (kMinBlockSize, kSmallSize,
kSmallBuffer, kLargeBuffer, kMinLargeAlloc, kRoundLarge; get_free_block, should_split, alloc_block, free_block), read
without expandable segments, which is PyTorch's default. A cached block serves only the stream that it was made for.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct, field

from planner.memory.once import once
from planner.sharding.rank import RankShare, Tensor
from planner.units import MIB

MIN_BLOCK_BYTES = 512
SMALL_BYTES = MIB
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
MIN_LARGE_BYTES = 10 * MIB
ROUND_LARGE_BYTES = 2 * MIB

LOAD_MAX_SPLIT_BYTES = 20 * MIB
"""vLLM loads weights with max_split_size_mb=20 (vLLM 0.26.0 v1/worker/gpu_worker.py:424 load_model)."""

ROTARY_TABLE = "rotary table"
_ROTARY = "cos_sin_cache"
DEEP_GEMM_WORKSPACE_BYTES = 32 * MIB
"""cuBLASLt workspace that DeepGEMM's runtime takes when it starts (DeepGEMM csrc, kCublasLtWorkspaceSize); seen on an
H200 with an FP8 cache and with latent attention."""
_PLAIN = ("bfloat16", "float16", "float32")
_LATENT_COPIES = ("W_UK_T", "W_UV")
"""Views of kv_b_proj's weight where it is 16-bit, of one dequantized copy of it where it is not (vLLM 0.26.0
model_executor/layers/attention/mla_attention.py:948)."""


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


class Block(Struct, eq=False):
    """A stretch of a segment. `previous` and `next` are its neighbours in the same segment."""

    address: int
    size: int
    small: bool
    stream: int = 0
    free: bool = False
    previous: Block | None = None
    next: Block | None = None


class CachingAllocator:
    """Best-fit blocks in two pools (up to 1 MiB, and above) for each stream. Counts bytes; holds no memory.

    `stream` is the one that allocations are for, `main_stream` the one that work returns to. `allocated_bytes` counts
    whole blocks, `reserved_bytes` whole segments, as torch.cuda.memory_stats does; `peak_allocated_bytes` and
    `peak_reserved_bytes` are their maxima since the last `reset_peaks`.
    """

    def __init__(self, max_split_bytes: int | None = None) -> None:
        self.max_split_bytes = max_split_bytes
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        self.main_stream = self.stream = 0
        self._free: defaultdict[int, list[tuple[int, int, Block]]] = defaultdict(list)
        self._next_address = 0

    def allocate(self, size: int) -> Block | None:
        """The block that a tensor of `size` bytes gets. An empty tensor gets none."""
        if size <= 0:
            return None
        size = -(-size // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES
        pool = self._free[2 * self.stream + (size <= SMALL_BYTES)]
        index = bisect_left(pool, (size,))
        if index < len(pool) and self._serves(pool[index][2], size):
            block = pool.pop(index)[2]
        else:
            block = self._new_segment(size)
        remaining = block.size - size
        if remaining >= MIN_BLOCK_BYTES and self._splits(block, size, remaining):
            rest = Block(block.address + size, remaining, block.small, block.stream, True, block, block.next)
            if rest.next is not None:
                rest.next.previous = rest
            block.next, block.size = rest, size
            insort(pool, (remaining, rest.address, rest))
        block.free = False
        allocated = self.allocated_bytes = self.allocated_bytes + block.size
        if allocated > self.peak_allocated_bytes:
            self.peak_allocated_bytes = allocated
        return block

    def free(self, block: Block | None) -> None:
        """Give a block back to its pool, joined with free neighbours."""
        if block is None:
            return
        self.allocated_bytes -= block.size
        for neighbour in (block.previous, block.next):
            if neighbour is not None and neighbour.free:
                self._remove(neighbour)
                self._join(block, neighbour)
        block.free = True
        insort(self._pool(block), (block.size, block.address, block))

    def empty_cache(self) -> None:
        """Return every segment that is free as a whole to the driver."""
        for pool in self._free.values():
            kept = [entry for entry in pool if entry[2].previous is not None or entry[2].next is not None]
            self.reserved_bytes -= sum(entry[0] for entry in pool) - sum(entry[0] for entry in kept)
            pool[:] = kept

    def free_blocks(self, above: int) -> tuple[int, ...]:
        """Sizes of the stream's cached blocks larger than `above`, largest first."""
        pool = self._free[2 * self.stream]
        return tuple(size for size, _, _ in reversed(pool) if size > above)

    def reset_peaks(self) -> None:
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    def _serves(self, block: Block, size: int) -> bool:
        """Whether a cached block that is large enough may be had: large ones are not spent on small tensors."""
        limit = self.max_split_bytes
        if limit is None:
            return True
        return block.size < limit if size < limit else block.size < size + LARGE_SEGMENT_BYTES

    def _new_segment(self, size: int) -> Block:
        if size <= SMALL_BYTES:
            segment = SMALL_SEGMENT_BYTES
        elif size < MIN_LARGE_BYTES:
            segment = LARGE_SEGMENT_BYTES
        else:
            segment = round_up(size, ROUND_LARGE_BYTES)
        block = Block(self._next_address, segment, size <= SMALL_BYTES, self.stream)
        self._next_address += segment
        self.reserved_bytes += segment
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return block

    def _splits(self, block: Block, size: int, remaining: int) -> bool:
        if block.small:
            return True
        return remaining > SMALL_BYTES and (self.max_split_bytes is None or size < self.max_split_bytes)

    def _pool(self, block: Block) -> list[tuple[int, int, Block]]:
        return self._free[2 * block.stream + block.small]

    def _remove(self, block: Block) -> None:
        pool = self._pool(block)
        del pool[bisect_left(pool, (block.size, block.address))]

    @staticmethod
    def _join(block: Block, neighbour: Block) -> None:
        if neighbour is block.previous:
            block.address, block.previous = neighbour.address, neighbour.previous
            if block.previous is not None:
                block.previous.next = block
        else:
            block.next = neighbour.next
            if block.next is not None:
                block.next.previous = block
        block.size += neighbour.size


DeepGemmAt = Literal["", "attention", "linear"]


class LoadTraits(Struct, frozen=True):
    """What a load allocates beside the rank's tensors.

    `scaled_rotary`: cosine and sine are multiplied by a factor (YaRN), each with a copy of its own.
    `float32_rotary`: the rotary table is not converted to the model's dtype. `deep_gemm`: DeepGEMM starts with the
    first attention or quantized linear layer, and takes its workspace.
    """

    scaled_rotary: bool = False
    float32_rotary: bool = False
    deep_gemm: DeepGemmAt = ""


PLAIN_LOAD = LoadTraits()


def weights_memory_bytes(share: RankShare, traits: LoadTraits = PLAIN_LOAD) -> int:
    """What vLLM logs as "Model loading took": allocated bytes once the model is built and post-processed.

    Tensors are created in the order of `share.created`; then, module by module, those that post-processing makes
    are allocated before those it replaces are freed. Blocks, not tensor sizes, are counted: while vLLM loads, a
    tensor above 20 MiB has a block of whole 2 MiB pages, and a tensor below 1 MiB one of whole 512 bytes.
    Source: vLLM 0.26.0 v1/worker/gpu_worker.py:424, utils/mem_utils.py:86 DeviceMemoryProfiler.
    """
    allocator = CachingAllocator(LOAD_MAX_SPLIT_BYTES)
    load_weights(allocator, share, traits)
    return allocator.allocated_bytes


def load_weights(
    allocator: CachingAllocator, share: RankShare, traits: LoadTraits = PLAIN_LOAD, index_bytes: Iterable[int] = ()
) -> dict[str, Block]:
    """Create the rank's tensors on `allocator` and post-process them, then the slots of adapters after their index
    tensors. Gives the blocks that a run may free, by name."""
    load = _load(share.created, share.loaded, traits.scaled_rotary, traits.float32_rotary, traits.deep_gemm)
    blocks: list[Block | None] = []
    for step in load.steps:
        if step >= 0:
            blocks.append(allocator.allocate(step))
        else:
            allocator.free(blocks[~step])
    for size in (*index_bytes, *(tensor.size_bytes for tensor in share.adapters)):
        allocator.allocate(size)
    table = None if load.rotary_table is None else blocks[load.rotary_table]
    return {} if table is None else {ROTARY_TABLE: table}


class _Load(Struct):
    """A load as steps: a size allocates the next tensor, `~n` frees the n-th. `rotary_table`: the language model's."""

    steps: list[int] = field(default_factory=list)
    tensors: int = 0
    rotary_table: int | None = None

    def allocate(self, size: int) -> int:
        self.steps.append(size)
        self.tensors += 1
        return self.tensors - 1

    def free(self, tensor: int) -> None:
        self.steps.append(~tensor)


@once
def _load(
    created: tuple[Tensor, ...],
    loaded: tuple[Tensor, ...],
    scaled_rotary: bool,
    float32_rotary: bool,
    waiting: DeepGemmAt,
) -> _Load:
    load = _Load()
    held: dict[Tensor, list[int]] = {}
    online = _quantized_online(created, loaded)
    for tensor in created:
        if waiting == "linear" and (tensor in online or tensor.dtype.startswith("float8")):
            waiting = ""
            load.allocate(DEEP_GEMM_WORKSPACE_BYTES)
        if tensor in online:
            continue
        if tensor.role == "buffer" and tensor.module.endswith(_ROTARY):
            own = tensor.component == "language_model"
            block = _rotary_table(load, tensor, scaled_rotary and own, float32_rotary and own)
            if own:
                load.rotary_table = block
        else:
            block = load.allocate(tensor.size_bytes)
        held.setdefault(tensor, []).append(block)
        if waiting == "attention" and tensor.name == "_prob_scale":
            waiting = ""
            load.allocate(DEEP_GEMM_WORKSPACE_BYTES)
    if loaded != created:
        _post_process(load, created, loaded, held, online)
    return load


def _quantized_online(created: tuple[Tensor, ...], loaded: tuple[Tensor, ...]) -> frozenset[Tensor]:
    """16-bit weights that exist only layer by layer while they are quantized (vLLM quantization/online/fp8.py)."""
    dtypes = {(tensor.module, tensor.name): tensor.dtype for tensor in loaded}
    return frozenset(
        tensor
        for tensor in created
        if tensor.dtype in _PLAIN and dtypes.get((tensor.module, tensor.name), tensor.dtype) not in _PLAIN
    )


def _rotary_table(load: _Load, tensor: Tensor, scaled: bool, float32: bool) -> int:
    """A cos/sin table is computed in float32 and then converted; the freed float32 blocks serve later tensors, whole.

    Source: vLLM 0.26.0 model_executor/layers/rotary_embedding/base.py:55 and _compute_cos_sin_cache.
    """
    rows, half = tensor.shape[0], tensor.shape[0] * (tensor.shape[-1] // 2) * 4
    scratch = [load.allocate(rows * 4), load.allocate(half)]
    for _ in ("cos", "sin"):
        block = load.allocate(half)
        if scaled:
            product = load.allocate(half)
            load.free(block)
            block = product
        scratch.append(block)
    table = load.allocate(2 * half)
    for block in scratch:
        load.free(block)
    if float32 or tensor.dtype == "float32":
        return table
    converted = load.allocate(tensor.size_bytes)
    load.free(table)
    return converted


def _post_process(
    load: _Load,
    created: tuple[Tensor, ...],
    loaded: tuple[Tensor, ...],
    held: dict[Tensor, list[int]],
    online: frozenset[Tensor],
) -> None:
    before, after = _by_module(created), _by_module(loaded)
    plain = {
        tensor.layer
        for tensor in loaded
        if tensor.module.endswith("kv_b_proj") and tensor.name == "weight" and tensor.dtype in _PLAIN
    }
    for module in sorted({**before, **after}, key=lambda name: not _is_online(before.get(name, []), online)):
        old, new = before.get(module, []), after.get(module, [])
        for tensor in old:
            if tensor in online:
                held[tensor] = [load.allocate(tensor.size_bytes)]
        latent = [tensor for tensor in new if tensor.name in _LATENT_COPIES]
        if latent and latent[0].layer not in plain:
            load.allocate(sum(tensor.size_bytes for tensor in latent))
        for tensor in new:
            if tensor not in held and tensor.name not in _LATENT_COPIES:
                load.allocate(tensor.size_bytes)
        for tensor in old:
            if tensor not in new:
                load.free(held[tensor].pop())


def _is_online(tensors: list[Tensor], online: frozenset[Tensor]) -> bool:
    return any(tensor in online for tensor in tensors)


def _by_module(tensors: tuple[Tensor, ...]) -> dict[str, list[Tensor]]:
    modules: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        modules.setdefault(tensor.module, []).append(tensor)
    return modules
