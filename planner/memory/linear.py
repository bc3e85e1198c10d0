"""What the kernel of a linear or expert layer allocates beside its output, told by how its weight is stored."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from planner.engine.config import EngineConfig
from planner.memory.adapters import NO_ADAPTER, AdapterRun, adapter_runs
from planner.memory.layers import batchless
from planner.memory.program import Program
from planner.model.modules import FusedMoE, Linear, LMHead, QKVLinear, VocabEmbedding
from planner.model.spec import ModelSpec
from planner.once import once
from planner.sharding.rank import RankShare, Tensor
from planner.units import KIB, MIB

CUBLAS = "cuBLAS workspace"
CUBLASLT = "cuBLASLt workspace"
EXPERT_WORKSPACE = "expert workspaces"

_ROUTING_BLOCK = 128
_FP8 = ("float8_e4m3fn", "float8_e5m2")
_PLAIN = ("bfloat16", "float16", "float32")
_PACKED_NAMES = ("qweight", "weight_packed", "w13_qweight", "w13_weight_packed")


def cublas_workspace_bytes(capability: tuple[int, int]) -> int:
    """Workspace that PyTorch gives each cuBLAS handle, for good: 32 MiB from Hopper on, else 8.125 MiB.

    Source: PyTorch aten/src/ATen/cuda/CublasHandlePool.cpp parseChosenWorkspaceSize; 32 MiB seen on an H200.
    """
    return 32 * MIB if capability[0] >= 9 else (4096 * 2 + 16 * 8) * KIB


CUBLASLT_WORKSPACE_BYTES = MIB
"""Workspace of the first fused matrix product with a bias (cuBLASLt); seen on an H200 with every biased QKV."""


class LinearRun(Struct, frozen=True):
    """How one layer's product runs. `kind`: "dense" through cuBLAS; "fp8" with the input quantized on the fly (one
    scale for each `group` of the input, for the whole row where 0, none where -1); "packed" with 16-bit inputs;
    "grouped" experts through Triton's grouped matrix products."""

    kind: str
    input_size: int = 0
    group: int = 0
    bias: bool = False
    float32: bool = False
    cublas_bytes: int = 0
    adapters: AdapterRun = NO_ADAPTER

    def before(self, p: Program) -> tuple[int, ...]:
        """Allocate what exists before the output does; the handles to free once it is written."""
        if self.kind != "fp8":
            return ()
        return (
            p.alloc("quantized input", token=self.input_size),
            p.alloc("input scales", token=self._scales(self.input_size)),
        )

    def during(self, p: Program) -> None:
        """Workspaces that the product takes once its output exists, and keeps for good."""
        if self.kind == "dense":
            p.keep_here(CUBLAS, constant=self.cublas_bytes)
            if self.bias:
                p.keep_here(CUBLASLT, constant=CUBLASLT_WORKSPACE_BYTES)

    def after(self, p: Program, scratch: tuple[int, ...]) -> None:
        """Free what was there for the product; then the adapters' part of the layer."""
        p.free(*scratch)
        self.adapters.write(p)

    def write_experts(self, p: Program, moe: FusedMoE, inner: int, item: int) -> None:
        """The routed experts: quantized input, lasting workspaces, routing tables, quantized activation.

        Marlin's kernels count a gate even where there is none (vLLM 0.26.0 fused_moe/experts/marlin_moe.py:666).
        """
        hidden, top_k = moe.hidden_size, moe.top_k
        width = inner * (2 if moe.gated or self.kind == "packed" else 1)
        scratch: list[int] = []
        if self.kind == "fp8":
            scratch += [p.alloc("quantized input", token=hidden), p.alloc("input scales", token=self._scales(hidden))]
        if self.kind != "grouped":
            first, second = top_k * max(inner, hidden) * item, top_k * max(width, hidden) * item
            p.grow(EXPERT_WORKSPACE, token=first + second)
            scratch.append(
                p.alloc("sorted tokens", token=4 * top_k, constant=4 * moe.num_experts * (_ROUTING_BLOCK - 1))
            )
            scratch += self.adapters.write_experts(p, top_k, moe.num_experts, _ROUTING_BLOCK)
        else:
            scratch += [
                p.alloc("first expert product", token=top_k * width * item),
                p.alloc("expert activation", token=top_k * inner * item),
            ]
        if self.kind == "fp8":
            scratch.append(p.alloc("quantized activation", token=top_k * inner))
            scratch.append(p.alloc("activation scales", token=top_k * self._scales(inner)))
        p.free(*scratch)

    def _scales(self, size: int) -> int:
        if self.group < 0:
            return 0
        return 4 if self.group == 0 else 4 * -(-size // self.group)


class _Runs(dict[str, LinearRun]):
    """Runs by module name, each worked out when it is first asked for."""

    def __init__(self, model: ModelSpec, share: RankShare, config: EngineConfig) -> None:
        super().__init__()
        self._config = config
        self._modules = _modules_with_run(model)
        self._stored = _by_module(share.loaded)
        self._adapters = adapter_runs(share, config) if share.adapters else {}

    def __missing__(self, name: str) -> LinearRun:
        run = _run(self._stored.get(name, {}), _input_size(self._modules[name], self._config), self._config)
        if name in self._adapters:
            run = replace(run, adapters=self._adapters[name])
        self[name] = run
        return run


@once
def _modules_with_run(model: ModelSpec) -> dict[str, Linear | QKVLinear | FusedMoE | LMHead | VocabEmbedding]:
    return {module.name: module for module in model.modules if isinstance(module, _WITH_RUN)}


@once
def _by_module(tensors: tuple[Tensor, ...]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        known = found.get(tensor.module)
        if known is None:
            found[tensor.module] = {tensor.name: tensor}
        else:
            known[tensor.name] = tensor
    return found


def linear_runs(model: ModelSpec, share: RankShare, config: EngineConfig) -> Mapping[str, LinearRun]:
    """The run of a linear, expert or vocabulary layer of the rank, by module name: the same for all batch sizes."""
    return _runs(model, share, batchless(model, config))


@once
def _runs(model: ModelSpec, share: RankShare, config: EngineConfig) -> Mapping[str, LinearRun]:
    return _Runs(model, share, config)


_WITH_RUN = (Linear, QKVLinear, FusedMoE, LMHead, VocabEmbedding)


def _input_size(module: Linear | QKVLinear | FusedMoE | LMHead | VocabEmbedding, config: EngineConfig) -> int:
    if isinstance(module, Linear):
        split = module.parallelism == "row" and module.tensor_parallel
        return module.input_size // config.tensor_parallel_size if split else module.input_size
    return module.hidden_size


def _run(tensors: Mapping[str, Tensor], input_size: int, config: EngineConfig) -> LinearRun:
    weight = tensors.get("weight") or tensors.get("w13_weight")
    workspace = cublas_workspace_bytes(config.compute_capability)
    if weight is None:
        packed = any(name in tensors for name in _PACKED_NAMES)
        return LinearRun("packed" if packed or tensors else "dense", cublas_bytes=workspace)
    if weight.dtype in _PLAIN:
        return LinearRun("dense", bias="bias" in tensors, float32=weight.dtype == "float32", cublas_bytes=workspace)
    if weight.dtype in _FP8 and config.compute_capability >= (8, 9):
        block = next((t for name, t in tensors.items() if name.endswith("weight_scale_inv")), None)
        static = any(name.endswith("input_scale") for name in tensors)
        group = 128 if block is not None else -1 if static else 0
        return LinearRun("fp8", input_size=input_size, group=group, cublas_bytes=workspace)
    if weight.dtype == "uint8" and "w13_bias" in tensors:
        return LinearRun("grouped", cublas_bytes=workspace)
    return LinearRun("packed", cublas_bytes=workspace)
