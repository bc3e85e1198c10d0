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


class GpuPool(Value):
    """`count` equal GPUs in each of `nodes` machines. `spelling` is how the user wrote it."""

    spelling: str
    gpu: GpuSpec
    count: int
    nodes: int = 1

    @property
    def world_size(self) -> int:
        return self.count * self.nodes
