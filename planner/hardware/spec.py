"""GpuSpec and GpuPool: the cards a plan is for. Bytes are what CUDA reports, never the marketing size."""

from __future__ import annotations

from typing import Literal

from planner.values import Value


class Price(Value):
    """One price with its basis: dollars for one GPU hour, where and when it was read.

    `offer` begins with the provider's name. `date`: "undated" where the source has none. `region`: of the offer, as its
    provider spells it; empty where the price is not a region's.
    """

    usd_per_gpu_hour: float
    offer: str
    source: str
    date: str
    region: str = ""

    @property
    def provider(self) -> str:
        return self.offer.partition(" ")[0].casefold()


CALIBRATED_TERMS = ("non_torch_bytes", "cuda_graph_actual_bytes")
"""The terms that no source gives, so that a machine's own logs may raise them."""


class Calibration(Value):
    """What logs of one release and model on one card showed beyond the prediction; it only ever adds.

    `add_bytes`: what each term of CALIBRATED_TERMS took more, beyond the rounding of the log. `cache_short_bytes`: how
    much less cache there was than predicted.
    """

    gpu: str
    vllm_version: str
    model: str
    add_bytes: dict[str, int] = {}
    cache_short_bytes: int = 0
    logs: int = 1

    def shifts(self) -> dict[str, int]:
        """Bytes to add to each term. Cache that was missing for whatever reason counts as non-torch memory."""
        found = dict(self.add_bytes)
        found["non_torch_bytes"] = max(found.get("non_torch_bytes", 0), self.cache_short_bytes)
        return {term: size for term, size in found.items() if size}


class GpuSpec(Value):
    """One GPU model.

    `total_memory_bytes` is what torch.cuda.mem_get_info reports as total. `memory_evidence` says how it is known:
    "measured" (a boot or a log printed it), or "derived" from `nvidia_smi_mib` (the memory column of nvidia-smi) by
    the rule in sources.hardware_catalog. Bandwidths are bytes per second, FLOPS dense.
    """

    name: str
    aliases: tuple[str, ...] = ()
    vendor: Literal["nvidia", "amd"] = "nvidia"
    device_name: str
    compute_capability: tuple[int, int]
    total_memory_bytes: int
    memory_evidence: Literal["measured", "derived", "user"]
    nvidia_smi_mib: int | None = None
    sm_count: int | None = None
    memory_bandwidth_bytes_per_s: int | None = None
    dense_flops: dict[str, int] = {}
    nvlink_bytes_per_s: int | None = None
    pcie_gen: int | None = None
    max_power_watts: int | None = None
    integrated: bool = False
    peer_access: bool = True
    prices: tuple[Price, ...] = ()
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    calibrations: tuple[Calibration, ...] = ()


class GpuPool(Value):
    """`count` equal GPUs in each of `nodes` machines. `spelling` is how the user wrote it."""

    spelling: str
    gpu: GpuSpec
    count: int
    nodes: int = 1

    @property
    def world_size(self) -> int:
        return self.count * self.nodes
