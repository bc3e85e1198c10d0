"""What NVML tells of this machine: each card's memory, its processes, its health, its slices, and how cards connect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.errors import InputError, OutsideError
from planner.observed import Observed
from planner.sources.hardware_catalog import HardwareCatalog, total_memory_from_nvidia_smi
from planner.units import MIB

_MAX_LINKS = 18
_LEVELS = (
    ("NVML_TOPOLOGY_INTERNAL", "SELF"),
    ("NVML_TOPOLOGY_SINGLE", "PIX"),
    ("NVML_TOPOLOGY_MULTIPLE", "PXB"),
    ("NVML_TOPOLOGY_HOSTBRIDGE", "PHB"),
    ("NVML_TOPOLOGY_NODE", "NODE"),
    ("NVML_TOPOLOGY_SYSTEM", "SYS"),
)


class GpuProcess(Observed):
    """A process that holds memory of a card. `used_bytes`: None where the driver hides it (containers, WSL)."""

    pid: int
    name: str
    used_bytes: int | None


class MigSlice(Observed):
    """One MIG instance of a card, which CUDA sees as a card of its own."""

    uuid: str
    name: str
    total_bytes: int
    used_bytes: int


class GpuSurvey(Observed):
    """One card. `usable_bytes`: what CUDA will report as total, by the catalog where it knows the card and agrees with
    NVML, else derived from NVML (`usable_evidence`). `nvml_total_bytes`, `used_bytes`: as nvidia-smi counts them.
    None: the driver does not tell."""

    index: int
    name: str
    uuid: str
    compute_capability: tuple[int, int]
    nvml_total_bytes: int
    used_bytes: int
    usable_bytes: int
    usable_evidence: str
    catalog_name: str | None
    processes: tuple[GpuProcess, ...] = ()
    ecc_enabled: bool | None = None
    ecc_uncorrected: int | None = None
    mig_enabled: bool | None = None
    mig_slices: tuple[MigSlice, ...] = ()
    pcie_gen: int | None = None
    pcie_width: int | None = None
    nvlinks_up: int | None = None
    max_power_watts: int | None = None


class GpuLink(Observed):
    """How two cards reach each other. `path`: NVn for n NVLinks, else as nvidia-smi topo names it (PIX, PXB, PHB,
    NODE, SYS). `peer_access`: whether one can read the other's memory."""

    first: int
    second: int
    path: str
    peer_access: bool | None = None


class MachineSurvey(Observed):
    """This machine. `cuda_driver`: the newest CUDA that the driver runs, as 13.0."""

    driver: str | None
    cuda_driver: str | None
    gpus: tuple[GpuSurvey, ...]
    links: tuple[GpuLink, ...] = ()


def survey(catalog: HardwareCatalog) -> MachineSurvey:
    """Ask NVML for everything. OutsideError without package, driver or card."""
    try:
        import pynvml
    except ImportError:
        raise OutsideError("probe needs the package nvidia-ml-py (pip install 'vplan[gpu]')") from None
    try:
        pynvml.nvmlInit()
        try:
            return _survey(pynvml, catalog)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise OutsideError(f"NVML says {' '.join(str(error).split())}") from None


def _survey(nvml: Any, catalog: HardwareCatalog) -> MachineSurvey:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if not handles:
        raise OutsideError("NVML sees no GPU on this machine")
    cuda = _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    pairs = [(first, second) for second in range(len(handles)) for first in range(second)]
    return MachineSurvey(
        driver=_text(_ask(nvml, "nvmlSystemGetDriverVersion")),
        cuda_driver=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        gpus=tuple(_gpu(nvml, catalog, index, handle) for index, handle in enumerate(handles)),
        links=tuple(_link(nvml, handles, first, second) for first, second in sorted(pairs)),
    )


