"""`--gpus local`: this machine's cards, read through NVML (package nvidia-ml-py, extra `vplan[gpu]`)."""

from __future__ import annotations

from typing import Any

from planner.errors import InputError, OutsideError
from planner.hardware.spec import GpuPool, GpuSpec
from planner.sources.hardware_catalog import HardwareCatalog, total_memory_from_nvidia_smi
from planner.units import MIB


def local_pool(catalog: HardwareCatalog) -> GpuPool:
    """The cards of this machine as one pool of equal cards.

    A card that the catalog knows keeps the catalog's total when NVML's MiB agree with the entry; otherwise the total
    follows from NVML by `total_memory_from_nvidia_smi`. OutsideError without driver, GPU or package, or when the
    cards differ.
    """
    cards = _read_cards()
    if not cards:
        raise OutsideError("--gpus local: NVML sees no GPU on this machine")
    if len(set(cards)) > 1:
        names = ", ".join(sorted({name for name, _, _ in cards}))
        raise OutsideError(f"--gpus local: the cards differ ({names}); name the ones to plan for, for example l20:2")
    name, memory_mib, capability = cards[0]
    return GpuPool(spelling="local", gpu=_spec(catalog, name, memory_mib, capability), count=len(cards))


def _spec(catalog: HardwareCatalog, name: str, memory_mib: int, capability: tuple[int, int]) -> GpuSpec:
    try:
        known = catalog.find(name)
    except InputError:
        return GpuSpec(
            name=name,
            device_name=name,
            compute_capability=capability,
            nvidia_smi_mib=memory_mib,
            total_memory_bytes=total_memory_from_nvidia_smi(memory_mib),
            memory_evidence="derived",
            sources=("NVML of this machine",),
        )
    if known.nvidia_smi_mib in (None, memory_mib):
        return known
    total = total_memory_from_nvidia_smi(memory_mib)
    return known.model_copy(
        update={"nvidia_smi_mib": memory_mib, "total_memory_bytes": total, "memory_evidence": "derived"}
    )


def _read_cards() -> list[tuple[str, int, tuple[int, int]]]:
    """(driver's name, nvidia-smi MiB, compute capability) of each card. Units: MiB as nvidia-smi prints them."""
    try:
        import pynvml
    except ImportError:
        raise OutsideError("--gpus local needs the package nvidia-ml-py (pip install 'vplan[gpu]')") from None
    try:
        pynvml.nvmlInit()
        try:
            return [_read_card(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise OutsideError(f"--gpus local: NVML says {' '.join(str(error).split())}") from None


def _read_card(nvml: Any, index: int) -> tuple[str, int, tuple[int, int]]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    total_mib = nvml.nvmlDeviceGetMemoryInfo(handle).total // MIB
    return (name.decode() if isinstance(name, bytes) else str(name)), int(total_mib), (int(major), int(minor))
