"""The cards through NVML at one moment; a card that fell off the bus is told of, and the others are read."""

from __future__ import annotations

import os
from typing import Any

from planner.errors import InputError
from planner.monitor.sample import CardUse


def parse_cards(text: str | None) -> tuple[int, ...] | None:
    """`0,2` as indices of NVML; without it those of CUDA_VISIBLE_DEVICES where it lists such, else None for all."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES", "") if text is None else text
    parts = [part.strip() for part in told.split(",")]
    if all(part.isascii() and part.isdigit() for part in parts):
        return tuple(sorted({int(part) for part in parts}))
    if text is None:
        return None
    raise InputError(f"--cards: write indices as nvidia-smi shows them, 0,1, not {text!r}")


class Cards:
    """NVML, opened once and opened again after it failed. Without package or driver there are no cards.

    `only`: the cards to look at, None for all of the machine.
    """

    def __init__(self, only: tuple[int, ...] | None = None) -> None:
        self._only = only
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
            return tuple(CardUse(index=index, problem="NVML does not answer") for index in self._indices())
        try:
            self._seen = max(self._seen, int(self._nvml.nvmlDeviceGetCount()))
        except self._nvml.NVMLError:
            self.close()
        return tuple(self._card(index) for index in self._indices())

    def _indices(self) -> tuple[int, ...]:
        return tuple(range(self._seen)) if self._only is None else self._only

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
