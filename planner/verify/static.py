"""Ask the vLLM that is installed beside us whether it would take a command, without starting anything."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.errors import OutsideError

_TIMEOUT_SECONDS = 180


@dataclass(frozen=True, slots=True)
class ParserAnswer:
    """What the installed vLLM's own parser said. `refused` is its sentence, None where it takes the command."""

    vllm_version: str
    refused: str | None


def ask_installed_parser(python: str, argv: Sequence[str], env: Mapping[str, str]) -> ParserAnswer | None:
    """The answer of the vLLM in `python`; None where that Python has none (or one too old to be asked).

    `argv`: `vllm serve MODEL ...`. Raises OutsideError where `python` itself cannot run.
    """
    with tempfile.TemporaryDirectory(prefix="vplan-") as folder:
        script = Path(folder) / "static_probe.py"
        script.write_bytes(Path(__file__).with_name("static_probe.py").read_bytes())
        try:
            done = subprocess.run(
                [python, str(script), *argv[1:]], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS,
                env=dict(env), cwd=folder, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            raise OutsideError(f"cannot start {python}: {error.strerror or error}") from None
        except subprocess.TimeoutExpired:
            raise OutsideError(f"{python} took over {_TIMEOUT_SECONDS} s to import vLLM") from None
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        version = answer["vllm"]
    except (ValueError, IndexError, KeyError, TypeError):
        return None
    return None if version is None else ParserAnswer(str(version), answer["refused"])
