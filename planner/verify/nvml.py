"""What the driver says about memory: per device and per process, through NVML (package nvidia-ml-py)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """One device at one moment. `processes`: (process id, bytes), None where the driver hides the bytes."""

    index: int
    uuid: str
    total_bytes: int
    used_bytes: int
    processes: tuple[tuple[int, int | None], ...]


def read_devices() -> tuple[DeviceUse, ...] | None:
    """Every device of the machine; None where there is no driver or no package to ask it with."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return tuple(_read(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return None
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def visible(devices: tuple[DeviceUse, ...], cuda_visible_devices: str | None) -> tuple[DeviceUse, ...]:
    """The devices that CUDA_VISIBLE_DEVICES leaves, in its order."""
    if cuda_visible_devices is None:
        return devices
    found = []
    for item in (part.strip() for part in cuda_visible_devices.split(",")):
        if item.isdigit():
            found += [device for device in devices if device.index == int(item)]
        elif item:
            found += [device for device in devices if device.uuid.startswith(item)]
    return tuple(found)


def used_beyond(before: tuple[DeviceUse, ...], after: tuple[DeviceUse, ...]) -> tuple[int, ...]:
    """Growth of each device's used bytes, by its index."""
    earlier = {device.index: device.used_bytes for device in before}
    return tuple(device.used_bytes - earlier.get(device.index, 0) for device in after)


def _read(nvml: Any, index: int) -> DeviceUse:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    uuid = nvml.nvmlDeviceGetUUID(handle)
    processes: tuple[tuple[int, int | None], ...] = ()
    with contextlib.suppress(nvml.NVMLError):
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        processes = tuple((int(entry.pid), entry.usedGpuMemory) for entry in running)
    return DeviceUse(
        index=index,
        uuid=uuid.decode() if isinstance(uuid, bytes) else str(uuid),
        total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        processes=processes,
    )
