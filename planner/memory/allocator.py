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

from planner.once import once
from planner.sharding.rank import RankShare, Tensor
from planner.units import MIB

MIN_BLOCK_BYTES = 512
SMALL_BYTES = MIB
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
_NO_LIMIT = 1 << 62
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


Block = tuple[int, int, int]
"""A stretch of a segment: its bytes, its address, and the pool where it is cached once it is free."""


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
        self._pools: defaultdict[int, list[Block]] = defaultdict(list)
        self._starts: dict[int, Block] = {}
        self._ends: dict[int, Block] = {}
        self._segments: dict[int, int] = {}
        self._next_address = 0

    def copy(self) -> CachingAllocator:
        """An allocator that goes on from here by itself; blocks of this one may be freed on it."""
        twin = CachingAllocator(self.max_split_bytes)
        twin.allocated_bytes, twin.reserved_bytes = self.allocated_bytes, self.reserved_bytes
        twin.peak_allocated_bytes, twin.peak_reserved_bytes = self.peak_allocated_bytes, self.peak_reserved_bytes
        twin.main_stream, twin.stream = self.main_stream, self.stream
        for key, pool in self._pools.items():
            twin._pools[key] = pool.copy()
        twin._starts, twin._ends, twin._segments = self._starts.copy(), self._ends.copy(), self._segments.copy()
        twin._next_address = self._next_address
        return twin

    def state(self) -> tuple[object, ...]:
        """What decides where the next blocks come from: equal for allocators that go on alike."""
        pools = tuple((key, tuple(pool)) for key, pool in sorted(self._pools.items()) if pool)
        return pools, self._next_address, self.allocated_bytes, self.reserved_bytes, self.stream, self.main_stream

    def allocate(self, size: int) -> Block | None:
        """The block that a tensor of `size` bytes gets. An empty tensor gets none."""
        return self.run((max(size, 0),))[0]

    def free(self, block: Block | None) -> None:
        """Give a block back to its pool, joined with free neighbours."""
        if block is None:
            return
        self.allocated_bytes -= block[0]
        self._give_back(block)

    def _give_back(self, block: Block) -> None:
        size, address, key = block
        pool, starts, ends = self._pools[key], self._starts, self._ends
        if address in ends:
            before = ends.pop(address)
            del pool[bisect_left(pool, before)]
            size, address = size + before[0], before[1]
        if address + size in starts:
            after = starts.pop(address + size)
            del pool[bisect_left(pool, after)]
            size += after[0]
        whole = (size, address, key)
        starts[address] = ends[address + size] = whole
        insort(pool, whole)

    def run(self, steps: Iterable[int], blocks: list[Block | None] | None = None) -> list[Block | None]:
        """The blocks of a sequence of steps on one stream: a size allocates the next one, `~n` frees the n-th.

        `blocks`: those of earlier steps, which count; the new ones are added to them. The state is in local variables:
        a load has thousands of steps, and all of a startup's replays end here.
        """
        blocks = [] if blocks is None else blocks
        add, starts, ends = blocks.append, self._starts, self._ends
        limit = _NO_LIMIT if self.max_split_bytes is None else self.max_split_bytes
        stream = 2 * self.stream
        pools = (self._pools[stream], self._pools[stream + 1])
        allocated, peak = self.allocated_bytes, self.peak_allocated_bytes
        for step in steps:
            if step <= 0:
                if step == 0:
                    add(None)
                elif (given := blocks[~step]) is not None:
                    allocated -= given[0]
                    self._give_back(given)
                continue
            size = (step + MIN_BLOCK_BYTES - 1) & -MIN_BLOCK_BYTES
            small = size <= SMALL_BYTES
            pool = pools[small]
            index = bisect_left(pool, (size,)) if pool and pool[-1][0] >= size else -1
            if index >= 0 and (pool[index][0] < limit if size < limit else pool[index][0] < size + LARGE_SEGMENT_BYTES):
                found, address, key = pool[index]
                del starts[address]
            else:
                found, address = self._new_segment(size)
                index, key = -1, stream + small
            remaining = found - size
            if remaining and (small or (remaining > SMALL_BYTES and size < limit)):
                rest = (remaining, address + size, key)
                starts[address + size] = ends[address + found] = rest
                if index < 0:
                    insort(pool, rest)
                elif index and rest < pool[index - 1]:
                    del pool[index]
                    insort(pool, rest, 0, index)
                else:
                    pool[index] = rest
                found = size
            elif index >= 0:
                del pool[index], ends[address + found]
            allocated += found
            if allocated > peak:
                peak = allocated
            add((found, address, key))
        self.allocated_bytes, self.peak_allocated_bytes = allocated, peak
        return blocks

    def empty_cache(self) -> None:
        """Return every segment that is free as a whole to the driver."""
        segments = self._segments
        for pool in self._pools.values():
            whole = [block for block in pool if segments.get(block[1]) == block[0]]
            if not whole:
                continue
            for size, address, _ in whole:
                self.reserved_bytes -= size
                del segments[address], self._starts[address], self._ends[address + size]
            pool[:] = [block for block in pool if block[1] in self._starts]

    def free_blocks(self, above: int) -> tuple[int, ...]:
        """Sizes of the stream's cached blocks larger than `above`, largest first."""
        pool = self._pools[2 * self.stream]
        return tuple(size for size, _, _ in reversed(pool) if size > above)

    def reset_peaks(self) -> None:
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    def _new_segment(self, size: int) -> tuple[int, int]:
        """Bytes and address of a new segment for a block of `size` bytes. Segments never touch."""
        if size <= SMALL_BYTES:
            segment = SMALL_SEGMENT_BYTES
        elif size < MIN_LARGE_BYTES:
            segment = LARGE_SEGMENT_BYTES
        else:
            segment = round_up(size, ROUND_LARGE_BYTES)
        address = self._next_address
        self._segments[address] = segment
        self._next_address = address + segment + MIN_BLOCK_BYTES
        reserved = self.reserved_bytes = self.reserved_bytes + segment
        if reserved > self.peak_reserved_bytes:
            self.peak_reserved_bytes = reserved
        return segment, address


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
    load = _load(share.created, share.loaded, traits.scaled_rotary, traits.float32_rotary, traits.deep_gemm)
    steps, small_bytes = _without_small((*load.steps, *(tensor.size_bytes for tensor in share.adapters)))
    allocator = CachingAllocator(LOAD_MAX_SPLIT_BYTES)
    allocator.run(steps)
    return allocator.allocated_bytes + small_bytes


