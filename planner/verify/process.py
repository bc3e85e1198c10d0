"""A child with everything it starts: in its own session, its output in a file, and gone for certain at the end."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

from planner.errors import OutsideError

TOKEN_VARIABLE = "VPLAN_VERIFY_RUN"
"""Set in the child's environment, so that its descendants are found wherever they put themselves."""
HUNG_PATIENCE_SECONDS = (3.0, 3.0, 10.0)
"""For a run that did not keep its time: there is little hope that it listens."""
_POLL_SECONDS = 0.05


class Supervised:
    """A process group under supervision; use it as a context manager.

    Leaving the block by any way (return, exception, Ctrl-C, SIGTERM, SIGHUP) ends the group and every descendant that
    left it: SIGINT to the leader, SIGTERM to the group, SIGKILL to all, with `patience_seconds` after each. Another
    Ctrl-C goes to the next step at once.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        cwd: Path,
    ) -> None:
        self.argv = list(argv)
        self.log = log
        self.cwd = cwd
        self.token = secrets.token_hex(8)
        self._env = {**env, TOKEN_VARIABLE: self.token}
        self.patience_seconds = (20.0, 10.0, 10.0)
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: IO[str] | None = None
        self._partial = ""
        self._handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Supervised:
        self._divert_signals()
        try:
            with self.log.open("wb") as sink:
                self._process = subprocess.Popen(
                    self.argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=self._env,
                    cwd=self.cwd, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            self._restore_signals()
            raise OutsideError(f"cannot start {self.argv[0]}: {error.strerror or error}") from None
        self._reader = self.log.open(encoding="utf-8", errors="replace")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            if self._reader is not None:
                self._reader.close()
            self._restore_signals()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while the leader runs."""
        assert self._process is not None
        return self._process.poll()

    def new_lines(self) -> list[str]:
        """Whole lines written since the last call; what follows the last line end waits, unless the leader ended."""
        assert self._reader is not None
        ended = self.exit_code() is not None
        text = self._partial + self._reader.read()
        lines = text.split("\n")
        self._partial = lines.pop()
        if ended and self._partial:
            lines.append(self._partial)
            self._partial = ""
        return lines

    def alive(self) -> list[int]:
        """Processes of the run that still exist: the group, and descendants that left it."""
        if self._process is not None:
            self._process.poll()
        return sorted({*_group_members(self.pid), *_bearers(self.token)})

    def stop(self) -> None:
        """End everything. Raises OutsideError if something survives SIGKILL (a process stuck in the driver)."""
        if self._process is None:
            return
        steps: tuple[Callable[[], None], ...] = (self._interrupt, self._terminate, self._kill)
        for step, seconds in zip(steps, self.patience_seconds, strict=True):
            if not self.alive():
                return
            if step == self._interrupt and self.exit_code() is not None:
                continue
            step()
            with contextlib.suppress(KeyboardInterrupt):
                self._wait_until_gone(seconds, again=self._kill if step == self._kill else None)
        left = self.alive()
        if left:
            raise OutsideError(f"processes {', '.join(map(str, left))} survived SIGKILL; look at them with `ps`")

    def _wait_until_gone(self, seconds: float, again: Callable[[], None] | None) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.alive():
            time.sleep(_POLL_SECONDS)
            if again is not None:
                again()

    def _interrupt(self) -> None:
        _signal(self.pid, signal.SIGINT)

    def _terminate(self) -> None:
        self._signal_all(signal.SIGTERM)

    def _kill(self) -> None:
        self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
        for pid in _bearers(self.token):
            _signal(pid, number)

    def _divert_signals(self) -> None:
        """SIGTERM and SIGHUP to this program leave the block as Ctrl-C does."""

        def leave(number: int, _: FrameType | None) -> None:
            raise KeyboardInterrupt

        for number in (signal.SIGTERM, signal.SIGHUP):
            with contextlib.suppress(ValueError):
                self._handlers[number] = signal.signal(number, leave)

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)
        self._handlers.clear()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _processes() -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _bearers(token: str) -> list[int]:
    """Processes that carry the token in their environment. A zombie shows none and is not counted."""
    mark = f"{TOKEN_VARIABLE}={token}".encode()
    found = []
    for entry in _processes():
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _group_members(group: int) -> list[int]:
    """Live members of a process group, zombies aside."""
    found = []
    for entry in _processes():
        try:
            state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(entry.name))
    return found
