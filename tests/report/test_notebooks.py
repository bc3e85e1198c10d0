"""The notebooks run from top to bottom, their assertions included."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("notebook", sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_notebook(notebook: str) -> None:
    arguments = ["--nbmake", notebook, "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", "."]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT / "notebooks",
    )
    assert result.returncode == 0, result.stdout[-3000:]
