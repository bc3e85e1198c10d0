"""Everything about memory that vLLM's and PyTorch's sources do not give: measured, in one place.

Machine: NVIDIA H200 (150,109,880,320 bytes), driver 580.159, CUDA 13.0, torch 2.11.0, Python 3.12.
"""

from __future__ import annotations

from planner.memory.constants import Measured
from planner.units import MIB

_H200 = "NVIDIA H200"
_V = "0.26.0"
_DAY = "2026-11-22"


def _of(value: int, low: int, high: int, count: int, what: str, unit: str = "bytes") -> Measured:
    return Measured(
        value=value, low=low, high=high, unit=unit, machine=_H200, vllm_version=_V, date=_DAY, count=count, what=what
    )


CUDA_CONTEXT = _of(552_402_944, 552_402_944, 552_402_944, 71, "used before the first buffer, one GPU: CUDA context")
CUDA_CONTEXT_TP2_V2 = _of(
    1_640_890_368, 1_640_890_368, 1_640_890_368, 3,
    "the same with two tensor-parallel GPUs: NCCL, custom all-reduce and symmetric memory buffers as well",
)  # fmt: skip
CUDA_CONTEXT_TP2_V1_MOE = _of(2_150_498_304, 2_150_498_304, 2_150_498_304, 1, "the same for a mixture of experts on V1")

NON_TORCH = _of(241_172_480, 241_172_480, 243_269_632, 67, "growth outside PyTorch up to the profile: modules, handles")
NON_TORCH_TP2 = _of(69_206_016, 69_206_016, 73_400_320, 4, "the same with two GPUs, where much of it comes earlier")
NON_TORCH_GRAPH_PROFILE = _of(10_485_760, 2_097_152, 16_777_216, 4, "its growth while V1 profiles CUDA graphs")

GRAPH_NODE_BYTES = _of(
    110_000, 95_000, 128_000, 9, "driver memory of one layer of a dense decoder in one captured graph"
)  # fmt: skip
GRAPH_STREAM_BYTES = _of(26 * MIB, 19 * MIB, 27 * MIB, 6, "reserved by the warm-up passes on the capture stream")
GRAPH_ESTIMATE_FIRST = _of(50 * MIB, 50 * MIB, 68 * MIB, 2, "V1's first capture beyond attention's split buffers")
GRAPH_ESTIMATE_NODE_BYTES = _of(57_000, 50_000, 60_000, 2, "V1's estimate for one dense layer in one graph")
GRAPH_ESTIMATE_NODE_BYTES_MOE = _of(84_000, 84_000, 84_000, 1, "the same with Triton experts")
GRAPH_ESTIMATE_NODE_BYTES_GROUPED = _of(137_000, 137_000, 137_000, 1, "the same with gpt-oss experts")