def _without_small(steps: Iterable[int]) -> tuple[list[int], int]:
    """The steps of the large pool, and the bytes that those of the small pool leave allocated.

    The pools share no block, and a small one is always split: its tensors take their own size, wherever they lie.
    """
    large: list[int] = []
    numbers: list[int] = []
    count = allocated = 0
    for step in steps:
        if step > SMALL_BYTES:
            large.append(step)
            numbers.append(count)
            count += 1
        elif step >= 0:
            size = (step + MIN_BLOCK_BYTES - 1) & -MIN_BLOCK_BYTES
            allocated += size
            numbers.append(~size)
        elif (number := numbers[~step]) >= 0:
            large.append(~number)
        else:
            allocated -= ~number
    return large, allocated


def load_weights(
    allocator: CachingAllocator, share: RankShare, traits: LoadTraits = PLAIN_LOAD, index_bytes: Iterable[int] = ()
) -> dict[str, Block]:
    """Create the rank's tensors on `allocator` and post-process them, then the slots of adapters after their index
    tensors. Gives the blocks that a run may free, by name."""
    load = _load(share.created, share.loaded, traits.scaled_rotary, traits.float32_rotary, traits.deep_gemm)
    blocks = allocator.run(load.steps)
    allocator.run((*index_bytes, *(tensor.size_bytes for tensor in share.adapters)))
    table = None if load.rotary_table is None else blocks[load.rotary_table]
    return {} if table is None else {ROTARY_TABLE: table}


_loads: dict[tuple[object, ...], tuple[RankShare, CachingAllocator, dict[str, Block]]] = {}
_KEPT_LOADS = 40


