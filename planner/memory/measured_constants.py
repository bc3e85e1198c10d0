"""Everything about memory that vLLM's and PyTorch's sources do not give: measured, in one place.

Machine: NVIDIA H200 (150,109,880,320 bytes), driver 580.159, CUDA 13.0, torch 2.11.0, Python 3.12. Constants for other
cards and releases come from logs that others published (verification/published_figures.csv), and say so.
"""

from __future__ import annotations

from planner.memory.constants import Measured
from planner.units import KIB, MIB

_H200 = "NVIDIA H200"
_V = "0.26.0"
_DAY = "2026-11-22"


def _of(value: int, low: int, high: int, count: int, what: str, unit: str = "bytes") -> Measured:
    return Measured(
        value=value, low=low, high=high, unit=unit, machine=_H200, vllm_version=_V, date=_DAY, count=count, what=what
    )


def _published(
    value: int, low: int, high: int, count: int, what: str, *, machine: str, version: str, date: str
) -> Measured:
    return Measured(
        value=value, low=low, high=high, unit="bytes", machine=machine, vllm_version=version, date=date, count=count,
        what=what,
    )  # fmt: skip


_LLM_D = {
    "machine": "NVIDIA H100 80GB HBM3, logs published by llm-d-planner (commit d3121e0)",
    "date": "published 2026",
}
_APRON = {"machine": "the rule that apron states (commit 09c3175) for its records", "date": "published 2026"}

CUDA_CONTEXT = _of(552_402_944, 552_402_944, 552_402_944, 71, "used before the first buffer, one GPU: CUDA context")
CUDA_CONTEXT_TP2_V2 = _of(
    1_640_890_368, 1_640_890_368, 1_640_890_368, 3,
    "the same with two tensor-parallel GPUs: NCCL, custom all-reduce and symmetric memory buffers as well",
)  # fmt: skip
CUDA_CONTEXT_TP2_MOE = _of(
    2_150_498_304, 2_150_498_304, 2_150_498_304, 5, "the same for a mixture of experts, whose expert group has NCCL too"
)  # fmt: skip
CUDA_CONTEXT_TP4_V2 = _of(
    1_609_433_088, 1_609_433_088, 1_609_433_088, 10,
    "the same with four tensor-parallel GPUs, NVLink multicast switched off: 30 MiB less than with two",
)  # fmt: skip
CUDA_CONTEXT_TP4_MOE = _of(
    2_116_943_872, 2_116_943_872, 2_116_943_872, 3, "the same with four for a mixture of experts: 32 MiB less than two"
)  # fmt: skip
CUDA_CONTEXT_TP2_PP2 = _of(2_150_498_304, 2_150_498_304, 2_150_498_304, 1, "the same with two stages of two GPUs each")
CUDA_CONTEXT_PP2 = _of(1_529_741_312, 1_529_741_312, 1_529_741_312, 2, "the same with two pipeline stages, without TP")
PIPELINE_NCCL_FIRST = _of(
    849_346_560, 849_346_560, 849_346_560, 1, "NCCL's channels to the other stage, from the first step on: first stage"
)  # fmt: skip
PIPELINE_NCCL_LAST = _of(1_115_684_864, 1_115_684_864, 1_115_684_864, 1, "the same on the last stage")

NON_TORCH = _of(241_172_480, 241_172_480, 243_269_632, 67, "growth outside PyTorch up to the profile: modules, handles")
NON_TORCH_TP2 = _of(
    69_206_016, 69_206_016, 73_400_320, 18, "the same with two or four GPUs, where much of it comes earlier"
)  # fmt: skip
NON_TORCH_FEW_MODULES = _published(
    133 * MIB, 72 * MIB, 144 * MIB, 9, "growth outside PyTorch up to the profile in 0.16 and before, one GPU",
    version="0.10.2 to 0.16.0", **_LLM_D,
)  # fmt: skip
NON_TORCH_BEFORE_HOPPER = _published(
    112 * MIB, 112 * MIB, 128 * MIB, 1,
    "growth outside PyTorch up to the profile on compute capability 8.x; high: Llama-3.1-8B on A100 with 0.31.0",
    version="0.28.0 to 0.31.0", **_APRON,
)  # fmt: skip
NCCL_GRAPH_BUFFERS = _published(
    2052 * MIB, 2042 * MIB, 2194 * MIB, 7, "NCCL's buffers for all-reduces in captured graphs, two to four GPUs",
    version="0.19.0", **_LLM_D,
)  # fmt: skip
GRAPH_ESTIMATE_V2_NODE = _published(
    537 * KIB, 537 * KIB, 835 * KIB, 2,
    "V2's estimate for one layer in one whole decode graph on compute capability 9.0; high: by gpt-oss-120b's cache",
    version="0.29.0", **_APRON,
)  # fmt: skip
GRAPH_ESTIMATE_V2_NODE_BEFORE_HOPPER = _published(
    374 * KIB, 374 * KIB, 412 * KIB, 1, "the same on compute capability 8.x; high: Llama-3.1-8B on A100 with 0.31.0",
    version="0.29.0 to 0.31.0", **_APRON,
)  # fmt: skip
NON_TORCH_GRAPH_PROFILE = _of(10_485_760, 2_097_152, 16_777_216, 4, "its growth while V1 profiles CUDA graphs")

USED_RESIDUAL = _of(
    0, -360 * MIB, 80 * MIB, 98, "use after startup, measured less predicted: cached blocks and capture order"
)  # fmt: skip
ENGINE_RESIDUAL = _of(
    0, -9 * MIB, 19 * MIB, 98, "what the engine subtracts from its budget, measured less predicted"
)  # fmt: skip
GRAPH_NODE_BYTES = _of(
    110_000, 95_000, 128_000, 9, "driver memory of one layer of a dense decoder in one captured graph"
)  # fmt: skip
GRAPH_BYTES_V2 = _of(370_000, 300_000, 500_000, 6, "one captured graph of the V2 runner, whatever its layers")
GRAPH_NODE_BYTES_MOE = _of(135_000, 110_000, 145_000, 4, "the same of a layer with experts")
GRAPH_STREAM_BYTES = _of(26 * MIB, 19 * MIB, 27 * MIB, 6, "reserved by the warm-up passes on the capture stream")
GRAPH_ESTIMATE_FIRST = _of(50 * MIB, 50 * MIB, 68 * MIB, 2, "V1's first capture beyond attention's split buffers")
GRAPH_ESTIMATE_FIRST_GROUPED = _of(132 * MIB, 132 * MIB, 132 * MIB, 2, "the same with gpt-oss experts, 1024 tokens")
GRAPH_ESTIMATE_NODE_BYTES = _of(64_500, 50_000, 64_500, 3, "V1's estimate for one dense layer in one graph")
GRAPH_ESTIMATE_NODE_BYTES_MOE = _of(84_000, 84_000, 84_000, 2, "the same with Triton experts")
GRAPH_ESTIMATE_NODE_BYTES_GROUPED = _of(106_000, 106_000, 106_000, 2, "the same with gpt-oss experts")
