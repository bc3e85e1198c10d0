"""Every HTML page in a real browser: nothing on its console, nothing asked of a network, nothing wider than it."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from planner.cli.main import main
from tests.report.browser import NAMES, Browser, browser, installed

pytestmark = pytest.mark.skipif(installed() is None, reason=f"no browser here: none of {', '.join(NAMES)} on PATH")

SMALL = [
    "--model",
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "--gpus",
    "a10:1",
    "--offline",
    "--max-model-len",
    "8192",
    "--gpu-memory-utilization",
    "0.8",
]
COMMANDS = {
    "report": ["report", *SMALL, "--dtypes", "auto,kv:fp8", "--batch-sizes", "8,64"],
    "sweep": ["sweep", *SMALL[:5], "--x", "max-model-len=4k,64k", "--y", "gpu-memory-utilization=0.5,0.9"],
    "select": ["select", *SMALL[:2], "--offline", "--max-model-len", "8192", "--concurrency", "8", "--only", "a10,l20"],
    "compare": ["compare", "version=0.26.0", "version=0.33.0", *SMALL],
}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_the_browser_tells_what_is_wrong(tab: Browser, tmp_path: Path) -> None:
    """The other tests would see an error, a request and a page that is too wide."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<img src='https://example.invalid/x.png'><script>console.error('boom');no.such()</script>"
        "<div style='width:3000px'>wide</div>"
    )
    seen = tab.visit(page)
    assert "https://example.invalid/x.png" in seen.requests
    assert any("boom" in error for error in seen.errors)
    assert len(seen.errors) >= 2
    assert seen.scroll_width == 3000 + 8
    assert seen.broken_images == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_page(name: str, tab: Browser, tmp_path: Path) -> None:
    assert main([*COMMANDS[name], "--output-dir", str(tmp_path), *_quiet(name, tmp_path)]) == 0
    page = tmp_path / f"{name}.html"
    pictures = {}
    for dark in (False, True):
        seen = tab.visit(page, dark=dark)
        assert seen.errors == []
        assert [address for address in seen.requests if not address.startswith("data:")] == [page.as_uri()]
        assert seen.broken_images == 0
        assert seen.scroll_width <= 1000
        pictures[dark] = np.asarray(Image.open(BytesIO(seen.screenshot)).convert("L"), dtype=float)
    light, dark_picture = pictures[False], pictures[True]
    assert light.shape[0] > 800, "the page is nearly empty"
    assert light.mean() > 200
    assert dark_picture.mean() < 80
    assert tab.visit(page, width=420).scroll_width <= 420, "a phone's window has to be scrolled sideways"


def _quiet(name: str, folder: Path) -> list[str]:
    return ["--output", str(folder / "answer.txt")] if name in ("select", "compare") else []
