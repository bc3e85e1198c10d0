"""The notebooks run from top to bottom, their assertions included, and are kept with what they show."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
HINT = "run ./check tests tests/report/test_notebooks.py --rewrite and read the diff"


def _read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def _shown(notebook: dict[str, Any]) -> list[list[tuple[str, ...]]]:
    """What each code cell shows, by kind: the figures move with the planner's constants, the kinds do not. Lines
    printed count once: how many pieces they arrive in is the kernel's affair."""
    return [
        [
            kind
            for kind, _ in groupby(
                tuple(sorted(output.get("data", [output["output_type"]]))) for output in cell["outputs"]
            )
        ]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_notebook(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    work = tmp_path / "notebooks"
    shutil.copytree(FOLDER, work)
    arguments = [
        "--nbmake",
        "--nbmake-timeout=900",
        "--overwrite",
        name,
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--rootdir",
        ".",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], capture_output=True, text=True, timeout=1200, cwd=work
    )
    assert result.returncode == 0, result.stdout[-3000:]
    run = _read(work / name)
    if request.config.getoption("--rewrite"):
        _write(FOLDER / name, run)
    assert _shown(_read(FOLDER / name)) == _shown(run), HINT


def _write(path: Path, notebook: dict[str, Any]) -> None:
    """Outputs without the times and processes of this run."""
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        for output in cell.get("outputs", ()):
            output.get("metadata", {}).clear()
    notebook["metadata"] = {key: notebook["metadata"][key] for key in ("kernelspec",) if key in notebook["metadata"]}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_with_tables_and_pictures(name: str) -> None:
    kinds = {kind for cell in _shown(_read(FOLDER / name)) for output in cell for kind in output}
    assert {"text/plain", "image/png"} <= kinds
    assert "error" not in kinds
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert "/root/" not in text
    assert "/tmp/" not in text
    assert len(text) < 1_500_000


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_uses_the_documented_interface(name: str) -> None:
    """What it imports of planner is named in docs/reports.md or is a value that its functions take."""
    sources = ["".join(cell["source"]) for cell in _read(FOLDER / name)["cells"] if cell["cell_type"] == "code"]
    lines = [line for source in sources for line in source.splitlines() if line.startswith("from planner")]
    assert lines
    documented = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
    values = {"EngineArgs", "SearchOptions", "Workload"}
    for line in lines:
        for word in line.partition(" import ")[2].replace(",", " ").split():
            assert word in values or f"{word}" in documented, f"{word} is not documented"
