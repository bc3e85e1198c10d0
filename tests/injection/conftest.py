"""A sandbox: a folder with programs that only write down how they were called, and a module `vllm` that does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

TRAPS = ("touch", "rm", "tee", "id")
PROGRAMS = ("vllm", "docker", "xinference", "xinference-local", "hf", "modelscope", "ray", *TRAPS)
RECORDER = r"""#!/bin/sh
printf '%s\0' "${0##*/}" "${VLLM_X-}" "$#" "$@" >>"$RECORD"
"""
MODULE = """
import json, os
class SamplingParams:
    def __init__(self, **values): pass
class _Text:
    text = ""
class _Answer:
    outputs = [_Text()]
class LLM:
    def __init__(self, **values):
        with open(os.environ["RECORD"], "w") as out:
            json.dump([values, os.environ["VLLM_X"]], out)
    def chat(self, *ignored):
        return [_Answer()]
"""
Call = tuple[str, list[str], str]


def calls_of(record: bytes) -> list[Call]:
    """(program, arguments, VLLM_X) of every call."""
    words = record.decode("utf-8").split("\0")[:-1]
    calls: list[Call] = []
    while words:
        count = int(words[2])
        calls.append((words[0], words[3 : 3 + count], words[1]))
        del words[: 3 + count]
    return calls


class Sandbox:
    """Runs a form and returns what was recorded. A file that appears, or a call of `touch`'s kind, is a failure."""

    def __init__(self, folder: Path) -> None:
        self.work, self._bin, self._record = folder / "work", folder / "bin", folder / "record"
        self._library = folder / "library"
        for made in (self.work, self._bin, self._library):
            made.mkdir()
        for name in PROGRAMS:
            program = self._bin / name
            program.write_text(RECORDER)
            program.chmod(0o700)
        (self._library / "vllm.py").write_text(MODULE)

    def shell(self, text: str) -> list[Call]:
        subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=20)
        calls = calls_of(self._run(["/bin/sh"], text))
        assert not [call for call in calls if call[0] in TRAPS]
        return calls

    def python(self, text: str) -> tuple[dict[str, Any], str]:
        """The arguments of `LLM(...)` and VLLM_X."""
        values, variable = json.loads(self._run([sys.executable, "-B", "-"], text))
        return values, variable

    def _run(self, command: list[str], text: str) -> bytes:
        self._record.write_bytes(b"")
        environment = {
            "PATH": f"{self._bin}:{os.environ['PATH']}", "RECORD": str(self._record), "HOME": "/home/someone",
            "PYTHONPATH": str(self._library),
        }  # fmt: skip
        before = sorted(self.work.iterdir())
        done = subprocess.run(
            command, input=text, text=True, env=environment, cwd=self.work, capture_output=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(self.work.iterdir()) == before
        return self._record.read_bytes()


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return Sandbox(tmp_path_factory.mktemp("sandbox"))
