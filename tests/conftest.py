"""Shared by all tests: the command as a real process, and golden files that `--rewrite` rewrites."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background of a shell, as some runners do
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="rewrite golden files instead of comparing with them")


@pytest.fixture(scope="session")
def vplan(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `vplan ARGS` as a process of its own, away from the user's configuration and the network."""

    mine = str(tmp_path_factory.mktemp("config"))

    def run(*args: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("VPLAN", "HF_"))}
        clean |= {"XDG_CONFIG_HOME": mine, "HF_HUB_OFFLINE": "1", **(env or {})}
        return subprocess.run(
            [sys.executable, "-m", "planner", *args],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=cwd or ROOT,
            env=clean,
        )

    return run


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Compare a JSON-able value with tests/golden/NAME, or write it there with `pytest --rewrite`."""

    def check(name: str, actual: Any) -> None:
        path = ROOT / "tests" / "golden" / name
        text = json.dumps(actual, indent=1, sort_keys=False) + "\n"
        if request.config.getoption("--rewrite"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.exists(), f"{path} is missing: run ./check tests --rewrite and read the result"
        assert json.loads(path.read_text(encoding="utf-8")) == json.loads(text), (
            f"{name} changed: rewrite with ./check tests --rewrite and read the diff"
        )

    return check
