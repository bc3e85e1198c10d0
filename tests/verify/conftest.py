"""`vplan verify` as a process against the stand-in executable, and the proof that nothing of it is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "tests" / "data" / "logs"
MODELS = ROOT / "tests" / "data" / "measured_models"
FAKE = Path(__file__).with_name("fake_vllm.py")
MARK = "FAKE_VLLM_TEST"


@dataclass
class Fake:
    """One stand-in installation. `sent`: the requests it got; `pids`: it and its worker."""

    folder: Path
    token: str

    @property
    def sent(self) -> Path:
        return self.folder / "sent"

    @property
    def executable(self) -> Path:
        path = self.folder / "vllm"
        if not path.exists():
            path.write_text(f"#!{sys.executable}\n" + FAKE.read_text(encoding="utf-8").partition("\n")[2])
            path.chmod(0o755)
        return path

    def command(self, *args: str) -> list[str]:
        return [
            sys.executable, "-m", "planner", "verify", "--model", str(MODELS / "q25-7b-l4"), "--gpus", "h200:1",
            "--max-model-len", "8192", "--max-num-seqs", "256", "--max-num-batched-tokens", "8192",
            "--gpu-memory-utilization", "0.9", "--enforce-eager", "--offline", "--vllm", str(self.executable), *args,
        ]  # fmt: skip

    def environment(self, mode: str, log: str) -> dict[str, str]:
        return {
            **os.environ, "FAKE_VLLM_MODE": mode, "FAKE_VLLM_LOG": str(LOGS / log), "FAKE_VLLM_SENT": str(self.sent),
            "FAKE_VLLM_PIDS": str(self.folder / "pids"), MARK: self.token,
        }  # fmt: skip

    def start(self, mode: str, log: str, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env=self.environment(mode, log), start_new_session=True,
        )  # fmt: skip

    def run(self, mode: str, log: str, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args), capture_output=True, text=True, cwd=ROOT, timeout=90, env=self.environment(mode, log)
        )

    def wait_for_worker(self) -> None:
        deadline = time.monotonic() + 30
        while not (self.folder / "pids").exists() or not (self.folder / "pids").read_text():
            assert time.monotonic() < deadline, "the stand-in did not start"
            time.sleep(0.05)

    def alive(self) -> list[int]:
        """Every process of this machine whose environment carries the test's token."""
        mark = f"{MARK}={self.token}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    """Checks at the end of every test that no process of it is left."""
    installed = Fake(tmp_path, f"{os.getpid()}-{time.monotonic_ns()}")
    yield installed
    left = installed.alive()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"left running: {left}"


@pytest.fixture
def log_lines() -> Callable[[str], list[str]]:
    return lambda name: (LOGS / name).read_text(encoding="utf-8").splitlines()