def _gpu(nvml: Any, catalog: HardwareCatalog, index: int, handle: Any) -> GpuSurvey:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    name = _text(nvml.nvmlDeviceGetName(handle)) or "?"
    usable, evidence, known = _usable(catalog, name, int(memory.total))
    ecc, mig = _ask(nvml, "nvmlDeviceGetEccMode", handle), _ask(nvml, "nvmlDeviceGetMigMode", handle)
    milliwatts = _ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)
    return GpuSurvey(
        index=index,
        name=name,
        uuid=_text(_ask(nvml, "nvmlDeviceGetUUID", handle)) or "?",
        compute_capability=(int(major), int(minor)),
        nvml_total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        usable_bytes=usable,
        usable_evidence=evidence,
        catalog_name=known,
        processes=_processes(nvml, handle),
        ecc_enabled=None if ecc is None else bool(ecc[0]),
        ecc_uncorrected=_uncorrected(nvml, handle) if ecc and ecc[0] else None,
        mig_enabled=None if mig is None else bool(mig[0]),
        mig_slices=_slices(nvml, handle) if mig and mig[0] else (),
        pcie_gen=_ask(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle),
        pcie_width=_ask(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle),
        nvlinks_up=_links_up(nvml, handle),
        max_power_watts=None if milliwatts is None else milliwatts // 1000,
    )


def _usable(catalog: HardwareCatalog, name: str, nvml_total_bytes: int) -> tuple[int, str, str | None]:
    mib = nvml_total_bytes // MIB
    try:
        known = catalog.find(name)
    except InputError:
        return total_memory_from_nvidia_smi(mib), "derived", None
    if known.nvidia_smi_mib in (None, mib):
        return known.total_memory_bytes, known.memory_evidence, known.name
    return total_memory_from_nvidia_smi(mib), "derived", known.name


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
    found: dict[int, GpuProcess] = {}
    for kind in ("Compute", "Graphics"):
        for entry in _ask(nvml, f"nvmlDeviceGet{kind}RunningProcesses", handle) or ():
            pid, used = int(entry.pid), entry.usedGpuMemory
            name = _text(_ask(nvml, "nvmlSystemGetProcessName", pid)) or _command_of(pid)
            found[pid] = GpuProcess(pid=pid, name=name, used_bytes=None if used is None else int(used))
    return tuple(found[pid] for pid in sorted(found))


def _command_of(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "?"


def _uncorrected(nvml: Any, handle: Any) -> int | None:
    """Uncorrected memory errors since the card was made."""
    kind, counter = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_AGGREGATE_ECC
    count = _ask(nvml, "nvmlDeviceGetTotalEccErrors", handle, kind, counter)
    return None if count is None else int(count)


def _slices(nvml: Any, handle: Any) -> tuple[MigSlice, ...]:
    found = []
    for index in range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        inner = _ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        memory = None if inner is None else _ask(nvml, "nvmlDeviceGetMemoryInfo", inner)
        if memory is not None:
            found.append(
                MigSlice(
                    uuid=_text(_ask(nvml, "nvmlDeviceGetUUID", inner)) or "?",
                    name=_text(_ask(nvml, "nvmlDeviceGetName", inner)) or "?",
                    total_bytes=int(memory.total),
                    used_bytes=int(memory.used),
                )
            )
    return tuple(found)


def _links_up(nvml: Any, handle: Any) -> int | None:
    """NVLinks of a card that are active; None where the card has none."""
    states = []
    for link in range(_MAX_LINKS):
        state = _ask(nvml, "nvmlDeviceGetNvLinkState", handle, link)
        if state is None:
            break
        states.append(int(state))
    return sum(states) if states else None


def _link(nvml: Any, handles: list[Any], first: int, second: int) -> GpuLink:
    one, other = handles[first], handles[second]
    read, over_nvlink = (
        _ask(nvml, "nvmlDeviceGetP2PStatus", one, other, getattr(nvml, f"NVML_P2P_CAPS_INDEX_{capability}", None))
        for capability in ("READ", "NVLINK")
    )
    level = _ask(nvml, "nvmlDeviceGetTopologyCommonAncestor", one, other)
    path = next((name for constant, name in _LEVELS if getattr(nvml, constant, -1) == level), "?")
    works = getattr(nvml, "NVML_P2P_STATUS_OK", 0)
    if over_nvlink == works:
        path = f"NV{_links_up(nvml, one) or ''}"
    return GpuLink(first=first, second=second, path=path, peer_access=None if read is None else read == works)


def _ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """An answer of NVML, or None where this card, driver or package has none."""
    try:
        return getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