def loaded(
    allocator: CachingAllocator, share: RankShare, traits: LoadTraits, index_bytes: tuple[int, ...]
) -> tuple[CachingAllocator, dict[str, Block]]:
    """`load_weights` on an allocator that has only made buffers: the allocator to go on with, and the named blocks.

    The last few loads are remembered: one whose predecessors left the same blocks free is the same load.
    """
    tensors = id(share.created), id(share.loaded), id(share.adapters)
    key = (*tensors, traits, index_bytes, allocator.state())
    found = _loads.get(key)
    if found is None:
        allocator.max_split_bytes = LOAD_MAX_SPLIT_BYTES
        kept = load_weights(allocator, share, traits, index_bytes)
        if len(_loads) >= _KEPT_LOADS:
            del _loads[next(iter(_loads))]
        found = _loads[key] = share, allocator, kept
    return found[1].copy(), dict(found[2])


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
    changed = {} if loaded == created else _changed_modules(created, loaded)
    online = _quantized_online(changed)
    held: dict[str, list[tuple[Tensor, int]]] = {module: [] for module in changed}
    sizes: dict[tuple[tuple[int, ...], str], int] = {}
    for tensor in created:
        if waiting == "linear" and (tensor.dtype.startswith("float8") or (online and tensor in online)):
            waiting = ""
            load.allocate(DEEP_GEMM_WORKSPACE_BYTES)
        if online and tensor in online:
            continue
        if tensor.role == "buffer" and tensor.module.endswith(_ROTARY):
            own = tensor.component == "language_model"
            block = _rotary_table(load, tensor, scaled_rotary and own, float32_rotary and own)
            if own:
                load.rotary_table = block
        else:
            kind = (tensor.shape, tensor.dtype)
            size = sizes.get(kind)
            if size is None:
                size = sizes[kind] = tensor.size_bytes
            block = load.allocate(size)
        if tensor.module in held:
            held[tensor.module].append((tensor, block))
        if waiting == "attention" and tensor.name == "_prob_scale":
            waiting = ""
            load.allocate(DEEP_GEMM_WORKSPACE_BYTES)
    _post_process(load, loaded, changed, held, online)
    return load


_Modules = dict[str, tuple[list[Tensor], list[Tensor]]]


def _changed_modules(created: tuple[Tensor, ...], loaded: tuple[Tensor, ...]) -> _Modules:
    """The modules whose tensors post-processing replaces, as created and as loaded, in order of creation."""
    before, after = _by_module(created), _by_module(loaded)
    found: _Modules = {}
    for module in {**before, **after}:
        old, new = before.get(module, []), after.get(module, [])
        if old != new:
            found[module] = old, new
    return found


def _quantized_online(changed: _Modules) -> frozenset[Tensor]:
    """16-bit weights that exist only layer by layer while they are quantized (vLLM quantization/online/fp8.py)."""
    found: list[Tensor] = []
    for old, new in changed.values():
        dtypes = {tensor.name: tensor.dtype for tensor in new}
        found += [
            tensor for tensor in old if tensor.dtype in _PLAIN and dtypes.get(tensor.name, tensor.dtype) not in _PLAIN
        ]
    return frozenset(found)


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
    loaded: tuple[Tensor, ...],
    changed: _Modules,
    held: dict[str, list[tuple[Tensor, int]]],
    online: frozenset[Tensor],
) -> None:
    plain: set[int | None] | None = None
    order = sorted(changed, key=lambda name: online.isdisjoint(changed[name][0])) if online else list(changed)
    for module in order:
        old, new = changed[module]
        own = held[module]
        if online:
            own += [(tensor, load.allocate(tensor.size_bytes)) for tensor in old if tensor in online]
        latent = [tensor for tensor in new if tensor.name in _LATENT_COPIES]
        if latent:
            plain = _plain_latent_layers(loaded) if plain is None else plain
            if latent[0].layer not in plain:
                load.allocate(sum(tensor.size_bytes for tensor in latent))
        for tensor in new:
            if tensor not in old and tensor.name not in _LATENT_COPIES:
                load.allocate(tensor.size_bytes)
        for tensor in old:
            if tensor not in new:
                index = next(index for index, (other, _) in enumerate(own) if other == tensor)
                load.free(own.pop(index)[1])


def _plain_latent_layers(loaded: tuple[Tensor, ...]) -> set[int | None]:
    return {
        tensor.layer
        for tensor in loaded
        if tensor.module.endswith("kv_b_proj") and tensor.name == "weight" and tensor.dtype in _PLAIN
    }


def _by_module(tensors: tuple[Tensor, ...]) -> dict[str, list[Tensor]]:
    modules: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        known = modules.get(tensor.module)
        if known is None:
            modules[tensor.module] = [tensor]
        else:
            known.append(tensor)
    return modules
