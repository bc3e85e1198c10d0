"""The cards through NVML at one moment; a card that fell off the bus is told of, and the others are read."""

from __future__ import annotations

from typing import Any

from planner.monitor.sample import CardUse


class Cards:
    """NVML, opened once and opened again after it failed. Without package or driver there are no cards."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._open = False
        self._seen = 0
        try:
            import pynvml
        except ImportError:
            return
        self._nvml = pynvml

    def look(self) -> tuple[CardUse, ...]:
        if self._nvml is None:
            return ()
        if not self._open and not self._reopen():
            return tuple(CardUse(index=index, problem="NVML does not answer") for index in range(self._seen))
        try:
            self._seen = max(self._seen, int(self._nvml.nvmlDeviceGetCount()))
        except self._nvml.NVMLError:
            self.close()
        return tuple(self._card(index) for index in range(self._seen))

    def close(self) -> None:
        if self._open:
            self._open = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                return

    def _reopen(self) -> bool:
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError:
            return False
        self._open = True
        return True

    def _card(self, index: int) -> CardUse:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except self._nvml.NVMLError as error:
            return CardUse(index=index, problem=" ".join(str(error).split()))
        return CardUse(
            index=index,
            used_bytes=int(memory.used),
            total_bytes=int(memory.total),
            utilization_percent=self._utilization(handle),
            processes=self._processes(handle),
        )

    def _utilization(self, handle: Any) -> int | None:
        try:
            return int(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        except self._nvml.NVMLError:
            return None

    def _processes(self, handle: Any) -> tuple[tuple[int, int | None], ...]:
        try:
            entries = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except self._nvml.NVMLError:
            return ()
        return tuple((int(one.pid), None if one.usedGpuMemory is None else int(one.usedGpuMemory)) for one in entries)
