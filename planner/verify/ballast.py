"""Run as a program of its own: fill each device until only so many bytes are free, and hold that until stdin closes.

usage: python ballast.py LEAVE_BYTES DEVICES
Prints one line of JSON when it holds: {"held": [...], "free": [...], "total": [...]}. Uses the CUDA driver alone
(ctypes), so it needs no package. Plain allocations only; nothing is shared with another process.
"""

from __future__ import annotations

import ctypes
import json
import sys

_CHUNK_BYTES = 1 << 30
_GRAIN_BYTES = 2 << 20


class Driver:
    """The few calls of libcuda that it takes, each checked."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._call("cuInit", 0)

    def _call(self, name: str, *arguments: object) -> int:
        code = int(getattr(self._cuda, name)(*arguments))
        if code not in (0, 2):
            raise SystemExit(f"ballast: {name} failed with CUDA error {code}")
        return code

    def use(self, index: int) -> None:
        """Make the primary context of a visible device current."""
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), index)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the current device."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def take(self, size_bytes: int) -> bool:
        """Whether the device had that much."""
        pointer = ctypes.c_void_p()
        return self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size_bytes)) == 0


def fill(driver: Driver, leave_bytes: int) -> int:
    """Allocate on the current device until at most `leave_bytes` and a grain are free; the bytes taken."""
    held = 0
    while True:
        excess = driver.memory()[0] - leave_bytes
        if excess < _GRAIN_BYTES:
            return held
        size = min(_CHUNK_BYTES, excess // _GRAIN_BYTES * _GRAIN_BYTES)
        if not driver.take(size):
            raise SystemExit(f"ballast: the device refused {size} bytes with {excess + leave_bytes} free")
        held += size


def main() -> None:
    leave_bytes, devices = int(sys.argv[1]), int(sys.argv[2])
    driver = Driver()
    held, free, totals = [], [], []
    for index in range(devices):
        driver.use(index)
        before, total = driver.memory()
        if before < leave_bytes:
            raise SystemExit(f"ballast: device {index} has {before} bytes free, less than {leave_bytes}")
        held.append(fill(driver, leave_bytes))
        free.append(driver.memory()[0])
        totals.append(total)
    print(json.dumps({"held": held, "free": free, "total": totals}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
