"""A small card on a big one: the small card's byte budget, and ballast in the rest so that going over is a real
out-of-memory.

It proves what is a matter of bytes: the budget, the cache, startup, a full batch. It does not prove kernels, speed or
capabilities: those are the big card's.
"""

from __future__ import annotations

import contextlib
import json
import math
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from planner.errors import InputError, OutsideError

PROVES = "memory: the byte budget, the cache, startup and the requests on a card of this size"
PROVES_NOT = "kernels, speed and capabilities, which are those of the card in this machine"
_TIMEOUT_SECONDS = 120.0


class Ballast:
    """Another process that holds all but `leave_bytes` of each of the first `devices`; a context manager.

    `totals`: what CUDA reports as each device's memory. Raises OutsideError where the memory cannot be taken.
    """

    def __init__(self, leave_bytes: int, devices: int, env: Mapping[str, str]) -> None:
        self._argv = [sys.executable, "-I", str(Path(__file__).with_name("ballast.py")), str(leave_bytes), str(devices)]
        self._env = dict(env)
        self._process: subprocess.Popen[str] | None = None
        self.totals: tuple[int, ...] = ()
        self.held: tuple[int, ...] = ()

    def __enter__(self) -> Ballast:
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._env,
            start_new_session=True,
        )  # fmt: skip
        try:
            self._read_answer(self._process)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _read_answer(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        if not select.select([process.stdout], [], [], _TIMEOUT_SECONDS)[0]:
            raise OutsideError(f"the ballast did not hold within {_TIMEOUT_SECONDS:.0f} s")
        line = process.stdout.readline()
        if not line:
            process.wait(timeout=10)
            words = process.stderr.read().strip().splitlines()
            raise OutsideError(words[-1] if words else "the ballast ended without a word")
        answer = json.loads(line)
        self.totals, self.held = tuple(answer["total"]), tuple(answer["held"])

    def _end(self) -> None:
        """Closing its input ends it; its memory goes with it."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def utilization_for(requested_bytes: int, total_bytes: int) -> float:
    """The --gpu-memory-utilization under which the big card requests exactly the small card's bytes.

    Source: vLLM 0.26.0 v1/worker/utils.py:425: requested = ceil(total * utilization).
    """
    if requested_bytes > total_bytes:
        raise InputError(f"a card of {total_bytes} bytes cannot stand in for a request of {requested_bytes}")
    ratio = requested_bytes / total_bytes
    while math.ceil(total_bytes * ratio) > requested_bytes:
        ratio = math.nextafter(ratio, 0.0)
    while math.ceil(total_bytes * ratio) < requested_bytes:
        ratio = math.nextafter(ratio, 1.0)
    return ratio


def with_option(argv: Sequence[str], name: str, value: str) -> list[str]:
    """The command with one option set to a value, replacing what it had."""
    found: list[str] = []
    words = iter(argv)
    for word in words:
        if word == name:
            next(words, None)
        elif not word.startswith(name + "="):
            found.append(word)
    return [*found, name, value]
